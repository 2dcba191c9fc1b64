"""The arithmetic of rounds: order, warm-up, rates, ratios round by round, targets. No time is asserted."""

from __future__ import annotations

import threading

import pytest

from benchmarks.rounds import (
    Spread,
    Timed,
    for_seconds,
    interleave,
    prepared_for_seconds,
    rates,
    ratios,
    threads_for_seconds,
)
from benchmarks.rows import Cost, make_row, row_from_json, row_to_json


def runs_of(*amounts: float) -> list[Timed]:
    return [Timed(amount=amount, seconds=2.0, client_cpu_s=1.0, servers_cpu_s=3.0) for amount in amounts]


def test_cases_take_turns_and_the_first_turn_does_not_count() -> None:
    order: list[str] = []

    def case(name: str) -> Timed:
        order.append(name)
        return Timed(amount=len(order), seconds=1.0)

    runs = interleave({"a": lambda: case("a"), "b": lambda: case("b")}, 2)
    assert order == ["a", "b"] * 3
    assert [run.amount for run in runs["a"]] == [3, 5]
    assert [run.amount for run in runs["b"]] == [4, 6]


def test_a_warm_case_is_not_run_unmeasured() -> None:
    order: list[str] = []
    case = {name: (lambda name=name: order.append(name) or Timed(amount=1, seconds=1)) for name in "ab"}
    runs = interleave(case, 1, warm=["b"])
    assert order == ["a", "a", "b"]
    assert {name: len(found) for name, found in runs.items()} == {"a": 1, "b": 1}


def test_a_ratio_is_of_one_round() -> None:
    """The machine slowed down tenfold between the rounds: rates drift, ratios do not."""
    ours, limit = rates(runs_of(100, 10, 50)), rates(runs_of(200, 20, 100))
    assert ours == Spread((50.0, 5.0, 25.0))
    assert (ours.median, ours.low, ours.high) == (25.0, 5.0, 50.0)
    assert ratios(ours, limit) == Spread((0.5, 0.5, 0.5))


def test_a_loop_does_at_least_one_step() -> None:
    numbers: list[int] = []

    def step(number: int) -> float:
        numbers.append(number)
        return 7

    assert for_seconds(step, 0.0).amount == 7
    assert numbers == [0]


def test_what_is_prepared_is_not_timed() -> None:
    """Preparation takes much longer than the work, and counts for nothing."""
    order: list[str] = []

    def work() -> float:
        order.append("work")
        return 3

    pause = threading.Event()
    timed = prepared_for_seconds(lambda: order.append("prepare") or pause.wait(0.05), work, 0.0)
    assert (timed.amount, order) == (3, ["prepare", "work"])
    assert timed.seconds < 0.05
    again = prepared_for_seconds(lambda: order.append("prepare"), work, 0.001)
    assert again.seconds >= 0.001 and again.amount == 3 * order[2:].count("work")
    assert order[2:] == ["prepare", "work"] * order[2:].count("work")


def test_threads_start_together_and_their_work_is_added() -> None:
    together = threading.Barrier(3)

    def step(number: int) -> float:
        if number == 0:
            together.wait(30)  # breaks unless all three are here
        return 5

    assert threads_for_seconds([step] * 3, 0.0).amount == 15


def test_a_failure_in_a_thread_is_raised() -> None:
    def fail(number: int) -> float:
        raise LookupError("from a thread")

    with pytest.raises(LookupError, match="from a thread"):
        threads_for_seconds([lambda number: 1.0, fail], 0.0)


def test_targets_of_rates_and_ratios() -> None:
    runs = {"ours": runs_of(40, 44, 42), "slow": runs_of(10, 11, 12), "limit": runs_of(80, 80, 80)}
    row = make_row(
        "r",
        "reads/s",
        runs,
        ours="ours",
        limits=["limit"],
        others=["slow"],
        at_least=21.5,
        at_least_times={"slow": 4.0},
        cost_per=("read", 1.0),
    )
    assert row.rate.median == 21.0
    rate, ratio = row.targets
    assert (rate.wanted, rate.got, rate.met) == (21.5, 21.0, False)
    assert (ratio.over, ratio.got, ratio.met) == ("slow", 4.0, True)
    assert [one.ratio.median for one in row.beside] == [0.525, 4.0]
    assert row.costs == (Cost("fs3", "read", 3 / 126, 9 / 126), Cost("limit", "read", 3 / 240, 9 / 240))
    assert row_from_json(row_to_json(row)) == row
