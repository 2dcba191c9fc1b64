"""The storage daemon without its sockets: engines, write path, read path and service around one lease.

`StorageServer` (server.py) puts listeners, IO threads and metrics around it; the simulator puts simulated connections
and clocks. Both register it with mgmtd by a `NodeAgent`, on an event loop, and end it there (`serve`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from fs3.client.node_agent import NodeAgent
from fs3.errors import Unavailable
from fs3.ids import node_name
from fs3.pb import mgmtd_pb2, storage_pb2
from fs3.routing import Node
from fs3.runtime import SYSTEM, Runtime
from fs3.storage.config import StorageConfig
from fs3.storage.engine import Engine
from fs3.storage.forward import ChainForwarder
from fs3.storage.read_path import ReadPath
from fs3.storage.scrub import Scrubber, scrub_json
from fs3.storage.service import Service
from fs3.storage.share_core import Share
from fs3.storage.write_path import WritePath
from fs3.transport.change_counters import RELY_S
from fs3.transport.connection import Connection, OpenConnection
from fs3.transport.credentials import PROTOCOL, Credentials


def begin_run(engines: Sequence[Engine], wall_ns: int) -> int:
    """The generation of a run that begins on these disks, noted on each: larger than that of every run before there,
    whatever the clock says (run_number.py)."""
    generation = max([wall_ns, *(engine.last_run + 1 for engine in engines)])
    for engine in engines:
        engine.note_run(generation)
    return generation


class StorageDaemon:
    """What one process does with its `engines`, of one share each, which it does not close. `stats` makes STATS' JSON.

    Without `shares` the engines are those of the configuration's disks.
    """

    def __init__(
        self,
        config: StorageConfig,
        credentials: Credentials,
        engines: Sequence[Engine],
        *,
        generation: int,
        stats: Callable[[], str],
        shares: Sequence[Share] = (),
        open_connection: OpenConnection = Connection.open,
        runtime: Runtime = SYSTEM,
    ) -> None:
        self.config = config
        self.credentials = credentials
        self.generation = generation
        self.engines = tuple(engines)
        self._shares = tuple(shares) or tuple(Share(number, folder) for number, folder in enumerate(config.disks))
        self.agent: NodeAgent | None = None
        self._runtime = runtime
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._relying = runtime.lock()
        hello = storage_pb2.Hello(
            protocol=PROTOCOL,
            cluster_id=credentials.cluster_id,
            secret=config.secret,
            role="chain",
            node_id=config.node_id,
        )
        self.writes = WritePath(
            {share.disk: engine for share, engine in zip(self._shares, self.engines, strict=True)},
            ChainForwarder(
                hello, max_per_endpoint=config.write_threads, open_connection=open_connection, runtime=runtime
            ),
            node_id=config.node_id,
            generation=generation,
            poke=self._poke,
            suspect=self._suspect,
            may_write=self._may_serve,
            tombstone_s=config.tombstone_s,
            recovery_bytes_s=config.recovery_bytes_s,
            runtime=runtime,
        )
        self.reads = ReadPath(
            self.engines, self.writes.state, check_lease=self._check_lease, suspect=self.writes.repair.suspect
        )
        self.scrubbers = [
            Scrubber(
                engine,
                self.writes.repair,
                name=str(share.disk),
                bytes_s=-(-config.scrub_bytes_s // share.shared_by),
                every_s=config.scrub_every_s,
                at_once=engine.lost_power,
                runtime=runtime,
            )
            for share, engine in zip(self._shares, self.engines, strict=True)
        ]
        self.service = Service(
            config,
            credentials,
            self.reads,
            self.writes,
            generation=generation,
            check_lease=self._check_time,
            stats=stats,
            scrub=self.scrub,
            runtime=runtime,
        )

    def scrub(self, begin: bool) -> str:
        """The JSON of SCRUB: what is being verified, and what is known to be damaged; `begin` starts a pass first."""
        if begin:
            for scrubber in self.scrubbers:
                scrubber.start()
        return scrub_json(self.config, self._shares, self.engines, self.scrubbers, self.writes.repair)

    def agent_for(self, node: Node, **ports: Any) -> NodeAgent:
        """Makes `agent`, which registers this daemon as `node` once it is run; call from the loop that runs it."""
        self._loop = asyncio.get_running_loop()
        self.agent = NodeAgent(
            self.config.mgmtd,
            self.credentials,
            node,
            local_targets=self.writes.local_targets,
            disks=self._disks,
            on_routing=self.writes.on_routing,
            on_create=self.writes.on_create,
            on_drop=self.writes.on_drop,
            on_sessions=self.writes.on_sessions,
            **ports,
        )
        if any(engine.counters is not None for engine in self.engines):
            self._runtime.spawn(self._keep_relied_on, name="fs3-rely")
        return self.agent

    async def serve(self, stop: asyncio.Event, *, wind_down: Callable[[], None]) -> None:
        """Stay registered until `stop` is set; then end what was begun and say goodbye. After `agent_for`.

        `wind_down`, on a thread, accepts no more connections and waits a little until what was asked is answered.

        Raises: PermissionDenied, Conflict, Invalid of mgmtd.
        """
        agent = self.agent
        assert agent is not None, "agent_for makes it"
        registered = asyncio.ensure_future(agent.run())
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({registered, stopping}, return_when=asyncio.FIRST_COMPLETED)
            self._stop_serving()  # what was begun may end while the lease holds
            await asyncio.get_running_loop().run_in_executor(None, self._end_work, wind_down)
            if not registered.done():
                await agent.stop()
        finally:
            registered.cancel()  # only where this is cancelled itself is it still running
            stopping.cancel()
            await asyncio.gather(registered, stopping, return_exceptions=True)
        registered.result()

    def _end_work(self, wind_down: Callable[[], None]) -> None:
        wind_down()
        self.close()

    def close(self) -> None:
        """Let what was begun end, soon. Blocks."""
        self._stop_serving()
        for scrubber in self.scrubbers:
            scrubber.close()
        self.writes.close()
        self.service.close()

    def _stop_serving(self) -> None:
        """Take on nothing new; clients of this host do not rely on what they know of it any more."""
        with self._relying:
            self._stopping = True
            self._rely_until(0.0)

    def _keep_relied_on(self) -> None:
        """Have clients of this host rely on the change counters, a little ahead at a time (change_counters.py)."""
        while True:
            with self._relying:
                if self._stopping:
                    return
                if self.agent is not None:
                    self._rely_until(min(self.agent.serve_until_s, self._runtime.now_s() + RELY_S))
            self._runtime.sleep(RELY_S / 5)

    def _rely_until(self, until_s: float) -> None:
        for engine in self.engines:
            if engine.counters is not None:
                engine.counters.rely_until(until_s)

    def _may_serve(self) -> bool:
        return not self._stopping and self._in_time()

    def _in_time(self) -> bool:
        agent = self.agent
        return agent is not None and self._runtime.now_s() < agent.serve_until_s

    def _check_lease(self) -> None:
        """For what begins now. Raises: Unavailable."""
        if self._stopping:
            raise Unavailable(f"storage daemon {node_name(self.config.node_id)} is stopping")
        self._check_time()

    def _check_time(self) -> None:
        """For what may also end while the daemon stops. Raises: Unavailable."""
        if not self._in_time():
            raise Unavailable(f"storage daemon {node_name(self.config.node_id)} has lost touch with mgmtd")

    def _poke(self) -> None:
        loop, agent = self._loop, self.agent
        if loop is not None and agent is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: so has the lease
                loop.call_soon_threadsafe(agent.poke)

    def _suspect(self, node_id: int, generation: int) -> None:
        loop, agent = self._loop, self.agent
        if loop is not None and agent is not None:
            with contextlib.suppress(RuntimeError):
                asyncio.run_coroutine_threadsafe(agent.suspect(node_id, generation), loop)

    def _disks(self) -> list[mgmtd_pb2.DiskInfo]:
        said = []
        for share, engine in zip(self._shares, self.engines, strict=True):
            total, free = engine.space()
            said.append(
                mgmtd_pb2.DiskInfo(
                    node_id=self.config.node_id,
                    disk=share.disk,
                    path=str(share.folder),
                    total_bytes=total,
                    free_bytes=free,
                    fullness=int(engine.fullness()),
                    damaged_chunks=len(engine.damaged()),
                )
            )
        return said
