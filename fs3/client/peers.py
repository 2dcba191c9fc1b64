"""What all calls of a client share: connections, the routing as arrays, who it is, and which endpoints to avoid."""

from __future__ import annotations

import os
import random
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fs3.client.channels import Channels
from fs3.client.hedge_core import HedgePolicy
from fs3.client.hedges import Hedges
from fs3.client.identity import Identity, identity_of
from fs3.client.mgmtd import MgmtdClient
from fs3.client.reports import Reports
from fs3.client.retry_core import pause_s
from fs3.client.same_host import SameHost
from fs3.client.select_core import ReplicaTable, replica_table
from fs3.errors import Unavailable
from fs3.ids import TargetId
from fs3.pb import storage_pb2
from fs3.routing import Routing
from fs3.runtime import SYSTEM, Runtime
from fs3.transport.connection import Connection, OpenConnection
from fs3.transport.pool import ConnectionPool

PROTOCOL = 1
LANE_THREADS = 16
MOST_LANES = 4
PIECE_BYTES = 1 << 20  # of a large chunk that goes ahead of its update
WRITE_STALL = 3  # a durable write down a chain may be silent so many times longer than a read
AVOID_S = 1.0  # how long an endpoint that failed is asked only if nobody else can answer
CONNECT_S = 0.25  # to connect, where another replica can be asked, unless it is known to take long
LOCATE_S = 1.0  # for a daemon to say where its bytes lie; others can be asked, or itself to send them
MOST_KNOWN = 4_096  # endpoints, of daemons that may be long gone
SUSPECT_EVERY_S = 1.0
SLACK_BYTES = 8 << 20  # how far behind the least loaded replica another may be and still get its turn


