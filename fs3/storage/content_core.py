"""What a chunk becomes by an update: which of its bytes are old, new or zero, and the sums of the result.

The new version is a sequence of parts on the chunk's own coordinates. Its 4 KiB sums come from sums that were checked
before: an untouched block keeps its old one, a block that the writer sent whole has the writer's, and only the few
blocks made of several parts are summed anew, part after part.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3 import checksum
from fs3.checksum import COARSE_BYTES, FINE_BYTES
from fs3.errors import Corrupt, Invalid
from fs3.transport.messages import Op

OLD, ZERO, DATA = 0, 1, 2
_ZEROS = memoryview(bytes(FINE_BYTES))
_FEW_PIECES = 12  # below that a sum per piece is cheaper than combining them


class Part(NamedTuple):
    """Bytes [begin, end) of the new version, from `source`; old and new data keep their place."""

    source: int
    begin: int
    end: int


def parts_of(op: Op, offset: int, data_bytes: int, old_bytes: int, chunk_bytes: int) -> list[Part]:
    """The parts of the new version, in order, none empty; `old_bytes` is 0 for an absent chunk.

    Raises: Invalid.
    """
    if op is Op.WRITE:
        end = offset + data_bytes
        parts = [
            Part(OLD, 0, min(offset, old_bytes)),
            Part(ZERO, old_bytes, offset if data_bytes else old_bytes),
            Part(DATA, offset, end),
            Part(OLD, end if data_bytes else min(offset, old_bytes), old_bytes),
        ]
    elif op in (Op.REPLACE, Op.PUT_IF_ABSENT):
        if offset:
            raise Invalid(f"{op.name} at offset {offset}: it gives the whole chunk, so its offset is 0")
        parts = [Part(DATA, 0, data_bytes)]
    elif op is Op.TRUNCATE:
        if data_bytes:
            raise Invalid(f"TRUNCATE with {data_bytes} bytes: it takes none")
        parts = [Part(OLD, 0, min(offset, old_bytes)), Part(ZERO, old_bytes, offset)]
    else:
        raise Invalid(f"{op.name} has no content")
    parts = [part for part in parts if part.end > part.begin]
    if parts and parts[-1].end > chunk_bytes:
        raise Invalid(f"{op.name} up to byte {parts[-1].end} of a chunk of at most {chunk_bytes} bytes")
    return parts


def check_update(data: memoryview, offset: int, fine: NDArray[np.uint32]) -> NDArray[np.uint32] | None:
    """Compare what was received with the writer's sums; one pass over the bytes.

    Returns the 256 KiB sums if the data begins at offset 0, else None. Raises: Invalid (wrong number of sums), Corrupt.
    """
    cuts = checksum.fine_cuts(offset, len(data))
    if len(fine) != len(cuts) - 1:
        raise Invalid(f"an update of {len(data)} bytes at {offset} has {len(cuts) - 1} sums, {len(fine)} came")
    first = 1 if offset % FINE_BYTES and len(fine) else 0  # a piece that begins inside a block stands alone
    _check_pieces(data, cuts, fine, 0, first)
    begin = cuts[first]
    whole = (len(data) - begin) // COARSE_BYTES
    if len(fine) - first <= _FEW_PIECES:
        whole = 0
    per = checksum.FINE_PER_COARSE
    ahead = checksum.coarse_from_fine(fine[first : first + whole * per], whole * COARSE_BYTES)
    for unit, expected in enumerate(ahead.tolist()):
        at = begin + unit * COARSE_BYTES
        if checksum.crc(data[at : at + COARSE_BYTES]) != expected:
            raise Corrupt(f"bytes {offset + at} to {offset + at + COARSE_BYTES} of an update failed the writer's sum")
    _check_pieces(data, cuts, fine, first + whole * per, len(fine))
    if offset:
        return None
    rest = [
        checksum.crc(data[at : at + COARSE_BYTES])
        for at in range(begin + whole * COARSE_BYTES, len(data), COARSE_BYTES)
    ]
    return np.concatenate([ahead, np.array(rest, dtype=np.uint32)])


def _check_pieces(data: memoryview, cuts: list[int], fine: NDArray[np.uint32], start: int, stop: int) -> None:
    for piece, expected in enumerate(fine[start:stop].tolist(), start):
        if checksum.crc(data[cuts[piece] : cuts[piece + 1]]) != expected:
            raise Corrupt(f"4 KiB piece {piece} of an update failed the writer's sum; send it again")


def sums_as_sent(data: memoryview, fine: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The 256 KiB sums of a whole chunk that is known to fail its sums. Raises: Invalid (wrong number of sums)."""
    if len(fine) != -(-len(data) // FINE_BYTES):
        raise Invalid(f"a chunk of {len(data)} bytes has {-(-len(data) // FINE_BYTES)} sums, {len(fine)} came")
    return checksum.coarse_from_fine(fine, len(data))


def check_sums(fine: NDArray[np.uint32], coarse: NDArray[np.uint32], old_bytes: int, what: str) -> None:
    """Whether the two levels of a stored chunk's sums agree: bytes are compared with one of them. Raises: Corrupt."""
    if (checksum.coarse_from_fine(fine, old_bytes) != coarse).any():
        raise Corrupt(f"{what}: its 4 KiB sums and its 256 KiB sums do not agree")


def check_old(
    old: memoryview, begin: int, old_bytes: int, fine: NDArray[np.uint32], coarse: NDArray[np.uint32], what: str
) -> None:
    """Compare bytes from `begin` of a stored chunk with its sums; they begin and end on blocks. Raises: Corrupt."""
    for at, end in checksum.pieces(begin, len(old), old_bytes):
        whole_unit = at % COARSE_BYTES == 0 and end == min(at + COARSE_BYTES, old_bytes)
        expected = coarse[at // COARSE_BYTES] if whole_unit else fine[at // FINE_BYTES]
        if checksum.crc(old[at - begin : end - begin]) != expected:
            raise Corrupt(f"{what}: bytes {at} to {end} do not match their stored sum")


def check_block(block: memoryview, number: int, expected: int, what: str) -> None:
    """Compare one stored 4 KiB block with its sum. Raises: Corrupt."""
    if checksum.crc(block) != expected:
        raise Corrupt(f"{what}: 4 KiB block {number} does not match its stored sum")


def block_range(begin: int, end: int, old_bytes: int) -> tuple[int, int]:
    """[begin, end) widened to whole blocks of a chunk of `old_bytes`."""
    return begin // FINE_BYTES * FINE_BYTES, min(-(-end // FINE_BYTES) * FINE_BYTES, old_bytes)


def merged_fine(
    parts: list[Part],
    old: dict[Part, memoryview],
    old_bytes: int,
    old_fine: NDArray[np.uint32],
    offset: int,
    data: memoryview,
    data_fine: NDArray[np.uint32],
) -> NDArray[np.uint32]:
    """The 4 KiB sums of the new version: [ceil(length / 4 KiB)].

    `old` has the (verified) bytes of each old part; `data_fine` the writer's sums of `data` at `offset`, verified too.
    """
    length = parts[-1].end if parts else 0
    out = np.zeros(-(-length // FINE_BYTES), dtype=np.uint32)
    for part in parts:
        # Blocks that lie in this part whole, or reach the end of the chunk in it.
        first = -(-part.begin // FINE_BYTES)
        last = len(out) if part.end == length else part.end // FINE_BYTES
        if part.source == OLD and part.end == length and part.end != old_bytes and part.end % FINE_BYTES:
            last -= 1  # the old block was longer: what is left of it is summed below
        if last > first:
            if part.source == OLD:
                out[first:last] = old_fine[first:last]
            elif part.source == DATA:
                out[first:last] = data_fine[first - offset // FINE_BYTES :][: last - first]
            else:
                out[first:last] = _zeros_sum(FINE_BYTES)
                if last == len(out):
                    out[-1] = _zeros_sum(length - (last - 1) * FINE_BYTES)
        for block in sorted({part.begin // FINE_BYTES, (part.end - 1) // FINE_BYTES}):
            if not first <= block < last:
                begin, end = max(part.begin, block * FINE_BYTES), min(part.end, (block + 1) * FINE_BYTES)
                if part.source == ZERO:
                    piece = _ZEROS[: end - begin]
                else:
                    piece = (old[part] if part.source == OLD else data)[begin - part.begin : end - part.begin]
                out[block] = checksum.crc(piece, int(out[block]))
    return out


@functools.lru_cache(maxsize=64)
def _zeros_sum(length: int) -> int:
    return checksum.crc(bytes(length))
