"""Eviction: enough goes and not more, the oldest first, and of one prompt the end before the beginning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.kvcache.evict_core import AGE_STEP_NS, choose_victims


def victims(pages: list[tuple[int, int, int]], keep_bytes: int) -> list[int]:
    """`pages` are (minute, depth, bytes)."""
    table = np.array(pages, dtype=np.int64).reshape(len(pages), 3)
    chosen = choose_victims(
        (table[:, 0] * AGE_STEP_NS + 7).astype(np.uint64),
        table[:, 1].astype(np.uint32),
        table[:, 2].astype(np.uint32),
        keep_bytes,
    )
    return [int(place) for place in chosen]


@pytest.mark.parametrize(
    ("pages", "keep", "expected"),
    [
        ([], 0, []),
        ([(0, 0, 10)], 10, []),
        ([(0, 0, 10)], 9, [0]),
        ([(5, 0, 10), (3, 0, 10), (4, 0, 10)], 15, [1, 2]),
        ([(0, 0, 10), (0, 1, 10), (0, 2, 10)], 10, [2, 1]),
        ([(0, 0, 10), (9, 3, 10), (9, 4, 10)], 10, [0, 2]),
        ([(0, 0, 10), (0, 0, 10)], 0, [0, 1]),
    ],
)
def test_who_goes(pages: list[tuple[int, int, int]], keep: int, expected: list[int]) -> None:
    assert victims(pages, keep) == expected


@given(
    pages=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(1, 1 << 31)), max_size=40),
    keep=st.integers(0, 1 << 34),
)
def test_enough_and_no_more(pages: list[tuple[int, int, int]], keep: int) -> None:
    gone = victims(pages, keep)
    assert len(set(gone)) == len(gone)
    stay = sum(size for place, (_, _, size) in enumerate(pages) if place not in gone)
    assert stay <= keep
    if gone:
        assert stay + pages[gone[-1]][2] > keep
    rank = [(minute, -depth) for minute, depth, _ in pages]
    left = [rank[place] for place in range(len(pages)) if place not in gone]
    assert [rank[place] for place in gone] == sorted(rank[place] for place in gone)
    assert not gone or not left or max(rank[place] for place in gone) <= min(left)
