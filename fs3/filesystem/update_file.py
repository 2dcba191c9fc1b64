"""The file objects that `Fs3FileSystem.open` hands out for writing in place: "ab" and "r+b".

What is written is seen by whoever opens the file after a `flush` or `close`. Leaving a `with` block by an exception
ends it there and then: what an append wrote since the last flush does not appear, unless a renewal has told of it.
Nobody else can write the file meanwhile. One that is not there is made, empty, when it is opened "ab".
"""

from __future__ import annotations

import io
from types import TracebackType

import numpy as np

from fs3.checksum import flat
from fs3.client.updater import FileUpdater
from fs3.filesystem.files import Owner, sought
from fs3.filesystem.os_errors import os_errors


class UpdateFile(io.BufferedIOBase):
    """A file open for writing in place; not shared between threads. Mode "ab" writes at the end only."""

    autocommit = True  # there are none in transactions

    def __init__(self, fs: Owner, updater: FileUpdater, path: str, mode: str) -> None:
        self.fs = fs
        self.path = path
        self.mode = mode
        self._updater = updater
        self._at = updater.length if mode == "ab" else 0

    @property
    def size(self) -> int:
        """With all that was written."""
        return self._updater.length

    def readable(self) -> bool:
        return self.mode == "r+b"

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.mode == "r+b"

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if not self.seekable():
            raise io.UnsupportedOperation(f"{self.path}: a file open for appending has no other place than its end")
        self._at = sought(self.path, offset, whence, at=self._at, size=self.size)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` from the current position; returns how many bytes the file still had for it."""
        self._check_open()
        if not self.readable():
            raise io.UnsupportedOperation(f"{self.path}: is open for appending only; open it 'r+b' or 'rb'")
        view = flat(buffer)
        count = max(0, min(len(view), self.size - self._at))
        if count:
            with os_errors(self.path):
                client = self.fs.file_client
                where = np.zeros(1, dtype=np.int64), np.array([self._at]), np.array([count])
                client.read_batch([client.opened(self._updater)], *where, view[:count])
            self._at += count
        return count

    readinto1 = readinto  # type: ignore[assignment]

    def read(self, size: int | None = -1) -> bytes:
        rest = max(0, self.size - self._at)
        out = bytearray(rest if size is None or size < 0 else min(size, rest))
        self.readinto(out)
        return bytes(out)

    read1 = read

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        """Take all of `data`; a gap before it becomes zeros. Blocks while too many chunks are under way."""
        self._check_open()
        if self.mode == "ab":
            self._at = self._updater.length  # where the end is now: it may have been made shorter
        with os_errors(self.path):
            count = self._updater.write(self._at, data)
        self._at += count
        return count

    def truncate(self, size: int | None = None) -> int:
        """Make the file `size` bytes long, or as long as the current position says; readers see it at once."""
        self._check_open()
        wanted = self._at if size is None else size
        with os_errors(self.path):
            self._updater.truncate(wanted)
        return wanted

    def flush(self, force: bool = False) -> None:
        """What was written is durable, and seen by whoever opens the file from now on."""
        if not self._updater.ended:
            with os_errors(self.path):
                self._updater.sync()

    def info(self) -> dict[str, object]:
        """Name, size and type, as fsspec's files tell them."""
        return {"name": self.path, "size": self.size, "type": "file"}

    def discard(self) -> None:
        """End it there and then, as a `with` block that fails does."""
        self._updater.abandon()

    def close(self) -> None:
        if self.closed:
            return
        try:
            with os_errors(self.path):
                self._updater.close()
        finally:
            self._updater.abandon()
            self.fs.invalidate_cache(self.path)
            super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def __del__(self) -> None:
        if hasattr(self, "_updater") and not self.closed:
            self.discard()
