"""One range of a chunk, read from its block file: whole 4 KiB blocks, its own part of them straight into place."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from fs3 import checksum, page_cache
from fs3.client.verified_core import Identity, Place, blocks_mask

_BYTE = bytearray(1)


class BlockRead:
    """Range (offset, length, length of the chunk) whose block begins at `position` of `fd`, to be read into `out`
    [length]; `edges` are two times 4 KiB for the rest of blocks that it cuts, used until the next read.

    `sums` are those of its whole blocks, as LOCATE gives them; `blocks` are these, as bits. `place` and `identity` are
    what verified_core.py remembers it by.
    """

    __slots__ = (
        "_after",
        "_before",
        "_begin",
        "_end",
        "_out",
        "_position",
        "_sums",
        "blocks",
        "chunk_length",
        "fd",
        "identity",
        "length",
        "place",
    )

    def __init__(
        self,
        fd: int,
        position: int,
        range_: tuple[int, int, int],
        out: memoryview,
        edges: tuple[memoryview, memoryview],
        sums: NDArray[np.uint32],
        *,
        place: Place,
        identity: Identity,
    ) -> None:
        offset, self.length, chunk_length = range_
        self._sums, self.place, self.identity = sums, place, identity
        self._begin, self._end = checksum.whole_blocks(offset, self.length, chunk_length)
        stop = offset + self.length
        self.fd = fd
        self._position = position + self._begin
        self.chunk_length = chunk_length
        self._before, self._out, self._after = edges[0][: offset - self._begin], out, edges[1][: self._end - stop]
        self.blocks = blocks_mask(self._begin, self._end)

    def foresee(self) -> None:
        """Have the disk begin with it, or load it if it is large, if a look at its first byte tells that the page cache
        does not have it."""
        try:
            os.preadv(self.fd, [_BYTE], self._position, os.RWF_NOWAIT)
        except BlockingIOError:
            if not page_cache.load(self.fd, self._position, self._end - self._begin):
                os.posix_fadvise(self.fd, self._position, self._end - self._begin, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass  # a filesystem that cannot tell, or a bad sector, which reading finds

    def bytes(self) -> bool:
        """Read the whole blocks, from the disk if need be; whether all could be."""
        try:
            return os.preadv(self.fd, self._views(), self._position) == self._end - self._begin
        except OSError:
            return False

    def from_cache(self) -> bool:
        """Read the whole blocks, if the page cache has them all; to be asked before anything is loaded, as that brings
        what lies beside it too.

        Blocks that were verified before need no sum there, where they are what was verified then. That they still are
        the chunk's, in its place, is what the pin says: the daemon reuses no block before it has closed the connection
        (`still_open` is asked once all are read), and if it dies, none that is locked on the description read here, as
        all of these were before it said where they are.
        """
        try:
            return os.preadv(self.fd, self._views(), self._position, os.RWF_NOWAIT) == self._end - self._begin
        except OSError:  # nothing is there, or the filesystem cannot tell
            return False

    def _views(self) -> list[memoryview]:
        return [view for view in (self._before, self._out, self._after) if len(view)]

    def matches(self) -> bool:
        """Whether the blocks have their sums, by the rule of `checksum.pieces`."""
        cuts = checksum.pieces(self._begin, self._end - self._begin, self.chunk_length)
        if len(cuts) != len(self._sums):
            return False
        out, shift, stop = self._out, self._begin + len(self._before), self._end - len(self._after)
        for (begin, end), wanted in zip(cuts, self._sums.tolist(), strict=True):
            if begin >= shift and end <= stop:
                value = checksum.crc(out[begin - shift : end - shift])
            else:
                value = self._sum(begin, end)
            if value != wanted:
                return False
        return True

    def _sum(self, begin: int, end: int) -> int:
        """The sum of bytes [begin, end) of the chunk, wherever they were read to."""
        begin, end, value = begin - self._begin, end - self._begin, 0
        for view in (self._before, self._out, self._after):
            if begin < len(view) and end > 0:
                value = checksum.crc(view[max(begin, 0) : end], value)
            begin, end = begin - len(view), end - len(view)
        return value
