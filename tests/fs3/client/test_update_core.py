"""Ranges of a file as pieces of its chunks: held against bytes in memory, and against what may be sent at once."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fs3.client.update_core import Piece, beyond, inside, pieces

CHUNK = 16
# Gaps before ranges, and their lengths: so none overlaps with another.
RANGES = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40)), min_size=1, max_size=12)


def planned(ranges: list[tuple[int, int]], seed: int) -> tuple[bytearray, list[memoryview], list[Piece]]:
    """What the file is to hold (0 where nothing is written), the ranges' bytes, and the pieces."""
    gaps, lengths = np.array(ranges, dtype=np.int64).T
    offsets = np.cumsum(gaps + lengths) - lengths
    chance = random.Random(seed)
    order = np.array(chance.sample(range(len(ranges)), len(ranges)))
    offsets, lengths = offsets[order], lengths[order]
    datas = [memoryview(bytes(chance.randrange(1, 256) for _ in range(length))) for length in lengths.tolist()]
    model = bytearray(int((offsets + lengths).max()))
    for offset, data in zip(offsets.tolist(), datas, strict=True):
        model[offset : offset + len(data)] = data
    return model, datas, pieces(offsets, lengths.tolist(), CHUNK)


@given(RANGES, st.integers(0, 1_000))
def test_pieces_have_the_bytes_of_their_ranges_and_keep_to_a_chunk(ranges: list[tuple[int, int]], seed: int) -> None:
    model, datas, found = planned(ranges, seed)
    made = bytearray(len(model))
    for piece in found:
        assert piece.begin // CHUNK == (piece.end - 1) // CHUNK == piece.chunk and piece.parts
        made[piece.begin : piece.end] = piece.data(datas)
    assert made == model
    for one, other in pairwise(found):
        assert one.end < other.begin or one.chunk < other.chunk, "side by side, and not one piece"


@given(RANGES, st.integers(0, 1_000), st.integers(0, 300))
def test_every_piece_is_sent_once_and_never_two_of_a_chunk_at_once(
    ranges: list[tuple[int, int]], seed: int, length: int
) -> None:
    _, _, found = planned(ranges, seed)
    rounds, runs = inside(found, length), list(beyond(found, length))
    sent = [piece.begin for some in (*rounds, *runs) for piece in some]
    assert sorted(sent) == [piece.begin for piece in found]
    for some in (*rounds, *runs):
        assert len({piece.chunk for piece in some}) == len(some) > 0
    assert all(piece.end <= length for some in rounds for piece in some)
    end = length
    for run in runs:
        assert run is runs[0] or run[0].begin > end, "two runs that could be one"
        for one, other in pairwise(run):
            assert one.end == other.begin, "a gap within a run"
        end = run[-1].end


def test_what_is_of_one_range_is_not_copied() -> None:
    datas = [memoryview(bytes(range(40))), memoryview(b"ab")]
    first, second, third = pieces(np.array([2, 0]), [40, 2], CHUNK)
    assert first.data(datas) == b"ab" + datas[0][:14]
    whole = second.data(datas)
    assert isinstance(whole, memoryview) and whole.obj is datas[0].obj and whole == datas[0][14:30]
    assert third.data(datas) == datas[0][30:]
