"""Leases: each way in which one begins and ends, and a random walk beside the rule written down in one line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fs3.ids import NodeId
from fs3.mgmtd.lease_core import Heard, LeaseTable

A, B = NodeId(1), NodeId(2)


def test_a_lease_runs_out_at_exactly_t() -> None:
    table = LeaseTable(10.0)
    assert table.heard(A, 1, 100.0) == Heard.STARTED
    assert table.next_expiry_s() == 110.0
    assert table.expire(109.9) == []
    assert table.expire(110.0) == [A]
    assert table.expire(110.0) == []
    assert not table.alive(A)
    assert table.heard(A, 1, 111.0) == Heard.REVIVED
    assert table.alive(A)
    assert table.heard(A, 1, 112.0) == Heard.RENEWED
    assert table.age_s(A, 115.0) == 3.0


def test_a_new_generation_retires_the_one_before() -> None:
    table = LeaseTable(10.0)
    table.heard(A, 5, 0.0)
    assert table.heard(A, 6, 1.0) == Heard.STARTED
    assert table.heard(A, 5, 2.0) == Heard.RETIRED
    assert table.generation(A) == 6
    assert table.expire(11.0) == [A], "the retired one's heartbeat renewed nothing"


def test_a_lower_generation_waits_until_the_higher_has_no_lease() -> None:
    """It is a late heartbeat of a daemon that is gone, or one whose machine's clock went back, which may wait."""
    table = LeaseTable(10.0)
    table.restore(A, 5, alive=True, started_s=0.0)
    assert table.heard(A, 4, 1.0) == Heard.EARLY
    assert table.heard(A, 5, 2.0) == Heard.RENEWED
    assert table.expire(12.0) == [A]
    assert table.heard(A, 4, 13.0) == Heard.STARTED
    assert table.heard(A, 5, 14.0) == Heard.EARLY
    assert table.expire(23.0) == [A]
    assert table.heard(A, 5, 23.0) == Heard.STARTED, "it was only late, and is not ended by its predecessor's heartbeat"
    assert table.heard(A, 4, 24.0) == Heard.RETIRED
    assert table.goodbye(A, 5)
    assert table.heard(A, 4, 16.0) == Heard.RETIRED
    assert table.heard(A, 3, 16.0) == Heard.STARTED, "after a goodbye nothing is waited for"


def test_the_late_heartbeat_of_one_whose_clock_was_ahead_ends_no_successor() -> None:
    """Its machine's clock went back between the two runs, so the later one has the lower generation."""
    table = LeaseTable(10.0)
    table.heard(A, 9, 0.0)
    assert table.expire(10.0) == [A]
    assert table.heard(A, 2, 11.0) == Heard.STARTED
    assert table.heard(A, 9, 12.0) == Heard.EARLY and table.generation(A) == 2
    assert table.heard(A, 2, 13.0) == Heard.RENEWED
    assert table.heard(A, 10, 14.0) == Heard.STARTED, "a third run, by a clock that is right again"


def test_the_late_heartbeat_of_one_that_was_told_to_wait_ends_no_successor() -> None:
    """Its machine's clock went back before each of three runs, and the second never had its turn."""
    table = LeaseTable(10.0)
    table.heard(A, 9, 0.0)
    assert table.heard(A, 5, 8.0) == Heard.EARLY
    assert table.expire(10.0) == [A]
    assert table.heard(A, 4, 11.0) == Heard.STARTED
    assert table.heard(A, 5, 12.0) == Heard.EARLY and table.generation(A) == 4
    assert table.heard(A, 4, 13.0) == Heard.RENEWED
    assert table.expire(23.0) == [A]
    assert table.heard(A, 5, 23.0) == Heard.STARTED, "it was not late, but told to wait for the wrong one"


def test_one_elsewhere_waits_until_the_first_has_no_lease() -> None:
    table = LeaseTable(10.0)
    table.heard(A, 5, 0.0)
    assert table.heard(A, 6, 1.0, elsewhere=True) == Heard.EARLY
    assert table.heard(A, 5, 2.0) == Heard.RENEWED, "it serves on"
    assert table.expire(12.0) == [A]
    assert table.heard(A, 6, 12.0, elsewhere=True) == Heard.STARTED
    assert table.heard(A, 5, 13.0, elsewhere=True) == Heard.RETIRED
    assert table.refused(A, 6)
    assert table.heard(A, 7, 13.0, elsewhere=True) == Heard.STARTED, "nobody listens where the first was"


def test_goodbye_is_for_good_and_a_refusal_is_not() -> None:
    table = LeaseTable(10.0)
    table.heard(A, 1, 0.0)
    table.heard(B, 1, 0.0)
    assert not table.goodbye(A, 2)
    assert table.goodbye(A, 1)
    assert table.heard(A, 1, 1.0) == Heard.RETIRED
    assert table.refused(B, 1)
    assert not table.refused(B, 1)
    assert table.heard(B, 1, 1.0) == Heard.REVIVED
    assert not table.refused(B, 2)


def test_a_new_mgmtd_counts_from_its_own_start() -> None:
    table = LeaseTable(10.0)
    table.restore(A, 3, alive=True, started_s=1_000.0)
    table.restore(B, 3, alive=False, started_s=1_000.0)
    assert table.alive(A) and not table.alive(B)
    assert not table.was_heard(A)
    assert table.expire(1_009.0) == []
    assert table.heard(A, 3, 1_009.0) == Heard.RENEWED
    assert table.was_heard(A)
    assert table.heard(B, 3, 1_009.0) == Heard.REVIVED
    assert table.next_expiry_s() == 1_019.0


EVENTS = st.lists(
    st.tuples(st.sampled_from(["heard", "goodbye", "refused", "expire"]), st.integers(1, 3), st.integers(0, 8)),
    max_size=40,
)


@given(EVENTS)
def test_alive_means_heard_within_t(events: list[tuple[str, int, int]]) -> None:
    table = LeaseTable(10.0)
    now_s, current, last_s, retired, parted = 0.0, 0, float("-inf"), set[int](), set[int]()
    for kind, generation, later in events:
        now_s += later
        over = now_s - later - last_s >= 10.0
        newer = generation == current or (over if generation < current or generation in retired else True)
        newer = newer and not (generation < current and generation in retired)
        if kind == "heard" and generation not in parted and newer:
            if current not in (0, generation):
                retired.add(current)
            current, last_s = generation, now_s
        if kind in ("goodbye", "refused") and generation == current:
            last_s = float("-inf")
            parted |= {generation} if kind == "goodbye" else set()
        if kind == "heard":
            table.heard(A, generation, now_s)
        elif kind != "expire":
            getattr(table, kind)(A, generation)
        table.expire(now_s)
        assert table.alive(A) == (now_s - last_s < 10.0)