class Peers:
    """The storage daemons as one client process sees them. Thread-safe."""

    def __init__(
        self,
        mgmtd: MgmtdClient,
        *,
        secret: str,
        client_id: int | None,
        max_connections: int,
        max_lanes: int | None,
        stall_s: float,
        same_host: bool = True,
        verify: bool = True,
        hedging: HedgePolicy | None = None,
        piece_bytes: int = PIECE_BYTES,
        open_connection: OpenConnection = Connection.open,
        runtime: Runtime = SYSTEM,
    ) -> None:
        self.mgmtd = mgmtd
        self.runtime = runtime
        self._open_connection = open_connection
        self._same_host = same_host
        self.verify = verify
        self.stall_s = stall_s
        self._hedging = hedging
        self.write_stall_s = stall_s * WRITE_STALL
        self.piece_bytes = piece_bytes
        cores = len(os.sched_getaffinity(0))
        self.max_lanes = max_lanes if max_lanes is not None else min(MOST_LANES, cores // 2)
        self._secret = secret
        self._max_connections = max_connections
        self._closed = runtime.event()
        self._begin(client_id)
        _living.add(self)

    def _begin(self, client_id: int | None) -> None:
        self._given = Identity(client_id, Channels(runtime=self.runtime)) if client_id is not None else None
        hello = storage_pb2.Hello(
            protocol=PROTOCOL,
            cluster_id=self.mgmtd.routing.cluster_id,
            secret=self._secret,
            client_id=client_id or 0,
            role="client",
        )
        self.same_host = SameHost(
            hello,
            max_connections=self._max_connections,
            stall_s=min(self.stall_s, LOCATE_S) if self._hedging is not None else self.stall_s,
            enabled=self._same_host,
            runtime=self.runtime,
        )
        self._pool = ConnectionPool(
            hello,
            max_per_endpoint=self._max_connections,
            open_connection=self._open,
            runtime=self.runtime,
        )
        self._random = random.Random(client_id if client_id is not None else self.runtime.random_bits(63))
        self._lock = self.runtime.lock()
        self._lanes: ThreadPoolExecutor | None = None
        self._table: tuple[Routing, ReplicaTable] | None = None
        self._load: dict[str, int] = {}
        self._avoid_until_s: dict[str, float] = {}
        self._connect_s: dict[str, float] = {}  # what it took the last time
        self._suspected_s: dict[tuple[int, int], float] = {}
        self.hedges = Hedges(self._hedging, self.runtime, lambda connection: self._pool.give_back(connection))
        self._reports = Reports(self.endpoint_of, lambda: self._pool, runtime=self.runtime)

    def begin_again(self) -> None:
        """Become a client of one's own in a forked child: another id, no connections, no locks that others hold."""
        closed, self._closed = self._closed.is_set(), self.runtime.event()
        if closed:
            self._closed.set()
        self.same_host.leave()
        self._begin(None)

    def never_again(self) -> None:
        """Be closed, whatever state it is in."""
        self._closed = SYSTEM.event()
        self._closed.set()

    def identity(self, deadline_s: float | None = None) -> Identity:
        """Under which changes are made now. Blocks if that needs a new session. Raises: as `identity_of`."""
        if self._given is not None:
            return self._given
        return identity_of(self.mgmtd, deadline_s, runtime=self.runtime)

    def session_ended(self, identity: Identity) -> bool:
        """A daemon says that this identity's session is over; whether there can be another."""
        if self._given is not None:
            return False
        self.mgmtd.session_lost(identity.client_id)
        return True

    def lanes(self) -> ThreadPoolExecutor:
        """Threads that receive large replies, and send large writes, beside the caller's own."""
        with self._lock:
            if self._lanes is None:
                self._lanes = ThreadPoolExecutor(LANE_THREADS, thread_name_prefix="fs3-lane")
            return self._lanes

    def close(self) -> None:
        """Close every connection; calls in flight and later ones raise Unavailable."""
        self._closed.set()
        self._pool.close()
        self.same_host.close()
        with self._lock:
            lanes, self._lanes = self._lanes, None
        if lanes is not None:
            lanes.shutdown(wait=False)

    def table(self) -> ReplicaTable:
        """The newest routing this process has seen, as arrays. Raises: Unavailable if the client was closed."""
        if self._closed.is_set():
            raise Unavailable("the client is closed")
        routing = self.mgmtd.routing
        known = self._table
        if known is None or known[0] is not routing:
            known = self._table = (routing, replica_table(routing))
        return known[1]

    def rotation(self) -> int:
        """A number that spreads choices."""
        return self._random.getrandbits(16)

    def loads(self, table: ReplicaTable) -> NDArray[np.int64]:
        """The bytes that each endpoint of `table` owes this client: [endpoints]."""
        return np.array([self._load.get(name, 0) for name in table.endpoints], dtype=np.int64)

    def load_of(self, endpoint: str) -> int:
        """The bytes that an endpoint owes this client."""
        return self._load.get(endpoint, 0)

    @property
    def avoids(self) -> bool:
        """Whether any endpoint may have failed lately, or owe late answers."""
        return bool(self._avoid_until_s) or bool(self.hedges.late)

    def avoided(self, table: ReplicaTable) -> NDArray[np.bool_] | None:
        """Which endpoints of `table` have failed lately, or owe late answers, None if none does: [endpoints]."""
        late = self.hedges.late
        if not self.avoids:
            return None
        now_s = self.runtime.now_s()
        with self._lock:
            for name in [name for name, until_s in self._avoid_until_s.items() if until_s <= now_s]:
                del self._avoid_until_s[name]
            avoid = self._avoid_until_s
            return np.array([name in avoid or name in late for name in table.endpoints], dtype=np.bool_)

    def add_load(self, endpoint: str, bytes_: int) -> None:
        """Count bytes asked of an endpoint, or, negative, received from it."""
        with self._lock:
            self._load[endpoint] = self._load.get(endpoint, 0) + bytes_

    def borrow(
        self,
        table: ReplicaTable,
        endpoint: int,
        *,
        deadline_s: float,
        wait: bool = True,
        patient: bool = True,
    ) -> Connection:
        """A connection to an endpoint of `table`; not `patient`: a new one must be there about as soon as the last was,
        since others can be asked.

        Raises: as `ConnectionPool.borrow`; Busy at once without `wait`.
        """
        name = table.endpoints[endpoint]
        timeout_s, known_s = self.stall_s, self._connect_s.get(name)
        if not patient and known_s is not None and table.endpoint.shape[1] > 1:
            timeout_s = min(max(CONNECT_S, 4 * known_s), timeout_s)
        connection = self._pool.borrow(name, deadline_s=deadline_s, connect_timeout_s=timeout_s, wait=wait)
        connection.stall_s = self.stall_s
        return connection

    def _open(self, endpoint: str, hello: storage_pb2.Hello, *, timeout_s: float) -> Connection:
        begun_s = self.runtime.now_s()
        connection = self._open_connection(endpoint, hello, timeout_s=timeout_s)
        if len(self._connect_s) >= MOST_KNOWN:
            self._connect_s.clear()
        self._connect_s[endpoint] = self.runtime.now_s() - begun_s
        return connection

    def give_back(self, connection: Connection) -> None:
        """Take a connection back, whatever happened to it."""
        self._pool.give_back(connection)

    def failed(self, table: ReplicaTable, endpoint: int) -> None:
        """An endpoint refused, broke off or stalled: leave it alone for a while and tell mgmtd."""
        name, node = table.endpoints[endpoint], table.nodes[endpoint]
        now_s = self.runtime.now_s()
        key = (int(node.node_id), node.generation)
        with self._lock:
            self._avoid_until_s[name] = now_s + AVOID_S
            if now_s - self._suspected_s.get(key, -SUSPECT_EVERY_S) < SUSPECT_EVERY_S:
                return
            self._suspected_s[key] = now_s
        self._pool.drop_idle(name)
        self.runtime.spawn(lambda: self.mgmtd.suspect(*key), name="fs3-suspect")

    def report(self, target_id: int, hi: int, lo: int, chain: int) -> None:
        """Tell the daemon of a target that bytes of a chunk failed their sums; does not wait."""
        if not self._closed.is_set():
            self._reports.add(target_id, hi, lo, chain)

    def endpoint_of(self, target_id: int) -> str | None:
        """Where a target is now."""
        routing = self.mgmtd.routing
        target = routing.targets.get(TargetId(target_id))
        return None if target is None else routing.endpoint(target)

    def pause(self, attempt: int, deadline_s: float) -> None:
        """Wait before the next try; not once the client is closed."""
        wait_s = min(pause_s(attempt, self._random.random()), deadline_s - self.runtime.now_s())
        self._closed.wait(max(wait_s, 0.0))

    def refresh(self, newer_than: int, attempt: int, deadline_s: float) -> None:
        """Wait for a routing newer than the one that failed, as long as a pause would last.

        Raises: Unavailable, PermissionDenied: as `MgmtdClient.refresh`.
        """
        wait_s = min(pause_s(attempt, self._random.random()), deadline_s - self.runtime.now_s())
        self.mgmtd.refresh(newer_than, max(wait_s, 0.001))


_living: weakref.WeakSet[Peers] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for peers in list(_living):
        try:
            peers.begin_again()
        except BaseException:  # noqa: BLE001  # the others must not go on as if they were the parent's
            peers.never_again()


os.register_at_fork(after_in_child=_after_fork_in_child)
