"""Reading from the block files of daemons on this host: the daemon says where (LOCATE), the client reads.

    borrow a connection over the daemon's Unix socket; LOCATE: places, sums, and descriptors of files it has none of yet
    preadv into the caller's memory, the rest of cut 4 KiB blocks beside it; verify every block not verified before
    acknowledge, with the next request or alone: until then the daemon keeps the blocks

Nothing fails here: what is not read, or does not match, for whatever reason, is left to be asked for by READ, which
then says what is wrong. Why bytes that are not summed again are right all the same: `BlockRead.bytes`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import FINE_BYTES
from fs3.client import plan_core
from fs3.client.block_read import BlockRead
from fs3.client.plan_core import I64
from fs3.client.select_core import ReplicaTable
from fs3.client.verified_core import Identity, Place, Verified
from fs3.errors import Corrupt, Fs3Error, Unavailable
from fs3.pb import storage_pb2
from fs3.runtime import SYSTEM, Runtime
from fs3.transport.descriptors import close_all
from fs3.transport.frame_core import Feature, Flag, Kind
from fs3.transport.local import LocalConnection
from fs3.transport.messages import FILE_KEY, PLACE, RESULT, SUM, Records
from fs3.transport.pool import ConnectionPool
from fs3.transport.sockets import UNIX_PREFIX

LOCAL_BYTES = 64 << 10  # ranges shorter on average are faster by READ: no call of the kernel for each
FRAME_BYTES = 64 << 20
FRAME_RANGES = 1_024
IN_FLIGHT = 2
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
        said.features = Feature.SAME_HOST
        self._enabled = enabled
        self.verified = Verified()
        self.read_bytes = 0  # about: threads may lose an addition
        self._pool = ConnectionPool(
            said, max_per_endpoint=max_connections, open_connection=LocalConnection.open, runtime=runtime
        )
        self.stall_s = stall_s
        self.now_s = runtime.now_s
        self._lock = runtime.lock()
        self._near: tuple[ReplicaTable, tuple[str, ...], NDArray[np.bool_]] | None = None
        self._off_until_s: dict[str, float] = {}

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()

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

    def socket(self, endpoint: int) -> str:
        """The Unix socket of an endpoint of the table that `near` was asked about last; "" if it has none here."""
        known = self._near
        return known[1][endpoint] if known is not None else ""

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

    def give_back(self, connection: LocalConnection) -> None:
        """Take a connection back, whatever happened to it; acknowledges."""
        self._pool.give_back(connection)

    def off(self, socket: str, for_s: float) -> None:
        """Read this endpoint over the network for a while."""
        with self._lock:
            now_s = self.now_s()
            for name in [name for name, until_s in self._off_until_s.items() if until_s <= now_s]:
                del self._off_until_s[name]
            self._off_until_s[socket] = now_s + for_s

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


@dataclass(slots=True)
class _Lane:
    endpoint: int
    connection: LocalConnection
    waiting: deque[I64]
    begun_s: float
    sent: dict[int, I64] = field(default_factory=dict)


@dataclass(slots=True)
class Taken:
    """RESULT records of `places` [n] of the batch: those with a status, and those whose bytes are in place."""

    endpoint: str
    places: I64
    results: Records


class LocalReads:
    """One round of ranges from the block files of this host's daemons. Used by one thread."""

    def __init__(
        self, here: SameHost, table: ReplicaTable, ranges: Records, out: memoryview, out_offsets: I64, deadline_s: float
    ) -> None:
        self._here = here
        self._table = table
        self._ranges = ranges
        self._out = out
        self._out_offsets = out_offsets
        self._deadline_s = deadline_s
        self._lanes: list[_Lane] = []
        self._edges = (memoryview(bytearray(FINE_BYTES)), memoryview(bytearray(FINE_BYTES)))
        self.left: list[tuple[int, I64]] = []  # (endpoint, places) that were not read, and are to be asked for by READ
        self.silent: list[tuple[int, I64]] = []  # ... of daemons that did not answer in time
        self.taken: list[Taken] = []

    def __enter__(self) -> LocalReads:
        return self

    def __exit__(self, *exc: object) -> None:
        for lane in self._lanes:
            if lane.sent:
                lane.connection.close()
            self._here.give_back(lane.connection)

    def begin(self, endpoint: int, places: I64) -> None:
        """Ask an endpoint of the table where the ranges number `places` [n] are."""
        try:
            connection = self._here.borrow(
                self._here.socket(endpoint), int(self._table.nodes[endpoint].node_id), deadline_s=self._deadline_s
            )
        except Fs3Error:
            self.left.append((endpoint, places))
            return
        lengths = self._ranges["length"][places].astype(np.int64)
        most = min(FRAME_RANGES, connection.hello_reply.max_ranges)
        cuts = plan_core.frames(lengths, int(lengths.sum()), max_count=most, max_bytes=FRAME_BYTES)
        waiting = deque(places[begin:end] for begin, end in cuts)
        lane = _Lane(endpoint, connection, waiting, self._here.now_s())
        self._lanes.append(lane)
        try:
            for _ in range(min(IN_FLIGHT, len(lane.waiting))):
                self._send(lane)
        except Fs3Error:
            self._give_up(lane)

    def _send(self, lane: _Lane) -> None:
        places = lane.waiting[0]
        head = self._ranges[places].tobytes()
        request = lane.connection.send(
            Kind.LOCATE, [head], count=len(places), flags=int(Flag.CHECKSUM), deadline_s=self._deadline_s
        )
        lane.sent[request] = lane.waiting.popleft()

    def finish(self) -> None:
        """Read what was asked for; `taken`, `left` and `silent` then tell what became of it."""
        for lane in self._lanes:
            try:
                self._drain(lane)
            except Fs3Error:
                self._give_up(lane)

    def _give_up(self, lane: _Lane) -> None:
        places = np.concatenate([*lane.sent.values(), *lane.waiting]) if lane.sent or lane.waiting else None
        lane.sent.clear()
        lane.waiting.clear()
        if lane.connection.outstanding:
            lane.connection.close()
        if lane.connection.closed:
            self._here.off(lane.connection.endpoint, OFF_S)
        if places is None:
            return
        if lane.connection.closed and self._here.now_s() - lane.begun_s >= self._here.stall_s:
            self.silent.append((lane.endpoint, places))
        else:
            self.left.append((lane.endpoint, places))

    def _drain(self, lane: _Lane) -> None:
        connection = lane.connection
        while lane.sent:
            header, head = connection.receive_head()
            places = lane.sent[header.request_id]
            self._take(lane, head, places)
            del lane.sent[header.request_id]
            lane.begun_s = self._here.now_s()
            if lane.waiting:
                self._send(lane)  # and acknowledges what has just been read

    def _take(self, lane: _Lane, head: memoryview, places: I64) -> None:
        connection = lane.connection
        results, sums, where, keys = parsed(head, len(places), connection.endpoint)
        fresh = connection.fresh()
        if len(fresh) != len(keys):
            close_all(fresh)  # this process may have no more open: the others do not go to waste
            connection.close()
            raise Unavailable(f"{connection.endpoint} sent {len(fresh)} of {len(keys)} descriptors")
        connection.files.update(zip(keys.tolist(), fresh, strict=True))
        unread = np.ones(len(places), dtype=np.bool_)
        skipped: list[int] = []
        reads = self._reads(connection, places, results, sums, where)
        for read in reads.values():
            read.foresee()
        for row, read in reads.items():
            trusted = read.bytes(self._here.verified.of(read.place, read.identity, self._here.now_s()))
            if trusted is None or not read.matches(trusted):
                continue
            unread[row] = False
            self._here.read_bytes += read.length
            if trusted:
                skipped.append(row)
            if read.blocks & ~trusted:
                self._here.matched(read.place, read.identity, read.blocks)
        if skipped and not connection.still_open():
            unread[skipped] = True
        unread[(results["status"] != 0) | (results["length"] == 0)] = False
        if unread.any():
            self.left.append((lane.endpoint, places[unread]))
        self.taken.append(Taken(connection.endpoint, places[~unread], results[~unread]))

    def _reads(
        self,
        connection: LocalConnection,
        places: I64,
        results: Records,
        sums: NDArray[np.uint32],
        where: Records,
    ) -> dict[int, BlockRead]:
        """What of a frame's ranges [n] is to be read, by row."""
        reads: dict[int, BlockRead] = {}
        run = (connection.endpoint, connection.hello_reply.generation)
        asked = self._ranges[["hi", "lo", "offset", "length"]][places].tolist()
        found = results[["status", "n_sums", "length", "chunk_length", "version"]].tolist()
        ends = np.cumsum(results["n_sums"].astype(np.int64)).tolist()
        begins = self._out_offsets[places].tolist()
        rows = zip(asked, found, where.tolist(), ends, begins, strict=True)
        for row, ((hi, lo, offset, length), said, (file, _, at), end, begin) in enumerate(rows):
            status, count, got, chunk_length, version = said
            fd = connection.files.get(file)
            if status or not got or fd is None or got > length or offset + got > chunk_length:
                continue
            reads[row] = BlockRead(
                fd,
                at,
                (offset, got, chunk_length),
                self._out[begin : begin + got],
                self._edges,
                sums[end - count : end],
                place=(*run, file, at),
                identity=(hi, lo, version),
            )
        return reads


def parsed(
    head: memoryview, count: int, endpoint: str
) -> tuple[Records, NDArray[np.uint32], Records, NDArray[np.uint32]]:
    """RESULT records, their sums, PLACE records, and the keys of the descriptors that come. Raises: Corrupt."""
    results = np.frombuffer(head, dtype=RESULT, count=count).copy() if len(head) >= count * RESULT.itemsize else None
    total = int(results["n_sums"].sum()) if results is not None else 0
    at = count * RESULT.itemsize + total * SUM.itemsize
    if results is None or len(head) < at + count * PLACE.itemsize or (len(head) - at) % FILE_KEY.itemsize:
        raise Corrupt(f"{endpoint} sent places of other ranges than were asked for")
    sums = np.frombuffer(head, dtype=SUM, count=total, offset=count * RESULT.itemsize)
    where = np.frombuffer(head, dtype=PLACE, count=count, offset=at)
    keys = np.frombuffer(head, dtype=FILE_KEY, offset=at + count * PLACE.itemsize)
    return results, sums, where, keys
