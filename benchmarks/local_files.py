"""The machine's limits on local files: `preadv` from the page cache, and writes made durable by `fdatasync`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

from benchmarks.rounds import Timed


class LocalFile:
    """A file open for positioned reads."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, out: memoryview) -> int:
        """Fill `out` from `offset`. Raises: EOFError."""
        total = len(out)
        while out:
            got = os.preadv(self._descriptor, [out], offset)
            if not got:
                raise EOFError(f"the file ends at {offset}")
            out, offset = out[got:], offset + got
        return total

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


class LocalWrites:
    """New files in `folder`, all of which are kept until the end, as those on fs3 are.

    (Where one file's pages are freed before the next is written, the next gets them warm: a fifth of the cost here.)
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: list[Path] = []

    def write(self, piece: memoryview, count: int, *, copies: int = 1, sync_each: bool) -> Timed:
        """Write `count` times `piece` into `copies` new files. The amount is in bytes of one copy.

        `sync_each`: every piece is on stable storage in all copies before the next is written, as an acknowledged
        request is; else the files are synced once at the end.
        """
        paths = [self._folder / f"local-{len(self._paths) + copy}" for copy in range(copies)]
        self._paths += paths
        files: list[int] = []
        try:
            begin_s = time.perf_counter()
            files += [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600) for path in paths]
            for _ in range(count):
                for file in files:
                    _write_all(file, piece)
                    if sync_each:
                        os.fdatasync(file)
            if not sync_each:
                for file in files:
                    os.fdatasync(file)
            seconds = time.perf_counter() - begin_s
        finally:
            for file in files:
                os.close(file)
        return Timed(amount=len(piece) * count, seconds=seconds)

    def __enter__(self) -> LocalWrites:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in self._paths:
            path.unlink(missing_ok=True)


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]
