"""Directories and names through fsspec: made, moved and removed, each by one call of the metadata service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from glob import has_magic
from typing import TYPE_CHECKING, Any

from fsspec.spec import AbstractFileSystem

from fs3.client.connect import Client
from fs3.client.trash import TRASH
from fs3.errors import IsADirectory, NotFound
from fs3.filesystem.os_errors import is_answer, os_errors
from fs3.inode import InodeType
from fs3.layout import LayoutChoice


class TreeFace:
    """A part of `Fs3FileSystem`."""

    _strip_protocol: Callable[[str], str]

    if TYPE_CHECKING:

        @property
        def client(self) -> Client: ...

        def lexists(self, path: str, **_: Any) -> bool: ...

        def exists(self, path: str, **_: Any) -> bool: ...

        def info(self, path: str, **_: Any) -> dict[str, Any]: ...

        def glob(self, path: str, **_: Any) -> Any: ...

    def isdir(self, path: str) -> bool:
        return self._kind(path) == "directory"

    def isfile(self, path: str) -> bool:
        return self._kind(path) == "file"

    def _kind(self, path: str) -> str | None:
        """Raises: OSError: the cluster does not tell."""
        try:
            return str(self.info(path)["type"])
        except OSError as error:
            if not is_answer(error):
                raise
            return None

    def walk(
        self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = "omit", **options: Any
    ) -> Iterator[tuple[str, Any, Any]]:
        """As fsspec's, and below it `find` and `glob`. To "omit" a directory takes a reason that lies in it: that the
        cluster does not answer is raised, for else a part would pass for all."""
        on_error = _omit if on_error == "omit" else on_error
        found: Iterator[tuple[str, Any, Any]] = AbstractFileSystem.walk(
            self, path, maxdepth, topdown, on_error, **options
        )
        return found

    def mkdir(
        self, path: str, create_parents: bool = True, *, layout: LayoutChoice | None = None, mode: int = 0o755, **_: Any
    ) -> None:
        """Make a directory; `layout` is what new files in it get, where it differs from the parent's."""
        path = self._strip_protocol(path)
        with os_errors(path):
            try:
                self.client.meta.mkdir(path, parents=False, mode=mode, layout=layout)
            except NotFound:
                if not create_parents:
                    raise
                self.client.meta.mkdir(path, parents=True, mode=mode, layout=layout)

    def makedirs(
        self, path: str, exist_ok: bool = False, *, layout: LayoutChoice | None = None, mode: int = 0o755
    ) -> None:
        path = self._strip_protocol(path)
        if not exist_ok and self.exists(path):
            raise FileExistsError(17, "it exists already", path)
        with os_errors(path):
            if path != "/":
                self.client.meta.mkdir(path, parents=True, mode=mode, layout=layout)

    def rmdir(self, path: str) -> None:
        path = self._strip_protocol(path)
        with os_errors(path):
            self.client.meta.remove(path, must_be=InodeType.DIRECTORY)

    def rm_file(self, path: str) -> None:
        path = self._strip_protocol(path)
        with os_errors(path):
            self.client.meta.remove(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files and, if `recursive`, directories with all that is in them; a tree goes in one operation.

        A symlink goes itself, whatever it leads to. A name that is there is no pattern.
        """
        for name in [found for one in several(path) for found in self._matching(one)]:
            stripped = self._strip_protocol(name)
            with os_errors(stripped):
                if not recursive and self.client.meta.stat_one(stripped, follow=False).is_directory:
                    raise IsADirectory(f"{stripped} is a directory; remove it with recursive=True")
                self.client.meta.remove(stripped, recursive=recursive)

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **_: Any) -> None:
        """One atomic rename; into `path2` if that is a directory, over it if it is a file.

        "a/" means what is in a, as it does when fsspec copies: it goes to "b" itself, which may be an empty directory.
        """
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        into = not str(path1).endswith("/") if self.isdir(target) else str(path2).endswith("/") and self.isfile(source)
        if into:
            target = f"{target.rstrip('/')}/{source.rpartition('/')[2]}"
        if source != target:
            with os_errors(source):
                self.client.meta.rename(source, target)

    def rename(self, path1: str, path2: str, **_: Any) -> None:
        """One atomic rename, exactly from the one name to the other."""
        with os_errors(path1):
            self.client.meta.rename(self._strip_protocol(path1), self._strip_protocol(path2))

    def _matching(self, name: str) -> list[str]:
        """The name itself if it is there; else what it matches as a pattern, without the trash."""
        if not has_magic(str(name)) or self.lexists(name):
            return [name]
        return [one for one in self.glob(name) if one != TRASH] or [name]


def _omit(error: OSError) -> None:
    if not is_answer(error):
        raise error


def several(path: Any) -> list[str]:
    """One or more paths, as fsspec takes them, in a list."""
    return list(path) if isinstance(path, (list, tuple)) else [path]
