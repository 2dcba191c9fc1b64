"""What mgmtd answers, without gRPC: one method per call, for the servicer (server.py) and for the simulator.

Only the mgmtd that decides answers, and only while its claim holds: that is looked at before the work and again before
the answer leaves, since work waits for the store. The others raise NotPrimary, so that callers ask the next one; who
the cluster is, anyone says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fs3 import __version__
from fs3.clock import lease_now_s
from fs3.errors import NotPrimary
from fs3.ids import NodeId
from fs3.mgmtd.config import MgmtdConfig
from fs3.mgmtd.election import Election
from fs3.mgmtd.primary import Primary
from fs3.mgmtd.probe import refuses_connections
from fs3.pb import common_pb2, mgmtd_pb2
from fs3.routing import Node, routing_to_pb
from fs3.transport.change_counters import RELY_S
from fs3.transport.credentials import PROTOCOL

_LONGEST_POLL_S = 60.0
_PROBE_S = 0.5
_RELIED_ON_S = 2 * RELY_S  # to be sure, whatever the two clocks do in so short a time

Refuses = Callable[[tuple[str, ...], float], Awaitable[bool]]


class MgmtdService:
    """`refuses(endpoints, timeout_s)` says whether nobody listens at any of a node's endpoints."""

    def __init__(
        self,
        config: MgmtdConfig,
        cluster_id: str,
        election: Election,
        *,
        refuses: Refuses = refuses_connections,
        now: Callable[[], float] = lease_now_s,
    ) -> None:
        self.heartbeats = 0
        self._config = config
        self._cluster_id = cluster_id
        self._election = election
        self._refuses = refuses
        self._now = now
        self._wire = mgmtd_pb2.Routing()
        self._wire_of: Primary | None = None
        self._probing: set[NodeId] = set()

    async def get_cluster_info(self, request: common_pb2.Empty) -> mgmtd_pb2.ClusterInfo:
        return mgmtd_pb2.ClusterInfo(
            cluster_id=self._cluster_id,
            protocol=PROTOCOL,
            lease_ms=round(self._config.lease_s * 1000),
            version=__version__,
            wants_secret=bool(self._config.secret),
            primary=self._election.address,
            session_ms=round(self._config.client_session_s * 1000),
        )

    async def get_routing(self, request: mgmtd_pb2.GetRoutingRequest) -> mgmtd_pb2.GetRoutingReply:
        """Raises: NotPrimary."""
        primary = self._election.deciding()
        reply = mgmtd_pb2.GetRoutingReply(epoch=primary.epoch)
        if request.known_version == 0:
            reply.routing.CopyFrom(routing_to_pb(primary.with_figures()))
            return reply
        newer = await primary.newer_than(request.known_version, min(request.wait_ms / 1000, _LONGEST_POLL_S))
        self._still(primary)
        if newer is not None:
            reply.routing.CopyFrom(self._on_the_wire(primary))
        return reply

    async def heartbeat(self, request: mgmtd_pb2.HeartbeatRequest) -> mgmtd_pb2.HeartbeatReply:
        """Raises: NotPrimary, and as `Primary.heartbeat`."""
        primary = self._election.deciding()
        self.heartbeats += 1
        other = primary.elsewhere(NodeId(request.node.node_id), request.node.generation, request.node.endpoints)
        if other is not None:  # it may have gone without a word
            await self._probe(primary, other)
        reply = await primary.heartbeat(request)
        self._still(primary)
        if primary.routing.version > request.known_routing:
            reply.routing.CopyFrom(self._on_the_wire(primary))
        return reply

    async def goodbye(self, request: mgmtd_pb2.GoodbyeRequest) -> common_pb2.Empty:
        """Raises: NotPrimary, Fs3Error of the store."""
        await self._election.deciding().goodbye(NodeId(request.node_id), request.generation)
        return common_pb2.Empty()

    async def suspect(self, request: mgmtd_pb2.SuspectRequest) -> common_pb2.Empty:
        """Raises: NotPrimary, Fs3Error of the store."""
        primary = self._election.deciding()
        node = primary.suspect(NodeId(request.node_id), request.generation)
        if node is not None:
            await self._probe(primary, node)
        return common_pb2.Empty()

    async def _probe(self, primary: Primary, node: Node) -> None:
        """End the lease of a daemon at whose endpoints nobody listens, once no client relies on what it knew.

        Raises: NotPrimary, Fs3Error of the store.
        """
        if node.node_id in self._probing:
            return
        self._probing.add(node.node_id)
        try:
            if await self._refuses(node.endpoints, _PROBE_S):
                await asyncio.sleep(_RELIED_ON_S)
                await self._still(primary).refused(node.node_id, node.generation)
        finally:
            self._probing.discard(node.node_id)

    async def open_session(self, request: mgmtd_pb2.OpenSessionRequest) -> mgmtd_pb2.OpenSessionReply:
        """Raises: NotPrimary, and as `ClientSessions.open`."""
        primary = self._election.deciding()
        session_id = await primary.guarded(primary.sessions.open(request.host, request.pid, self._now()))
        self._still(primary)
        return mgmtd_pb2.OpenSessionReply(session_id=session_id, session_ms=round(self._config.client_session_s * 1000))

    async def renew_session(self, request: mgmtd_pb2.RenewSessionRequest) -> mgmtd_pb2.RenewSessionReply:
        """Raises: NotPrimary."""
        over = self._election.deciding().sessions.renew(request.session_ids, self._now())
        return mgmtd_pb2.RenewSessionReply(ended=over)

    async def close_session(self, request: mgmtd_pb2.CloseSessionRequest) -> common_pb2.Empty:
        """Raises: NotPrimary, and as `ClientSessions.end`."""
        primary = self._election.deciding()
        await primary.guarded(primary.sessions.end(self._now(), request.session_ids))
        return common_pb2.Empty()

    def _still(self, primary: Primary) -> Primary:
        """After a wait. Raises: NotPrimary, if this is not the term of office that the work was begun in."""
        if self._election.deciding() is not primary:
            raise NotPrimary("this mgmtd lost its claim and took over anew; send the request again")
        return primary

    def _on_the_wire(self, primary: Primary) -> mgmtd_pb2.Routing:
        """One message for all who wait for the same version; its figures are those of when it was made."""
        if self._wire_of is not primary or self._wire.version != primary.routing.version:
            self._wire, self._wire_of = routing_to_pb(primary.with_figures()), primary
        return self._wire
