"""The engine cut at every operation of its disk. Two targets are worked on at once; at each write, allocation, sync and
metadata batch of the disk, before it and while it is under way, the disk is copied, loses what it may lose in several
ways, and is opened again. What was acknowledged must be there, what is there must be whole, each block must have one
owner or none, and opening once more must change nothing. Errors of the disk are injected at each operation likewise.

The engine is the production one, on the simulator's disk and threads. How many points were cut is printed.
"""

from __future__ import annotations

import copy
import errno
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "sim"))

from sim_disk import SimDisk
from sim_kernel import SimProcess, Simulation
from sim_threads import SimRuntime

from fs3.errors import Corrupt, NoSpace, Unavailable
from fs3.storage import metadata as md
from fs3.storage.commit import Committer
from fs3.storage.engine import Engine
from fs3.storage.engine_api import EngineConfig
from fs3.storage.space import Space
from fs3.storage.staging import Stager

CONFIG = EngineConfig(file_bytes=512 << 10, group_bytes=128 << 10, reserve_bytes=0, index_chunks=16)
TARGETS = (1, 2)
CALLS = 14  # of each worker
SEEDS = 5
LOSSES = 3  # ways to lose power at each point, beside losing nothing


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crash_model", Path(__file__).with_name("crash_model.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


cm = _load()


class Points:
    """Counts a disk's operations; `here` names the one that was come to. With `fail` (number, errno) that one fails."""

    def __init__(self, runtime: SimRuntime, *, pausing: bool = True, fail: tuple[int, int] | None = None) -> None:
        self.runtime = runtime
        self.pausing = pausing
        self.fail = fail
        self.count = 0
        self.here = ""
        self.failed = ""

    def at(self, what: str) -> None:
        """Before an operation: the test has its turn. Raises: OSError."""
        self.count += 1
        sim = self.runtime.process.sim
        if self.pausing and sim.current is not None:
            self.here = what
            self.runtime.sleep(0.0)
        if self.fail is not None and self.count == self.fail[0]:
            self.failed = what
            raise OSError(self.fail[1], os.strerror(self.fail[1]))

    def during(self, what: str) -> None:
        """Have a turn while the operation that begins now is under way."""
        if self.pausing:
            self.runtime.process.sim.after(1e-6, lambda: setattr(self, "here", what), self.runtime.process)


class CutFile:
    """A `RawFile` with points."""

    def __init__(self, file: Any, points: Points) -> None:
        self._file = file
        self._points = points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, parts: Any, position: int) -> None:
        self._points.at("write")
        self._file.write(parts, position)

    def read(self, out: memoryview, position: int) -> int:
        self._points.at("read")
        return int(self._file.read(out, position))

    def allocate(self, position: int, length: int) -> None:
        self._points.at("allocate")
        self._file.allocate(position, length)

    def sync(self) -> None:
        self._points.at("sync")
        self._points.during("syncing")
        self._file.sync()
        self._points.at("synced")


class CutFolder:
    def __init__(self, folder: Any, points: Points) -> None:
        self._folder = folder
        self._points = points

    def names(self) -> list[str]:
        return list(self._folder.names())

    def create(self, name: str, size: int, header: bytes) -> CutFile:
        self._points.at("create")
        self._points.during("creating")
        return CutFile(self._folder.create(name, size, header), self._points)

    def open(self, name: str) -> CutFile:
        return CutFile(self._folder.open(name), self._points)


class CutMetadata:
    """A `MetadataStore` with points; an injected error is what RocksDB's wrapper makes of it."""

    def __init__(self, store: Any, points: Points) -> None:
        self._store = store
        self._points = points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def apply(self, puts: Any) -> None:
        self._at("apply")
        self._store.apply(puts)
        self._at("applied")

    def sync(self) -> None:
        self._at("flush")
        self._points.during("flushing")
        self._store.sync()
        self._at("flushed")

    def _at(self, what: str) -> None:
        try:
            self._points.at(what)
        except OSError as error:
            # As of RocksDB: what has met an error takes no more until it is reopened.
            self._store._failed = NoSpace if error.errno == errno.ENOSPC else Unavailable
            raise self._store._failed(f"metadata: {os.strerror(error.errno or 0)}") from None


