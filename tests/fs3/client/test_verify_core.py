"""What each sum covers in the caller's memory, and the steps in which a large reply is received."""

from __future__ import annotations

import random

import numpy as np

from fs3.checksum import pieces
from fs3.client.verify_core import pieces_of, steps


def test_pieces_lie_where_the_ranges_do() -> None:
    rng = random.Random(3)
    for _ in range(200):
        count = rng.randrange(1, 6)
        ranges, at = [], 0
        for _ in range(count):
            chunk = rng.choice([1, 4096, 70_000, 262_144, 1 << 20])
            offset = rng.randrange(chunk)
            length = rng.choice([0, 1, rng.randrange(chunk - offset + 1), chunk - offset])
            ranges.append((offset, length, chunk, at))
            at += length + rng.choice([0, 0, 100])
        found = pieces_of(*np.array(ranges, dtype=np.int64).T)
        expected = [
            (owner, begin - offset + at, end - offset + at)
            for owner, (offset, length, chunk, at) in enumerate(ranges)
            for begin, end in (pieces(offset, length, chunk) if length else [])
        ]
        assert list(zip(found.owner.tolist(), found.begin.tolist(), found.end.tolist(), strict=True)) == expected


def test_steps_hold_whole_pieces_and_all_of_them() -> None:
    rng = random.Random(4)
    for _ in range(200):
        lengths = [rng.choice([1, 4096, 262_144]) for _ in range(rng.randrange(40))]
        cut = steps(np.array(lengths, dtype=np.int64), 1 << 20)
        assert [place for first, last in cut for place in range(first, last)] == list(range(len(lengths)))
        for first, last in cut:
            assert sum(lengths[first : last - 1]) < 1 << 20 and last > first
