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

import grpc
import grpc.aio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fs3 import __version__, metrics
from fs3.clock import lease_now_s, wall_now_ns
from fs3.errors import Fs3Error, Invalid
from fs3.ids import NodeId
from fs3.kv.api import KVEngine
from fs3.kv.sqlite import SqliteKV
from fs3.mgmtd.config import MgmtdConfig
from fs3.mgmtd.primary import Primary, refuses_connections
from fs3.mgmtd.store import MgmtdStore
from fs3.pb import common_pb2, mgmtd_pb2, mgmtd_pb2_grpc
from fs3.routing import Node, NodeKind, TargetState, routing_to_pb
from fs3.transport import rpc
from fs3.transport.exposure import check_exposure

_log = logging.getLogger(__name__)
_LONGEST_POLL_S = 60.0
_PROBE_S = 0.5
_STOP_S = 0.3
_Servicer: Any = mgmtd_pb2_grpc.MgmtdServicer
_add_servicer: Any = mgmtd_pb2_grpc.add_MgmtdServicer_to_server


class MgmtdServer(_Servicer):  # type: ignore[misc]  # generated code has no types
    """One running mgmtd; `address` is where it listens. Made by `serve`."""

    def __init__(self, config: MgmtdConfig, primary: Primary, address: str) -> None:
        self.address = address
        self.primary = primary
        self.credentials = rpc.Credentials(cluster_id=primary.routing.cluster_id, secret=config.secret)
        self.heartbeats = 0
        self._config = config
        self._wire: mgmtd_pb2.Routing = routing_to_pb(primary.routing)
        self._probing: set[NodeId] = set()

    @rpc.handler
    async def GetClusterInfo(self, request: common_pb2.Empty) -> mgmtd_pb2.ClusterInfo:  # noqa: N802
        return mgmtd_pb2.ClusterInfo(
            cluster_id=self.primary.routing.cluster_id,
            protocol=rpc.PROTOCOL,
            lease_ms=round(self._config.lease_s * 1000),
            version=__version__,
            wants_secret=bool(self._config.secret),
        )

    @rpc.handler
    async def GetRouting(self, request: mgmtd_pb2.GetRoutingRequest) -> mgmtd_pb2.GetRoutingReply:  # noqa: N802
        if request.known_version == 0:
            return mgmtd_pb2.GetRoutingReply(routing=routing_to_pb(self.primary.with_figures()))
        wait_s = min(request.wait_ms / 1000, _LONGEST_POLL_S)
        if await self.primary.newer_than(request.known_version, wait_s) is None:
            return mgmtd_pb2.GetRoutingReply()
        return mgmtd_pb2.GetRoutingReply(routing=self._routing_on_the_wire())

    @rpc.handler
    async def Heartbeat(self, request: mgmtd_pb2.HeartbeatRequest) -> mgmtd_pb2.HeartbeatReply:  # noqa: N802
        self.heartbeats += 1
        reply = await self.primary.heartbeat(request)
        if self.primary.routing.version > request.known_routing:
            reply.routing.CopyFrom(self._routing_on_the_wire())
        return reply

    @rpc.handler
    async def Goodbye(self, request: mgmtd_pb2.GoodbyeRequest) -> common_pb2.Empty:  # noqa: N802
        await self.primary.goodbye(NodeId(request.node_id), request.generation)
        return common_pb2.Empty()

    @rpc.handler
    async def Suspect(self, request: mgmtd_pb2.SuspectRequest) -> common_pb2.Empty:  # noqa: N802
        node_id = NodeId(request.node_id)
        node = self.primary.suspect(node_id, request.generation)
        if node is not None and node_id not in self._probing:
            self._probing.add(node_id)
            try:
                if await refuses_connections(node.endpoints, _PROBE_S):
                    await self.primary.refused(node_id, request.generation)
            finally:
                self._probing.discard(node_id)
        return common_pb2.Empty()

    def _routing_on_the_wire(self) -> mgmtd_pb2.Routing:
        """One message for all who wait for the same version; its figures are those of when it was made."""
        if self._wire.version != self.primary.routing.version:
            self._wire = routing_to_pb(self.primary.with_figures())
        return self._wire


class _Figures(Collector):
    """What Prometheus sees, computed when it looks."""

    def __init__(self, server: MgmtdServer) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        routing = self._server.primary.routing
        version = GaugeMetricFamily("fs3_mgmtd_routing_version", "Version of the published routing")
        version.add_metric([], routing.version)
        yield version
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
        heartbeats = CounterMetricFamily("fs3_mgmtd_heartbeats", "Heartbeats received")
        heartbeats.add_metric([], self._server.heartbeats)
        yield heartbeats
        moves = CounterMetricFamily("fs3_mgmtd_transitions", "Target transitions by new state", labels=["state"])
        for name, count in sorted(self._server.primary.transitions.items()):
            moves.add_metric([name], count)
        yield moves


@contextlib.asynccontextmanager
async def serve(config: MgmtdConfig, kv: KVEngine) -> AsyncIterator[MgmtdServer]:
    """A running mgmtd on `kv`, which stays open; leaving the context stops it.

    Raises:
        Invalid: an address that is taken or may not be listened on.
        Conflict: (from inside the context, as part of a group) another mgmtd took over.
    """
    check_exposure(config.listen_host, secret=config.secret, insecure=config.insecure)
    registry = metrics.new_registry("mgmtd")
    grpc_server = rpc.aio_server()
    port = _listen(grpc_server, config)
    metrics_server = metrics.serve(registry, config.listen_host, config.metrics_port)
    try:
        store = MgmtdStore(kv)
        address = f"{config.listen_host}:{port}"
        own = Node(
            node_id=NodeId(config.node_id),
            kind=NodeKind.MGMTD,
            endpoints=(address,),
            generation=wall_now_ns(),
            version=__version__,
            metrics=metrics_server.address,
        )
        primary = Primary(config, store, await store.take_over(), own_node=own, now=lease_now_s)
        server = MgmtdServer(config, primary, address)
        registry.register(_Figures(server))
        _add_servicer(server, grpc_server)
        async with asyncio.TaskGroup() as group:
            clock = group.create_task(primary.run())
            await grpc_server.start()
            _log.info("mgmtd of cluster %s listens on %s", primary.routing.cluster_id, address)
            yield server
            clock.cancel()
    finally:
        await grpc_server.stop(_STOP_S)
        metrics_server.close()


def _listen(grpc_server: grpc.aio.Server, config: MgmtdConfig) -> int:
    address = f"{config.listen_host}:{config.listen_port}"
    try:
        port = grpc_server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port == 0:
        raise Invalid(f"mgmtd cannot listen on {address}: the port is taken or the address is not this machine's")
    return int(port)


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
    kv = SqliteKV(config.data_dir / "mgmtd.sqlite")
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