class Run:
    """A process with an engine on `disk`, and what it does."""

    def __init__(self, sim: Simulation, disk: SimDisk, **points: Any) -> None:
        self.sim = sim
        self.process = SimProcess(sim, "engine")
        self.runtime = SimRuntime(self.process)
        self.points = Points(self.runtime, **points)
        self.disk = disk
        self.engine: Engine | None = None

    def open(self) -> None:
        port = self.disk.attach(self.process)
        folder, store = CutFolder(port.folder, self.points), CutMetadata(port.metadata, self.points)
        self.engine = Engine(replace(port, folder=folder, metadata=store), CONFIG, runtime=self.runtime)

    def do(self, work: Callable[[], Any]) -> Any:
        """Run `work` in a thread of the process, to its end."""
        results: list[Any] = []
        thread = self.runtime.spawn(lambda: results.append(work()), name="do")
        self.sim.run(stop=lambda: not thread.is_alive())
        assert results, "the thread ended without a result"
        return results[0]


def twin(disk: SimDisk, sim: Simulation) -> SimDisk:
    """A copy of a disk as it is at this moment, volatile and durable, in another simulation."""
    other = SimDisk(sim, disk.name, capacity_bytes=disk.capacity_bytes)
    other.lost_power = disk.lost_power
    for name, image in disk.files.items():
        other.files[name] = mine = copy.copy(image)
        mine.data = bytearray(image.data)
        mine.unsynced, mine.lost = list(image.unsynced), list(image.lost)
        mine.syncing = [list(covered) for covered in image.syncing]
        mine.groups, mine.written = dict(image.groups), dict(image.written)
    other.store.values, other.store.keys = dict(disk.store.values), list(disk.store.keys)
    other.store.unsynced = [list(batch) for batch in disk.store.unsynced]
    return other


def owned_bytes(engine: Engine) -> int:
    """The blocks that records name, each once."""
    owned = []
    for kind, size in ((md.COMMITTED, 32), (md.PENDING, 32)):
        for _, value in engine._metadata.scan(kind):
            record = md.unpack_version(value[:size])
            if record.file >= 0:
                owned.append((record.file, record.slot))
    assert len(set(owned)) == len(owned), "a block has two owners"
    return sum(engine._files[file].block_bytes for file, _ in owned)


def check_reopened(disk: SimDisk, allowed: dict[int, list[Any]], story: str, *, goes_on: bool) -> None:
    """Open a disk after a crash, compare, work on it, and open it again."""
    run = Run(disk.sim, disk, pausing=False)
    run.do(run.open)
    engine = run.engine
    assert engine is not None

    def state() -> dict[int, Any]:
        return {target: cm.read_back(engine, target) for target in TARGETS}

    found = run.do(state)
    models = dict(allowed)
    for target in TARGETS:
        models[target] = [model for model in allowed[target] if cm.matches(found[target], model)]
        assert models[target], (
            f"{story}: target {target} was opened with {found[target]}, and should be one of {allowed[target]}"
        )
    assert engine.stats().used_bytes == owned_bytes(engine), f"{story}: blocks are leaked"
    if goes_on:
        workers = [cm.Worker(target, 99) for target in TARGETS]
        for worker in workers:
            run.do(lambda worker=worker: worker.settle(engine))
            run.do(lambda worker=worker: worker.run(engine, 5))
            assert worker.done == 5, (story, worker.errors)
        run.do(engine._drain)
        assert engine.stats().used_bytes == owned_bytes(engine), f"{story}: blocks are leaked by going on"
        found = run.do(state)
        for worker in workers:
            assert cm.matches(found[worker.target], worker.model), f"{story}: {worker.target} after going on"
            models[worker.target] = [worker.model]
    run.process.kill()
    if not goes_on:
        disk.lose_power()  # opening has left nothing that could be lost
    again = Run(disk.sim, disk, pausing=False)
    again.do(again.open)
    engine = again.engine
    assert engine is not None
    now = again.do(state)
    for target in TARGETS:
        same = any(cm.matches(now[target], model) for model in models[target])
        assert same, f"{story}: target {target} was opened with {found[target]}, and then with {now[target]}"
    assert engine.stats().used_bytes == owned_bytes(engine)


