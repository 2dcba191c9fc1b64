"""Folders to compare metadata on: a local one through fsspec, and any mounted one by plain calls of the system.

Each does the same one thing a call, on empty files. Those to be removed are made beforehand, outside the measured time.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol

from fsspec.implementations.local import LocalFileSystem

THERE = 1_000  # files that a folder has from the beginning
MOVED = "moved"


class Folder(Protocol):
    """Single calls on one folder; each says how much that was, and takes the number of the step."""

    def create(self, number: int) -> float: ...
    def stat(self, number: int) -> float: ...
    def open(self, number: int) -> float: ...

    def rename(self, number: int) -> float:
        """There and back again."""
        ...

    def unlink(self, number: int) -> float:
        """One of those that `doom` made."""
        ...

    def doom(self, count: int) -> None:
        """Make files that will be removed."""
        ...


class FsspecFolder:
    """A local folder through fsspec's `LocalFileSystem`, which answers from the page cache and syncs nothing."""

    def __init__(self, path: Path) -> None:
        """`path` is to be made."""
        path.mkdir()
        self.path = path
        self.local = LocalFileSystem()
        self._fresh = (str(path / name) for name in fresh_names())
        self._doomed: list[str] = []
        self._there = [str(path / there_name(number)) for number in range(THERE)]
        for one in self._there:
            self.local.touch(one)

    def create(self, _: int) -> float:
        self.local.touch(next(self._fresh))
        return 1

    def write(self, data: bytes) -> float:
        """A file with content."""
        self.local.pipe_file(next(self._fresh), data)
        return 1

    def stat(self, number: int) -> float:
        self.local.info(self._there[number % THERE])
        return 1

    def open(self, number: int) -> float:
        self.local.open(self._there[number % THERE], "rb").close()
        return 1

    def rename(self, number: int) -> float:
        path, other = self._there[number % THERE], str(self.path / MOVED)
        self.local.mv(path, other)
        self.local.mv(other, path)
        return 2

    def unlink(self, _: int) -> float:
        self.local.rm_file(self._doomed.pop())
        return 1

    def doom(self, count: int) -> None:
        for _ in range(count):
            self._doomed.append(next(self._fresh))
            self.local.touch(self._doomed[-1])


class MountedFolder:
    """A new directory on whatever is mounted, by single calls of the system relative to its descriptor, until the exit.

    `synced`: the directory is synced after every call that changes it, which makes the change durable on ext4 and XFS.
    """

    def __init__(self, parent: int, name: str, *, files: int = THERE, synced: bool = False) -> None:
        """`parent`: a descriptor of the directory in which it is to be made, with so many `files`; it is left there."""
        os.mkdir(name, dir_fd=parent)
        self._folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=parent)
        self._synced = synced
        self._fresh = fresh_names()
        self._doomed: list[str] = []
        self._there = [there_name(number) for number in range(files)]
        for one in self._there:
            self._make(one)

    def __enter__(self) -> MountedFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._folder)

    def create(self, _: int) -> float:
        self._make(next(self._fresh))
        self._sync()
        return 1

    def create_many(self, count: int) -> float:
        """Synced, if at all, when all are there."""
        for _ in range(count):
            self._make(next(self._fresh))
        self._sync()
        return count

    def stat(self, number: int) -> float:
        os.stat(self._there[number % len(self._there)], dir_fd=self._folder)
        return 1

    def open(self, number: int) -> float:
        os.close(os.open(self._there[number % len(self._there)], os.O_RDONLY, dir_fd=self._folder))
        return 1

    def rename(self, number: int) -> float:
        name = self._there[number % len(self._there)]
        for old, new in ((name, MOVED), (MOVED, name)):
            os.rename(old, new, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._sync()
        return 2

    def unlink(self, _: int) -> float:
        os.unlink(self._doomed.pop(), dir_fd=self._folder)
        self._sync()
        return 1

    def doom(self, count: int) -> None:
        for _ in range(count):
            self._doomed.append(next(self._fresh))
            self._make(self._doomed[-1])

    def list(self, _: int) -> float:
        """Every entry with its attributes."""
        with os.scandir(self._folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_nlink > 0 for entry in entries)

    def _make(self, name: str) -> None:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self._folder))

    def _sync(self) -> None:
        if self._synced:
            os.fsync(self._folder)


def there_name(number: int) -> str:
    """Of a file that is there from the beginning."""
    return f"there-{number:04}"


def fresh_names() -> Iterator[str]:
    """Names of files that are not there yet."""
    return (f"new-{number}" for number in itertools.count())
