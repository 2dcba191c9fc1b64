"""A client's view of the cluster: the newest routing, kept fresh by one background thread.

`MgmtdClient` is blocking and thread-safe, and serves every layer of a client process; daemons use `NodeAgent` instead.
It long-polls, so that a chain's change is known here about as soon as at mgmtd, and it keeps the last routing when no
mgmtd answers: the data plane does not need mgmtd while nothing fails.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Sequence

from fs3.client.control import ControlService
from fs3.client.node_agent import MGMTD, NodeAgent
from fs3.client.session import ClientSession, Service
from fs3.errors import Fs3Error, Unavailable
from fs3.pb import common_pb2, mgmtd_pb2
from fs3.routing import Routing, routing_from_pb
from fs3.runtime import SYSTEM, Runtime
from fs3.transport.credentials import PROTOCOL, Credentials

__all__ = ["MgmtdClient", "NodeAgent"]

_log = logging.getLogger(__name__)
_LONG_POLL_S = 20.0
_RETRY_S = 0.25
_SUSPECT_EVERY_S = 0.2
_STRANGER = "something listens there, but it does not answer as an mgmtd does"
_WORDS = {  # what the system says, and what that means to a user
    "Connection refused": "connection refused",
    "Name or service not known": "unknown host",
    "name resolution": "unknown host",
    "not an fs3 frame": _STRANGER,
    "closed the connection": _STRANGER,
}


def _in_words(failure: str) -> str:
    return next((words for mark, words in _WORDS.items() if mark in failure), failure)


class MgmtdClient:
    """The newest routing, and mgmtd's ear. Make it with `connect`; close it, or let it go with the process."""

    def __init__(
        self,
        service: Service,
        credentials: Credentials,
        info: mgmtd_pb2.ClusterInfo,
        routing: Routing,
        *,
        runtime: Runtime = SYSTEM,
    ) -> None:
        self.cluster_info = info
        self.credentials = credentials
        self._service = service
        self._routing = routing
        self._failure: Fs3Error | None = None
        self._closed = False
        self._suspected: dict[tuple[int, int], float] = {}
        self._runtime = runtime
        self._session = ClientSession(service, credentials, runtime)
        service.learn(routing.mgmtds())
        self._start_following()

    @classmethod
    def connect(
        cls,
        addresses: Sequence[str],
        secret: str = "",
        timeout_s: float = 5.0,
        *,
        service: Service | None = None,
        runtime: Runtime = SYSTEM,
    ) -> MgmtdClient:
        """A client of the cluster behind `addresses` ("host:port" of its mgmtds, any of which may answer).

        `service` and `runtime` are ports: how mgmtd is reached, and threads and clocks.

        Raises:
            Unavailable: none answered within `timeout_s`; the message names them.
            PermissionDenied: the secret is missing or wrong.
        """
        if service is None:
            service = ControlService(addresses, MGMTD, runtime=runtime)
        deadline_s = runtime.now_s() + timeout_s
        try:
            shown = Credentials(secret=secret)
            info = service.call("GetClusterInfo", common_pb2.Empty(), timeout_s=timeout_s, credentials=shown)
            if info.protocol != PROTOCOL:
                raise Unavailable(
                    f"{addresses[0]} speaks protocol {info.protocol} (fs3 {info.version}), this client {PROTOCOL};"
                    " install the same version"
                )
            if info.primary:
                service.learn((info.primary,))  # whoever was asked may be one that stands by
            credentials = Credentials(cluster_id=info.cluster_id, secret=secret)
            left_s = max(deadline_s - runtime.now_s(), 0.1)
            reply = service.call("GetRouting", mgmtd_pb2.GetRoutingRequest(), timeout_s=left_s, credentials=credentials)
        except Fs3Error as error:
            service.close()
            if isinstance(error, Unavailable):
                raise Unavailable(
                    f"no cluster answers at {', '.join(addresses)} ({_in_words(str(error))}); "
                    "check the URL and that the cluster runs"
                ) from None
            raise
        return cls(service, credentials, info, routing_from_pb(reply.routing), runtime=runtime)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The mgmtds' addresses: those that were given, and those learned since."""
        return self._service.addresses

    @property
    def routing(self) -> Routing:
        """The newest routing known here; space and load figures are those of when it was fetched."""
        self._follow_again_after_fork()
        return self._routing

    def refresh(self, newer_than: int, timeout_s: float) -> Routing:
        """Wait for a routing whose version is above `newer_than`; the newest known if none came in time.

        Raises:
            PermissionDenied: the addresses now belong to another cluster.
            Unavailable: the client was closed.
        """
        self._follow_again_after_fork()
        with self._changed:
            self._changed.wait_for(lambda: self._routing.version > newer_than or self._stopped(), timeout_s)
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise Unavailable(f"{', '.join(self.addresses)}: this client was closed")
            return self._routing

    def wait_ready(self, timeout_s: float) -> Routing:
        """The routing once the cluster has chain tables. Raises: Unavailable: it still had none after `timeout_s`."""
        deadline_s = self._runtime.now_s() + timeout_s
        routing = self.routing
        while not routing.ready:
            left_s = deadline_s - self._runtime.now_s()
            if left_s <= 0:
                raise Unavailable(f"{', '.join(self.addresses)}: the cluster waits for its storage nodes to register")
            routing = self.refresh(routing.version, left_s)
        return routing

    def fetch(self, timeout_s: float = 5.0) -> Routing:
        """The routing with the space and load figures of now, asked for. Raises: Unavailable."""
        reply = self._service.call(
            "GetRouting", mgmtd_pb2.GetRoutingRequest(), timeout_s=timeout_s, credentials=self.credentials
        )
        fresh = routing_from_pb(reply.routing)
        self._adopt(fresh)
        return fresh

    def primary(self, timeout_s: float = 5.0) -> str:
        """The "host:port" of the mgmtd that decides, or ""; who answered last is asked, after `fetch` that very one.

        Raises: Unavailable.
        """
        info = self._service.call(
            "GetClusterInfo", common_pb2.Empty(), timeout_s=timeout_s, credentials=self.credentials
        )
        return str(info.primary)

    def suspect(self, node_id: int, generation: int) -> None:
        """Tell mgmtd that a node refused or reset a connection, so that it looks now; repeats are merged.

        A mgmtd out of reach is no error: the caller already has one to handle.
        """
        now_s = self._runtime.now_s()
        with self._changed:
            if now_s < self._suspected.get((node_id, generation), float("-inf")) + _SUSPECT_EVERY_S:
                return
            self._suspected[node_id, generation] = now_s
            if len(self._suspected) > 1_024:
                self._suspected.clear()
        request = mgmtd_pb2.SuspectRequest(node_id=node_id, generation=generation)
        with contextlib.suppress(Fs3Error):
            self._service.call("Suspect", request, timeout_s=2.0, credentials=self.credentials)

    def session_id(self, deadline_s: float | None = None) -> int:
        """This process's session, under which it changes data; the first call opens it. Blocks.

        Raises:
            Unavailable: no mgmtd that decides answered before `deadline_s` (default: 10 s from now).
        """
        return self._session.current(deadline_s)

    def session_lost(self, session_id: int) -> None:
        """A daemon said that this session has ended: the next `session_id` is another."""
        self._session.lost(session_id)

    def end_session(self) -> None:
        """Let the cluster forget what it keeps for this process's updates, none of which may be under way."""
        self._session.end()

    def close(self) -> None:
        """End the session and stop following; threads that wait in `refresh` get `Unavailable`."""
        with self._changed:
            closed, self._closed = self._closed, True
            self._changed.notify_all()
        if not closed:
            self._session.close()
        self._service.close()
        if self._pid == os.getpid():
            self._thread.join(2.0)

    def _stopped(self) -> bool:
        return self._closed or self._failure is not None

    def _start_following(self) -> None:
        self._pid = os.getpid()
        self._changed = self._runtime.condition()
        reference, service, runtime = weakref.ref(self), self._service, self._runtime
        self._thread = self._runtime.spawn(lambda: _follow(reference, service, runtime), name="fs3-routing")
        _following.add(self)

    def _follow_again_after_fork(self) -> None:
        """A forked child has this object, but neither its thread nor locks that anybody would release."""
        if self._pid == os.getpid():
            return
        with _fork_guard:
            if self._pid != os.getpid():
                self._start_following()

    def _adopt(self, routing: Routing) -> None:
        with self._changed:
            if routing.version >= self._routing.version:
                self._routing = routing
                self._changed.notify_all()
        self._service.learn(routing.mgmtds())

    def _fail(self, error: Fs3Error) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()