def cut_everywhere(seed: int, *, losses: int = LOSSES) -> tuple[int, int]:
    """Run a workload and check every point of it: (points, reopenings)."""
    sim = Simulation(seed)
    run = Run(sim, SimDisk(sim, "disk"))
    workers = [cm.Worker(target, seed) for target in TARGETS]

    def work() -> None:
        run.open()
        for worker in workers:
            run.runtime.spawn(lambda worker=worker: worker.run(run.engine, CALLS), name=f"worker-{worker.target}")

    run.runtime.spawn(work, name="work")
    points = reopened = 0
    while sim.run(stop=lambda: bool(run.points.here)):
        what, run.points.here = run.points.here, ""
        points += 1
        allowed = {worker.target: [model.copy() for model in worker.allowed()] for worker in workers}
        for loss in range(losses + 1):
            other = Simulation(f"{seed}/{points}/{loss}")
            disk = twin(run.disk, other)
            if loss:
                disk.lose_power()
            story = f"seed {seed}, point {points} ({what}), loss {loss}"
            check_reopened(disk, allowed, story, goes_on=points % 4 == loss)
            other.close()
            reopened += 1
    for worker in workers:
        assert worker.done == CALLS, worker.errors
    sim.close()
    return points, reopened


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_crash_point_recovers(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    points, reopened = cut_everywhere(seed)
    with capsys.disabled():
        print(f" {points} crash points, {reopened} reopenings ", end="")
    assert points > 100


def _no_early_end(self: Any, group: Any, *, sync: bool) -> Any:
    """Committer._write, as if nobody had asked for a sync."""
    for batch in group:
        batch.sync = False
    return _WRITE(self, group, sync=sync)


_WRITE = Committer._write
CHEATS: dict[str, tuple[type, str, Any]] = {
    "no sync of block files": (Stager, "sync", lambda self, prepared: None),
    "no sync of the log": (Committer, "_sync", lambda self: None),
    "answers before the sync": (Committer, "_write", _no_early_end),
    "no quarantine": (Space, "retire", lambda self, blocks, batch: bool(self.give_back(blocks))),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_an_engine_that_cheats_is_found(cheat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test is worth something: with any one of the engine's promises broken it fails."""
    monkeypatch.setattr(*CHEATS[cheat])
    for seed in range(SEEDS):
        try:
            cut_everywhere(seed)
        except (AssertionError, Corrupt):
            return
    raise AssertionError(f"nobody noticed: {cheat}")


def fail_at(seed: int, number: int, code: int) -> str:
    """A workload whose disk fails at its `number`-th operation; what that was, empty if there are not so many."""
    sim = Simulation(f"{seed}/{number}")
    run = Run(sim, SimDisk(sim, "disk"), pausing=False)
    run.do(run.open)
    run.points.fail = (run.points.count + number, code)
    engine = run.engine
    assert engine is not None
    workers = [cm.Worker(target, seed, single=True) for target in TARGETS]
    threads = [
        run.runtime.spawn(lambda worker=worker: worker.run(engine, CALLS), name=f"worker-{worker.target}")
        for worker in workers
    ]
    sim.run(stop=lambda: not any(thread.is_alive() for thread in threads))
    run.points.fail = None
    story = f"seed {seed}, {os.strerror(code)} at operation {number} ({run.points.failed})"
    for worker in workers:
        # What was refused has changed nothing; of the call that met a broken disk nobody knows.
        found = run.do(lambda worker=worker: cm.read_back(engine, worker.target))
        failed = any(isinstance(error, Unavailable) for error in worker.errors)
        assert any(cm.matches(found, model, failed=failed) for model in worker.allowed()[-2:]), (
            f"{story}: {found}, not {worker.allowed()[-2:]}, after {worker.errors}"
        )
        for error in worker.errors:
            assert isinstance(error, NoSpace | Unavailable | Corrupt), (story, error)
    allowed = {worker.target: worker.allowed() for worker in workers}
    run.process.kill()
    for loss in range(2):
        other = Simulation(f"{seed}/{number}/{loss}")
        disk = twin(run.disk, other)
        if loss:
            disk.lose_power()
        check_reopened(disk, allowed, f"{story}, loss {loss}", goes_on=loss == 1)
        other.close()
    sim.close()
    return run.points.failed


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_every_operation_may_fail(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    met: list[str] = []
    while what := fail_at(36, len(met) + 1, code):
        met.append(what)
    with capsys.disabled():
        print(f" {len(met)} operations ", end="")
    assert {"write", "read", "sync", "allocate", "create", "apply", "applied", "flush", "flushed"} <= set(met)
