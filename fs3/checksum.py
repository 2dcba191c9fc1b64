"""CRC-32C from the writer to the reader, at two levels: 4 KiB blocks and 256 KiB units.

The writer sums its bytes once, in 4 KiB pieces; everyone after it can verify 256 KiB with a single call, because CRCs
are linear: the sum of a concatenation follows from the sums and lengths of its parts. `coarse_from_fine` does that for
many units at once in numpy, so a replica that checks what it received knows both levels after one pass over the bytes.
Formulas: Mark Adler's crc32_combine (zlib); the shift by a fixed number of zero bytes is a linear map on 32 bits, kept
as four tables of 256 entries.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

Bytes = bytes | bytearray | memoryview

FINE_BYTES = 4 << 10
COARSE_BYTES = 256 << 10
FINE_PER_COARSE = COARSE_BYTES // FINE_BYTES

_POLYNOMIAL = 0x82F63B78  # reflected Castagnoli


def flat(data: Bytes) -> memoryview:
    """Any buffer as a row of bytes. Raises: TypeError: it is none, or has gaps between its elements."""
    view = memoryview(data)
    # Python casts no array of several dimensions of which one is 0; it has no bytes.
    return view.cast("B") if view.nbytes or view.ndim == 1 else memoryview(bytearray())


def crc(data: Bytes, start: int = 0) -> int:
    """CRC-32C of `data`, going on from `start`."""
    return int(crc32c(data, start))


def _times_x_to(bytes_: int) -> NDArray[np.uint32]:
    """The columns of the linear map "append `bytes_` zero bytes": [32]."""
    # One zero bit, as columns; squared 3 times it is a zero byte.
    columns = np.empty(32, dtype=np.uint32)
    columns[0] = _POLYNOMIAL
    columns[1:] = np.uint32(1) << np.arange(31, dtype=np.uint32)
    for _ in range(3):
        columns = _apply(columns, columns)
    result = np.uint32(1) << np.arange(32, dtype=np.uint32)
    while bytes_:
        if bytes_ & 1:
            result = _apply(columns, result)
        columns = _apply(columns, columns)
        bytes_ >>= 1
    return result


def _apply(columns: NDArray[np.uint32], vectors: NDArray[np.uint32]) -> NDArray[np.uint32]:
    bits = (vectors[:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    picked: NDArray[np.uint32] = np.bitwise_xor.reduce(np.where(bits == 1, columns[None, :], np.uint32(0)), axis=1)
    return picked


@functools.lru_cache(maxsize=64)
def _shift_tables(bytes_: int) -> NDArray[np.uint32]:
    """`_times_x_to(bytes_)` as a table per byte of the input: [4, 256]."""
    columns = _times_x_to(bytes_)
    values = np.arange(256, dtype=np.uint32)
    return np.stack([_apply(columns, values << np.uint32(8 * byte)) for byte in range(4)])


@functools.lru_cache(maxsize=64)
def _shift_lists(bytes_: int) -> list[list[int]]:
    """`_shift_tables` as lists: for one sum they are ten times as fast as arrays."""
    tables: list[list[int]] = _shift_tables(bytes_).tolist()
    return tables


def shift(sums: NDArray[np.uint32], bytes_: int) -> NDArray[np.uint32]:
    """What each sum contributes once `bytes_` more bytes have followed it; any shape."""
    table = _shift_tables(bytes_)
    mask = np.uint32(0xFF)
    shifted: NDArray[np.uint32] = (
        table[0][sums & mask]
        ^ table[1][(sums >> np.uint32(8)) & mask]
        ^ table[2][(sums >> np.uint32(16)) & mask]
        ^ table[3][sums >> np.uint32(24)]
    )
    return shifted


def combine(first: int, second: int, second_bytes: int) -> int:
    """The sum of A + B from the sums of A and B and the length of B."""
    low, second_byte, third_byte, high = _shift_lists(second_bytes)
    shifted = low[first & 255] ^ second_byte[first >> 8 & 255] ^ third_byte[first >> 16 & 255] ^ high[first >> 24]
    return shifted ^ second


def sums_of(pieces: Sequence[Bytes]) -> list[int]:
    """The sum of each."""
    return list(map(crc32c, pieces))


def piece_sums(memory: memoryview, begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Sums of the pieces [s], each `memory[begin[i] : end[i]]`."""
    bounds = zip(begin.tolist(), end.tolist(), strict=True)
    return np.array([crc32c(memory[a:b]) for a, b in bounds], dtype=np.uint32)


