"""The meta daemon: a service on a store, registered with mgmtd, with the collector beside it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from fs3 import __version__, metrics
from fs3.client.node_agent import NodeAgent
from fs3.errors import Invalid
from fs3.ids import NodeId
from fs3.kv.sqlite import SqliteKV
from fs3.meta.gc import Collector
from fs3.meta.remover import StorageRemover
from fs3.meta.service import MetaService
from fs3.pb import meta_pb2_grpc
from fs3.routing import Node, NodeKind
from fs3.transport import rpc

_log = logging.getLogger(__name__)

_GRACE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaConfig:
    """The meta daemon's configuration; `fs3 meta --config FILE.toml` reads it."""

    node_id: int
    mgmtd: tuple[str, ...]  # "host:port" of every mgmtd
    data: Path  # folder of the metadata store
    listen_host: str = "127.0.0.1"
    listen_port: int = 0
    metrics_port: int = 0
    secret: str = ""
    insecure: bool = False  # listen beyond loopback without a secret
    session_lease_s: float = 60.0  # an unpublished file whose writer is silent for so long is collected
    gc_delay_s: float = 10.0  # how long a removed file's chunks stay for those who are reading them
    gc_interval_s: float = 1.0


def check(config: MetaConfig) -> None:
    """Raises: Invalid."""
    if not config.mgmtd:
        raise Invalid("mgmtd: name at least one mgmtd as host:port")
    if config.listen_host not in ("127.0.0.1", "::1", "localhost") and not (config.secret or config.insecure):
        raise Invalid(
            f"listen_host {config.listen_host}: beyond loopback a secret is needed; set secret, or insecure=true"
        )
    if config.session_lease_s <= 0 or config.gc_delay_s < 0 or config.gc_interval_s <= 0:
        raise Invalid("session_lease_s and gc_interval_s must be positive, gc_delay_s at least 0")


def run(config: MetaConfig) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean stop.

    Raises:
        Invalid: the configuration, a taken port, or a data folder that cannot be used.
        PermissionDenied, Conflict: mgmtd refuses this daemon.
    """
    check(config)
    asyncio.run(_until_signal(config))
    return 0


async def _until_signal(config: MetaConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with MetaServer(config) as server:
        await server.serve(stop)


class MetaServer:
    """One daemon. Entering opens the store and starts listening; leaving stops and releases everything."""

    def __init__(self, config: MetaConfig) -> None:
        check(config)
        self.config = config
        self.address = ""

    async def __aenter__(self) -> MetaServer:
        """Raises: Invalid if a port is taken or the store cannot be used."""
        config = self.config
        async with contextlib.AsyncExitStack() as stack:
            try:
                config.data.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Invalid(f"data {config.data}: {error.strerror}; choose a folder that can be written") from None
            self.kv = SqliteKV(config.data / "meta.db")
            stack.push_async_callback(self.kv.close)
            registry = metrics.new_registry("meta")
            exporter = metrics.serve(registry, config.listen_host, config.metrics_port)
            stack.callback(exporter.close)
            self.service = MetaService(self.kv, rpc.Credentials(secret=config.secret), registry)
            self._remover = StorageRemover(config.mgmtd, config.secret)
            stack.callback(self._remover.close)
            server = rpc.aio_server()
            meta_pb2_grpc.add_MetaServicer_to_server(self.service, server)  # type: ignore[no-untyped-call]
            self.address = f"{config.listen_host}:{_bind(server, config)}"
            stack.push_async_callback(server.stop, _GRACE_S)
            await server.start()
            self.agent = NodeAgent(
                config.mgmtd,
                rpc.Credentials(secret=config.secret),
                _node(config, self.address, exporter.address),
                local_targets=list,
                disks=list,
                on_routing=self.service.adopt,
                on_create=lambda targets: None,  # only storage daemons have targets
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def serve(self, stop: asyncio.Event) -> None:
        """Stay registered, and collect, until `stop` is set. Raises: PermissionDenied, Conflict of mgmtd."""
        config = self.config
        collector = Collector(
            self.kv,
            self._remover,
            session_lease_s=config.session_lease_s,
            delay_s=config.gc_delay_s,
            interval_s=config.gc_interval_s,
        )
        registered = asyncio.ensure_future(self.agent.run())
        stopping = asyncio.ensure_future(stop.wait())
        collecting = asyncio.ensure_future(self._collect(collector))
        tasks = {registered, stopping, collecting}
        _log.info("meta %d serves on %s, store %s", config.node_id, self.address, config.data)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not registered.done():
                await self.agent.stop()
        finally:
            for task in (stopping, collecting):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in (registered, collecting):
            if not task.cancelled():
                task.result()
        _log.info("meta %d stopped", config.node_id)

    async def _collect(self, collector: Collector) -> None:
        await self.agent.wait_ready()
        await collector.run()


def _bind(server: grpc.aio.Server, config: MetaConfig) -> int:
    wanted = f"{config.listen_host}:{config.listen_port}"
    try:
        port = int(server.add_insecure_port(wanted))
    except RuntimeError:
        port = 0
    if not port:
        raise Invalid(f"{wanted}: the port cannot be used (taken?); choose another listen_port")
    return port


def _node(config: MetaConfig, address: str, exporter: str) -> Node:
    return Node(
        node_id=NodeId(config.node_id),
        kind=NodeKind.META,
        endpoints=(address,),
        host=_machine_id(),
        generation=time.time_ns(),
        version=__version__,
        metrics=exporter,
    )


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
