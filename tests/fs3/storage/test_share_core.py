"""Who has what of a daemon's disks: dealt out, shared where they are fewer than the workers, and never taken away."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.storage.share_core import Share, deal, shares


def test_disks_are_dealt_out_and_shared_where_they_are_too_few() -> None:
    assert deal(3, 1, ()) == [(0, 0), (0, 1), (0, 2)]
    assert deal(5, 2, ()) == [(0, 0), (0, 2), (0, 4), (1, 1), (1, 3)]
    assert deal(1, 3, ()) == [(0, 0), (1, 0), (2, 0)]
    assert deal(2, 3, ()) == [(0, 0), (1, 1), (2, 0)]


def test_more_workers_begin_empty_beside_what_is_there() -> None:
    alone = deal(2, 1, ())
    assert deal(2, 2, alone) == [*alone, (1, 1)]
    assert deal(2, 4, alone) == [*alone, (1, 1), (2, 0), (3, 1)]


def test_a_disk_that_came_back_empty_is_whose_targets_were_on_it() -> None:
    assert deal(2, 2, [(0, 0), (0, 1)]) == [(0, 0), (0, 1), (1, 1)]
    assert deal(2, 2, [(0, 0), (1, 1)]) == [(0, 0), (1, 1)]


def test_what_workers_had_that_are_no_more_is_dealt_anew() -> None:
    assert deal(2, 1, [(0, 0), (1, 1)]) == [(0, 0), (0, 1)]
    assert deal(1, 2, [(0, 0), (0, 1)]) == [(0, 0), (1, 0)], "nor does a disk count that is not configured"


@given(st.integers(1, 6), st.integers(1, 6), st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7))))
def test_every_disk_and_worker_has_a_place_and_what_was_known_keeps_it(
    disks: int, workers: int, known: set[tuple[int, int]]
) -> None:
    places = deal(disks, workers, known)
    assert {worker for worker, _ in places} == set(range(workers))
    assert {disk for _, disk in places} == set(range(disks))
    assert {place for place in known if place[0] < workers and place[1] < disks} <= {*places}
    assert deal(disks, workers, places) == places


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_workers_that_start_together_agree_whatever_each_finds(disks: int, workers: int, data: st.DataObject) -> None:
    whole = deal(disks, workers, ())
    found = data.draw(st.sets(st.sampled_from(whole)))
    assert deal(disks, workers, found) == whole


def test_a_share_knows_its_folder_and_by_how_many_its_disk_is_shared() -> None:
    first, second = Path("/a"), Path("/b")
    assert list(shares([first, second], 3, ())) == [
        (0, Share(0, first, 2)),
        (1, Share(1, second / "worker-1", 1)),
        (2, Share(0, first / "worker-2", 2)),
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_of_its_own_is_shared_by_nobody(workers: int) -> None:
    assert {share.shared_by for _, share in shares([Path("/a"), Path("/b")], workers, ())} == {1}
