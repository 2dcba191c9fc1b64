"""Which bytes each sum of a READ reply covers, and whether they match (DESIGN.md, D7).

The rule that cuts a range is `checksum.pieces`, part of the wire format. Here it is applied to a whole batch in numpy
where no range contains a whole 256 KiB unit (small reads, of which there are many), and range by range where one does
(large reads, of which there are few). tests/fs3/client hold the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import COARSE_BYTES, FINE_BYTES, piece_sums, pieces, sums_of
from fs3.client.plan_core import out_runs

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cuts:
    """Pieces [s] of ranges [m]: `count[m]` per range, and each piece's [begin, end) in its chunk.

    `single`: every range is one piece.
    """

    count: I64
    begin: I64
    end: I64
    single: bool = False


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Where the `bytes` of a reply go whose ranges [m] have one sum each: `runs` as they come, `ranges` one by one."""

    bytes: int
    runs: list[memoryview]
    ranges: list[memoryview]

    def mismatches(self, sums: NDArray[np.uint32]) -> I64:
        """Which of the ranges [m], received, do not have their sum."""
        found = sums_of(self.ranges)
        if found == sums.tolist():
            return _NONE
        return np.flatnonzero(np.array(found, dtype=np.uint32) != sums)


_NONE = np.empty(0, dtype=np.int64)


def single(offset: NDArray[np.uint32], lengths: I64) -> bool:
    """Whether each of ranges [m] lies in one 4 KiB block, and so has one sum, whatever the chunk's length."""
    return bool((offset % FINE_BYTES + lengths <= FINE_BYTES).all() and lengths.all())


def foresee(offset: NDArray[np.uint32], lengths: I64, at: I64, memory: memoryview) -> Foreseen | None:
    """What a reply with all bytes of ranges [m] of chunks fills; None if one has several sums, or none."""
    if not single(offset, lengths):
        return None
    end = at + lengths
    ranges = [memory[a:b] for a, b in zip(at.tolist(), end.tolist(), strict=True)]
    runs = [memory[a:b] for a, b in out_runs(at, lengths)]
    return Foreseen(int(lengths.sum()), runs, ranges)


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces [s] of ranges [m] where they lie in memory: [begin, end), and which range each is of."""

    owner: I64
    begin: I64
    end: I64


def pieces_of(offset: I64, length: I64, chunk_length: I64, at: I64) -> Pieces:
    """The pieces of ranges [m] of chunks whose bytes begin at `at` of some memory."""
    cut = cuts(offset, length, chunk_length)
    shift = at - offset
    if cut.single:
        return Pieces(np.arange(len(offset)), cut.begin + shift, cut.end + shift)
    owner = np.repeat(np.arange(len(offset)), cut.count)
    return Pieces(owner, cut.begin + shift[owner], cut.end + shift[owner])


def steps(lengths: I64, step_bytes: int) -> list[tuple[int, int]]:
    """Cuts [first, last) of pieces of these lengths [s] into steps of about so many bytes, at least one piece each."""
    if not len(lengths):
        return []
    step = (np.cumsum(lengths) - lengths) // step_bytes
    stops = (np.flatnonzero(step[1:] != step[:-1]) + 1).tolist()
    return list(pairwise([0, *stops, len(lengths)]))


def cuts(offset: I64, length: I64, chunk_length: I64) -> Cuts:
    """The pieces of ranges [m] of chunks; a range of no bytes has none. Each range lies within its chunk."""
    end = offset + length
    first = offset // FINE_BYTES
    count = (end + (FINE_BYTES - 1)) // FINE_BYTES - first
    if not length.all():
        count[length == 0] = 0
    if (count == 1).all():
        return Cuts(count, offset, end, single=True)
    unit = -(-offset // COARSE_BYTES) * COARSE_BYTES
    has_unit = (count > 1) & (unit < end) & (np.minimum(unit + COARSE_BYTES, chunk_length) <= end)
    if has_unit.any():
        return _cuts_one_by_one(offset, length, chunk_length)
    owner = np.repeat(np.arange(len(offset)), count)
    starts = np.cumsum(count) - count
    block = (first[owner] + np.arange(len(owner)) - starts[owner]) * FINE_BYTES
    return Cuts(count, np.maximum(block, offset[owner]), np.minimum(block + FINE_BYTES, end[owner]))


def _cuts_one_by_one(offset: I64, length: I64, chunk_length: I64) -> Cuts:
    cut = [
        pieces(*one) if one[1] else []
        for one in zip(offset.tolist(), length.tolist(), chunk_length.tolist(), strict=True)
    ]
    flat = np.array([piece for of_range in cut for piece in of_range], dtype=np.int64).reshape(-1, 2)
    return Cuts(np.array([len(of_range) for of_range in cut], dtype=np.int64), flat[:, 0], flat[:, 1])


def mismatches(memory: memoryview, begin: I64, end: I64, sums: NDArray[np.uint32]) -> I64:
    """Which of the pieces [s], given as [begin, end) of `memory`, do not have their sum."""
    return np.flatnonzero(piece_sums(memory, begin, end) != sums)
