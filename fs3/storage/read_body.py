"""The body of a READ's reply: which parts of which block files it is made of, and whether the disk must be waited for.

Small parts are slices of the mapped files, which one `sendmsg` gathers; larger ones go by `sendfile`. Both would stop
an IO thread at a page that is not in the page cache, so a sample is looked at first, and another thread loads them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from fs3 import page_cache
from fs3.storage.engine_api import BlockView, ChunkEngine
from fs3.storage.read_core import Parts
from fs3.storage.reply import FileRange, Origin, Part, Reply

SENDFILE_BYTES = 64 << 10
FILE_SHIFT = 32  # engine number << 32 | file number
_SAMPLES = 4
_LOAD_BYTES = 1 << 20
_BYTE = bytearray(1)  # what is read into it is of no interest


class Bodies:
    """Of replies about the chunks of these engines; a file is named by its engine's number and its own."""

    def __init__(self, engines: Sequence[ChunkEngine]) -> None:
        self._engines = engines
        self._probing = True

    def engine_of(self, file: int) -> tuple[ChunkEngine, int]:
        """The engine of a file, and the engine's number of it."""
        return self._engines[file >> FILE_SHIFT], file & 0xFFFF_FFFF

    def make(self, parts: Parts, edges: list[memoryview], *, by_sendfile: bool) -> tuple[list[Part], bool]:
        """The body's parts, and whether all of them are memory."""
        if len(parts.file) == 0:
            return [], True
        numbers = parts.file.tolist()
        begins = parts.position.tolist()
        ends = (parts.position + parts.length).tolist()
        files = {number: self._file(number) for number in set(numbers)}
        large = by_sendfile and bool((parts.length >= SENDFILE_BYTES).any())
        if not edges and not large:
            views = {number: file.view for number, file in files.items()}
            return [views[number][a:b] for number, a, b in zip(numbers, begins, ends, strict=True)], True
        body: list[Part] = []
        all_plain = True
        for number, a, b, edge in zip(numbers, begins, ends, parts.edge.tolist(), strict=True):
            part, plain = (
                (edges[edge], True) if edge >= 0 else part_of(files[number], a, b - a, by_sendfile=by_sendfile)
            )
            body.append(part)
            all_plain &= plain
        return body, all_plain

    def origins(self, parts: Parts) -> list[Origin | None]:
        """For a reply's parts: its head, then the body."""
        rows = zip(parts.file.tolist(), parts.position.tolist(), parts.range.tolist(), parts.edge.tolist(), strict=True)
        return [None, *(Origin(self._file(f), p, r) if e < 0 else None for f, p, r, e in rows)]

    def is_cold(self, reply: Reply) -> bool:
        """Whether a sample of what a reply takes from the disk is not in the page cache."""
        if not self._probing:
            return False
        places = self._places(reply, _SAMPLES)
        each = max(_SAMPLES // max(len(places), 1), 1)  # of a part: a large one may be there in part
        for fd, position, length in places:
            for sample in range(each):
                try:
                    os.preadv(fd, [_BYTE], position + length * sample // each, os.RWF_NOWAIT)
                except BlockingIOError:
                    return True
                except OSError:
                    self._probing = False  # a filesystem that cannot tell
                    return False
        return False

    def load(self, reply: Reply) -> None:
        """Have what a reply takes from the disk in the page cache; blocks for as long as the disk takes."""
        places = [place for place in self._places(reply) if not page_cache.load(*place)]
        for fd, position, length in places:
            os.posix_fadvise(fd, position, length, os.POSIX_FADV_WILLNEED)
        scratch = memoryview(bytearray(_LOAD_BYTES))
        for fd, position, length in places:
            for at in range(position, position + length, _LOAD_BYTES):
                try:
                    os.preadv(fd, [scratch[: min(_LOAD_BYTES, position + length - at)]], at)
                except OSError:
                    break  # whoever sends it finds out, and says so in the trailer

    def _places(self, reply: Reply, most: int | None = None) -> list[tuple[int, int, int]]:
        """(descriptor, position, length) of the parts that come from the disk, or of a sample of them."""
        parts = reply.on_disk
        if parts is None:
            return []
        if isinstance(parts, FileRange):
            return [(parts.file.fd, parts.position, parts.length)]
        count = len(parts.file)
        rows = range(0, count, -(-count // most)) if most is not None and count else range(count)
        return [
            (self._file(int(parts.file[row])).fd, int(parts.position[row]), int(parts.length[row]))
            for row in rows
            if parts.edge[row] < 0
        ]

    def _file(self, file: int) -> BlockView:
        engine, number = self.engine_of(file)
        return engine.file(number)


def part_of(file: BlockView, position: int, length: int, *, by_sendfile: bool) -> tuple[Part, bool]:
    """What sends these bytes of a file, and whether that is memory."""
    if by_sendfile and length >= SENDFILE_BYTES:
        return FileRange(file, position, length), False
    return file.view[position : position + length], True
