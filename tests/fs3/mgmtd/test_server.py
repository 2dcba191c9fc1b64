"""mgmtd over real gRPC: agents and clients against it, secrets, long polls, suspicion, ports; nothing is waited for
but events."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest

from fs3.client.mgmtd import MgmtdClient, NodeAgent
from fs3.clock import lease_now_s
from fs3.errors import Conflict, Invalid, NotPrimary, PermissionDenied, Unavailable
from fs3.ids import NodeId, TargetId
from fs3.kv.memory import MemoryKV
from fs3.mgmtd.config import MgmtdConfig
from fs3.mgmtd.server import MgmtdServer, lock_data_dir, serve
from fs3.pb import mgmtd_pb2
from fs3.routing import Node, NodeKind, Routing, TargetState
from fs3.transport.credentials import Credentials

CONFIG = MgmtdConfig(
    node_id=100, data_dir=Path("unused"), listen_port=0, lease_s=30.0, bootstrap_nodes=2, bootstrap_replicas=2
)


class Daemon:
    """A real `NodeAgent` of a daemon that creates what it is told to and is up to date at once."""

    def __init__(self, address: str, node_id: int, *, endpoint: str = "127.0.0.1:1", generation: int = 1) -> None:
        self.targets: set[int] = set()
        self.damaged: set[int] = set()
        self.routings: list[Routing] = []
        self.agent = NodeAgent(
            [address],
            Credentials(),
            Node(node_id=NodeId(node_id), kind=NodeKind.STORAGE, endpoints=(endpoint,), generation=generation),
            local_targets=self._report,
            disks=lambda: [mgmtd_pb2.DiskInfo(disk=0, path="/d", total_bytes=9, free_bytes=5)],
            on_routing=self.routings.append,
            on_create=self._create,
        )
        self.task: asyncio.Task[None] = asyncio.create_task(self.agent.run())

    def _create(self, wanted: list[mgmtd_pb2.CreateTarget]) -> None:
        self.targets |= {create.target_id for create in wanted}
        self.agent.poke()

    def _report(self) -> list[mgmtd_pb2.LocalTarget]:
        found = []
        for target_id in self.targets:
            target = self.agent.routing.targets.get(TargetId(target_id))
            version = self.agent.routing.chains[target.chain_id].version if target else 0
            away = target is not None and target.state in (TargetState.OFFLINE, TargetState.WAITING)
            message = mgmtd_pb2.LocalTarget(
                target_id=target_id, chain_version=version, damaged=target_id in self.damaged
            )
            message.state = 2 if away else 1  # type: ignore[assignment]
            found.append(message)
        return found

    async def until(self, state: TargetState) -> None:
        """Wait until every target of the cluster is in `state`, as this daemon sees it."""
        while True:
            routing = self.agent.routing
            if routing.ready and {target.state for target in routing.targets.values()} == {state}:
                return
            await asyncio.sleep(0)
            self.agent.poke()


@contextlib.asynccontextmanager
async def cluster(config: MgmtdConfig = CONFIG) -> AsyncIterator[tuple[MgmtdServer, list[Daemon]]]:
    async with serve(config, MemoryKV()) as server:
        daemons = [Daemon(server.address, 1), Daemon(server.address, 2)]
        for daemon in daemons:
            await daemon.agent.wait_ready()
        try:
            yield server, daemons
        finally:
            for daemon in daemons:
                daemon.task.cancel()
            await asyncio.gather(*(daemon.task for daemon in daemons), return_exceptions=True)


def run(body: object) -> None:
    asyncio.run(asyncio.wait_for(body, 60))  # type: ignore[arg-type]


def test_agents_bootstrap_a_cluster_and_a_client_sees_it() -> None:
    async def body() -> None:
        async with cluster() as (server, daemons):
            client = await asyncio.to_thread(MgmtdClient.connect, [server.address])
            routing = await asyncio.to_thread(client.wait_ready, 5.0)
            assert client.cluster_info.lease_ms == 30_000
            assert client.credentials.cluster_id == routing.cluster_id == daemons[0].agent.credentials.cluster_id
            assert len(routing.tables) == 2 and len(routing.disks) == 2
            agent = daemons[0].agent
            now_s = lease_now_s()
            assert now_s < agent.serve_until_s < now_s + 15.0 < agent.lease_valid_until_s < now_s + 30.0
            versions = [seen.version for seen in daemons[0].routings]
            assert versions == sorted(set(versions)), "each routing once, newer every time"
            client.close()

    run(body())


def test_damage_is_heard_of_until_it_is_mended() -> None:
    async def body() -> None:
        async with cluster() as (_, (daemon, other)):
            await daemon.until(TargetState.SERVING)
            some = min(daemon.targets)
            for damaged in ({some}, set()):
                daemon.damaged = damaged
                daemon.agent.poke()
                while {
                    target.target_id for target in other.agent.routing.targets.values() if target.damaged
                } != damaged:
                    other.agent.poke()
                    await asyncio.sleep(0)

    run(body())


def test_a_clean_stop_reaches_everybody_without_waiting_for_the_lease() -> None:
    async def body() -> None:
        async with cluster() as (server, daemons):
            client = await asyncio.to_thread(MgmtdClient.connect, [server.address])
            waiting = asyncio.create_task(asyncio.to_thread(client.refresh, client.routing.version, 30.0))
            await daemons[1].agent.stop()
            await daemons[1].task
            routing = await waiting
            while routing.nodes[NodeId(2)].alive:
                routing = await asyncio.to_thread(client.refresh, routing.version, 30.0)
            assert all(len(routing.serving(chain)) == 1 for chain in routing.table_for_replicas(2).chains)
            client.close()

    run(body())


def test_a_restarted_daemon_is_held_back_and_comes_back_through_recovery() -> None:
    async def body() -> None:
        async with cluster() as (server, daemons):
            daemons[1].task.cancel()
            reborn = Daemon(server.address, 2, generation=2)
            reborn.targets = daemons[1].targets
            daemons[1] = reborn
            await reborn.until(TargetState.SERVING)
            mine = {target.target_id for target in reborn.agent.routing.targets.values() if target.node_id == 2}
            first = next(routing for routing in reborn.routings if routing.nodes[NodeId(2)].generation == 2)
            assert {first.targets[target].state for target in mine} == {TargetState.OFFLINE, TargetState.LASTSRV}

    run(body())


def test_the_older_of_two_daemons_with_one_id_ends() -> None:
    async def body() -> None:
        async with cluster() as (server, daemons):
            twin = Daemon(server.address, 1, generation=7)
            await twin.agent.wait_registered()
            daemons[0].agent.poke()
            with pytest.raises(Conflict, match="node_id of its own"):
                await daemons[0].task
            twin.task.cancel()

    run(body())


def test_suspicion_is_checked_by_connecting() -> None:
    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            open_port = f"127.0.0.1:{listening.getsockname()[1]}"
            async with serve(replace(CONFIG, bootstrap_nodes=3), MemoryKV()) as server:
                up = Daemon(server.address, 1, endpoint=open_port)
                gone = Daemon(server.address, 2, endpoint=refusing_address())
                for daemon in (up, gone):
                    await daemon.agent.wait_registered()
                gone.task.cancel()
                client = await asyncio.to_thread(MgmtdClient.connect, [server.address])
                for node in (1, 2):
                    await asyncio.to_thread(client.suspect, node, 1)
                assert server.primary.routing.nodes[NodeId(1)].alive
                assert not server.primary.routing.nodes[NodeId(2)].alive
                await asyncio.to_thread(client.suspect, 77, 1)
                client.close()
                up.task.cancel()

    run(body())


def refusing_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_secrets_and_clusters_are_told_apart() -> None:
    async def body() -> None:
        async with serve(replace(CONFIG, secret="open sesame"), MemoryKV()) as server:
            with pytest.raises(PermissionDenied, match="secret is missing or wrong"):
                await asyncio.to_thread(MgmtdClient.connect, [server.address])
            with pytest.raises(PermissionDenied, match="secret is missing or wrong"):
                await asyncio.to_thread(MgmtdClient.connect, [server.address], "wrong")
            client = await asyncio.to_thread(MgmtdClient.connect, [server.address], "open sesame")
            assert client.cluster_info.wants_secret
            client.close()
            stranger = Daemon(server.address, 1)
            stranger.agent.credentials = Credentials(cluster_id="another", secret="open sesame")
            with pytest.raises(PermissionDenied, match="belongs to cluster another"):
                await stranger.task

    run(body())


def test_several_addresses_one_of_which_answers() -> None:
    async def body() -> None:
        async with serve(CONFIG, MemoryKV()) as server:
            dead = refusing_address()
            client = await asyncio.to_thread(MgmtdClient.connect, [dead, server.address])
            assert client.routing.cluster_id == server.primary.routing.cluster_id
            client.close()
            with pytest.raises(Unavailable, match="this client was closed"):
                client.refresh(0, 1.0)

    run(body())


def test_an_unreachable_cluster_is_named() -> None:
    first, second = refusing_address(), refusing_address()
    with pytest.raises(Unavailable, match=rf"no cluster answers at {first}, {second} \(connection refused\)"):
        MgmtdClient.connect([first, second])


def test_a_taken_port_and_an_open_address_are_refused(tmp_path: Path) -> None:
    async def start(config: MgmtdConfig) -> None:
        async with serve(config, MemoryKV()):
            raise AssertionError("it started")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = listening.getsockname()[1]
        with pytest.raises(Invalid, match=f"cannot listen on 127.0.0.1:{taken}: the port is taken"):
            run(start(replace(CONFIG, listen_port=taken)))
    with pytest.raises(Invalid, match=r"'0\.0\.0\.0' can be reached from other machines: set `secret`"):
        run(start(replace(CONFIG, listen_host="0.0.0.0")))
    held = lock_data_dir(tmp_path)
    with pytest.raises(Invalid, match="another mgmtd is using it"):
        lock_data_dir(tmp_path)
    assert held >= 0


def test_metrics_tell_nodes_and_targets() -> None:
    async def body() -> None:
        async with cluster() as (server, _):
            where = server.primary.routing.nodes[NodeId(100)].metrics
            text = await asyncio.to_thread(lambda: urlopen(f"http://{where}/metrics").read().decode())
            assert 'fs3_mgmtd_nodes{alive="true",kind="storage"} 2.0' in text
            assert 'fs3_mgmtd_targets{state="serving"} 12.0' in text
            assert "fs3_mgmtd_heartbeats_total" in text

    run(body())


PAIR = replace(CONFIG, lease_s=2.0, client_session_s=30.0, bootstrap_nodes=1, bootstrap_replicas=1)


def test_a_client_that_knows_one_of_two_mgmtds_lives_through_a_change_of_the_primary() -> None:
    """No call fails: those that find nobody who decides go on asking; the second address comes from the routing."""

    async def body() -> None:
        kv = MemoryKV()
        async with contextlib.AsyncExitStack() as first_runs:
            first = await first_runs.enter_async_context(serve(PAIR, kv))
            async with serve(replace(PAIR, node_id=101), kv) as second:
                client = await asyncio.to_thread(MgmtdClient.connect, [first.address])
                with pytest.raises(NotPrimary, match=f"the one at {first.address} does"):
                    assert second.primary
                while second.address not in client.addresses:
                    await asyncio.to_thread(client.refresh, client.routing.version, 5.0)
                await asyncio.to_thread(client.fetch, 10.0)
                assert await asyncio.to_thread(client.primary) == first.address
                opened = await asyncio.to_thread(client.session_id)
                calls = [asyncio.create_task(asyncio.to_thread(client.fetch, 10.0)) for _ in range(3)]
                await first_runs.aclose()
                for routing in await asyncio.gather(*calls):
                    assert routing.cluster_id == client.routing.cluster_id
                assert (await asyncio.to_thread(client.fetch, 10.0)).version >= 1
                assert await asyncio.to_thread(client.primary) == second.address
                assert second.primary.epoch == 2
                assert await asyncio.to_thread(client.session_id) == opened == 1
                assert second.primary.sessions.table.live == {1}
                late = await asyncio.to_thread(MgmtdClient.connect, [first.address, second.address])
                assert await asyncio.to_thread(late.session_id) == 2
                for one in (client, late):
                    await asyncio.to_thread(one.close)
                assert second.primary.sessions.table.live == set()

    run(body())


def test_a_session_is_opened_once_renewed_and_replaced_when_it_was_lost() -> None:
    async def body() -> None:
        config = replace(PAIR, client_session_s=1.5)
        async with serve(config, MemoryKV()) as server:
            sessions = server.primary.sessions
            client = await asyncio.to_thread(MgmtdClient.connect, [server.address])
            assert sessions.table.last_id == 0, "one that only reads has none"
            ids = await asyncio.gather(*(asyncio.to_thread(client.session_id) for _ in range(8)))
            assert set(ids) == {1}
            await asyncio.to_thread(client.refresh, client.routing.version + 5, 2.0)
            assert sessions.table.live == {1}, "it is renewed"
            client.session_lost(77)
            assert await asyncio.to_thread(client.session_id) == 1
            client.session_lost(1)
            assert await asyncio.to_thread(client.session_id) == 2
            while sessions.table.live != {2}:
                await asyncio.to_thread(client.refresh, client.routing.version + 5, 0.05)
            assert sessions.table.ended(1) and not sessions.table.ended(2)
            await sessions.end(lease_now_s(), [2])
            while await asyncio.to_thread(client.session_id) == 2:
                await asyncio.to_thread(client.refresh, client.routing.version + 5, 0.05)
            await asyncio.to_thread(client.end_session)
            assert sessions.table.live == set()
            client.close()

    run(body())


FORKING = """
import os, sys
from fs3.client.mgmtd import MgmtdClient
client = MgmtdClient.connect([sys.argv[1]])
assert client.session_id() == 1
for generation in range(3):
    child = os.fork()
    if child == 0:
        assert client.fetch().cluster_id == client.routing.cluster_id
        assert client.refresh(client.routing.version - 1, 5.0).version >= 1
        if generation == 2:
            client.suspect(1, 1)
        assert client.session_id() == 2 + generation
        print("child", generation, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert client.fetch().cluster_id
assert client.session_id() == 1
print("parent", client.refresh(client.routing.version - 1, 5.0).version, flush=True)
client.close()
"""


def test_a_client_lives_through_forks() -> None:
    """In a process of its own: a fork of the test process would take pytest along."""

    async def body() -> None:
        async with cluster() as (server, _):
            command = [sys.executable, "-c", FORKING, server.address]
            done = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, timeout=50, check=False
            )
            assert done.returncode == 0, done.stderr
            lines = done.stdout.split()
            assert lines[:6] == ["child", "0", "child", "1", "child", "2"] and lines[6] == "parent"

    run(body())
