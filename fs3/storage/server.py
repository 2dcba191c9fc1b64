"""The storage daemon, or one of its workers: engines, write path and IO threads around them, registered with mgmtd.

    main thread    asyncio: the lease and the routing (NodeAgent), signals
    fs3-io-*       epoll threads: connections, reads (io_thread.py, connections.py)
    fs3-hop*-*     threads that apply updates (service.py)
    others         the engines' commit threads, the write path's chores, slow reads, the metrics endpoint

The cluster's id comes from mgmtd, so a disk can never be brought into another cluster by a wrong address: an engine's
folder carries the id it was made with. So does the routing, which tells where this daemon's targets are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fs3 import __version__, metrics
from fs3.client.node_agent import MGMTD
from fs3.clock import lease_now_s, wall_now_ns
from fs3.errors import Invalid, Unavailable
from fs3.ids import NodeId, machine_of, node_name, worker_of
from fs3.pb import common_pb2, mgmtd_pb2
from fs3.routing import Node, NodeKind, Routing, routing_from_pb
from fs3.storage import listeners
from fs3.storage.body_pool import BodyPool
from fs3.storage.config import StorageConfig
from fs3.storage.connections import MAX_HOPS, Patience
from fs3.storage.daemon import StorageDaemon, begin_run
from fs3.storage.disk import has_engine
from fs3.storage.engine import Engine
from fs3.storage.figures import DaemonFigures
from fs3.storage.io_thread import IoThread
from fs3.storage.listeners import Bound
from fs3.storage.share_core import Share, engine_folder, shares
from fs3.transport.calls import FrameCalls
from fs3.transport.credentials import Credentials
from fs3.transport.descriptors import raise_limit

_LOG = logging.getLogger("fs3.storage")
_BACKLOG = 1024
_ASK_S = 2.0
_ASK_AGAIN_S = 0.25
_SAY_EVERY_S = 10.0
_DRAIN_S = 2.0
_TURNED_AWAY = 64  # connections beyond the limit that are still told why they are closed

__all__ = ["StorageConfig", "StorageServer", "run"]


def run(config: StorageConfig, *, ready: Callable[[], None] = lambda: None) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean stop. `ready` is called once connections are taken.

    Raises:
        Invalid: the configuration, a taken port, or a folder that is not a disk of this cluster.
        PermissionDenied, Conflict: mgmtd refuses this daemon.
        Corrupt: a disk's metadata is damaged.
    """
    raise_limit()  # connections, and block files besides
    return asyncio.run(_until_signal(config, ready))


async def _until_signal(config: StorageConfig, ready: Callable[[], None]) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # The ports first: a taken one is said at once, and not after a wait for mgmtd.
    with contextlib.ExitStack() as opened:
        bound = listeners.bind(config)
        opened.callback(bound.close)
        cluster = await _or_stop(stop, _cluster(config))
        if cluster is None:
            return 0
        cluster_id, routing = cluster
        server = StorageServer(config, cluster_id, bound, shares=_shares(config, routing))
        opened.pop_all()
    await server.serve(stop, ready)
    return 0


async def _or_stop(stop: asyncio.Event, work: Awaitable[Any]) -> Any:
    """The result of `work`, or None if `stop` is set first."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        return None
    return working.result()


async def _cluster(config: StorageConfig) -> tuple[str, Routing]:
    """The cluster's id and routing, as soon as a mgmtd that decides answers. Raises: PermissionDenied."""
    said_s = float("-inf")
    async with contextlib.aclosing(FrameCalls(MGMTD)) as call:
        while True:
            for address in config.mgmtd:
                credentials = Credentials(secret=config.secret)
                try:
                    info = await call(
                        address, "GetClusterInfo", common_pb2.Empty(), timeout_s=_ASK_S, credentials=credentials
                    )
                    credentials = replace(credentials, cluster_id=info.cluster_id)
                    request = mgmtd_pb2.GetRoutingRequest()
                    reply = await call(address, "GetRouting", request, timeout_s=_ASK_S, credentials=credentials)
                except Unavailable as error:
                    silent = error
                else:
                    return info.cluster_id, routing_from_pb(reply.routing)
            if lease_now_s() - said_s > _SAY_EVERY_S:
                said_s = lease_now_s()
                _LOG.warning("storage %s waits for mgmtd: %s", node_name(config.node_id), silent)
            await asyncio.sleep(_ASK_AGAIN_S)


def _shares(config: StorageConfig, routing: Routing) -> list[Share]:
    """What this worker has of the daemon's disks. Raises: Invalid: the daemon has too few workers for its targets."""
    machine = machine_of(config.node_id)
    placed = Counter(target.node_id for target in routing.targets.values() if machine_of(target.node_id) == machine)
    last = max(placed, default=machine)
    if worker_of(last) >= config.workers:
        there, name = placed[last], node_name(last)
        raise Invalid(
            f"workers {config.workers}: worker {name} still has {there} target{'s' * (there != 1)}; set workers ="
            f" {worker_of(last) + 1}, and first: fs3 admin drain URL --node {name} --wait"
        )
    known = {(worker_of(one.node_id), one.disk) for one in routing.targets.values() if one.node_id in placed}
    for disk, folder in enumerate(config.disks):
        known |= {(worker, disk) for worker in range(config.workers) if has_engine(engine_folder(folder, worker))}
    return [share for worker, share in shares(config.disks, config.workers, known) if worker == config.worker]