_following: weakref.WeakSet[MgmtdClient] = weakref.WeakSet()
_fork_guard = threading.Lock()


@atexit.register
def _close_all() -> None:
    """A thread that comes back from gRPC into an interpreter that is going away can take the process down."""
    for client in list(_following):
        client.close()


def _renew_fork_guard() -> None:
    global _fork_guard
    _fork_guard = threading.Lock()


os.register_at_fork(after_in_child=_renew_fork_guard)


def _follow(reference: weakref.ref[MgmtdClient], service: Service, runtime: Runtime) -> None:
    """The background thread; it holds the client only between polls, so that a forgotten client ends it."""
    reachable = True
    while (client := reference()) is not None and not client._stopped():
        wait_s, patience_s = _poll_times(client.cluster_info.lease_ms / 1000, len(service.addresses))
        request = mgmtd_pb2.GetRoutingRequest(known_version=client._routing.version, wait_ms=int(wait_s * 1000))
        credentials = client.credentials
        del client
        try:
            reply = service.call("GetRouting", request, timeout_s=patience_s, credentials=credentials)
        except Unavailable as error:
            if reachable:
                _log.info("routing is not followed for now: %s", error)
            reachable = False
            runtime.sleep(_RETRY_S)
            continue
        except Fs3Error as error:
            if (client := reference()) is not None:
                client._fail(error)
            break
        reachable = True
        if reply.HasField("routing") and (client := reference()) is not None:
            client._adopt(routing_from_pb(reply.routing))
    service.close()


def _poll_times(lease_s: float, mgmtds: int) -> tuple[float, float]:
    """How long to let mgmtd wait for news, and how long to wait for its answer in all.

    Each of several mgmtds gets its share of the second: one that hangs must not keep the news of the others away.
    """
    if mgmtds == 1:
        return _LONG_POLL_S, _LONG_POLL_S + 5
    wait_s = min(_LONG_POLL_S, max(lease_s / 2, 0.25))
    return wait_s, mgmtds * (wait_s + min(lease_s / 4, 5.0))
