"""When the chores of a storage daemon run, on the simulator's clock: sooner where they are asked for, and never in a
loop without a pause."""

from __future__ import annotations

from sim_kernel import SimProcess, Simulation
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
