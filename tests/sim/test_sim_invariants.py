"""The invariants find what breaks them: routings made by hand, an engine whose allocator was tampered with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sim_history import Kind, Outcome
from sim_invariants import Invariants, NotLinearizable, WatchedChunk, _compare, blocks_add_up
from sim_kernel import Simulation, Violation
from sim_workload import Mix, Workload

from fs3 import checksum
from fs3.ids import ChainId, NodeId, TargetId
from fs3.routing import Chain, Routing, Target, TargetState
from fs3.storage.engine import Engine
from fs3.storage.engine_api import EngineConfig, Update
from fs3.storage.target_core import Phase, Stand
from fs3.transport.messages import CHUNK_META, Op

SERVING, LASTSRV, SYNCING, WAITING, OFFLINE = TargetState


def routing(version: int, chain_version: int, *states: TargetState) -> Routing:
    """One chain, target n + 1 on node n + 1."""
    targets = {
        TargetId(at + 1): Target(
            target_id=TargetId(at + 1), node_id=NodeId(at + 1), disk=0, chain_id=ChainId(1), state=state
        )
        for at, state in enumerate(states)
    }
    chain = Chain(chain_id=ChainId(1), version=chain_version, targets=tuple(targets), replicas=len(states))
    return Routing(version=version, targets=targets, chains={ChainId(1): chain}, ready=True)


class Nodes:
    """What is looked at of a cluster: daemons by node, with a phase for their targets and a lease."""

    def __init__(self, now: Routing) -> None:
        self.routing = now
        self.clients: list[object] = []
        self.phase, self.leased = Phase.SERVING, True
        state = SimpleNamespace(stand=lambda target_id: Stand(self.phase))
        daemon = SimpleNamespace(writes=SimpleNamespace(state=state), _may_serve=lambda: self.leased, engines=[])
        self.storages = [
            SimpleNamespace(node_id=number + 1, alive=True, daemon=daemon, process=SimpleNamespace(name=f"s{number}"))
            for number in range(len(now.targets))
        ]


def publish(before: Routing, after: Routing, *, prepare: Callable[[Nodes], None] = lambda nodes: None) -> None:
    sim = Simulation(1)
    nodes = Nodes(before)
    prepare(nodes)
    Invariants(sim, nodes)
    sim.emit("routing", None, before=Routing(), after=before)
    sim.emit("routing", None, before=before, after=after)


def test_an_orderly_change_is_fine() -> None:
    quiet = routing(5, 3, SERVING, SERVING, WAITING)
    publish(quiet, routing(6, 4, SERVING, SERVING, SYNCING))
    publish(quiet, replace(quiet, version=6))


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (routing(5, 4, SERVING, SERVING, WAITING), "published routing 5 after 5"),
        (routing(6, 2, SERVING, SERVING, WAITING), "it was at v3"),
        (routing(6, 3, SERVING, SERVING, SYNCING), "kept its version"),
        (routing(6, 4, SERVING, SYNCING, SYNCING), "two are SYNCING"),
        (routing(6, 4, SERVING, WAITING, SYNCING), "not in order"),
        (routing(6, 4, WAITING, OFFLINE, OFFLINE), "nobody holds the data"),
    ],
)
def test_a_disorderly_one_is_found(after: Routing, said: str) -> None:
    with pytest.raises(Violation, match=said):
        publish(routing(5, 3, SERVING, SERVING, WAITING), after)


def test_who_is_counted_out_must_not_serve() -> None:
    before, after = routing(5, 3, SERVING, SERVING), routing(6, 4, SERVING, OFFLINE)
    with pytest.raises(Violation, match="target 2 goes SERVING -> OFFLINE, its daemon still serves"):
        publish(before, after)

    def ended(nodes: Nodes) -> None:
        nodes.leased = False

    def knows(nodes: Nodes) -> None:
        nodes.phase = Phase.BROKEN

    def dead(nodes: Nodes) -> None:
        nodes.storages[1].alive = False

    for prepare in (ended, knows, dead):
        publish(before, after, prepare=prepare)


def test_a_routing_version_only_rises_within_a_run_of_a_process() -> None:
    sim = Simulation(1)
    Invariants(sim, Nodes(routing(1, 1, SERVING)))
    process = SimpleNamespace(name="storage-1")
    for version in (3, 3, 7):
        sim.emit("learned", process, routing=version)  # type: ignore[arg-type]
    sim.emit("start", process, incarnation=2)  # type: ignore[arg-type]
    sim.emit("learned", process, routing=1)  # type: ignore[arg-type]
    with pytest.raises(Violation, match="went back to routing version 0"):
        sim.emit("learned", process, routing=0)  # type: ignore[arg-type]


# Engines


def put(engine: Engine, lo: int, length: int, version: int = 0, op: Op = Op.REPLACE) -> None:
    data = memoryview(bytes([lo % 256]) * length)
    update = Update(target_id=1, hi=1 << 56, lo=lo, op=op, data=data, version=version, client=5, channel=lo, seq=1)
    update.fine = checksum.fine_sums(data, 0)
    (done,) = engine.stage_and_commit([update])
    assert not isinstance(done, Exception), done


@pytest.fixture
def engine(tmp_path: Path) -> object:
    engine = Engine.open(
        tmp_path / "disk", cluster_id="c", create=True, config=EngineConfig(reserve_bytes=0, file_bytes=64 << 20)
    )
    engine.create_target(1, 1)
    for lo in range(20):
        put(engine, lo, 100 + 20_000 * lo)
    for lo in range(0, 20, 3):
        put(engine, lo, 50_000)
    for lo in range(1, 20, 5):
        put(engine, lo, 0, op=Op.REMOVE)
    yield engine
    engine.close()


def test_the_blocks_of_an_engine_add_up(engine: Engine) -> None:
    blocks_add_up(engine, "here")


def test_a_leaked_block_is_found(engine: Engine) -> None:
    engine._space.allocate(70_000, lambda: None)
    with pytest.raises(Violation, match="here: 1 blocks are leaked"):
        blocks_add_up(engine, "here")


def test_a_block_that_is_used_and_free_is_found(engine: Engine) -> None:
    found = engine.lookup(np.array([1], np.uint32), np.array([1 << 56], np.uint64), np.array([2], np.uint64))
    engine._space._free([int(found.block[0])])
    with pytest.raises(Violation, match="1 blocks are in use and count as free"):
        blocks_add_up(engine, "here")


def test_a_committed_version_that_does_not_rise_is_found(engine: Engine) -> None:
    sim = Simulation(1)
    nodes = Nodes(routing(1, 1, SERVING))
    nodes.storages[0].daemon.engines = [engine]
    put(engine, 2, 10)
    put(engine, 2, 0, op=Op.REMOVE)
    with Invariants(sim, nodes) as invariants:
        with pytest.raises(WatchedChunk, match="version 2 after version 2"):
            invariants._committing(engine._published, (1, 1 << 56, 7), _version(engine, 7))
        invariants._committing(engine._published, (1, 1 << 56, 2), None)  # a tombstone is forgotten
        nodes.phase = Phase.STALE
        invariants._committing(engine._published, (1, 1 << 56, 7), _version(engine, 7))


def _version(engine: Engine, lo: int) -> object:
    put(engine, lo, 10)
    return SimpleNamespace(version=engine.info(1, 1 << 56, lo).version)


def test_replicas_that_differ_are_found() -> None:
    mine, theirs = (np.zeros(2, dtype=CHUNK_META) for _ in range(2))
    mine["lo"] = theirs["lo"] = [1, 2]
    _compare(1, "targets 1 and 2 differ", "chunk", mine, theirs)
    theirs["chain_version"] = 9
    _compare(1, "targets 1 and 2 differ", "chunk", mine, theirs)
    theirs["version"][1] = 3
    with pytest.raises(WatchedChunk, match=r"version 0, pending 0.* / version 3, pending 0"):
        _compare(1, "targets 1 and 2 differ", "chunk", mine, theirs)
    with pytest.raises(WatchedChunk, match="/ absent"):
        _compare(1, "targets 1 and 2 differ", "chunk", mine, theirs[:1])


def test_a_history_that_cannot_be_names_its_chunk() -> None:
    sim = Simulation(1)
    nodes = Nodes(routing(1, 1, SERVING))
    workload = Workload(sim, [], [1], replace(Mix.drawn(sim.stream("mix")), workers=0))
    chunk = (1 << 56, 4)
    read = workload.history.begin("a", chunk, Kind.READ, length=5, chain=1)
    read.seen, read.chunk_length, read.version = b"ghost", 5, 1
    workload.history.end(read, Outcome.OK)
    with pytest.raises(NotLinearizable, match="file 0 chunk 4 on chain 1: no order explains"):
        Invariants(sim, nodes, workload).histories()
