"""The daemons of this host, whose block files a client reads by itself (local_reads.py): which they are, connections
over their Unix sockets, and what has been verified.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fs3.client.block_read import BlockRead
from fs3.client.kept_mappings import KeptMappings
from fs3.client.kept_places import BlockFile, Chunk, Kept, KeptPlaces, Run
from fs3.client.plan_core import Asked
from fs3.client.select_core import ReplicaTable
from fs3.client.verified_core import Identity, Place, Verified
from fs3.errors import Unavailable
from fs3.pb import storage_pb2
from fs3.runtime import SYSTEM, Runtime
from fs3.transport.change_counters import CounterView
from fs3.transport.connection import Connection
from fs3.transport.frame_core import Feature
from fs3.transport.local import LocalConnection
from fs3.transport.pool import ConnectionPool
from fs3.transport.sockets import UNIX_PREFIX

LOCAL_BYTES = 64 << 10  # ranges shorter on average are faster by READ: no call of the kernel for each
OFF_S = 1.0  # how long an endpoint is read over the network after its Unix socket failed
REFUSED_S = 60.0  # ... after it gave no descriptors


class SameHost:
    """The daemons of this host as one client process reads them. Thread-safe."""

    def __init__(
        self,
        hello: storage_pb2.Hello,
        *,
        max_connections: int,
        stall_s: float,
        enabled: bool = True,
        runtime: Runtime = SYSTEM,
    ) -> None:
        said = storage_pb2.Hello()
        said.CopyFrom(hello)
        said.features = Feature.SAME_HOST | Feature.KEEP
        self._enabled = enabled
        self.verified = Verified()
        self._lock = runtime.lock()
        self.kept = KeptPlaces(self.verified, self._lock)
        self.mappings = KeptMappings(self.verified, runtime)
        self.read_bytes = 0  # about: threads may lose an addition
        self._pool = ConnectionPool(
            said, max_per_endpoint=max_connections, open_connection=LocalConnection.open, runtime=runtime
        )
        self.stall_s = stall_s
        self.now_s = runtime.now_s
        self._near: tuple[ReplicaTable, tuple[str, ...], NDArray[np.bool_]] | None = None
        self._off_until_s: dict[str, float] = {}

    def close(self) -> None:
        """Close every connection, and let go of what their daemons gave."""
        self._pool.close()
        self.kept.clear()
        self.mappings.close()

    def leave(self) -> None:
        """Let go of what the parent of a forked child was given, whoever of its threads held which lock."""
        self.kept.clear()
        self.mappings.leave()

    def near(self, table: ReplicaTable) -> NDArray[np.bool_] | None:
        """Which endpoints of `table` can be read here, None if none can: [endpoints]."""
        if not self._enabled:
            return None
        known = self._near
        if known is None or known[0] is not table:
            sockets = tuple(_socket_of(table, number) for number in range(len(table.endpoints)))
            known = self._near = (table, sockets, np.array([bool(name) for name in sockets], dtype=np.bool_))
        _, sockets, near = known
        if self._off_until_s:
            now_s = self.now_s()
            off = [name for name, until_s in list(self._off_until_s.items()) if until_s > now_s]
            near = near & ~np.isin(np.array(sockets), off)
        return near if near.any() else None

    def socket(self, table: ReplicaTable, endpoint: int) -> str:
        """The Unix socket of an endpoint of `table`; "" if it has none here."""
        known = self._near
        if known is None or known[0] is not table:  # another thread has seen a newer routing
            return _socket_of(table, endpoint)
        return known[1][endpoint]

    def borrow(self, socket: str, node_id: int, *, deadline_s: float) -> LocalConnection:
        """A connection that gives descriptors. Raises: Fs3Error."""
        try:
            connection = self._pool.borrow(socket, deadline_s=deadline_s, connect_timeout_s=self.stall_s, wait=False)
        except Unavailable:
            self.off(socket, OFF_S)
            raise
        assert isinstance(connection, LocalConnection), connection
        connection.stall_s = self.stall_s
        said = connection.hello_reply
        if said.node_id != node_id or not said.features & Feature.SAME_HOST:
            self.off(socket, REFUSED_S)
            self._pool.give_back(connection)
            raise Unavailable(f"{socket} gives no descriptors")
        return connection

    def give_back(self, connection: Connection) -> None:
        """Take a connection back, whatever happened to it; acknowledges."""
        self._pool.give_back(connection)

    def off(self, socket: str, for_s: float) -> None:
        """Read this endpoint over the network for a while."""
        with self._lock:
            now_s = self.now_s()
            for name in [name for name, until_s in self._off_until_s.items() if until_s <= now_s]:
                del self._off_until_s[name]
            self._off_until_s[socket] = now_s + for_s

    def read_trusted(self, read: BlockRead) -> bool:
        """Read a range that was verified before and is in the page cache still; whether it was that.

        It is right if the connection that told of it is `still_open` afterwards.
        """
        if read.blocks & ~self.verified.of(read.place, read.identity, self.now_s()):
            return False
        if not read.from_cache():
            self.verified.forget(read.place)
            return False
        self.read_bytes += read.length
        return True

    def read(self, read: BlockRead) -> bool:
        """Read and verify a range; whether that worked."""
        if not read.bytes() or not read.matches():
            self.verified.forget(read.place)
            return False
        self.read_bytes += read.length
        self.matched(read.place, read.identity, read.blocks)
        return True

    def read_kept(self, asked: Sequence[Asked], outs: Sequence[memoryview]) -> list[Kept] | None:
        """Read ranges from where they are known to be, without asking; None if not all of them are (kept_places.py)."""
        if not len(self.kept):
            return None
        found = self.kept.read(asked, outs, self.now_s())
        if found is None:
            return None
        for kept, matched in found:
            if matched:
                self.matched(kept.place, kept.identity, matched)
        self.read_bytes += sum(len(out) for out in outs)
        return [one.kept for one in found]

    def mapped(self, asked: Asked) -> memoryview | None:
        """A range that this process has mapped already, if it may be handed out again (kept_mappings.py)."""
        found = self.mappings.of(asked, self.now_s())
        if found is None:
            return None
        if found.matched:
            self.matched(found.mapped.place, found.mapped.identity, found.matched)
        self.read_bytes += asked.length
        return found.view

    def holds_by(self, run: Run, file: int, fd: int) -> tuple[BlockFile, CounterView] | None:
        """As of `KeptPlaces`."""
        with self._lock:
            return self.kept.holds_by(run, file, fd)

    def keep(self, run: Run, chunk: Chunk, read: BlockRead, state: int, file: int, position: int) -> None:
        """Remember where a range was read from."""
        with self._lock:
            self.kept.keep(run, chunk, read, state, file, position)

    def counters(self, run: Run, key: int, fd: int) -> None:
        """A daemon sent change counters; `fd` stays the caller's."""
        with self._lock:
            self.kept.clean()
            self.kept.know(run, key, fd)

    def matched(self, place: Place, identity: Identity, blocks: int) -> None:
        """Remember that these blocks match their sums."""
        with self._lock:
            self.verified.add(place, identity, blocks, self.now_s())


def _socket_of(table: ReplicaTable, endpoint: int) -> str:
    """The Unix socket of a daemon that is a process of this host and user, as far as its file tells; else ""."""
    path = next(iter(table.nodes[endpoint].unix_endpoints), "")
    with contextlib.suppress(OSError):
        found = os.stat(path)
        if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid():
            return UNIX_PREFIX + path
    return ""
