"""When the chores of a storage daemon run, on the simulator's clock: sooner where they are asked for, and never in a
loop without a pause."""

from __future__ import annotations

import threading

import pytest
from sim_kernel import SimProcess, Simulation, Violation
from sim_threads import SimRuntime

from fs3.errors import Unavailable
from fs3.storage.chores import Chores


def test_a_chore_that_asks_for_itself_while_it_runs_waits_as_long_as_it_asked_for() -> None:
    sim = Simulation(1)
    runtime = SimRuntime(SimProcess(sim, "a"))
    ran: list[float] = []

    def settle(number: int) -> float | None:
        ran.append(round(sim.now, 3))
        chores.ask("settle", number, in_s=1.0)
        return None

    chores = Chores({"settle": settle}, threads=2, runtime=runtime)
    runtime.spawn(lambda: chores.ask("settle", 7), name="begin")
    sim.run(3.5, steps=1_000)
    assert ran == [0.0, 1.0, 2.0, 3.0]


def test_the_soonest_of_all_wishes_counts() -> None:
    sim = Simulation(1)
    runtime = SimRuntime(SimProcess(sim, "a"))
    ran: list[float] = []

    def work(number: int) -> float | None:
        ran.append(round(sim.now, 3))
        if len(ran) == 1:
            runtime.sleep(0.5)
            chores.ask("work", number, in_s=3.0)
            chores.ask("work", number)
            return 2.0
        if len(ran) == 2:
            raise Unavailable("again later")
        return None

    chores = Chores({"work": work}, threads=1, runtime=runtime)

    def begin() -> None:
        chores.ask("work", 7, in_s=2.0)
        chores.ask("work", 7, in_s=1.0)

    runtime.spawn(begin, name="begin")
    sim.run(60.0, steps=1_000)
    assert ran[:2] == [1.0, 1.5] and len(ran) == 3 and ran[2] > 1.5
    assert chores.idle()


def test_a_defect_in_one_chore_takes_no_thread_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    ran: list[int] = []
    ended, again = threading.Event(), threading.Event()

    def work(number: int) -> float | None:
        ran.append(number)
        if ran == [1]:
            raise RuntimeError("a defect")
        (again if number == 1 else ended).set()
        return None

    chores = Chores({"work": work}, threads=1)
    chores.ask("work", 1)
    chores.ask("work", 2)
    assert ended.wait(30)
    chores.ask("work", 1)  # as one that is not running any more
    assert again.wait(30)
    chores.close()
    assert ran == [1, 2, 1]
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "work 1 failed" in record.message and "a defect" in str(record.exc_info)


def test_a_defect_in_a_chore_ends_a_simulation() -> None:
    sim = Simulation(1)
    runtime = SimRuntime(SimProcess(sim, "a"))

    def work(_number: int) -> float | None:
        raise RuntimeError("a defect")

    chores = Chores({"work": work}, threads=1, runtime=runtime)
    runtime.spawn(lambda: chores.ask("work", 7), name="begin")
    with pytest.raises(Violation, match="work 7 failed"):
        sim.run(60.0, steps=1_000)