class StorageServer:
    """One daemon, or one worker of it; everything is open once it is made, and closed when `serve` returns."""

    def __init__(
        self,
        config: StorageConfig,
        cluster_id: str,
        bound: Bound,
        *,
        shares: Sequence[Share] = (),
        patience: Patience | None = None,
    ) -> None:
        """`bound` is where to listen; it is closed with the server. Without `shares` the disks are all its own.

        Raises: Invalid, PermissionDenied, Unavailable, Corrupt: a disk; nothing but `bound` stays open then.
        """
        self.config = config
        self._bound = bound
        self._shares = tuple(shares) or tuple(Share(number, folder) for number, folder in enumerate(config.disks))
        folders = [share.folder for share in self._shares]
        self.credentials = Credentials(cluster_id=cluster_id, secret=config.secret)
        with contextlib.ExitStack() as opened:
            # The port first: a taken one must not leave the folders of disks behind.
            registry = metrics.new_registry("storage")
            self._exporter = metrics.serve(registry, config.listen_host, config.metrics_port)
            opened.callback(self._exporter.close)
            self.engines = list(self._open_engines(cluster_id, opened))
            self.generation = begin_run(self.engines, wall_now_ns())
            self.daemon = StorageDaemon(
                config,
                self.credentials,
                self.engines,
                generation=self.generation,
                stats=lambda: self.figures.stats_json(),
                shares=self._shares,
            )
            self.writes, self.reads, self.service = self.daemon.writes, self.daemon.reads, self.daemon.service
            opened.callback(self.daemon.close)
            self.pool = BodyPool(hops=MAX_HOPS, share_bytes=config.max_inflight_bytes)
            self.threads = [
                IoThread(
                    number,
                    self.service,
                    self.pool,
                    max_requests=config.max_requests,
                    patience=patience or Patience(),
                    accepted=self._deal,
                    reply_bytes=config.max_inflight_bytes // 2 // config.io_threads,
                )
                for number in range(config.io_threads)
            ]
            self.figures = DaemonFigures(
                self.engines, folders, self.threads, self.pool, self.writes, self.daemon.scrubbers
            )
            registry.register(self.figures)
            opened.pop_all()

    @property
    def address(self) -> str:
        """Where the daemon listens, "host:port"."""
        return self._bound.address

    def start(self) -> None:
        """Listen, and answer; `Unavailable` until `serve` has a lease."""
        for sock in self._bound.sockets:
            sock.listen(_BACKLOG)
        for number, thread in enumerate(self.threads):
            thread.start(self._bound.sockets if number == 0 else ())

    async def serve(self, stop: asyncio.Event, ready: Callable[[], None] = lambda: None) -> None:
        """Serve, which `ready` is told, until `stop` is set, then say goodbye and close everything.

        Raises: PermissionDenied, Conflict, Invalid of mgmtd.
        """
        self.daemon.agent_for(self._node())
        self.start()
        name = node_name(self.config.node_id)
        _LOG.info("storage %s serves on %s, disks %s", name, self.address, self._disk_names())
        ready()
        try:
            await self.daemon.serve(stop, wind_down=self._wind_down)
        finally:
            await asyncio.to_thread(self._close)
        _LOG.info("storage %s stopped", name)

    def _wind_down(self) -> None:
        """Take no new connections, and wait, not for long, until what was asked is answered."""
        self.threads[0].stop_accepting()
        deadline_s = lease_now_s() + _DRAIN_S
        while lease_now_s() < deadline_s and any(thread.unsent() for thread in self.threads):
            time.sleep(0.01)

    def _close(self) -> None:
        self.daemon.close()  # where `serve` was kept from it
        self._bound.close()
        for thread in self.threads:
            thread.stop()
        self._exporter.close()
        for engine in self.engines:
            engine.close()

    def _open_engines(self, cluster_id: str, opened: contextlib.ExitStack) -> Iterator[Engine]:
        for share in self._shares:
            try:
                engine = Engine.open(
                    share.folder,
                    cluster_id=cluster_id,
                    node_id=self.config.node_id,
                    create=True,
                    config=self.config.engine,
                    shared_by=share.shared_by,
                )
            except OSError as error:
                raise Invalid(f"disk {share.folder}: {error.strerror}; name a folder that can be written") from None
            opened.callback(engine.close)
            yield engine

    def _deal(self, sock: socket.socket) -> None:
        """A new connection goes to the thread that has the fewest."""
        counts = [len(thread.peers) for thread in self.threads]
        total, most = sum(counts), self.config.max_connections
        if total >= most + _TURNED_AWAY:
            sock.close()
            return
        reason = f"{total} connections are open, and this daemon takes {most}" if total >= most else ""
        self.threads[counts.index(min(counts))].adopt(sock, reason)

    def _node(self) -> Node:
        return Node(
            node_id=NodeId(self.config.node_id),
            kind=NodeKind.STORAGE,
            endpoints=(self.address,),
            host=_machine_id(),
            generation=self.generation,
            version=__version__,
            metrics=self._exporter.address,
            unix_endpoints=(self._bound.unix_path,) if self._bound.unix_path else (),
            workers=self.config.workers,
        )

    def _disk_names(self) -> str:
        return ", ".join(str(share.folder) for share in self._shares)


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
