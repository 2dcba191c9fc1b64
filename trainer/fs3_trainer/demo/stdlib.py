"""Real text that is on every machine with a Python: the source of its standard library."""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from fs3_trainer.demo.outcome import FellShort

# Other people's packages, tests, and tables rather than programs.
LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
    | {"encodings", "pydoc_data", "__pycache__"}
)


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied."""

    files: int
    bytes: int


def copy_standard_library(destination: Path, packages: tuple[str, ...] | None = None) -> Copied:
    """Copy the source of the standard library, or of some of its packages, into `destination`; no empty files.

    Raises: FellShort if this Python came without its source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = num_bytes = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT and not name.startswith("config-"))
        here = Path(folder).relative_to(root)
        if packages is not None and here == Path("."):
            folders[:] = [name for name in folders if name in packages]
            continue
        for name in sorted(names):
            source = root / here / name
            if source.suffix == ".py" and source.stat().st_size:
                (destination / here).mkdir(parents=True, exist_ok=True)
                num_bytes += Path(shutil.copyfile(source, destination / here / name)).stat().st_size
                files += 1
    if not files:
        raise FellShort(f"{root} holds no Python source; run the demo with a Python that has its standard library")
    return Copied(files, num_bytes)
