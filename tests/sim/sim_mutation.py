"""A mistake put into the production code while it is imported: one small patch, in one process, nothing on disk.

`install` must run before any module of fs3 is imported. A patch names its text exactly; a text that does not occur
exactly once is an error, so a patch can never quietly stop to apply.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Patch:
    """In `path` (from the repository's root), `before` becomes `after`."""

    path: str
    before: str
    after: str

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").replace("/", ".")

    def applied(self, source: str) -> str:
        """The patched source. Raises: ValueError: the text does not occur exactly once."""
        count = source.count(self.before)
        if count != 1:
            raise ValueError(f"{self.path}: the text to change occurs {count} times:\n{self.before}")
        return source.replace(self.before, self.after)


@dataclass(frozen=True)
class Mutant:
    """A mistake. `bug` is the number of the 3FS bug that it puts back, if it is one of those; `faults` are kinds of
    faults in whose company it should show: seeds that have them as their pair (sim_pairs.py) are tried first."""

    name: str
    breaks: str
    patches: tuple[Patch, ...]
    bug: int = 0
    faults: tuple[str, ...] = ()


def patched(mutant: Mutant) -> dict[str, str]:
    """The sources that a mutant changes, by path, changed. Raises: ValueError: a patch does not apply."""
    sources: dict[str, str] = {}
    for patch in mutant.patches:
        source = sources.get(patch.path) or (ROOT / patch.path).read_text(encoding="utf-8")
        sources[patch.path] = patch.applied(source)
    return sources


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the patched source; takes and leaves no cached bytecode."""

    def __init__(self, fullname: str, path: str, patches: Sequence[Patch]) -> None:
        super().__init__(fullname, path)
        self._patches = patches

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text(encoding="utf-8")
        for patch in self._patches:
            source = patch.applied(source)
        code = self.source_to_code(source.encode(), self.path)
        assert isinstance(code, CodeType)
        return code


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, patches: Sequence[Patch]) -> None:
        self._patches = patches

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        mine = [patch for patch in self._patches if patch.module == fullname]
        if not mine:
            return None
        file = str(ROOT / mine[0].path)
        return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(fullname, file, mine))


def install(mutant: Mutant) -> None:
    """Have this process import the mutant. Raises: RuntimeError: a module to patch is imported already."""
    early = [patch.module for patch in mutant.patches if patch.module in sys.modules]
    if early:
        raise RuntimeError(f"{', '.join(early)}: imported before the mutant was installed")
    sys.meta_path.insert(0, _Finder(mutant.patches))
