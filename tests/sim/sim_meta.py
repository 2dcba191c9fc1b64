"""Meta daemons in the simulated cluster: the production service and collector on a store that all of them share."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client import CollectorRegistry
from sim_cluster import CLUSTER_ID, Cluster, SimMachine, connect
from sim_control import SimCalls, serve_control
from sim_store import LinkedKV

from fs3.client.mgmtd import MgmtdClient
from fs3.client.node_agent import NodeAgent
from fs3.client.storage import StorageClient
from fs3.errors import Fs3Error
from fs3.ids import NodeId
from fs3.inode import Inode
from fs3.meta.gc import Collector
from fs3.meta.inode import known_length
from fs3.meta.service import MetaService
from fs3.routing import Node, NodeKind
from fs3.transport.credentials import Credentials

_GRACE_S = 2.0  # fs3/meta/server.py: for calls that are being answered when a meta stops


class SimMeta(SimMachine):
    """A meta daemon."""

    kind = "meta"

    def __init__(self, cluster: Cluster, number: int) -> None:
        super().__init__(cluster, number)
        self.address = f"{self.name}:7500"
        self.service: MetaService | None = None

    def forget(self) -> None:
        self.service = None

    def boot(self) -> None:
        self.process.loop.run(self._main)

    async def _main(self) -> None:
        cluster, process, runtime = self.cluster, self.process, self.runtime
        kv = LinkedKV(cluster.names, cluster.network, process, self.name)
        credentials, registry = Credentials(cluster_id=CLUSTER_ID), CollectorRegistry()
        service = MetaService(kv, credentials, registry, wall_ns=runtime.wall_ns)
        node = Node(
            node_id=NodeId(2_000 + self.number),
            kind=NodeKind.META,
            endpoints=(self.address,),
            generation=process.wall_ns(),
        )
        agent = NodeAgent(
            cluster.addresses,
            credentials,
            node,
            local_targets=list,
            disks=list,
            on_routing=service.adopt,
            on_create=lambda targets: None,
            call=SimCalls(cluster.network, process, self.name),
            now=runtime.now_s,
        )

        answering: dict[asyncio.Task[Any], None] = {}

        async def answer(method: str, request: Any, shown: Credentials) -> Any:
            service.credentials.check(shown.cluster_id, shown.secret)
            rpc = getattr(service, "".join(part.title() for part in method.split("_")))
            task = asyncio.current_task()
            assert task is not None
            answering[task] = None
            try:
                return await rpc.__wrapped__(service, request)
            finally:
                del answering[task]

        self.service = service
        serve_control(cluster.network, self.host, process, answer)
        collector = Collector(
            kv,
            _Remover(self),
            session_lease_s=cluster.shape.write_session_s,
            delay_s=cluster.shape.lease_s,
            interval_s=cluster.shape.lease_s / 2,
            registry=registry,
            now=runtime.now_s,
            wall_ns=runtime.wall_ns,
            owner=process.number,
        )
        collecting = asyncio.ensure_future(self._collect(agent, collector))
        registered = asyncio.ensure_future(agent.run())
        stopping = asyncio.ensure_future(self.stop_asked.wait())
        await asyncio.wait({registered, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if registered.done():
            collecting.cancel()
            try:
                registered.result()
            except Fs3Error as error:
                self.exits(error)
            return
        await agent.stop()
        collecting.cancel()
        await asyncio.gather(registered, collecting, return_exceptions=True)
        self.host.control = None
        if answering:
            await asyncio.wait(tuple(answering), timeout=_GRACE_S)
        self.stopped()

    async def _collect(self, agent: NodeAgent, collector: Collector) -> None:
        await agent.wait_ready()
        await collector.run()


class _Remover:
    """As `StorageRemover`, on the simulated network."""

    def __init__(self, meta: SimMeta) -> None:
        self._meta = meta
        self._clients: tuple[MgmtdClient, StorageClient] | None = None

    async def remove_file(self, inode: Inode) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._remove, inode)

    def _remove(self, inode: Inode) -> None:
        assert inode.layout is not None, inode
        if self._clients is None:
            self._clients = connect(self._meta)
        self._clients[1].remove_file_chunks(inode.inode_id, inode.layout, known_length(inode))
