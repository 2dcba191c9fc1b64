"""One seed from beginning to end: a cluster, clients, faults; then peace, and everything is checked."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sim_cluster import Cluster, Shape
from sim_coverage import Coverage
from sim_faults import Nemesis
from sim_history import Chunk, Outcome
from sim_invariants import ChainViolation, Invariants, NotLinearizable, WatchedChunk
from sim_kernel import Event, Simulation, Violation
from sim_names import Names
from sim_pairs import faults_of, mixed, overlap, pairs_of, shaped
from sim_promises import Promises
from sim_story import Story
from sim_underway import UnderWay
from sim_workload import Mix, Workload

from fs3.client.identity import forget_all

OPERATIONS = 220
_WORK_S = 400.0  # virtual: in which all operations must have ended once the faults are over
_HEAL_S = 120.0
_FAULTS_LEASES = 8
_MOST_STEPS = 400_000  # a usual seed takes ten or thirty thousand


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a seed. `violation` is "" if all held; `chunk` and `chain` are what it is about, if known."""

    seed: int
    violation: str
    kind: str
    chunk: Chunk | None
    chain: int | None
    trace: int
    operations: int
    outcomes: dict[str, int]
    steps: int
    virtual_s: float
    cpu_s: float
    phases: dict[str, float] = field(default_factory=dict)  # cpu seconds


class _Run:
    def __init__(self, seed: int, operations: int, coverage: Coverage | None) -> None:
        self.sim = Simulation(seed, max_steps=_MOST_STEPS)
        self.pairs, faults = pairs_of(seed), faults_of(seed)
        self.cluster = Cluster(self.sim, shaped(Shape.drawn(self.sim.stream("shape")), faults))
        mix = mixed(Mix.drawn(self.sim.stream("mix"), operations=operations), faults)
        shape = self.cluster.shape
        self.faults_s = _FAULTS_LEASES * shape.lease_s
        # Operations end about when the faults do: time in which nothing can go wrong is time for another seed.
        pace_s = 0.8 * self.faults_s * mix.workers * shape.clients / operations
        self.mix = replace(mix, pause_s=min(mix.pause_s, pace_s))
        self.workload: Workload | None = None
        self.names: Names | None = None
        self.invariants = Invariants(self.sim, self.cluster)
        self.promises = Promises(self.sim, self.cluster)
        self.under_way = UnderWay(self.cluster, self.promises)
        self.phases: dict[str, float] = {}
        if coverage is not None:
            coverage.begin_seed()
            self.sim.subscribe(coverage.hear, "fault", "heal")
        self.sim.subscribe(self._hear, "start")

    def go(self) -> None:
        """Raises: Violation."""
        sim, cluster = self.sim, self.cluster
        with self._phase("start"):
            cluster.start()
            cluster.wait_ready()
        self.workload = workload = Workload(sim, cluster.clients, cluster.chains, self.mix)
        self.invariants.workload = self.promises.workload = workload
        if cluster.metas:
            self.names = Names(sim, cluster, self.mix.operations // 4, self.mix.pause_s * 2)
        names = self.names
        nemesis = Nemesis(sim, cluster)
        with self._phase("faults"):
            workload.start()
            if names is not None:
                names.start()
            nemesis.start(for_s=self.faults_s)
            for pair in self.pairs:
                overlap(sim, nemesis, pair, self.faults_s)
            cluster.run_until(
                lambda: workload.done and nemesis.done and (names is None or names.done), within_s=_WORK_S
            )
        with self._phase("heal"):
            cluster.settle(within_s=_HEAL_S)
            if nemesis.corrupted or cluster.damaged():
                self._mend()
            last = cluster.clients[0].spawn(lambda: workload.read_all(0), name="last")
            cluster.run_until(lambda: not last.is_alive(), within_s=_HEAL_S)
            if names is not None:
                last = cluster.clients[0].spawn(lambda: names.check(cluster.clients[0]), name="last")
                cluster.run_until(lambda: not last.is_alive(), within_s=_HEAL_S)
                cluster.run_until(names.collected, within_s=_HEAL_S, what="the collection of every dead file")
            cluster.settle(within_s=_HEAL_S)
        with self._phase("check"):
            self.invariants.at_rest()
            self.under_way.at_rest()
            if names is not None:
                names.at_rest()
            last = cluster.clients[0].spawn(lambda: workload.write_all(0), name="last")
            cluster.run_until(lambda: not last.is_alive(), within_s=_HEAL_S)
            self.invariants.histories()
            self.invariants.after_restart(power=sim.stream("restart").random() < 0.5)

    def _mend(self) -> None:
        """What a disk has changed is found by a scrub, and repaired from the other replicas."""
        assert self.workload is not None
        durable = {place.chunk for place in self.workload.places if place.durable}
        self.cluster.scrub(within_s=_HEAL_S)
        self.cluster.run_until(
            lambda: not any(key[1:] in durable for _, key in self.cluster.damaged()),
            within_s=_HEAL_S,
            what="the repair of every chunk",
        )

    def _hear(self, event: Event) -> None:
        if event.kind == "start" and self.workload is not None:
            for number, client in enumerate(self.cluster.clients):
                if client.process.name == event.process:
                    self.workload.restarted(number)
                    if self.names is not None:
                        self.names.restarted(number)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Any:
        begun = time.process_time()
        try:
            yield
        finally:
            self.phases[name] = time.process_time() - begun


def run_seed(seed: int, *, operations: int = OPERATIONS, coverage: Coverage | None = None) -> Result:
    """Run one seed. Its coverage is counted if the caller has entered `Spies` of `coverage`."""
    return _run(seed, operations, coverage, None)[0]


def tell_seed(result: Result, *, operations: int = OPERATIONS) -> str:
    """Run a seed that failed once more, and tell what happened to the chunk and chain that it is about."""
    again, story = _run(result.seed, operations, None, lambda sim: Story(sim, result.chunk, result.chain))
    assert story is not None
    same = "" if again.trace == result.trace else "\nTHE SECOND RUN WAS ANOTHER ONE: the simulator is not deterministic"
    return story.render() + same


def _run(
    seed: int, operations: int, coverage: Coverage | None, listen: Callable[[Simulation], Story] | None
) -> tuple[Result, Story | None]:
    begun = time.process_time()
    run = _Run(seed, operations, coverage)
    story = listen(run.sim) if listen is not None else None
    violation, kind = "", ""
    chunk: Chunk | None = None
    chain: int | None = None
    try:
        with run.invariants, run.promises, run.under_way, story or contextlib.nullcontext():
            run.go()
    except Violation as error:
        violation, kind = str(error), type(error).__name__
        if isinstance(error, NotLinearizable | WatchedChunk | ChainViolation):
            chunk, chain = error.chunk, error.chain
    except Exception as error:  # noqa: BLE001  # a defect of the simulator fails its seed and not the run of all
        violation, kind = "".join(traceback.format_exception(error)), type(error).__name__
    finally:
        run.sim.close()
        forget_all()  # channels hold the runtime, and so the whole cluster, which holds what they are found by
    history = run.workload.history.operations if run.workload is not None else []
    result = Result(
        seed,
        violation,
        kind,
        chunk,
        chain,
        run.sim.trace_hash,
        len(history),
        {outcome.value: sum(one.outcome is outcome for one in history) for outcome in Outcome},
        run.sim.steps,
        run.sim.now,
        time.process_time() - begun,
        run.phases,
    )
    return result, story
