"""The file objects that `Fs3FileSystem.open` hands out.

A reader passes large reads straight into the caller's buffer; small ones are served from one read-ahead buffer, so that
parsers which nibble do not cost a request each. A writer's file gets its name when it is closed: readers see the old
file or the whole new one, and a writer that fails or is forgotten leaves nothing.
"""

from __future__ import annotations

import io
from types import TracebackType
from typing import Protocol

import numpy as np

from fs3.checksum import flat
from fs3.client.file import FileClient, OpenFile
from fs3.client.writer import FileWriter
from fs3.errors import Fs3Error, to_os_error
from fs3.filesystem.os_errors import os_errors
from fs3.inode import Inode

READ_AHEAD_BYTES = 1 << 20


class Owner(Protocol):
    """What the file objects need of the filesystem that made them."""

    @property
    def file_client(self) -> FileClient: ...

    def invalidate_cache(self, path: str | None = None) -> None: ...


def sought(path: str, offset: int, whence: int, *, at: int, size: int) -> int:
    """Where `seek` goes to. Raises: ValueError: before the beginning, or there is no such `whence`."""
    bases = {io.SEEK_SET: 0, io.SEEK_CUR: at, io.SEEK_END: size}
    if whence not in bases:
        raise ValueError(f"{path}: cannot seek from {whence!r}: 0 is the beginning, 1 the position, 2 the end")
    if bases[whence] + offset < 0:
        raise ValueError(f"{path}: cannot seek to {bases[whence] + offset}")
    return bases[whence] + offset


class ReadFile(io.BufferedIOBase):
    """A file open for reading; not shared between threads."""

    mode = "rb"

    def __init__(self, fs: Owner, handle: OpenFile, path: str, read_ahead: int = READ_AHEAD_BYTES) -> None:
        self.fs = fs
        self.path = path
        self.size = handle.length
        self._handle = handle
        self._at = 0
        self._ahead = memoryview(b"")
        self._ahead_at = 0
        self._ahead_bytes = read_ahead

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = sought(self.path, offset, whence, at=self._at, size=self.size)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` from the current position; returns how many bytes the file still had for it."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        view = flat(buffer)
        wanted = max(0, min(len(view), self.size - self._at))
        done = self._from_ahead(view[:wanted])
        if wanted - done >= self._ahead_bytes:
            self._fetch(self._at + done, view[done:wanted])
            done = wanted
        elif done < wanted:
            at = self._at + done
            ahead = memoryview(bytearray(min(self._ahead_bytes, self.size - at)))
            self._fetch(at, ahead)
            self._ahead, self._ahead_at = ahead, at  # both or neither: a read that fails may be tried again
            view[done:wanted] = ahead[: wanted - done]
            done = wanted
        self._at += done
        return done

    readinto1 = readinto  # type: ignore[assignment]

    def read(self, size: int | None = -1) -> bytes:
        return bytes(self.read_buffer(size))

    def read_buffer(self, size: int | None = -1) -> bytearray:
        """As `read`, without a copy at the end; what pyarrow looks for in a Python file."""
        rest = max(0, self.size - self._at)
        out = bytearray(rest if size is None or size < 0 else min(size, rest))
        self.readinto(out)
        return out

    def read1(self, size: int = -1) -> bytes:
        return self.read(size if size >= 0 else self._ahead_bytes)

    def info(self) -> dict[str, object]:
        """Name, size and type, as fsspec's files tell them."""
        return {"name": self.path, "size": self.size, "type": "file"}

    def _from_ahead(self, view: memoryview) -> int:
        begin = self._at - self._ahead_at
        if not 0 <= begin < len(self._ahead):
            return 0
        part = self._ahead[begin : begin + len(view)]
        view[: len(part)] = part
        return len(part)

    def _fetch(self, offset: int, view: memoryview) -> None:
        try:
            self.fs.file_client.read_batch(
                [self._handle],
                np.zeros(1, dtype=np.int32),
                np.array([offset], dtype=np.int64),
                np.array([len(view)], dtype=np.int64),
                view,
            )
        except Fs3Error as error:
            raise to_os_error(error, self.path) from error


class WriteFile(io.BufferedIOBase):
    """A new file: written once, from beginning to end, published by `close` (or by `commit`, in a transaction)."""

    mode = "wb"

    def __init__(self, fs: Owner, writer: FileWriter, path: str, *, autocommit: bool = True) -> None:
        self.fs = fs
        self.path = path
        self.autocommit = autocommit
        self._writer = writer
        self._at = 0
        self._settled = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._at

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        """Take all of `data`; blocks while too many chunks are under way."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        view = flat(data)
        try:
            self._writer.write(view)
        except Fs3Error as error:
            self.discard()
            raise to_os_error(error, self.path) from error
        self._at += len(view)
        return len(view)

    def commit(self) -> None:
        """Give the file its name; everything written is durable first."""
        if self._settled:
            return
        self._settled = True
        try:
            with os_errors(self.path):
                self._writer.close()
        except BaseException:  # an interrupt, too: nobody would end the session
            self._writer.abandon()
            raise
        finally:
            self.fs.invalidate_cache(self.path)

    @property
    def settled(self) -> bool:
        """Whether it was published or given up."""
        return self._settled

    @property
    def writer(self) -> FileWriter:
        """What writes it, for whoever publishes many files at once; they tell `published` then."""
        return self._writer

    def published(self, inode: Inode) -> None:
        """It has its name."""
        self._settled = True
        self._writer.published(inode)
        self.fs.invalidate_cache(self.path)

    def discard(self) -> None:
        """Give up what was written; an older file of this name stays."""
        if not self._settled:
            self._settled = True
            self._writer.abandon()

    def close(self) -> None:
        if self.closed:
            return
        try:
            if self.autocommit:
                self.commit()
        finally:
            super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        # A writer nobody closed was interrupted: what it wrote so far must not pass for a file.
        if hasattr(self, "_writer") and not self.closed and self.autocommit:
            self.discard()
