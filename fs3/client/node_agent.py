"""A daemon's side of its lease: heartbeats out, routing in.

One task renews the lease (and reports the targets at once when the daemon pokes it), one long-polls the routing, so
that a chain's change reaches the daemon without waiting for a timer. The agent also holds back the targets of a daemon
that has just started, until it has seen them off duty in a routing of its own generation: what they had missed must be
recovered before they serve, so every return goes through recovery (3FS, mgmtd design notes).

Of several mgmtds one decides. The one that answered last is asked first; once it fails, all are asked at the same time,
so that one which hangs costs nothing. What a primary says that another has replaced, known by its lower epoch, counts
for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

from fs3.clock import lease_now_s
from fs3.errors import Conflict, Fs3Error, Invalid, PermissionDenied, Unavailable
from fs3.ids import TargetId, node_name
from fs3.pb import mgmtd_pb2
from fs3.routing import Node, Routing, TargetState, node_to_pb, routing_from_pb
from fs3.sessions import SessionTable, sessions_from_pb
from fs3.transport.calls import FrameCalls
from fs3.transport.credentials import ControlCall, Credentials

_log = logging.getLogger(__name__)
_FATAL = (PermissionDenied, Conflict, Invalid)  # anything else may pass: a full disk at mgmtd ends no daemon
_OFF_DUTY = (TargetState.OFFLINE, TargetState.WAITING, TargetState.LASTSRV)
_BEATS_PER_LEASE = 10
_RETRIES_PER_LEASE = 40
_LONG_POLL_S = 10.0
_FIRST_LEASE_S = 10.0
MGMTD = mgmtd_pb2.DESCRIPTOR.services_by_name["Mgmtd"]


class NodeAgent:
    """Keeps one daemon registered; everything runs on the loop that runs `run`, callbacks included.

    `local_targets` and `disks` are asked at every heartbeat. `on_routing` gets every newer routing, once. `on_create`
    gets the targets that mgmtd wants here and has not heard of, again at every heartbeat until `local_targets` names
    them: it must do nothing for those that exist. `on_sessions` gets every newer table of client sessions, before the
    routing that came with it. `call` and `now` are ports: how mgmtd is reached, and the lease clock.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        credentials: Credentials,
        node: Node,
        *,
        local_targets: Callable[[], list[mgmtd_pb2.LocalTarget]],
        disks: Callable[[], list[mgmtd_pb2.DiskInfo]],
        on_routing: Callable[[Routing], None],
        on_create: Callable[[list[mgmtd_pb2.CreateTarget]], None],
        on_drop: Callable[[list[int]], None] = lambda target_ids: None,
        on_sessions: Callable[[SessionTable], None] = lambda table: None,
        call: ControlCall | None = None,
        now: Callable[[], float] = lease_now_s,
    ) -> None:
        assert addresses, "a daemon needs the address of at least one mgmtd"
        self.node = node
        self.routing = Routing()
        self.sessions = SessionTable()
        self.epoch = 0
        self.credentials = credentials
        self._given = tuple(addresses)
        self._addresses = self._given
        self._local_targets = local_targets
        self._disks = disks
        self._on_routing = on_routing
        self._on_create = on_create
        self._on_drop = on_drop
        self._on_sessions = on_sessions
        self._own_calls = FrameCalls(MGMTD) if call is None else None
        self._call_one: ControlCall = call or self._own_calls  # type: ignore[assignment]
        self._now = now
        self._preferred = self._given[0]
        self._lease_s = _FIRST_LEASE_S
        self._renewed_s = float("-inf")
        self._poked = asyncio.Event()
        self._registered = asyncio.Event()
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._running = False
        self._may_report: set[TargetId] = set()
        self._reachable = True

    @property
    def lease_s(self) -> float:
        """T, as mgmtd last told it."""
        return self._lease_s

    @property
    def lease_valid_until_s(self) -> float:
        """When mgmtd may call this node offline (`lease_now_s` clock): T after the last answered heartbeat was sent."""
        return self._renewed_s + self._lease_s

    @property
    def serve_until_s(self) -> float:
        """When the daemon must stop answering (`lease_now_s` clock): T/2 after the last answered heartbeat was sent."""
        return self._renewed_s + self._lease_s / 2

    def poke(self) -> None:
        """Send a heartbeat now, because a target's state has changed. From the loop of `run` only."""
        self._poked.set()

    async def wait_registered(self) -> None:
        """Wait for the first answered heartbeat."""
        await self._registered.wait()

    async def wait_ready(self) -> None:
        """Wait until this node is registered and the cluster's chain tables exist."""
        await self._registered.wait()
        await self._ready.wait()

    async def run(self) -> None:
        """Keep the lease until `stop`; a cancelled run says no goodbye, and mgmtd finds out at T.

        Raises:
            PermissionDenied: mgmtd belongs to another cluster, or the secret is wrong.
            Conflict: another daemon with this node id was started later.
            Invalid: mgmtd refuses the node's record, because its id belongs to a daemon of another kind.
        """
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                loops = [group.create_task(self._renew()), group.create_task(self._follow())]
                await self._stopping.wait()
                for task in loops:
                    task.cancel()
            request = mgmtd_pb2.GoodbyeRequest(node_id=self.node.node_id, generation=self.node.generation)
            with contextlib.suppress(Fs3Error):
                await self._call("Goodbye", request, timeout_s=1.0)  # last: a heartbeat after it would be refused
        except BaseExceptionGroup as failed:
            error = next((item for item in failed.exceptions if isinstance(item, Fs3Error)), None)
            if error is None:
                raise
            raise error from None
        finally:
            if self._own_calls is not None:
                await self._own_calls.aclose()
            self._ended.set()

    async def stop(self) -> None:
        """Say goodbye, so that mgmtd need not wait for the lease, and end `run`. The daemon must not serve any more."""
        self._stopping.set()
        if self._running:
            await self._ended.wait()

    async def suspect(self, node_id: int, generation: int) -> None:
        """Tell mgmtd that this node was refused or reset; it looks for itself. A mgmtd out of reach is no error."""
        with contextlib.suppress(Unavailable):
            request = mgmtd_pb2.SuspectRequest(node_id=node_id, generation=generation)
            await self._call("Suspect", request, timeout_s=2.0)

    async def _renew(self) -> None:
        while True:
            self._poked.clear()
            try:
                reply, sent_s = await self._call("Heartbeat", self._heartbeat(), timeout_s=max(self._lease_s / 4, 0.5))
                self._check_epoch(reply.epoch)
            except Unavailable as error:
                self._unreachable(error)
                pause_s = self._retry_s()
            else:
                self._renewed(sent_s, reply)
                pause_s = self._lease_s / _BEATS_PER_LEASE
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._poked.wait()

    async def _follow(self) -> None:
        await self._registered.wait()
        while True:
            wait_s = _LONG_POLL_S if len(self._addresses) == 1 else min(_LONG_POLL_S, self._lease_s / 2)
            wait_ms = round(wait_s * 1000)
            request = mgmtd_pb2.GetRoutingRequest(known_version=self.routing.version, wait_ms=wait_ms)
            timeout_s = wait_s + min(self._lease_s, 5.0)
            try:
                reply = await self._call_one(
                    self._preferred, "GetRouting", request, timeout_s=timeout_s, credentials=self.credentials
                )
                self._check_epoch(reply.epoch)
            except _FATAL:
                raise
            except Fs3Error:
                await asyncio.sleep(0.25)  # heartbeats log it, and find the mgmtd that answers
                continue
            if reply.HasField("routing"):
                self._learn(reply.routing)

    def _heartbeat(self) -> mgmtd_pb2.HeartbeatRequest:
        reported = [target for target in self._local_targets() if self._may_speak_for(TargetId(target.target_id))]
        return mgmtd_pb2.HeartbeatRequest(
            node=node_to_pb(self.node),
            targets=reported,
            disks=self._disks(),
            known_routing=self.routing.version,
            known_sessions=self.sessions.version,
        )

    def _may_speak_for(self, target_id: TargetId) -> bool:
        if target_id not in self._may_report and self._routing_is_ours() and target_id not in self.routing.targets:
            self._may_report.add(target_id)  # not in any chain yet, so there is nothing it could have missed
        return target_id in self._may_report

    def _routing_is_ours(self) -> bool:
        """Whether the routing was made knowing that this generation of the daemon has started."""
        known = self.routing.nodes.get(self.node.node_id)
        return known is not None and known.generation == self.node.generation

    def _renewed(self, sent_s: float, reply: mgmtd_pb2.HeartbeatReply) -> None:
        if not self._reachable:
            _log.info("node %s: mgmtd answers again", node_name(self.node.node_id))
        self._reachable = True
        if reply.HasField("sessions") and reply.sessions.version > self.sessions.version:
            self.sessions = sessions_from_pb(reply.sessions)
            self._on_sessions(self.sessions)
        if reply.HasField("routing"):
            self._learn(reply.routing)
        self._renewed_s = sent_s  # not before: what the routing takes off duty must not answer on the new lease
        self._lease_s = reply.lease_ms / 1000
        self._registered.set()
        if reply.create:
            self._on_create(list(reply.create))
        if reply.drop:
            self._on_drop(list(reply.drop))

    def _learn(self, message: mgmtd_pb2.Routing) -> None:
        """A heartbeat's reply and the long poll's bring the same routing, each at its time."""
        if message.version > self.routing.version:
            self._adopt(routing_from_pb(message))

    def _adopt(self, routing: Routing) -> None:
        before, self.routing = self.routing, routing
        self._addresses = tuple(dict.fromkeys((*self._given, *routing.mgmtds())))
        if routing.cluster_id and not self.credentials.cluster_id:
            self.credentials = dataclasses.replace(self.credentials, cluster_id=routing.cluster_id)
        mine = [target for target in routing.targets.values() if target.node_id == self.node.node_id]
        if self._routing_is_ours():
            self._may_report.update(target.target_id for target in mine if target.state in _OFF_DUTY)
        if routing.ready:
            self._ready.set()
        else:
            self.poke()  # a node has come: perhaps the last one that the first chain tables waited for
        self._on_routing(routing)
        chains = {target.chain_id for target in mine}
        if any(before.chains.get(chain) != routing.chains.get(chain) for chain in chains):
            self.poke()  # what is reported is reported for a chain version

    def _check_epoch(self, epoch: int) -> None:
        """Raises: Unavailable: the answer is of a mgmtd that another has replaced."""
        if epoch < self.epoch:
            raise Unavailable(f"a mgmtd of epoch {epoch} answered; epoch {self.epoch} has begun")
        self.epoch = epoch

    def _unreachable(self, error: Unavailable) -> None:
        if self._reachable:
            _log.warning("node %s: no mgmtd answers: %s", node_name(self.node.node_id), error)
        self._reachable = False

    async def _call(self, method: str, request: Any, *, timeout_s: float) -> tuple[Any, float]:
        """The reply of the mgmtd that decides, and when what it answers was sent. Raises: Unavailable, and as mgmtd."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        if self._reachable and len(self._addresses) > 1:
            sent_s = self._now()
            with contextlib.suppress(Unavailable):
                return await self._ask(self._preferred, method, request, timeout_s / 2), sent_s
        addresses = self._addresses
        asked = [asyncio.ensure_future(self._ask_again(address, method, request, deadline_s)) for address in addresses]
        try:
            reasons: dict[str, str] = {}
            while len(reasons) < len(addresses):
                waiting = [task for address, task in zip(addresses, asked, strict=True) if address not in reasons]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for address, task in zip(addresses, asked, strict=True):
                    if task.done() and address not in reasons:
                        try:
                            answer = task.result()
                        except Unavailable as error:
                            reasons[address] = str(error)
                        else:
                            self._preferred = address
                            return answer
            raise Unavailable("; ".join(reasons.values()))
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _ask_again(self, address: str, method: str, request: Any, deadline_s: float) -> tuple[Any, float]:
        """Until the deadline: one that stands by now may have taken over then."""
        loop = asyncio.get_running_loop()
        while True:
            sent_s = self._now()
            try:
                return await self._ask(address, method, request, max(deadline_s - loop.time(), 0.001)), sent_s
            except Unavailable:
                if loop.time() + self._retry_s() >= deadline_s:
                    raise
            await asyncio.sleep(self._retry_s())

    async def _ask(self, address: str, method: str, request: Any, timeout_s: float) -> Any:
        """Raises: PermissionDenied, Conflict, Invalid, and anything else, which may pass, as Unavailable.

        At an address that was learned, another cluster may live by now: its refusal is no verdict.
        """
        try:
            return await self._call_one(address, method, request, timeout_s=timeout_s, credentials=self.credentials)
        except Fs3Error as error:
            stranger = isinstance(error, PermissionDenied) and address not in self._given
            if isinstance(error, (*_FATAL, Unavailable)) and not stranger:
                raise
            raise Unavailable(f"{address}: {error}") from None

    def _retry_s(self) -> float:
        return min(self._lease_s / _RETRIES_PER_LEASE, 0.25)
