"""A primary on the in-memory store with a clock that the test sets, and daemons that speak to it as real ones do."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fs3.ids import NodeId
from fs3.kv.api import KVEngine
from fs3.mgmtd.config import MgmtdConfig
from fs3.mgmtd.primary import Primary
from fs3.mgmtd.store import MgmtdStore
from fs3.pb import mgmtd_pb2
from fs3.routing import LocalState, Node, NodeKind, Routing, TargetState, node_to_pb

LEASE_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Daemon:
    """A storage daemon as mgmtd sees it: `states` is what it says of its targets, `seen` the newest routing it got."""

    def __init__(self, node_id: int, *, disks: int = 1, generation: int = 1, kind: NodeKind = NodeKind.STORAGE) -> None:
        self.node = Node(node_id=NodeId(node_id), kind=kind, endpoints=(f"127.0.0.1:{node_id}",), generation=generation)
        self.disks = [
            mgmtd_pb2.DiskInfo(disk=disk, path=f"/disk{disk}", total_bytes=100, free_bytes=60) for disk in range(disks)
        ]
        self.states: dict[int, LocalState] = {}
        self.seen = Routing()
        self.wanted: list[int] = []

    async def beat(self, primary: Primary, *, routing: Routing | None = None) -> None:
        """One heartbeat about the routing last seen; `routing` replaces it first."""
        self.seen = routing or self.seen
        request = mgmtd_pb2.HeartbeatRequest(
            node=node_to_pb(self.node), disks=self.disks, known_routing=self.seen.version
        )
        for target, state in self.states.items():
            request.targets.add(target_id=target, state=int(state), chain_version=self.version_of(target), used_bytes=7)
        reply = await primary.heartbeat(request)
        assert reply.lease_ms == LEASE_S * 1000
        self.wanted = [create.target_id for create in reply.create]
        self.seen = primary.routing

    def version_of(self, target: int) -> int:
        known = self.seen.targets.get(target)  # type: ignore[call-overload]
        return self.seen.chains[known.chain_id].version if known else 0


def states_of(primary: Primary, node_id: int) -> set[TargetState]:
    """The public states of a node's targets."""
    return {target.state for target in primary.routing.targets.values() if target.node_id == node_id}


async def make_primary(kv: KVEngine, clock: Clock, *, nodes: int = 3, replicas: int = 3) -> Primary:
    config = MgmtdConfig(
        node_id=100, data_dir=Path("unused"), lease_s=LEASE_S, bootstrap_nodes=nodes, bootstrap_replicas=replicas
    )
    store = MgmtdStore(kv)
    own = Node(node_id=NodeId(100), kind=NodeKind.MGMTD, endpoints=("127.0.0.1:9",), generation=int(clock.now_s))
    return Primary(config, store, await store.take_over(), own_node=own, now=clock)


async def bootstrap(primary: Primary, daemons: list[Daemon]) -> None:
    """Register the daemons and create what they are told to, until the cluster is ready."""
    for _ in range(3):
        for daemon in daemons:
            await daemon.beat(primary)
            daemon.states |= dict.fromkeys(daemon.wanted, LocalState.UPTODATE)
    assert primary.routing.ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only, and at once, when nothing else is to be done."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual_s = 1_000.0
        self._selector: selectors.BaseSelector
        real, loop = self._selector, self

        class Idle(type(real)):  # type: ignore[misc]
            def select(self, timeout: float | None = None) -> Any:
                ready = super().select(0)
                if not ready and timeout != 0:
                    assert timeout is not None, "nothing will ever happen"
                    loop._virtual_s += timeout
                return ready

        real.__class__ = Idle

    def time(self) -> float:
        return self._virtual_s


async def pass_time(seconds: float) -> None:
    """Let the loop's time go by."""
    passed = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(seconds, passed.set_result, None)
    await passed


@pytest.fixture
def in_virtual_time() -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Run an async test on a `VirtualLoop`."""

    def run(body: Callable[[], Awaitable[None]]) -> None:
        async def awaited() -> None:
            await body()

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(awaited())

    return run


@pytest.fixture
def later() -> Callable[[float], Awaitable[None]]:
    return pass_time


@pytest.fixture
def cluster() -> type:
    """The helpers of this file, for tests that cannot import a conftest."""

    class Cluster:
        clock = Clock
        daemon = Daemon
        make = staticmethod(make_primary)
        boot = staticmethod(bootstrap)
        states = staticmethod(states_of)

    return Cluster
