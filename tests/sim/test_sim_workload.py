"""The workload against a store of one dictionary: right, it is found right; made wrong in one way, it is found out.

The store takes time before and after each step, loses answers, applies what it left unanswered later or never; so the
histories are as tangled as those of a cluster, and the mistakes are the only difference.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sim_history import Kind, Outcome
from sim_kernel import SimProcess, Simulation
from sim_linearize import check
from sim_threads import SimRuntime
from sim_workload import Mix, Workload

from fs3.client.storage import ChunkUpdate, Op
from fs3.errors import MaybeApplied, NotFound, Unavailable
from fs3.transport.messages import RESULT, Records


class Dictionary:
    """As `StorageClient`, for one process; `held` is shared by all: {chunk: (bytes or None, version)}."""

    def __init__(self, runtime: SimRuntime, held: dict[Any, tuple[bytes | None, int]], draw: random.Random) -> None:
        self.runtime = runtime
        self.held = held
        self.draw = draw
        self.mistake = ""
        self.before: dict[Any, tuple[bytes | None, int]] = {}

    def wait(self) -> None:
        self.runtime.sleep(self.draw.random() * 0.05)

    def wrong(self, what: str) -> bool:
        return self.mistake == what and self.draw.random() < 0.1

    def try_write(
        self, updates: Sequence[ChunkUpdate], *, deadline_s: float | None = None
    ) -> tuple[Records, list[Exception | None]]:
        results, failures = np.zeros(len(updates), dtype=RESULT), []
        for row, update in enumerate(updates):
            self.wait()
            fate = self.draw.random()
            if fate < 0.05:
                failures.append(Unavailable("not sent"))
                continue
            if fate < 0.1:
                if fate < 0.08:
                    self.runtime.spawn(lambda update=update: (self.wait(), self.apply(update)), name="late")
                failures.append(MaybeApplied("no answer"))
                continue
            results["version"][row], results["chunk_length"][row] = self.apply(update)
            failures.append(None)
            self.wait()
        return results, failures

    def apply(self, update: ChunkUpdate) -> tuple[int, int]:
        chunk = (update.hi, update.lo)
        held, version = self.held.get(chunk, (None, 0))
        self.before[chunk] = held, version
        old, data = held or b"", bytes(update.data)
        if update.op is Op.PUT_IF_ABSENT and held is not None:
            return 0, len(held)
        if update.op is Op.REMOVE and held is None:
            return version, 0
        if self.wrong("lost"):
            return version + 1, max(len(data), len(old))
        new: bytes | None = data
        if update.op is Op.REMOVE:
            new = None
        elif update.op is Op.TRUNCATE:
            new = old[: update.offset].ljust(update.offset, b"\0")
        elif update.op is Op.WRITE:
            new = old[: update.offset].ljust(update.offset, b"\0") + data + old[update.offset + len(data) :]
        self.held[chunk] = new, version + 1
        if self.wrong("twice"):
            self.runtime.spawn(lambda: (self.wait(), self.apply(update)), name="twice")
        return version + 1, len(new or b"")

    def read(self, ranges: Any, out: memoryview, out_offsets: Any, *, deadline_s: float | None = None) -> Records:
        results = np.zeros(len(ranges), dtype=RESULT)
        for row, one in enumerate(ranges):
            self.wait()
            chunk = (int(one["hi"]), int(one["lo"]))
            held, version = (self.before if self.wrong("stale") else self.held).get(chunk, (None, 0))
            if held is None:
                results["status"][row] = NotFound.code
                continue
            part = held[int(one["offset"]) :][: int(one["length"])]
            other = self.before.get(chunk, (None, 0))[0]
            if self.wrong("torn") and other is not None:
                part = part[: len(part) // 2] + other[int(one["offset"]) :][len(part) // 2 : len(part)]
            out[int(out_offsets[row]) :][: len(part)] = part
            results["version"][row], results["chunk_length"][row] = version, len(held)
            results["length"][row] = len(part)
        self.wait()
        return results

    def query(self, hi: Any, lo: Any, chain: Any, *, deadline_s: float | None = None) -> Records:
        results = np.zeros(len(hi), dtype=RESULT)
        for row, chunk in enumerate(zip(hi.tolist(), lo.tolist(), strict=True)):
            self.wait()
            held, version = self.held.get(chunk, (None, 0))
            results["status"][row] = NotFound.code if held is None else 0
            results["version"][row], results["chunk_length"][row] = version, len(held or b"")
        return results


class PlainClient:
    """A client process without a cluster."""

    def __init__(self, sim: Simulation, number: int, held: dict[Any, tuple[bytes | None, int]], mistake: str) -> None:
        self.sim, self.number, self.held, self.mistake = sim, number, held, mistake
        self.before: dict[Any, tuple[bytes | None, int]] = {}
        self.begin()

    def begin(self) -> None:
        self.process = SimProcess(self.sim, f"client-{self.number}")
        self.runtime = SimRuntime(self.process)
        self.storage = Dictionary(self.runtime, self.held, self.sim.stream(f"dictionary/{self.process.number}"))
        self.storage.mistake, self.storage.before = self.mistake, self.before

    @property
    def alive(self) -> bool:
        return self.process.alive

    def spawn(self, body: Any, *, name: str) -> Any:
        return self.runtime.spawn(body, name=name)


def run(seed: int, *, mistake: str = "", kill: bool = False) -> tuple[Workload, int]:
    """A run; how many of its chunks have a history that cannot be."""
    sim = Simulation(seed)
    held: dict[Any, tuple[bytes | None, int]] = {}
    clients = [PlainClient(sim, number, held, mistake) for number in range(3)]
    mix = Mix.drawn(sim.stream("mix"))
    workload = Workload(sim, clients, [1, 2], mix)
    workload.start()
    if kill:
        sim.run(sim.now + 0.5)
        clients[1].process.kill()
        clients[1].begin()
        workload.restarted(1)
    sim.run_until(lambda: workload.done, within_s=500.0)
    clients[0].spawn(lambda: workload.read_all(0), name="last")
    sim.run()
    wrong = sum(not check(operations).ok for operations in workload.history.chunks().values())
    sim.close()
    return workload, wrong


@pytest.mark.parametrize("kill", [False, True])
def test_what_is_right_is_found_right(kill: bool) -> None:
    unknown = 0
    for seed in range(25):
        workload, wrong = run(seed, kill=kill)
        assert not wrong, f"seed {seed}"
        assert len(workload.history.operations) >= 200
        unknown += sum(one.outcome is Outcome.UNKNOWN for one in workload.history.operations)
    assert unknown > 100


def test_some_changes_of_unknown_outcome_are_the_last_of_their_chunks() -> None:
    for seed in range(5):
        workload, _ = run(seed)
        changes = [one for one in workload.history.operations if one.kind not in (Kind.READ, Kind.QUERY)]
        assert workload.left_alone and len(workload.left_alone) <= len(workload.places) // 2
        for chunk in workload.left_alone:
            mine = [one for one in changes if one.chunk == chunk]
            known_s = min(one.returned_s for one in mine if one.outcome is Outcome.UNKNOWN)
            assert all(one.invoked_s <= known_s for one in mine), f"seed {seed}"
        assert len({one.chunk for one in changes if one.invoked_s > known_s}) > 0, "others are changed all the time"


@pytest.mark.parametrize("mistake", ["lost", "twice", "stale", "torn"])
def test_a_mistake_is_found(mistake: str) -> None:
    found = [seed for seed in range(10) if run(seed, mistake=mistake)[1]]
    assert len(found) >= 6, "most seeds have many chances to meet it"


def test_a_seed_is_the_whole_story() -> None:
    one, other = run(5)[0].history.operations, run(5)[0].history.operations
    assert [(str(a), a.answer()) for a in one] == [(str(b), b.answer()) for b in other]
