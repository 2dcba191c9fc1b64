"""Several mgmtds on one store, and agents, in virtual time: deaths, stores out of reach or slow, jumping clocks, twins.

Everything is the production code but the wire (`Wire`: calls to services by address) and the way to the store (`Way`).
Throughout, at most one mgmtd may answer where no clock jumps, and the epochs of answers never fall.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fs3.client.node_agent import NodeAgent
from fs3.errors import Conflict, NotPrimary, Unavailable
from fs3.ids import NodeId
from fs3.kv.memory import MemoryKV
from fs3.mgmtd.config import MgmtdConfig
from fs3.mgmtd.election import Election
from fs3.mgmtd.service import MgmtdService
from fs3.pb import common_pb2, mgmtd_pb2
from fs3.routing import Node, NodeKind, Routing
from fs3.sessions import SessionTable
from fs3.transport.credentials import Credentials

T = 10.0
E = T / 4
Later = Callable[[float], Awaitable[None]]
Run = Callable[[Callable[[], Awaitable[None]]], None]
NAMES = {
    "GetClusterInfo": "get_cluster_info",
    "GetRouting": "get_routing",
    "Heartbeat": "heartbeat",
    "Goodbye": "goodbye",
    "OpenSession": "open_session",
    "RenewSession": "renew_session",
    "CloseSession": "close_session",
}


class Way:
    """To the store: out of reach while `cut`, and every commit takes `slow_s`."""

    def __init__(self, kv: MemoryKV, later: Later) -> None:
        self._kv = kv
        self._later = later
        self.limits = kv.limits
        self.cut = False
        self.slow_s = 0.0

    def begin(self) -> Any:
        if self.cut:
            raise Unavailable("the store cannot be reached")
        return _Transaction(self, self._kv.begin())


class _Transaction:
    def __init__(self, way: Way, real: Any) -> None:
        self._way = way
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def commit(self) -> None:
        await self._way._later(self._way.slow_s)
        if self._way.cut:
            raise Unavailable("the store cannot be reached")
        await self._real.commit()


class Wire:
    """Carries calls to the services that are up; one that hangs never answers."""

    def __init__(self, later: Later) -> None:
        self.up: dict[str, MgmtdService] = {}
        self.hanging: set[str] = set()
        self.epochs: list[int] = []
        self._later = later

    async def __call__(
        self, address: str, method: str, request: Any, *, timeout_s: float, credentials: Credentials
    ) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                await self._later(0.001)
                if address in self.hanging:
                    await asyncio.Event().wait()
                if address not in self.up:
                    raise Unavailable(f"{address} refuses")
                reply = await getattr(self.up[address], NAMES[method])(request)
                await self._later(0.001)
        except TimeoutError:
            raise Unavailable(f"{address} did not answer in time") from None
        if method == "Heartbeat":
            self.epochs.append(reply.epoch)
        return reply


class Mgmtd:
    def __init__(self, world: World, node_id: int) -> None:
        self.world = world
        self.node_id = node_id
        self.address = f"m:{node_id}"
        self.way = Way(world.kv, world.later)
        self.jumped_s = 0.0
        self.task: asyncio.Task[None] | None = None

    def now_s(self) -> float:
        return asyncio.get_running_loop().time() + self.jumped_s

    def start(self, generation: int = 0) -> None:
        self.world.starts += 1
        config = MgmtdConfig(node_id=self.node_id, data_dir=Path("unused"), lease_s=T, client_session_s=6 * T)
        own = Node(
            node_id=NodeId(self.node_id),
            kind=NodeKind.MGMTD,
            endpoints=(self.address,),
            generation=generation or self.world.starts,
        )
        self.election = Election(
            config,
            self.way,  # type: ignore[arg-type]
            own_node=own,
            credentials=Credentials(),
            call=self.world.wire,
            now=self.now_s,
        )
        self.world.wire.up[self.address] = MgmtdService(config, "c", self.election, now=self.now_s)
        self.task = asyncio.create_task(self.election.run())

    async def kill(self) -> None:
        """As SIGKILL: nothing of it reaches the store any more, and its port refuses."""
        assert self.task is not None
        del self.world.wire.up[self.address]
        self.way.cut = True
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.task, self.way = None, Way(self.world.kv, self.world.later)

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.world.wire.up.pop(self.address, None)
        self.task = None

    @property
    def decides(self) -> bool:
        return self.task is not None and not self.task.done() and self.election.primary is not None


class World:
    def __init__(self, later: Later, mgmtds: int) -> None:
        self.kv = MemoryKV()
        self.later = later
        self.wire = Wire(later)
        self.starts = 0
        self.mgmtds = [Mgmtd(self, number) for number in range(101, 101 + mgmtds)]
        self.agents: list[NodeAgent] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.one_at_a_time = True

    async def __aenter__(self) -> World:
        for mgmtd in self.mgmtds:
            mgmtd.start()
            await mgmtd.election.wait_settled()
        self.tasks.append(asyncio.create_task(self._look()))
        return self

    async def __aexit__(self, *failure: object) -> None:
        looking = self.tasks[0]
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for mgmtd in self.mgmtds:
            if mgmtd.task is not None:
                await mgmtd.stop()
        if failure[0] is None and looking.done() and not looking.cancelled():
            looking.result()

    async def _look(self) -> None:
        while True:
            await self.later(E / 100)
            deciding = [mgmtd.node_id for mgmtd in self.mgmtds if mgmtd.decides]
            assert len(deciding) <= 1 or not self.one_at_a_time, f"mgmtds {deciding} answer at the same time"

    def primary(self) -> Mgmtd:
        return next(mgmtd for mgmtd in self.mgmtds if mgmtd.decides)

    async def until_decided(self, within_s: float, *, other_than: Mgmtd | None = None) -> Mgmtd:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        while loop.time() < deadline_s:
            for mgmtd in self.mgmtds:
                if mgmtd.decides and mgmtd is not other_than:
                    return mgmtd
            await self.later(E / 100)
        raise AssertionError(f"no mgmtd decides after {within_s} s")

    def agent(self, node_id: int, addresses: list[str]) -> NodeAgent:
        """A meta daemon: it has a lease and follows the routing, and nothing else."""
        agent = NodeAgent(
            addresses,
            Credentials(),
            Node(node_id=NodeId(node_id), kind=NodeKind.META, endpoints=(f"d:{node_id}",), generation=1),
            local_targets=list,
            disks=list,
            on_routing=lambda routing: None,
            on_create=lambda wanted: None,
            call=self.wire,
            now=lambda: asyncio.get_running_loop().time(),
        )
        self.agents.append(agent)
        self.tasks.append(asyncio.create_task(agent.run()))
        return agent


def test_the_first_decides_and_the_others_stand_by_and_are_known(in_virtual_time: Run, later: Later) -> None:
    async def body() -> None:
        async with World(later, 3) as world:
            first, second, third = world.mgmtds
            assert first.decides and not second.decides and not third.decides
            agent = world.agent(1, [second.address])
            info = await world.wire.up[second.address].get_cluster_info(common_pb2.Empty())
            assert info.primary == first.address
            with pytest.raises(NotPrimary, match="does not decide now; the one at m:101 does"):
                await world.wire.up[second.address].heartbeat(mgmtd_pb2.HeartbeatRequest())
            await later(T)
            assert agent.epoch == 0, "it knows only the address of a standby"
            known = world.agent(2, [first.address])
            await known.wait_registered()
            await later(T)
            assert known.routing.mgmtds() == ("m:101", "m:102", "m:103")
            assert all(known.routing.nodes[NodeId(node)].alive for node in (101, 102, 103))

    in_virtual_time(body)


@pytest.mark.parametrize("death", ["kill", "hang", "cut"])
def test_the_primary_s_death_costs_no_daemon_its_lease(in_virtual_time: Run, later: Later, death: str) -> None:
    async def body() -> None:
        async with World(later, 2) as world:
            first, second = world.mgmtds
            agent = world.agent(1, [first.address])
            await agent.wait_registered()
            await later(3 * T)
            started_s = asyncio.get_running_loop().time()
            if death == "kill":
                await first.kill()
            elif death == "hang":
                world.wire.hanging.add(first.address)
                first.way.cut = True
            else:
                first.way.cut = True
            shortest_s = T
            while asyncio.get_running_loop().time() < started_s + 2 * T:
                await later(0.01)
                shortest_s = min(shortest_s, agent.serve_until_s - asyncio.get_running_loop().time())
                if second.decides and agent.epoch == 1:
                    assert asyncio.get_running_loop().time() <= started_s + E * 1.25 + T / 4
            assert second.decides and agent.epoch == 2
            assert shortest_s > 0, "it had to stop serving"
            assert agent.routing.nodes[NodeId(1)].alive

    in_virtual_time(body)


def test_a_clean_stop_hands_over_at_once_and_a_restart_waits_for_nobody(in_virtual_time: Run, later: Later) -> None:
    async def body() -> None:
        async with World(later, 2) as world:
            first, second = world.mgmtds
            await first.stop()
            await world.until_decided(E / 4)
            first.start()
            await later(3 * E)
            assert second.decides and not first.decides
            await second.kill()
            second.start()
            await later(E / 8)
            assert second.decides, "its own claim, of an earlier run"

    in_virtual_time(body)


def test_a_primary_whose_store_is_out_of_reach_answers_no_more_and_comes_back(
    in_virtual_time: Run, later: Later
) -> None:
    async def body() -> None:
        async with World(later, 1) as world:
            (only,) = world.mgmtds
            agent = world.agent(1, [only.address])
            await agent.wait_registered()
            only.way.cut = True
            await later(E)
            assert not only.decides
            with pytest.raises(NotPrimary):
                await world.wire.up[only.address].get_routing(mgmtd_pb2.GetRoutingRequest())
            only.way.cut = False
            assert (await world.until_decided(E / 2)).election.deciding().epoch == 2
            await later(T)
            assert agent.epoch == 2

    in_virtual_time(body)


def test_a_slow_store_is_lived_with_up_to_e(in_virtual_time: Run, later: Later) -> None:
    async def body() -> None:
        async with World(later, 1) as world:
            (only,) = world.mgmtds
            only.way.slow_s = E / 2
            for _ in range(200):
                await later(E / 10)
                assert only.decides, "a renewal that takes E/2 is in time"
            only.way.slow_s = 3 * E
            await later(10 * E)
            assert not only.decides
            only.way.slow_s = 0.0
            await world.until_decided(4 * E)

    in_virtual_time(body)


@pytest.mark.parametrize("jump_s", [E / 2, E, 10 * T, 100_000.0])
@pytest.mark.parametrize("who", [0, 1])
def test_a_clock_that_jumps_demotes_nobody_for_good(
    in_virtual_time: Run, later: Later, who: int, jump_s: float
) -> None:
    async def body() -> None:
        async with World(later, 2) as world:
            world.one_at_a_time = False
            agents = [world.agent(node, [mgmtd.address for mgmtd in world.mgmtds]) for node in (1, 2)]
            for agent in agents:
                await agent.wait_registered()
            await later(T)
            world.mgmtds[who].jumped_s += jump_s
            world.one_at_a_time = who == 0
            for _ in range(100):
                await later(T / 50)
                assert all(agent.serve_until_s > asyncio.get_running_loop().time() for agent in agents)
            decides = await world.until_decided(E)
            alone = [mgmtd for mgmtd in world.mgmtds if mgmtd.decides]
            assert alone == [decides]
            routing = decides.election.deciding().routing
            assert all(routing.nodes[NodeId(node)].alive for node in (1, 2, 101, 102))
            await decides.stop()
            other = await world.until_decided(E)
            assert other is not decides, "both take part still"
            assert world.wire.epochs == sorted(world.wire.epochs) or who == 1

    in_virtual_time(body)


def test_a_wall_clock_that_went_back_keeps_no_restart_out(in_virtual_time: Run, later: Later) -> None:
    async def body() -> None:
        async with World(later, 1) as world:
            (only,) = world.mgmtds
            await only.stop()
            only.start(generation=1_000)
            await world.until_decided(E)
            await only.kill()
            only.start(generation=5)
            assert await world.until_decided(1.5 * E) is only

    in_virtual_time(body)


def test_of_twins_the_one_that_was_started_later_stays(in_virtual_time: Run, later: Later) -> None:
    async def body() -> None:
        async with World(later, 1) as world:
            (first,) = world.mgmtds
            twin = Mgmtd(world, first.node_id)
            twin.address = "m:elsewhere"
            world.mgmtds.append(twin)
            world.one_at_a_time = False  # the older one answers until it hears of it, and its commits fail
            twin.start()
            await later(2 * E)
            assert twin.decides
            assert first.task is not None
            with pytest.raises(Conflict, match="node_id 101 was started later, at m:elsewhere"):
                await first.task
            first.task = None

    in_virtual_time(body)


def test_what_a_replaced_primary_still_does_meets_a_conflict(in_virtual_time: Run, later: Later) -> None:
    async def body() -> None:
        async with World(later, 2) as world:
            first, second = world.mgmtds
            primary = first.election.deciding()
            await later(T / 2)
            first.way.cut = True
            await world.until_decided(2 * E, other_than=first)
            version = second.election.deciding().routing.version
            first.way.cut = False

            def edit(routing: Routing) -> tuple[Routing, tuple[str, ...]]:
                nodes = {key: node for key, node in routing.nodes.items() if key != 102}
                return Routing(**{**_fields(routing), "nodes": nodes}), ()

            with pytest.raises(NotPrimary, match="another mgmtd has taken over"):
                await primary.change(edit)
            with pytest.raises(NotPrimary, match="another mgmtd has taken over"):
                await primary.guarded(primary.sessions.open("h", 1, first.now_s()))
            assert second.election.deciding().routing.version == version
            await later(2 * E)
            assert second.decides and not first.decides

    in_virtual_time(body)


def _fields(routing: Routing) -> dict[str, Any]:
    return {name: getattr(routing, name) for name in routing.__dataclass_fields__}


def test_sessions_outlive_a_primary_and_the_table_never_goes_back(in_virtual_time: Run, later: Later) -> None:
    async def body() -> None:
        async with World(later, 2) as world:
            first, second = world.mgmtds
            agent = world.agent(1, [first.address, second.address])
            await agent.wait_registered()
            assert agent.sessions == SessionTable(1, 0, frozenset())
            at = world.wire.up[first.address]
            ids = [
                (await at.open_session(mgmtd_pb2.OpenSessionRequest(host="h", pid=pid))).session_id for pid in (1, 2, 3)
            ]
            assert ids == [1, 2, 3]
            await at.close_session(mgmtd_pb2.CloseSessionRequest(session_ids=[2, 77]))
            await later(T)
            assert agent.sessions == SessionTable(2, 3, frozenset({1, 3}))
            assert [agent.sessions.ended(client) for client in range(6)] == [False, False, True, False, False, False]
            await later(3 * T)
            await first.kill()
            await world.until_decided(2 * E)
            at = world.wire.up[second.address]
            taken_s = asyncio.get_running_loop().time()
            assert second.election.deciding().sessions.table == agent.sessions
            assert (await at.open_session(mgmtd_pb2.OpenSessionRequest())).session_id == 4
            renewed = await at.renew_session(mgmtd_pb2.RenewSessionRequest(session_ids=[1, 2, 9]))
            assert list(renewed.ended) == [2, 9]
            await later(4 * T)
            await at.renew_session(mgmtd_pb2.RenewSessionRequest(session_ids=[1]))
            await later(taken_s + 5.9 * T - asyncio.get_running_loop().time())
            assert agent.sessions.version == 2, "the new primary counts from its own start"
            await later(T)
            assert agent.sessions == SessionTable(agent.sessions.version, 4, frozenset({1}))
            assert agent.sessions.version > 2

    in_virtual_time(body)


@pytest.mark.parametrize("seed", range(25))
def test_under_random_faults_one_decides_and_at_the_end_all_is_well(
    in_virtual_time: Run, later: Later, seed: int
) -> None:
    chance = random.Random(seed)

    async def hurt(world: World) -> None:
        mgmtd = chance.choice(world.mgmtds)
        fault = chance.choice(["kill", "stop", "cut", "slow", "hang"])
        if mgmtd.task is None:
            world.wire.hanging.discard(mgmtd.address)
            mgmtd.start()
        elif fault == "kill":
            await mgmtd.kill()
        elif fault == "stop":
            await mgmtd.stop()
        elif fault == "cut":
            mgmtd.way.cut = not mgmtd.way.cut
        elif fault == "slow":
            mgmtd.way.slow_s = chance.choice([0.0, 0.0, E / 8, E, 3 * E])
        else:
            world.wire.hanging ^= {mgmtd.address}

    async def body() -> None:
        async with World(later, 3) as world:
            agent = world.agent(1, [mgmtd.address for mgmtd in world.mgmtds])
            versions = []
            for _ in range(40):
                await hurt(world)
                await later(chance.uniform(0, 2 * E))
                versions.append(agent.routing.version)
            world.wire.hanging.clear()
            for mgmtd in world.mgmtds:
                mgmtd.way.cut, mgmtd.way.slow_s = False, 0.0
                if mgmtd.task is None:
                    mgmtd.start()
            await world.until_decided(8 * E)
            await later(2 * T)
            assert world.wire.epochs == sorted(world.wire.epochs), "an answer of an older primary"
            assert versions == sorted(versions)
            decides = world.primary()
            assert agent.epoch == decides.election.deciding().epoch
            assert agent.routing.version == decides.election.deciding().routing.version
            assert {node.alive for node in agent.routing.nodes.values()} == {True}

    in_virtual_time(body)
