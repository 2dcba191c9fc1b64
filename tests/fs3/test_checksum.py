"""Checksums: the linear algebra on sums agrees with summing the bytes, and pieces tile every range.

Property tests against crc32c over the real bytes; frozen values stand in tests/golden.
"""

from __future__ import annotations

import itertools

import numpy as np
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3 import checksum
from fs3.checksum import COARSE_BYTES, FINE_BYTES

LENGTHS = st.one_of(
    st.integers(0, 3 * FINE_BYTES),
    st.integers(0, 3 * COARSE_BYTES),
    st.sampled_from([FINE_BYTES, COARSE_BYTES, COARSE_BYTES + 1, COARSE_BYTES - 1, 2 * COARSE_BYTES]),
)


def random_bytes(seed: int, length: int) -> bytes:
    return np.random.default_rng(seed).bytes(length)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_combine_is_the_sum_of_the_concatenation(first: bytes, second: bytes) -> None:
    assert checksum.combine(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), LENGTHS)
def test_coarse_sums_follow_from_fine_sums(seed: int, length: int) -> None:
    data = random_bytes(seed, length)
    fine = checksum.fine_sums(memoryview(data))
    coarse = checksum.coarse_from_fine(fine, length)
    assert coarse.tolist() == [crc32c(data[at : at + COARSE_BYTES]) for at in range(0, length, COARSE_BYTES)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3 * FINE_BYTES), st.integers(0, 5 * FINE_BYTES))
def test_an_update_is_cut_on_the_chunks_grid(offset: int, length: int) -> None:
    cuts = checksum.fine_cuts(offset, length)
    assert cuts[0] == 0 and cuts[-1] == length
    assert all(cut == length or (offset + cut) % FINE_BYTES == 0 for cut in cuts[1:])
    assert all(0 < after - before <= FINE_BYTES for before, after in itertools.pairwise(cuts))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_pieces_tile_the_range_on_the_grid(data: st.DataObject) -> None:
    chunk_length = data.draw(LENGTHS.filter(bool))
    offset = data.draw(st.integers(0, chunk_length - 1))
    length = data.draw(st.integers(1, chunk_length - offset))
    pieces = checksum.pieces(offset, length, chunk_length)
    assert pieces[0][0] == offset and pieces[-1][1] == offset + length
    assert all(before[1] == after[0] for before, after in itertools.pairwise(pieces))
    for begin, end in pieces:
        coarse = checksum.is_coarse(begin, end, chunk_length)
        within_a_block = begin // FINE_BYTES == (end - 1) // FINE_BYTES
        assert coarse or within_a_block, (begin, end)
    inner = [piece for piece in pieces[1:-1] if not checksum.is_coarse(*piece, chunk_length)]
    assert all(checksum.is_whole_block(*piece, chunk_length) for piece in inner)


def test_a_flipped_bit_changes_the_sum_of_its_piece_and_no_other() -> None:
    data = bytearray(random_bytes(7, 5 * FINE_BYTES + 100))
    before = checksum.fine_sums(memoryview(data), 50)
    data[2 * FINE_BYTES] ^= 1
    after = checksum.fine_sums(memoryview(data), 50)
    assert np.flatnonzero(before != after).tolist() == [2]
