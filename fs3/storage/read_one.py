"""A READ of one range in plain Python: what `ReadPath` does for a batch, in a fifth of the time.

Numpy costs a microsecond or two a call, however short the arrays: nothing over 256 ranges, most of the work for one.
Only the plain case is answered here: a chunk that is there and undisputed, and a range that cuts no 4 KiB block if sums
are wanted. Everything else is left to the batch; tests/fs3/storage/test_read_one.py holds the two equal.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import COARSE_BYTES, FINE_BYTES, FINE_PER_COARSE, Bytes
from fs3.storage.engine_api import BlockView, ChunkEngine, Place
from fs3.transport.messages import RANGE, RESULT

Range = tuple[int, int, int, int, int, int]  # hi, lo, offset, length, chain, chain version

_RANGE = struct.Struct("<QQIIII")
_RESULT = struct.Struct("<HHIIIQ")

assert _RANGE.size == RANGE.itemsize and _RESULT.size == RESULT.itemsize


class Found(NamedTuple):
    """Where the bytes of a range are: `length` bytes from `position` of a file; and the head of the reply to it."""

    head: bytes
    file: BlockView
    position: int
    length: int


def asked_of(head: Bytes) -> Range | None:
    """The one range that a request's head is; None if it is not one."""
    return _RANGE.unpack(head) if len(head) == _RANGE.size else None


def find(engine: ChunkEngine, place: Place, offset: int, length: int, *, summed: bool) -> Found | None:
    """A range of the chunk at `place`, with the sums of its pieces; None if it is not the plain case."""
    chunk_length = place.length
    end = min(offset + length, chunk_length)
    if end <= offset:
        return None
    if summed and (offset % FINE_BYTES or (end % FINE_BYTES and end != chunk_length)):
        return None
    file = engine.file(place.file)
    sums = b""
    if summed:
        sums = _sums(file, place.position, offset, end, chunk_length).tobytes()
    head = _RESULT.pack(0, 0, len(sums) // 4, end - offset, chunk_length, place.version) + sums
    return Found(head, file, place.position + offset, end - offset)


def whole(engine: ChunkEngine, place: Place, offset: int, length: int) -> tuple[bytes, bytes, int] | None:
    """A range's RESULT record, the sums of the pieces of all whole blocks that it touches, and its bytes; as `find`."""
    chunk_length = place.length
    end = min(offset + length, chunk_length)
    if end <= offset:
        return None
    first, last = offset // FINE_BYTES * FINE_BYTES, min(-(-end // FINE_BYTES) * FINE_BYTES, chunk_length)
    sums = _sums(engine.file(place.file), place.position, first, last, chunk_length)
    result = _RESULT.pack(0, 0, len(sums), end - offset, chunk_length, place.version)
    return result, sums.tobytes(), end - offset


def _sums(file: BlockView, position: int, offset: int, end: int, chunk_length: int) -> NDArray[np.uint32]:
    """The sums of the pieces of [offset, end), which cuts no block: the rule is `checksum.pieces`."""
    stored, fine = file.sums, file.fine_at(position)
    first, last = offset // FINE_BYTES, -(-end // FINE_BYTES)
    if last - first == 1:
        return stored[fine + first : fine + last]
    unit = -(-offset // COARSE_BYTES)
    unit_stop = -(-end // COARSE_BYTES) if end == chunk_length else end // COARSE_BYTES
    if unit >= unit_stop:
        return stored[fine + first : fine + last]
    coarse = file.coarse_at(position)
    head = stored[fine + first : fine + unit * FINE_PER_COARSE]
    units = stored[coarse + unit : coarse + unit_stop]
    tail = stored[fine + min(unit_stop * FINE_PER_COARSE, last) : fine + last]
    return np.concatenate([head, units, tail]) if len(head) or len(tail) else units
