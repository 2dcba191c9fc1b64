"""The meta daemon: a service on a store, registered with mgmtd, with the collector beside it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from pathlib import Path

from fs3 import __version__, metrics
from fs3.client.meta_calls import META
from fs3.client.node_agent import NodeAgent
from fs3.clock import wall_now_ns
from fs3.errors import Fs3Error, Invalid
from fs3.ids import NodeId
from fs3.kv import keys
from fs3.kv.opening import open_store
from fs3.meta.config import MetaConfig
from fs3.meta.gc import Collector
from fs3.meta.remover import StorageRemover
from fs3.meta.service import MetaService
from fs3.pb import meta_pb2_grpc
from fs3.routing import Node, NodeKind
from fs3.transport import rpc
from fs3.transport.credentials import Credentials
from fs3.transport.door import Door
from fs3.transport.exposure import check_exposure

_log = logging.getLogger(__name__)

_GRACE_S = 2.0

__all__ = ["MetaConfig", "MetaServer", "run"]


def run(config: MetaConfig) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean stop.

    Raises:
        Invalid: the configuration, a taken port, or a data folder that cannot be used.
        PermissionDenied, Conflict: mgmtd refuses this daemon.
    """
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
        check_exposure(config.listen_host, secret=config.secret, insecure=config.insecure)
        self.config = config
        self.address = ""

    async def __aenter__(self) -> MetaServer:
        """Raises: Invalid if a port is taken or the store cannot be used."""
        config = self.config
        async with contextlib.AsyncExitStack() as stack:
            try:
                if config.data_dir is not None:
                    config.data_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Invalid(f"data_dir {config.data_dir}: {error.strerror}; choose another folder") from None
            self.kv = await open_store(config.store, keys.group)
            stack.push_async_callback(self.kv.close)
            self._registry = registry = metrics.new_registry("meta")
            exporter = metrics.serve(registry, config.listen_host, config.metrics_port)
            stack.callback(exporter.close)
            self.service = MetaService(
                self.kv,
                Credentials(secret=config.secret),
                registry,
                session_lease_s=config.session_lease_s,
                check_permissions=config.check_permissions,
            )
            self._remover = StorageRemover(config.mgmtd, config.secret)
            stack.callback(self._remover.close)
            server = rpc.aio_server()
            meta_pb2_grpc.add_MetaServicer_to_server(self.service, server)  # type: ignore[no-untyped-call]
            door = Door("meta", server)
            await door.open(config.listen_host, config.listen_port)
            self.address = f"{config.listen_host}:{door.port}"
            stack.push_async_callback(door.stop, _GRACE_S)
            await door.start([(META, self.service)])
            self.agent = NodeAgent(
                config.mgmtd,
                Credentials(secret=config.secret),
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
        """Stay registered, and collect, until `stop` is set.

        Raises:
            PermissionDenied, Conflict: mgmtd refuses this daemon.
            Invalid: the store is another cluster's.
        """
        config = self.config
        collector = Collector(
            self.kv,
            self._remover,
            session_lease_s=config.session_lease_s,
            delay_s=config.gc_delay_s,
            interval_s=config.gc_interval_s,
            trash_grace_s=config.trash_grace_s,
            registry=self._registry,
        )
        registered = asyncio.ensure_future(self.agent.run())
        stopping = asyncio.ensure_future(stop.wait())
        collecting = asyncio.ensure_future(self._collect(collector))
        tasks = {registered, stopping, collecting}
        _log.info("meta %d serves on %s, store %s", config.node_id, self.address, config.store)
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
        while True:
            try:
                await self.service.join()
            except Invalid as error:
                raise Invalid(f"store {self.config.store}: {error}") from None
            except Fs3Error as error:
                _log.warning("meta %d cannot use its store yet: %s", self.config.node_id, error)
                await asyncio.sleep(self.config.gc_interval_s)
            else:
                await collector.run()


def _node(config: MetaConfig, address: str, exporter: str) -> Node:
    return Node(
        node_id=NodeId(config.node_id),
        kind=NodeKind.META,
        endpoints=(address,),
        host=_machine_id(),
        generation=wall_now_ns(),
        version=__version__,
        metrics=exporter,
    )


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
