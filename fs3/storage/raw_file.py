"""The files that blocks lie in: the port to the operating system, so that the simulator can lose what was not synced.

A block file has its full length from its creation, is mapped once for reading, and is written and read by position.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

_IOVECS = 512


class RawFile(Protocol):
    """One open file. Everything but `close` may be called from any thread and raises OSError."""

    @property
    def path(self) -> str:
        """For messages."""

    @property
    def fd(self) -> int:
        """A descriptor open for reading and writing; -1 where there is none."""

    @property
    def view(self) -> memoryview:
        """The whole file, mapped for reading; it shows what is written later."""

    def write(self, parts: Sequence[memoryview], position: int) -> None:
        """Put all of `parts`, one after the other, at `position`."""

    def read(self, out: memoryview, position: int) -> int:
        """Fill the beginning of `out`; how many bytes, 0 at the end of the file."""

    def allocate(self, position: int, length: int) -> None:
        """Have the disk reserve this part; what it holds does not change."""

    def sync(self) -> None:
        """What was written before is on stable storage after."""

    def close(self) -> None:
        """The mapping goes when the last view of it does."""


class FileFolder(Protocol):
    """The folder that block files lie in."""

    def names(self) -> list[str]:
        """The files there, sorted."""

    def create(self, name: str, size: int, header: bytes) -> RawFile:
        """A file of `size` bytes that begins with `header`, durable under its name. Raises: OSError."""

    def open(self, name: str) -> RawFile:
        """Raises: OSError."""


class SystemFile:
    """A `RawFile` of the operating system; owns `fd`."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = str(path)
        self.fd = fd
        self._map = mmap.mmap(fd, os.fstat(fd).st_size, access=mmap.ACCESS_READ)
        self.view = memoryview(self._map)

    def write(self, parts: Sequence[memoryview], position: int) -> None:
        left = list(parts)
        while left:
            done = os.pwritev(self.fd, left[:_IOVECS], position)
            position += done
            while left and done >= len(left[0]):
                done -= len(left.pop(0))
            if done:
                left[0] = left[0][done:]

    def read(self, out: memoryview, position: int) -> int:
        return os.preadv(self.fd, [out], position)

    def allocate(self, position: int, length: int) -> None:
        os.posix_fallocate(self.fd, position, length)

    def sync(self) -> None:
        os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)


class SystemFolder:
    """A `FileFolder` of the operating system."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        return sorted(path.name for path in self._path.glob("*.blk"))

    def create(self, name: str, size: int, header: bytes) -> RawFile:
        path = self._path / name
        # Under another name until it is whole, so that a crash leaves no file that cannot be opened.
        draft = path.with_suffix(".new")
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(fd, size)
            os.pwrite(fd, header, 0)
            os.fsync(fd)
            os.rename(draft, path)
            sync_folder(self._path)
            return SystemFile(path, fd)
        except BaseException:
            os.close(fd)
            raise

    def open(self, name: str) -> RawFile:
        path = self._path / name
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return SystemFile(path, fd)
        except BaseException:
            os.close(fd)
            raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises: OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
