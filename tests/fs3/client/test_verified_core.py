"""What is remembered as verified: by place, chunk and version, for a time, and never more than there may be."""

from __future__ import annotations

from fs3.checksum import FINE_BYTES
from fs3.client.verified_core import KEEP_S, Verified, blocks_mask

CHUNK = (1, 2, 3)


def test_blocks_add_up() -> None:
    known = Verified()
    assert known.of("here", CHUNK, 0) == 0
    known.add("here", CHUNK, blocks_mask(0, 2 * FINE_BYTES), 0)
    known.add("here", CHUNK, blocks_mask(5 * FINE_BYTES, 6 * FINE_BYTES), 1)
    assert known.of("here", CHUNK, 2) == 0b100011


def test_another_place_chunk_or_version_is_another() -> None:
    known = Verified()
    known.add("here", CHUNK, 1, 0)
    for place, chunk in (("there", CHUNK), ("here", (0, 2, 3)), ("here", (1, 0, 3)), ("here", (1, 2, 4))):
        assert known.of(place, chunk, 0) == 0
    known.add("here", (1, 2, 4), 2, 0)
    assert (known.of("here", CHUNK, 0), known.of("here", (1, 2, 4), 0)) == (0, 2)


def test_nothing_is_remembered_for_long_however_often_it_is_added_to() -> None:
    known = Verified()
    known.add("here", CHUNK, 1, 0)
    known.add("here", CHUNK, 2, KEEP_S - 1)
    assert known.of("here", CHUNK, KEEP_S - 0.1) == 3
    assert known.of("here", CHUNK, KEEP_S) == 0
    known.add("here", CHUNK, 4, KEEP_S)
    assert known.of("here", CHUNK, KEEP_S) == 4


def test_the_oldest_goes_first() -> None:
    known = Verified(most=3)
    for place in range(5):
        known.add(place, CHUNK, 1, place)
    known.add(3, CHUNK, 2, 9)
    assert len(known) == 3
    assert [known.of(place, CHUNK, 9) for place in range(5)] == [0, 0, 1, 3, 1]
