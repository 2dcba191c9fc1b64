"""Planning and verification against the definitions they vectorise: layout.split_range and checksum.pieces, one range
at a time, over seeded random batches that include empty ranges, chunk borders and short last chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3 import checksum
from fs3.client import plan_core, verify_core
from fs3.errors import Invalid
from fs3.ids import KIND_FILE
from fs3.layout import split_range

KIB = 1 << 10

FILES = st.lists(
    st.tuples(st.integers(1, 1 << 40), st.sampled_from([64 * KIB, 256 * KIB]), st.integers(1, 5)),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(FILES, st.lists(st.tuples(st.integers(0, 3), st.integers(0, 900_000), st.integers(0, 700_000)), max_size=12))
def test_a_batch_is_planned_as_its_ranges_one_by_one(
    files: list[tuple[int, int, int]], wanted: list[tuple[int, int, int]]
) -> None:
    stripes = [np.arange(10 * at, 10 * at + stripe, dtype=np.int64) for at, (_, _, stripe) in enumerate(files)]
    table = plan_core.file_table(
        [inode for inode, _, _ in files], [1 << 21] * len(files), [size for _, size, _ in files], stripes
    )
    index = np.array([one[0] % len(files) for one in wanted], dtype=np.int64)
    offsets = np.array([one[1] for one in wanted], dtype=np.int64)
    lengths = np.array([one[2] for one in wanted], dtype=np.int64)
    out = plan_core.packed_offsets(lengths)
    plan = plan_core.plan_file_ranges(table, index, offsets, lengths, out)
    expected = []
    for at, (file, offset, length) in enumerate(zip(index.tolist(), offsets.tolist(), lengths.tolist(), strict=True)):
        inode, size, _ = files[file]
        parts = split_range(size, stripes[file], offset, length)
        to = int(out[at])
        for chunk, chain, begin, part in zip(
            parts.chunk.tolist(), parts.chain.tolist(), parts.offset.tolist(), parts.length.tolist(), strict=True
        ):
            expected.append((KIND_FILE << 56 | inode, chunk, begin, part, chain, 0, to, at))
            to += part
    got = [
        (*record, to, source)
        for record, to, source in zip(
            plan.ranges.tolist(), plan.out_offsets.tolist(), plan.source.tolist(), strict=True
        )
    ]
    assert got == expected


def test_ranges_outside_their_file_are_named() -> None:
    table = plan_core.file_table([1, 2], [100, 0], [64 * KIB] * 2, [np.array([1]), np.array([2])])

    def outside(file: int, offset: int, length: int) -> bool:
        args = [np.array([0, value]) for value in (file, offset, length)]
        found = plan_core.first_outside(table, *args)
        assert found in (None, 1)
        return found is not None

    assert not outside(0, 0, 100) and not outside(0, 100, 0) and not outside(1, 0, 0)
    assert outside(0, 1, 100) and outside(1, 0, 1) and outside(0, -1, 2) and outside(0, 5, -1)
    assert outside(0, 1 << 62, 1 << 62) and outside(0, (1 << 63) - 1, 1) and outside(0, 1, (1 << 63) - 1)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)), max_size=8))
def test_overlaps_are_found_by_bytes(stretches: list[tuple[int, int]]) -> None:
    taken = [at for begin, length in stretches for at in range(begin, begin + length)]
    begin, lengths = (np.array([one[i] for one in stretches], dtype=np.int64) for i in (0, 1))
    assert plan_core.overlap(begin, lengths) == (len(set(taken)) < len(taken))


def test_columns_are_whole_numbers_one_for_each_range() -> None:
    assert plan_core.column([1, 2], 2, "x").dtype == plan_core.column(np.zeros(2, np.uint8), 2, "x").dtype == np.int64
    assert len(plan_core.column([], 0, "x")) == 0
    same = np.zeros(3, dtype=np.int64)
    assert plan_core.column(same, 3, "x") is same
    for values, text in (([1], "shape"), ([[1, 2]], "shape"), ([0.5, 1.0], "float64"), (["a", "b"], "whole numbers")):
        with pytest.raises(Invalid, match=text):
            plan_core.column(values, 2, "x")


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 5), st.integers(1, 100))
def test_frames_keep_their_limits_and_lose_nothing(lengths: list[int], count: int, size: int) -> None:
    cuts = plan_core.frames(np.array(lengths, dtype=np.int64), sum(lengths), max_count=count, max_bytes=size)
    assert [at for begin, end in cuts for at in range(begin, end)] == list(range(len(lengths)))
    for begin, end in cuts:
        assert end - begin <= count
        assert sum(lengths[begin:end]) <= size or end - begin == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=20))
def test_runs_cover_exactly_what_is_received_in_order(gaps: list[tuple[int, int]]) -> None:
    at, offsets, lengths = 0, [], []
    for gap, length in gaps:
        at += gap
        offsets.append(at)
        lengths.append(length)
        at += length
    runs = plan_core.out_runs(np.array(offsets, dtype=np.int64), np.array(lengths, dtype=np.int64))
    covered = [place for begin, end in runs for place in range(begin, end)]
    assert covered == [o + i for o, n in zip(offsets, lengths, strict=True) for i in range(n)]
    assert all(runs[i][1] < runs[i + 1][0] for i in range(len(runs) - 1))


def test_groups_keep_the_order_within_a_key() -> None:
    keys = np.array([3, 1, 3, 2, 1, 3])
    assert [(key, places.tolist()) for key, places in plan_core.group_by(keys)] == [
        (1, [1, 4]),
        (2, [3]),
        (3, [0, 2, 5]),
    ]
    assert plan_core.group_by(keys[:0]) == []
    assert [(key, places.tolist()) for key, places in plan_core.group_by(keys[:1])] == [(3, [0])]


EDGES = [
    0,
    1,
    4 * KIB - 1,
    4 * KIB,
    4 * KIB + 1,
    9_000,
    255 * KIB,
    256 * KIB,
    256 * KIB + 1,
    300_000,
    512 * KIB,
    700_001,
]


@pytest.mark.parametrize("small", [True, False])
def test_cuts_are_the_pieces_of_the_wire_format(small: bool) -> None:
    ranges = [
        (offset, length, chunk)
        for chunk in EDGES[1:]
        for offset in EDGES
        for length in EDGES
        if offset + length <= chunk and (length < 200 * KIB or not small)
    ]
    rng = np.random.default_rng(7)
    for begin in range(0, len(ranges), 9):
        batch = [ranges[i] for i in rng.permutation(len(ranges))[:9]] if begin else ranges
        offset, length, chunk = (np.array(column, dtype=np.int64) for column in zip(*batch, strict=True))
        cuts = verify_core.cuts(offset, length, chunk)
        expected = [checksum.pieces(*one) if one[1] else [] for one in batch]
        assert cuts.count.tolist() == [len(pieces) for pieces in expected]
        flat = [piece for pieces in expected for piece in pieces]
        assert list(zip(cuts.begin.tolist(), cuts.end.tolist(), strict=True)) == flat


def test_a_flipped_bit_is_found_in_its_piece() -> None:
    memory = bytearray(np.random.default_rng(1).bytes(20_000))
    begin, end = np.array([0, 4_096, 10_000]), np.array([4_096, 9_000, 20_000])
    sums = np.array([checksum.crc(memory[a:b]) for a, b in zip(begin, end, strict=True)], dtype=np.uint32)
    assert verify_core.mismatches(memoryview(memory), begin, end, sums).tolist() == []
    memory[5_000] ^= 4
    memory[19_999] ^= 1
    memory[9_500] ^= 1  # in no piece
    assert verify_core.mismatches(memoryview(memory), begin, end, sums).tolist() == [1, 2]