def fine_sums(data: memoryview, offset: int = 0) -> NDArray[np.uint32]:
    """Sums of the 4 KiB pieces of an update of `data` at `offset` of a chunk, cut on the chunk's grid."""
    cuts = fine_cuts(offset, len(data))
    return np.array([crc32c(data[cuts[i] : cuts[i + 1]]) for i in range(len(cuts) - 1)], dtype=np.uint32)


def fine_cuts(offset: int, length: int) -> list[int]:
    """Where an update is cut, relative to its first byte: [pieces + 1]; [0] if it is empty."""
    if length == 0:
        return [0]
    first = FINE_BYTES - offset % FINE_BYTES
    return [0, *range(first, length, FINE_BYTES), length]


def coarse_from_fine(fine: NDArray[np.uint32], length: int) -> NDArray[np.uint32]:
    """Sums of the 256 KiB units of a chunk of `length` bytes, from the sums of its 4 KiB blocks, without its bytes.

    Shapes: [ceil(length / 4 KiB)] -> [ceil(length / 256 KiB)].
    """
    assert len(fine) == -(-length // FINE_BYTES), (len(fine), length)
    whole = length // COARSE_BYTES
    out = np.empty(-(-length // COARSE_BYTES), dtype=np.uint32)
    if whole:
        level = fine[: whole * FINE_PER_COARSE].reshape(whole, FINE_PER_COARSE)
        span = FINE_BYTES
        while level.shape[1] > 1:
            level = shift(level[:, 0::2], span) ^ level[:, 1::2]
            span *= 2
        out[:whole] = level[:, 0]
    if whole < len(out):
        total, rest = 0, length - whole * COARSE_BYTES
        for value in fine[whole * FINE_PER_COARSE :].tolist():
            piece = min(rest, FINE_BYTES)
            total = combine(total, value, piece)
            rest -= piece
        out[whole] = total
    return out


def pieces(offset: int, length: int, chunk_length: int) -> list[tuple[int, int]]:
    """How a read range is cut for its sums: [(offset in the chunk, end)], by the rule in proto/data_plane.md.

    Both sides call this, so it is part of the wire format. `offset + length <= chunk_length`.
    """
    end = offset + length
    if offset // FINE_BYTES == (end - 1) // FINE_BYTES and length:
        return [(offset, end)]
    out: list[tuple[int, int]] = []
    at = offset
    while at < end:
        if at % COARSE_BYTES == 0:
            unit = min(at + COARSE_BYTES, chunk_length)
            if unit <= end:
                out.append((at, unit))
                at = unit
                continue
        block = min(at - at % FINE_BYTES + FINE_BYTES, end)
        out.append((at, block))
        at = block
    return out


def whole_blocks(offset: int, length: int, chunk_length: int) -> tuple[int, int]:
    """Where the 4 KiB blocks begin and end that a range of a chunk touches."""
    return offset - offset % FINE_BYTES, min(-(-(offset + length) // FINE_BYTES) * FINE_BYTES, chunk_length)


def is_coarse(begin: int, end: int, chunk_length: int) -> bool:
    """Whether a piece is a whole unit of the 256 KiB grid with more than one block."""
    return begin % COARSE_BYTES == 0 and end == min(begin + COARSE_BYTES, chunk_length) and end - begin > FINE_BYTES


def is_whole_block(begin: int, end: int, chunk_length: int) -> bool:
    """Whether a piece is a whole block of the 4 KiB grid (the chunk's last one may be short)."""
    return begin % FINE_BYTES == 0 and end == min(begin + FINE_BYTES, chunk_length)
