"""The mgmtd that decides: what it has heard, what it has published, and the one path from the first to the second.

Heartbeats, goodbyes, refused probes and the clock change what is known; `_decide` turns that into the next routing with
the pure cores, commits it, and only then shows it to anybody. Decisions run one at a time. A decision whose commit
failed leaves the published routing as it was and is made again at the next event.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Set
from dataclasses import replace
from typing import TypeVar

from fs3.clock import lease_now_s
from fs3.errors import Conflict, Fs3Error, Invalid, MaybeApplied, NotPrimary, Unavailable
from fs3.ids import NodeId, TargetId, node_name
from fs3.mgmtd.chain_core import Report, presumed
from fs3.mgmtd.client_sessions import ClientSessions
from fs3.mgmtd.config import MgmtdConfig
from fs3.mgmtd.lease_core import Heard, LeaseTable
from fs3.mgmtd.placement_core import DiskSlot, Plan, complete_nodes, plan_tables
from fs3.mgmtd.routing_core import check_edit, next_routing, plan_is_created, publish
from fs3.mgmtd.store import Loaded, MgmtdStore
from fs3.pb import mgmtd_pb2
from fs3.routing import (
    Disk,
    LocalState,
    Node,
    NodeKind,
    Routing,
    TargetState,
    disk_from_pb,
    local_state_from_pb,
    node_from_pb,
    revised,
)
from fs3.sessions import sessions_to_pb

_log = logging.getLogger(__name__)
_SHORTEST_TICK_S = 0.02

T = TypeVar("T")


class Primary:
    """Holds the routing and moves it forward; belongs to one event loop."""

    def __init__(
        self,
        config: MgmtdConfig,
        store: MgmtdStore,
        loaded: Loaded,
        *,
        own_node: Node,
        now: Callable[[], float] = lease_now_s,
    ) -> None:
        self.routing = loaded.routing
        self.transitions: Counter[str] = Counter()
        self._config = config
        self._store = store
        self._plan = loaded.plan
        self._now = now
        self._own = own_node.node_id
        self._leases = LeaseTable(config.lease_s)
        self._announced: dict[NodeId, Node] = {}
        self._reports: dict[TargetId, Report] = {}
        self._figures: dict[TargetId, mgmtd_pb2.LocalTarget] = {}
        self._reported_by: dict[NodeId, set[TargetId]] = defaultdict(set)
        self._disks: dict[NodeId, tuple[Disk, ...]] = {}
        self._deciding = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._bootstrap_refused = ""
        self._undecided = False
        self._unsettled = False
        self._replaced: Conflict | None = None
        self._ended = False
        started_s = now()
        self.epoch = loaded.epoch
        self.sessions = ClientSessions(store, loaded.sessions, config.client_session_s, started_s=started_s)
        for node in loaded.routing.nodes.values():
            self._leases.restore(node.node_id, node.generation, alive=node.alive, started_s=started_s)
        self._announced[self._own] = own_node
        self._leases.heard(self._own, own_node.generation, started_s)

    async def heartbeat(self, request: mgmtd_pb2.HeartbeatRequest) -> mgmtd_pb2.HeartbeatReply:
        """Renew a lease, take in the reports, decide if they say anything new.

        Raises:
            Invalid: the record makes no sense, or the id belongs to a daemon of another kind.
            Conflict: a daemon with this node id was started later.
            Unavailable: one that listens elsewhere, or was started later as far as the clocks tell, is alive.
            NotPrimary: another mgmtd has taken over.
        """
        node = self._checked(request.node)
        other = self.elsewhere(node.node_id, node.generation, node.endpoints)
        verdict = self._leases.heard(node.node_id, node.generation, self._now(), elsewhere=other is not None)
        name = node_name(node.node_id)
        if verdict == Heard.RETIRED:
            raise Conflict(
                f"node {name}: this daemon was stopped, or another one with the same node_id was started later;"
                " give every daemon a node_id of its own"
            )
        if verdict == Heard.EARLY and other is not None:
            raise Unavailable(
                f"node {name}: another daemon with this node_id is alive at {', '.join(other.endpoints)}; give"
                f" every daemon a node_id of its own; if that one is gone, its lease of {self._config.lease_s:g} s must"
                " end first"
            )
        if verdict == Heard.EARLY:
            raise Unavailable(
                f"node {name}: one that was started later, by its clock, is still alive; its lease of"
                f" {self._config.lease_s:g} s must end first"
            )
        self._announced[node.node_id] = node
        new_disks = len(self._disks.get(node.node_id, ())) != len(request.disks)  # a drain may wait for room
        self._disks[node.node_id] = tuple(revised(disk_from_pb(disk), node_id=node.node_id) for disk in request.disks)
        news = self._take_reports(request, verdict)
        if news or new_disks or verdict != Heard.RENEWED or self._bootstrap_is_due():
            await self._decide()
        reply = mgmtd_pb2.HeartbeatReply(lease_ms=round(self._config.lease_s * 1000), epoch=self.epoch)
        if self.sessions.table.version > request.known_sessions:
            reply.sessions.CopyFrom(sessions_to_pb(self.sessions.table))
        reply.create.extend(self._wanted(node.node_id, request.known_routing))
        reply.drop.extend(self._unwanted(request))
        return reply

    async def goodbye(self, node_id: NodeId, generation: int) -> None:
        """End the lease of a daemon that stops."""
        if self._leases.goodbye(node_id, generation):
            _log.info("node %s: goodbye", node_name(node_id))
            await self._decide()

    async def refused(self, node_id: NodeId, generation: int) -> None:
        """End the lease of a daemon at whose endpoints nobody listens."""
        if self._leases.refused(node_id, generation):
            _log.warning("node %s: connections are refused", node_name(node_id))
            await self._decide()

    def elsewhere(self, node_id: NodeId, generation: int, endpoints: Iterable[str]) -> Node | None:
        """The daemon of this node id that is alive, of another generation and at other endpoints, if there is one."""
        known = self._announced.get(node_id) or self.routing.nodes.get(node_id)
        if known is None or known.generation == generation or not self._leases.alive(node_id):
            return None
        return None if set(known.endpoints) & set(endpoints) else known

    def suspect(self, node_id: NodeId, generation: int) -> Node | None:
        """The node to look at, if it is the current generation's and counts as alive."""
        node = self.routing.nodes.get(node_id)
        if node is None or node_id == self._own or node.generation != generation or not self._leases.alive(node_id):
            return None
        return node

    async def change(self, edit: Callable[[Routing], tuple[Routing, tuple[str, ...]]]) -> Routing:
        """Apply an operator's `edit` to the published routing, with what follows from it, as one decision.

        `edit` is pure; it returns the routing it wants (versions of the chains it changes raised) and a line for each
        change. If it raises, or the store cannot commit, nothing has changed; the new routing is shown when this
        returns.

        Raises:
            Fs3Error: of `edit`, or of the store.
            NotPrimary: another mgmtd has taken over.
        """
        async with self._deciding:
            await self._settle()
            before = self.routing
            edited, said = edit(before)
            check_edit(before, edited)
            gone = before.nodes.keys() - edited.nodes.keys() - {self._own}
            announced = {key: node for key, node in self._announced.items() if key not in gone}
            decision = next_routing(edited, announced, self._leases, self._reports, self._disks)
            if decision.routing is not before:
                await self._commit(replace(decision.routing, version=before.version + 1), (*said, *decision.notes))
                self._forget(gone)
            routing = self.routing
        self._wake.set()
        return routing

    def _forget(self, gone: Set[NodeId]) -> None:
        """Nodes that were removed; one that is heard all the same comes as a new one."""
        for node_id in sorted(gone):
            self._announced.pop(node_id, None)
            self._disks.pop(node_id, None)
            self._leases.forget(node_id)
            for target_id in self._reported_by.pop(node_id, ()):
                self._reports.pop(target_id, None)
        for target_id in [known for known in self._figures if known not in self.routing.targets]:
            del self._figures[target_id]

    async def newer_than(self, version: int, wait_s: float) -> Routing | None:
        """The routing once its version is above `version`; None if that took longer than `wait_s`, or at `end`."""
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait_for(lambda: self.routing.version > version or self._ended)
        return self.routing if self.routing.version > version else None

    async def end(self) -> None:
        """Let whoever waits for a newer routing go: this mgmtd does not decide any more."""
        self._ended = True
        async with self._changed:
            self._changed.notify_all()

    def with_figures(self) -> Routing:
        """The routing with the space, load and heartbeat figures of now, which do not change its version."""
        now_s = self._now()
        targets = {
            target_id: revised(
                target,
                local_state=self._local_state(target_id, target.node_id),
                used_bytes=figures.used_bytes,
                chunks=figures.chunks,
            )
            for target_id, target in self.routing.targets.items()
            for figures in (self._figures.get(target_id, mgmtd_pb2.LocalTarget()),)
        }
        nodes = {
            node_id: revised(node, last_heartbeat_age_ms=self._age_ms(node_id, now_s))
            for node_id, node in self.routing.nodes.items()
        }
        disks = tuple(disk for node_id in sorted(self._disks) for disk in self._disks[node_id])
        return replace(self.routing, nodes=nodes, targets=targets, disks=disks)

    async def run(self) -> None:
        """Let leases and sessions run out on time, until cancelled.

        Raises:
            Conflict: another mgmtd has taken over.
        """
        await self._decide_or_retry()
        while True:
            self._leases.heard(self._own, self._announced[self._own].generation, self._now())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            self._wake.clear()
            expired = self._leases.expire(self._now())
            if expired:
                _log.warning("not heard for %g s: node %s", self._config.lease_s, ", ".join(map(node_name, expired)))
            if expired or self._undecided:
                await self._decide_or_retry()
            try:
                await self.guarded(self.sessions.end(self._now()))
            except Fs3Error as error:
                _log.error("the end of sessions could not be committed: %s", error)
            if self._replaced is not None:
                raise self._replaced

    def _pause_s(self) -> float:
        """Until the next lease or session runs out."""
        now_s = self._now()
        expiries = [self._leases.next_expiry_s(), self.sessions.next_expiry_s()]
        next_s = min((expiry for expiry in expiries if expiry is not None), default=now_s)
        return min(max(next_s - now_s, _SHORTEST_TICK_S), self._config.lease_s / 4)

    async def guarded(self, storing: Awaitable[T]) -> T:
        """The result of work on the store; that it was for another mgmtd to do also ends `run`.

        Raises:
            NotPrimary: another mgmtd has taken over.
            Fs3Error: what else the work raised.
        """
        try:
            return await storing
        except Conflict as error:
            self._replaced = error
            self._wake.set()
            raise NotPrimary(f"this mgmtd no longer decides: {error}") from None

    async def _decide_or_retry(self) -> None:
        """A decision that cannot be committed is made again at the next tick; nothing was shown meanwhile."""
        try:
            await self._decide()
        except Fs3Error as error:
            self._undecided = True
            _log.error("a decision could not be committed: %s", error)

    def _age_ms(self, node_id: NodeId, now_s: float) -> int:
        return 0 if node_id == self._own else round(self._leases.age_s(node_id, now_s) * 1000)

    def _local_state(self, target_id: TargetId, node_id: NodeId) -> LocalState:
        report = self._reports.get(target_id)
        return report.state if report is not None and self._leases.alive(node_id) else LocalState.OFFLINE

    def _checked(self, message: mgmtd_pb2.NodeInfo) -> Node:
        if not message.node_id or not message.kind or not message.endpoints:
            raise Invalid("a heartbeat needs node_id, kind and endpoints")
        for endpoint in message.endpoints:
            host, _, port = endpoint.rpartition(":")
            if not host or not (port.isascii() and port.isdecimal() and int(port) < 65_536):
                raise Invalid(f"node_id {message.node_id}: endpoint {endpoint[:100]!r} is not host:port")
        node = node_from_pb(message)
        known = self._announced.get(node.node_id) or self.routing.nodes.get(node.node_id)
        if known is not None and known.kind != node.kind:
            raise Invalid(
                f"node_id {node.node_id} belongs to a {NodeKind(known.kind).name.lower()} daemon at"
                f" {', '.join(known.endpoints)}; give every daemon a node_id of its own"
            )
        return revised(node, alive=True, last_heartbeat_age_ms=0)

    def _take_reports(self, request: mgmtd_pb2.HeartbeatRequest, verdict: Heard) -> bool:
        """Whether anything but figures changed. A daemon that just started is not believed about published targets.

        That a heartbeat does not mention a target counts only if it was made under the newest routing: a late one may
        be of a time when the daemon did not speak for it yet.
        """
        node_id = NodeId(request.node.node_id)
        accepted: dict[TargetId, Report] = {}
        just_started = verdict == Heard.STARTED
        if not just_started and request.known_routing < self.routing.version:
            for target in self.routing.targets.values():
                if target.node_id == node_id:
                    known = self._reports.get(target.target_id) if verdict == Heard.RENEWED else None
                    accepted[target.target_id] = known or Report(presumed(target.state))
        for message in request.targets:
            target_id = TargetId(message.target_id)
            published = self.routing.targets.get(target_id)
            if published is not None and (just_started or published.node_id != node_id):
                continue
            state = local_state_from_pb(message.state)
            accepted[target_id] = Report(state, message.chain_version, message.damaged)
            self._figures[target_id] = message
        before = {
            target_id: self._reports[target_id]
            for target_id in self._reported_by[node_id]
            if target_id in self._reports
        }
        for target_id in before:
            del self._reports[target_id]
        self._reports.update(accepted)
        self._reported_by[node_id] = set(accepted)
        return before != accepted

    def _wanted(self, node_id: NodeId, known_routing: int) -> list[mgmtd_pb2.CreateTarget]:
        """Targets that the daemon should create: planned ones, and those that a replaced disk has lost.

        The second are OFFLINE though their daemon is up and knows it. A LASTSRV is never made anew, for it holds the
        data, unless an operator has accepted that it may hold nothing.
        """
        planned = self._plan.targets if self._plan is not None else ()
        wanted = [target for target in planned if target.node_id == node_id]
        if known_routing >= self.routing.version:
            wanted += [
                target
                for target in self.routing.targets.values()
                if target.node_id == node_id and (target.state == TargetState.OFFLINE or target.accept_loss)
            ]
        return [
            mgmtd_pb2.CreateTarget(target_id=target.target_id, chain_id=target.chain_id, disk=target.disk)
            for target in wanted
            if target.target_id not in self._reports
        ]

    def _unwanted(self, request: mgmtd_pb2.HeartbeatRequest) -> list[int]:
        """Targets that were taken out of their chains for good. An id that was never given out is left alone."""
        if not self.routing.ready:
            return []
        return [
            message.target_id
            for message in request.targets
            if message.target_id <= self.routing.last_target_id and message.target_id not in self.routing.targets
        ]

    def _bootstrap_is_due(self) -> bool:
        return not self.routing.ready and self._plan is None and not self._bootstrap_refused

    async def _decide(self) -> None:
        """Make, commit and show the next routing.

        Raises:
            NotPrimary: another mgmtd has taken over; `run` ends with the reason.
            Fs3Error: the store could not commit it.
        """
        async with self._deciding:
            self._undecided = True
            await self._settle()
            decision = next_routing(self.routing, self._announced, self._leases, self._reports, self._disks)
            await self._commit(decision.routing, decision.notes)
            if not self.routing.ready:
                await self._bootstrap()
            self._undecided = False
        self._wake.set()

    async def _bootstrap(self) -> None:
        if self._plan is None:
            self._plan = await self._make_plan()
        if self._plan is not None and plan_is_created(self._plan, self._leases, self._reports):
            plan, tables = self._plan, len(self._plan.tables)
            note = f"cluster is ready: {len(plan.chains)} chains in {tables} tables on {len(plan.targets)} targets"
            await self._commit(publish(self.routing, plan), (note,))
            self._plan = None

    async def _make_plan(self) -> Plan | None:
        """The plan of the first chain tables, once enough storage nodes are complete; saved before it is acted on."""
        heard = [node for node in self.routing.nodes.values() if self._leases.was_heard(node.node_id)]
        nodes = complete_nodes(heard)  # of the others' disks this mgmtd knows nothing yet
        if len(nodes) < self._config.bootstrap_nodes:
            return None
        slots = [
            DiskSlot(node.node_id, disk.disk)
            for workers in nodes.values()
            for node in workers
            for disk in self._disks.get(node.node_id, ())
        ]
        try:
            plan = plan_tables(slots, self._config.bootstrap_replicas, self._config.chains_per_disk)
        except Invalid as error:
            self._bootstrap_refused = str(error)
            _log.error("no chain tables can be made: %s", error)
            return None
        await self._save(self._store.save_plan(self.routing, plan))
        _log.info("%d targets are to be created on %d disks", len(plan.targets), len(slots))
        return plan

    async def _commit(self, routing: Routing, notes: tuple[str, ...]) -> None:
        if routing is self.routing:
            return
        await self._save(self._store.save(self.routing, routing))
        await self._show(routing, notes)

    async def _save(self, saving: Awaitable[None]) -> None:
        try:
            await self.guarded(saving)
        except BaseException as error:
            if not isinstance(error, Fs3Error) or isinstance(error, MaybeApplied):
                self._unsettled = True  # also where it was cancelled
            raise

    async def _settle(self) -> None:
        """After a commit whose answer was lost: what is stored is what holds, and is shown."""
        if not self._unsettled:
            return
        loaded = await self.guarded(self._store.load())
        self._unsettled = False
        self._plan = loaded.plan
        if loaded.routing.version != self.routing.version:
            await self._show(loaded.routing, (f"routing version {loaded.routing.version} had been committed",))

    async def _show(self, routing: Routing, notes: tuple[str, ...]) -> None:
        before, self.routing = self.routing, routing
        for note in notes:
            _log.info("%s", note)
        for target_id, target in routing.targets.items():
            earlier = before.targets.get(target_id)
            if earlier is not None and earlier.state != target.state:
                self.transitions[target.state.name.lower()] += 1
        async with self._changed:
            self._changed.notify_all()
