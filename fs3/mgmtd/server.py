"""The mgmtd daemon: gRPC in front of the primary, one lease clock, one metrics endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fs3 import __version__, metrics
from fs3.client.admin import ADMIN
from fs3.client.node_agent import MGMTD
from fs3.clock import wall_now_ns
from fs3.errors import Fs3Error, Invalid
from fs3.ids import NodeId
from fs3.kv.api import KVEngine
from fs3.kv.etcd_layout import by_kind
from fs3.kv.opening import open_store
from fs3.mgmtd import admin
from fs3.mgmtd.config import MgmtdConfig
from fs3.mgmtd.election import Election
from fs3.mgmtd.primary import Primary
from fs3.mgmtd.service import MgmtdService
from fs3.mgmtd.store import MgmtdStore
from fs3.pb import common_pb2, mgmtd_pb2, mgmtd_pb2_grpc
from fs3.routing import Node, NodeKind, TargetState
from fs3.transport import rpc
from fs3.transport.calls import FrameCalls
from fs3.transport.credentials import Credentials
from fs3.transport.door import Door
from fs3.transport.exposure import check_exposure

_log = logging.getLogger(__name__)
_STOP_S = 0.3
_Servicer: Any = mgmtd_pb2_grpc.MgmtdServicer
_add_servicer: Any = mgmtd_pb2_grpc.add_MgmtdServicer_to_server


class MgmtdServer(_Servicer):  # type: ignore[misc]  # generated code has no types
    """One running mgmtd, as gRPC sees it; `address` is where it listens. Made by `serve`."""

    def __init__(self, service: MgmtdService, election: Election, credentials: Credentials, address: str) -> None:
        self.address = address
        self.service = service
        self.election = election
        self.credentials = credentials

    @property
    def primary(self) -> Primary:
        """What decides. Raises: NotPrimary: this mgmtd stands by."""
        return self.election.deciding()

    @rpc.handler
    async def GetClusterInfo(self, request: common_pb2.Empty) -> mgmtd_pb2.ClusterInfo:  # noqa: N802
        return await self.service.get_cluster_info(request)

    @rpc.handler
    async def GetRouting(self, request: mgmtd_pb2.GetRoutingRequest) -> mgmtd_pb2.GetRoutingReply:  # noqa: N802
        return await self.service.get_routing(request)

    @rpc.handler
    async def Heartbeat(self, request: mgmtd_pb2.HeartbeatRequest) -> mgmtd_pb2.HeartbeatReply:  # noqa: N802
        return await self.service.heartbeat(request)

    @rpc.handler
    async def Goodbye(self, request: mgmtd_pb2.GoodbyeRequest) -> common_pb2.Empty:  # noqa: N802
        return await self.service.goodbye(request)

    @rpc.handler
    async def Suspect(self, request: mgmtd_pb2.SuspectRequest) -> common_pb2.Empty:  # noqa: N802
        return await self.service.suspect(request)

    @rpc.handler
    async def OpenSession(self, request: mgmtd_pb2.OpenSessionRequest) -> mgmtd_pb2.OpenSessionReply:  # noqa: N802
        return await self.service.open_session(request)

    @rpc.handler
    async def RenewSession(self, request: mgmtd_pb2.RenewSessionRequest) -> mgmtd_pb2.RenewSessionReply:  # noqa: N802
        return await self.service.renew_session(request)

    @rpc.handler
    async def CloseSession(self, request: mgmtd_pb2.CloseSessionRequest) -> common_pb2.Empty:  # noqa: N802
        return await self.service.close_session(request)


class _Figures(Collector):
    """What Prometheus sees, computed when it looks."""

    def __init__(self, server: MgmtdServer) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        heartbeats = CounterMetricFamily("fs3_mgmtd_heartbeats", "Heartbeats received")
        heartbeats.add_metric([], self._server.service.heartbeats)
        yield heartbeats
        primary = self._server.election.primary
        yield GaugeMetricFamily("fs3_mgmtd_primary", "Whether this mgmtd decides", int(primary is not None))
        if primary is None:
            return
        yield GaugeMetricFamily("fs3_mgmtd_epoch", "Primaries so far", primary.epoch)
        yield GaugeMetricFamily("fs3_mgmtd_sessions", "Client sessions", len(primary.sessions.table.live))
        routing = primary.routing
        yield GaugeMetricFamily("fs3_mgmtd_routing_version", "Version of the published routing", routing.version)
        nodes = GaugeMetricFamily("fs3_mgmtd_nodes", "Registered nodes", labels=["kind", "alive"])
        for kind in NodeKind:
            for alive in (True, False):
                count = sum(node.kind == kind and node.alive == alive for node in routing.nodes.values())
                nodes.add_metric([kind.name.lower(), str(alive).lower()], count)
        yield nodes
        targets = GaugeMetricFamily("fs3_mgmtd_targets", "Targets by public state", labels=["state"])
        for state in TargetState:
            targets.add_metric([state.name.lower()], sum(t.state == state for t in routing.targets.values()))
        yield targets
        moves = CounterMetricFamily("fs3_mgmtd_transitions", "Target transitions by new state", labels=["state"])
        for name, count in sorted(primary.transitions.items()):
            moves.add_metric([name], count)
        yield moves


@contextlib.asynccontextmanager
async def serve(config: MgmtdConfig, kv: KVEngine) -> AsyncIterator[MgmtdServer]:
    """A running mgmtd on `kv`, which stays open; leaving the context stops it.

    When it is entered, this mgmtd decides, or knows that another one does.

    Raises:
        Invalid: an address that is taken or may not be listened on.
        Conflict, Invalid: (from inside the context, as part of a group) the node id is another daemon's.
    """
    check_exposure(config.listen_host, secret=config.secret, insecure=config.insecure)
    registry = metrics.new_registry("mgmtd")
    grpc_server = rpc.aio_server()
    door = Door("mgmtd", grpc_server)
    await door.open(config.listen_host, config.listen_port)
    metrics_server = metrics.serve(registry, config.listen_host, config.metrics_port)
    call = FrameCalls(MGMTD)
    try:
        address = f"{config.listen_host}:{door.port}"
        own = Node(
            node_id=NodeId(config.node_id),
            kind=NodeKind.MGMTD,
            endpoints=(address,),
            generation=wall_now_ns(),
            version=__version__,
            metrics=metrics_server.address,
        )
        cluster_id = await MgmtdStore(kv).identify()
        credentials = Credentials(cluster_id=cluster_id, secret=config.secret)
        election = Election(config, kv, own_node=own, credentials=credentials, call=call)
        server = MgmtdServer(MgmtdService(config, cluster_id, election), election, credentials, address)
        registry.register(_Figures(server))
        _add_servicer(server, grpc_server)
        admin_door = admin.AdminDoor(admin.AdminService(election), credentials)
        admin.add_to_server(admin_door, grpc_server)
        async with asyncio.TaskGroup() as group:
            taking_part = group.create_task(election.run())
            await election.wait_settled()
            await door.start([(MGMTD, server), (ADMIN, admin_door)])
            _log.info("mgmtd of cluster %s listens on %s", cluster_id, address)
            yield server
            taking_part.cancel()
    finally:
        await door.stop(_STOP_S)
        await call.aclose()
        metrics_server.close()


def lock_data_dir(data_dir: Path) -> int:
    """A descriptor that keeps every other mgmtd out of `data_dir`, which is made if need be. Raises: Invalid."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data_dir / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Invalid(f"data_dir {data_dir}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Invalid(f"data_dir {data_dir}: another mgmtd is using it") from None
    return descriptor


async def _run(config: MgmtdConfig) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    kv = await open_store(config.store, by_kind)
    try:
        async with serve(config, kv):
            await stop.wait()
            _log.info("mgmtd stops")
    finally:
        await kv.close()


def run(config: MgmtdConfig) -> int:
    """Serve until SIGTERM or SIGINT; the exit status.

    Raises:
        Fs3Error: what kept it from starting or made it stop.
    """
    check_exposure(config.listen_host, secret=config.secret, insecure=config.insecure)
    lock = lock_data_dir(config.data_dir)
    try:
        asyncio.run(_run(config))
    except BaseExceptionGroup as group:
        error = next((item for item in group.exceptions if isinstance(item, Fs3Error)), None)
        raise error if error is not None else group from None
    finally:
        os.close(lock)
    return 0
