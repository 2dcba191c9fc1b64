"""Reads as decided in numpy over a batch, against the rule range by range (`checksum.pieces`) and real bytes."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3 import checksum
from fs3.checksum import COARSE_BYTES, FINE_BYTES
from fs3.errors import Committing, NotFound, StaleRouting, Unavailable
from fs3.storage import read_core
from fs3.storage.read_core import COARSE, EDGE, FINE
from fs3.transport.messages import RANGE

_EDGES = (0, 1, FINE_BYTES - 1, FINE_BYTES, FINE_BYTES + 1, COARSE_BYTES - 1, COARSE_BYTES, COARSE_BYTES + 1)
_LENGTHS = (*_EDGES[1:], 3 * COARSE_BYTES + 5 * FINE_BYTES + 17)


def _pieces_of(plan: read_core.SumPlan, row: int, chunk_length: int) -> list[tuple[int, int]]:
    """What the sums of one range cover, by the plan."""
    begin = int(plan.count[:row].sum())
    out = []
    for at in range(begin, begin + int(plan.count[row])):
        kind, index = int(plan.kind[at]), int(plan.index[at])
        assert plan.range[at] == row
        if kind == EDGE:
            assert plan.edge_range[index] == row
            out.append((int(plan.edge_begin[index]), int(plan.edge_end[index])))
        else:
            size = FINE_BYTES if kind == FINE else COARSE_BYTES
            out.append((index * size, min((index + 1) * size, chunk_length)))
    return out


def _check(ranges: list[tuple[int, int, int]]) -> None:
    offset, length, chunk_length = (np.array(column, dtype=np.int64) for column in zip(*ranges, strict=True))
    plan = read_core.plan_sums(offset, length, chunk_length)
    for row, (start, size, whole) in enumerate(ranges):
        expected = checksum.pieces(start, size, whole) if size else []
        assert _pieces_of(plan, row, whole) == expected, ranges[row]
        for begin, end in expected:
            if not (checksum.is_whole_block(begin, end, whole) or checksum.is_coarse(begin, end, whole)):
                assert (begin, end) in list(zip(plan.edge_begin.tolist(), plan.edge_end.tolist(), strict=True))


def test_sums_follow_the_rule_at_every_boundary() -> None:
    ranges = [
        (offset, end - offset, whole)
        for whole in _LENGTHS
        for offset, end in itertools.combinations_with_replacement(sorted({*_EDGES, whole, whole // 2}), 2)
        if end <= whole
    ]
    _check(ranges)
    for one in ranges:
        _check([one])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 4 * COARSE_BYTES), st.integers(0, 1 << 30), st.integers(0, 1 << 30)),
        min_size=1,
        max_size=20,
    )
)
def test_sums_follow_the_rule_anywhere(drawn: list[tuple[int, int, int]]) -> None:
    ranges = []
    for whole, a, b in drawn:
        begin, end = sorted((a % (whole + 1), b % (whole + 1)))
        ranges.append((begin, end - begin, whole))
    _check(ranges)


def test_whole_blocks_take_the_short_way_to_the_same_plan() -> None:
    offset = np.arange(8, dtype=np.int64) * FINE_BYTES
    length = np.full(8, FINE_BYTES, dtype=np.int64)
    length[-1] = 100
    whole = np.full(8, 7 * FINE_BYTES + 100, dtype=np.int64)
    plan = read_core.plan_sums(offset, length, whole)
    assert plan.simple and plan.index.tolist() == list(range(8)) and not len(plan.edge_range)
    cut = read_core.plan_sums(offset, length - 1, whole)
    assert not cut.simple and len(cut.edge_range) == 8


def test_parts_are_the_bytes_of_the_ranges_in_order() -> None:
    rng = random.Random(5)
    disk = [rng.randbytes(1 << 20) for _ in range(2)]
    for _ in range(200):
        n = rng.randrange(1, 12)
        whole = np.array([rng.randrange(1, 100_000) for _ in range(n)], dtype=np.int64)
        file = np.array([rng.randrange(2) for _ in range(n)], dtype=np.int64)
        position = np.array([rng.randrange(8) * 128 * 1024 for _ in range(n)], dtype=np.int64)
        offset = np.array([rng.randrange(int(size) + 1) for size in whole], dtype=np.int64)
        length = np.array(
            [rng.randrange(int(size - at) + 1) for size, at in zip(whole, offset, strict=True)], dtype=np.int64
        )
        expected = b"".join(
            disk[f][p + o : p + o + size] for f, p, o, size in zip(file, position, offset, length, strict=True)
        )
        summed = read_core.plan_sums(offset, length, whole)
        for plan in (summed, read_core.without_sums(offset, length)):
            parts = read_core.plan_parts(plan, file, position)
            body = b""
            for edge, f, p, size in zip(parts.edge, parts.file, parts.position, parts.length, strict=True):
                if edge >= 0:
                    owner = int(plan.edge_range[edge])
                    f, p = file[owner], position[owner] + plan.edge_begin[edge]
                    assert size == plan.edge_end[edge] - plan.edge_begin[edge]
                body += disk[f][p : p + size]
            assert body == expected


def test_neighbours_on_disk_are_one_part() -> None:
    offset = np.array([0, 4096, 8192, 0], dtype=np.int64)
    length = np.full(4, 4096, dtype=np.int64)
    plan = read_core.plan_sums(offset, length, np.full(4, 65_536, dtype=np.int64))
    parts = read_core.plan_parts(plan, np.array([1, 1, 1, 1]), np.array([65_536, 65_536, 65_536, 65_536]))
    assert list(zip(parts.position.tolist(), parts.length.tolist(), parts.range.tolist(), strict=True)) == [
        (65_536, 12_288, 0),
        (65_536, 4096, 3),
    ]


def _ranges(*rows: tuple[int, int, int, int]) -> np.ndarray:
    out = np.zeros(len(rows), dtype=RANGE)
    for row, (chain, version, offset, length) in enumerate(rows):
        out[row] = (1, row, offset, length, chain, version)
    return out


def test_a_range_goes_to_the_target_that_serves_its_chain_at_its_version() -> None:
    target_of, version_of = np.array([0, 11, 0, 33], dtype=np.uint32), np.array([0, 5, 2, 7], dtype=np.uint32)
    status, target = read_core.route(
        _ranges((1, 5, 0, 1), (1, 4, 0, 1), (2, 2, 0, 1), (3, 7, 0, 1), (4, 1, 0, 1), (2**32 - 1, 0, 0, 1)),
        target_of,
        version_of,
    )
    stale, off = StaleRouting.code, Unavailable.code
    assert status.tolist() == [0, stale, off, 0, stale, stale]
    assert target.tolist() == [11, 0, 0, 33, 0, 0]


@pytest.mark.parametrize("relaxed", [False, True])
def test_answers_say_what_is_there(relaxed: bool) -> None:
    ranges = _ranges((1, 1, 0, 10), (1, 1, 90, 20), (1, 1, 200, 5), (1, 1, 0, 5), (1, 1, 0, 5), (1, 1, 1 << 31, 9))
    results = read_core.answer(
        ranges,
        np.array([0, 0, 0, 0, StaleRouting.code, 0], dtype=np.uint16),
        np.array([True, True, True, False, True, True]),
        np.array([3, 3, 3, 2, 3, 3], dtype=np.uint64),
        np.array([0, 4, 0, 0, 0, 0], dtype=np.uint64),
        np.array([100, 100, 100, 0, 100, 100], dtype=np.uint32),
        relaxed=relaxed,
    )
    second = 0 if relaxed else Committing.code
    assert results["status"].tolist() == [0, second, 0, NotFound.code, StaleRouting.code, 0]
    assert results["length"].tolist() == [10, 10 if relaxed else 0, 0, 0, 0, 0]
    assert results["chunk_length"].tolist() == [100, 100 if relaxed else 0, 100, 0, 0, 100]
    assert results["version"].tolist() == [3, 3, 3, 2, 0, 3]


def test_a_coarse_sum_is_used_only_where_the_whole_unit_is_read() -> None:
    whole = 2 * COARSE_BYTES + 5000
    kinds = {
        (0, whole): [COARSE] * 3,
        (0, whole - 1): [COARSE, COARSE, FINE, EDGE],
        (COARSE_BYTES, COARSE_BYTES): [COARSE],
        (FINE_BYTES, COARSE_BYTES): [FINE] * 64,
    }
    for (offset, length), expected in kinds.items():
        plan = read_core.plan_sums(np.array([offset]), np.array([length]), np.array([whole]))
        assert plan.kind.tolist() == expected, (offset, length)
