"""The machine's limits on local files: `preadv` from the page cache, and writes made durable by `fdatasync`."""

from __future__ import annotations

import os
import time
from enum import Enum
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


class Sync(Enum):
    """How local writes come to stable storage."""

    ONCE = "buffered, fdatasync at the end"
    EACH = "buffered, fdatasync after each piece"
    DIRECT = "O_DIRECT into room made beforehand, fdatasync at the end"


class LocalWrites:
    """New files in `folder`, all of which are kept until the end, as those on fs3 are.

    (Where one file's pages are freed before the next is written, the next gets them warm: a fifth of the cost here.)
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: list[Path] = []

    def write(self, piece: memoryview, count: int, *, copies: int = 1, sync: Sync) -> Timed:
        """Write `count` times `piece` into `copies` new files. The amount is in bytes of one copy.

        With `Sync.DIRECT` the piece is aligned to pages. Making room is part of the work: fs3 does it too.
        """
        paths = [self._folder / f"local-{len(self._paths) + copy}" for copy in range(copies)]
        self._paths += paths
        files: list[int] = []
        try:
            begin_s = time.perf_counter()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | (os.O_DIRECT if sync is Sync.DIRECT else 0)
            for path in paths:
                files.append(os.open(path, flags, 0o600))
                if sync is Sync.DIRECT:
                    os.posix_fallocate(files[-1], 0, len(piece) * count)
            for _ in range(count):
                for file in files:
                    _write_all(file, piece)
                    if sync is Sync.EACH:
                        os.fdatasync(file)
            if sync is not Sync.EACH:
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
