"""Whose batch is next."""

from __future__ import annotations

from fs3.usrbio.schedule_core import Priority, Schedule


def served(schedule: Schedule[str], waiting: dict[str, int], most: int = 100) -> str:
    """The order in which so many batches of each ring are taken, if none ends."""
    order = ""
    while len(order) < most and (found := schedule.next(lambda ring: waiting[ring] > 0)) is not None:
        ring, priority = found
        waiting[ring] -= 1
        schedule.begun(priority)
        order += ring
    return order


def test_high_comes_before_low_and_equals_take_turns() -> None:
    schedule: Schedule[str] = Schedule(workers=8)
    for ring, priority in (("l", Priority.LOW), ("a", Priority.NORMAL), ("b", Priority.NORMAL), ("h", Priority.HIGH)):
        schedule.add(ring, priority)
    assert served(schedule, {"l": 2, "a": 3, "b": 2, "h": 2}) == "hhababall"


def test_a_ring_with_nothing_to_do_does_not_lose_its_turn_to_the_next() -> None:
    schedule: Schedule[str] = Schedule(workers=8)
    for ring in "abc":
        schedule.add(ring, Priority.NORMAL)
    assert served(schedule, {"a": 0, "b": 2, "c": 2}) == "bcbc"


def test_the_lowest_priority_leaves_a_worker_free() -> None:
    schedule: Schedule[str] = Schedule(workers=3)
    schedule.add("l", Priority.LOW)
    schedule.add("n", Priority.NORMAL)
    waiting = {"l": 9, "n": 0}
    assert served(schedule, waiting) == "ll"
    waiting["n"] = 1
    assert served(schedule, waiting) == "n"
    schedule.ended(Priority.LOW)
    assert served(schedule, waiting) == "l"


def test_one_worker_serves_the_lowest_too() -> None:
    schedule: Schedule[str] = Schedule(workers=1)
    schedule.add("l", Priority.LOW)
    assert served(schedule, {"l": 1}) == "l"


def test_a_ring_that_was_removed_has_no_turn() -> None:
    schedule: Schedule[str] = Schedule(workers=2)
    schedule.add("a", Priority.HIGH)
    schedule.remove("a")
    schedule.remove("never there")
    assert schedule.next(lambda ring: True) is None
