"""Reading from the block files of daemons on this host: the daemon says where (LOCATE), the client reads.

    borrow a connection over the daemon's Unix socket; LOCATE: places, sums, and descriptors of files it has none of yet
    preadv into the caller's memory, the rest of cut 4 KiB blocks beside it; verify every block not verified before
    acknowledge, with the next request or alone: until then the daemon keeps the blocks

Nothing fails here: what is not read, or does not match, for whatever reason, is left to be asked for by READ, which
then says what is wrong. Why bytes that are not summed again are right all the same: see `_trusted`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fs3 import checksum
from fs3.checksum import FINE_BYTES
from fs3.client import plan_core
from fs3.client.plan_core import I64
from fs3.client.select_core import ReplicaTable
from fs3.client.verified_core import Identity, Place, Verified, blocks_mask
from fs3.errors import Corrupt, Fs3Error, Unavailable
from fs3.pb import storage_pb2
from fs3.runtime import SYSTEM, Runtime
from fs3.transport.connection import UNIX_PREFIX
from fs3.transport.descriptors import close_all
from fs3.transport.frame_core import Feature, Flag, Kind
from fs3.transport.local import LocalConnection
from fs3.transport.messages import FILE_KEY, PLACE, RESULT, SUM, Records
from fs3.transport.pool import ConnectionPool

LOCAL_BYTES = (
    64 << 10
)  # ranges that are shorter on average are faster by READ, which needs no call of the kernel for each
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
        now_s = self._here.now_s()
        n_sums = results["n_sums"].astype(np.int64)
        ends = np.cumsum(n_sums)
        asked = self._ranges[["hi", "lo", "offset", "length"]][places].tolist()
        found = results[["status", "length", "chunk_length", "version"]].tolist()
        rows = zip(asked, found, where.tolist(), n_sums.tolist(), ends.tolist(), strict=True)
        for row, (
            (hi, lo, offset, length),
            (status, got, chunk_length, version),
            (file, _, at),
            count,
            end,
        ) in enumerate(rows):
            if status or not got:
                unread[row] = False
                continue
            fd = connection.files.get(file)
            if fd is None or got > length or offset + got > chunk_length:
                continue
            begin = int(self._out_offsets[places[row]])
            read = _Read(fd, at, offset, got, chunk_length, self._out[begin : begin + got], self._edges)
            place = (connection.endpoint, connection.hello_reply.generation, file, at)
            known = self._here.verified.of(place, (hi, lo, version), now_s)
            trusted = read.bytes(known)
            if trusted is None or not read.matches(sums[end - count : end], trusted):
                continue
            unread[row] = False
            self._here.read_bytes += got
            if trusted:
                skipped.append(row)
            if read.blocks & ~trusted:
                self._here.matched(place, (hi, lo, version), read.blocks)
        if skipped and not connection.still_open():
            unread[skipped] = True
        if unread.any():
            self.left.append((lane.endpoint, places[unread]))
        self.taken.append(Taken(connection.endpoint, places[~unread], results[~unread]))


class _Read:
    """One range [offset, offset + length) of a chunk whose block begins at `position` of `fd`; `blocks`: those that it
    touches, as bits."""

    __slots__ = ("_after", "_before", "_begin", "_chunk_length", "_end", "_fd", "_out", "_position", "blocks")

    def __init__(
        self,
        fd: int,
        position: int,
        offset: int,
        length: int,
        chunk_length: int,
        out: memoryview,
        edges: tuple[memoryview, memoryview],
    ) -> None:
        self._begin = offset - offset % FINE_BYTES
        stop = offset + length
        self._end = min(-(-stop // FINE_BYTES) * FINE_BYTES, chunk_length)
        self._fd = fd
        self._position = position + self._begin
        self._chunk_length = chunk_length
        self._before, self._out, self._after = edges[0][: offset - self._begin], out, edges[1][: self._end - stop]
        first = self._begin // FINE_BYTES
        self.blocks = blocks_mask(first, -(-self._end // FINE_BYTES) - first)

    def bytes(self, known: int) -> int | None:
        """Read the whole blocks; which of them (bits of `known`) need no sum, None if not all could be read.

        Blocks that were verified before are only taken as such from the page cache, where they are what was verified
        then. That they still are the chunk's, in its place, is what the pin says: the daemon reuses no block before it
        has closed the connection (`still_open` is asked once all are read), and if it dies, none that is locked on the
        description read here, as all of these were before it said where they are.
        """
        views = [view for view in (self._before, self._out, self._after) if len(view)]
        size = self._end - self._begin
        known &= self.blocks
        try:
            if known and self._at_once(views) == size:
                return known
            return 0 if os.preadv(self._fd, views, self._position) == size else None
        except OSError:
            return None

    def _at_once(self, views: list[memoryview]) -> int:
        """As much as the page cache has."""
        try:
            return os.preadv(self._fd, views, self._position, os.RWF_NOWAIT)
        except OSError:  # nothing is there, or the filesystem cannot tell
            return 0

    def matches(self, sums: NDArray[np.uint32], trusted: int) -> bool:
        """Whether the blocks that are not trusted have these sums, by the rule of `checksum.pieces`."""
        if not self.blocks & ~trusted:
            return True
        cuts = checksum.pieces(self._begin, self._end - self._begin, self._chunk_length)
        if len(cuts) != len(sums):
            return False
        out, shift, stop = self._out, self._begin + len(self._before), self._end - len(self._after)
        for (begin, end), wanted in zip(cuts, sums.tolist(), strict=True):
            if trusted:
                first = begin // FINE_BYTES
                if not blocks_mask(first, -(-end // FINE_BYTES) - first) & ~trusted:
                    continue
            if begin >= shift and end <= stop:
                value = checksum.crc(out[begin - shift : end - shift])
            else:
                value = self._sum(begin, end)
            if value != wanted:
                return False
        return True

    def _sum(self, begin: int, end: int) -> int:
        """The sum of bytes [begin, end) of the chunk, wherever they were read to."""
        begin, end, value = begin - self._begin, end - self._begin, 0
        for view in (self._before, self._out, self._after):
            if begin < len(view) and end > 0:
                value = checksum.crc(view[max(begin, 0) : end], value)
            begin, end = begin - len(view), end - len(view)
        return value


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
