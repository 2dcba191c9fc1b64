"""How a replica reaches the one behind it: the port that the write path speaks through, and its implementation on
connections.

Frames to several successors are all sent before the first answer is awaited, from the caller's own thread: a thread
pool here would be shared by all positions in all chains, and chains that cross nodes could then wait in a circle. For
the same reason every hop has its own connections, as it has its own threads at the receiving server.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fs3 import checksum
from fs3.errors import Conflict, Corrupt, Fs3Error, Unavailable, from_code
from fs3.pb import storage_pb2
from fs3.runtime import SYSTEM, Runtime
from fs3.transport.connection import Connection, OpenConnection
from fs3.transport.frame_core import Feature, Flag, Kind
from fs3.transport.messages import CHUNK_META, RESULT, SUM, Records
from fs3.transport.pool import ConnectionPool

RECOVERY_LANE = 255  # which no client's update waits for
REPAIR_LANE = 254
_AHEAD_LANES = 128  # and the hop: no piece waits for an update
_CONNECT_S = 1.0


@dataclass(slots=True)
class Frame:
    """The updates [n] for one successor's process: UPDATE records, and the sums and bytes of each, in order.

    `hop` is the receiver's place in its chains, `lane` the connections it goes by: those of the hop, or recovery's.
    """

    endpoint: str
    hop: int
    lane: int
    records: Records
    sums: Sequence[NDArray[np.uint32]]
    body: Sequence[memoryview]


@dataclass(slots=True)
class Piece:
    """Bytes that go ahead of their update (ahead.py): an AHEAD record [1], the 4 KiB sums, the bytes. `hop`: the
    receiver's place in the chain."""

    record: Records
    sums: NDArray[np.uint32]
    data: memoryview
    hop: int

    def on(self, hop: int) -> Piece:
        """The same for the next replica."""
        return Piece(self.record, self.sums, self.data, hop)


class ForwardPort(Protocol):
    """Blocking; any thread."""

    def forward(self, frames: Sequence[Frame], *, deadline_s: float) -> list[Records | Fs3Error]:
        """Per frame its RESULT records [n], or the error of the whole frame, which may have been applied or not."""

    def send_ahead(self, endpoint: str, piece: Piece, *, deadline_s: float) -> bool:
        """Whether the piece is on its way. It is not answered."""

    def sync_list(
        self, endpoint: str, request: storage_pb2.SyncListRequest, *, deadline_s: float
    ) -> tuple[storage_pb2.SyncListReply, Records]:
        """A page of what a SYNCING target has: CHUNK_META. Raises: Fs3Error."""

    def sync_done(self, endpoint: str, request: storage_pb2.SyncDoneRequest, *, deadline_s: float) -> None:
        """Raises: Fs3Error."""

    def read_chunk(
        self, endpoint: str, asked: Records, length: int, *, deadline_s: float
    ) -> tuple[int, memoryview, NDArray[np.uint32]]:
        """The committed version of the chunk that RANGE record `asked` [1] names, whole, if it has `length` bytes.

        Returns (version, bytes, 4 KiB sums). Raises: Corrupt (they fail the sums that came with them), Conflict (the
        chunk there is of another length), Fs3Error.
        """

    def cut_off(self, endpoint: str) -> None:
        """Have calls in progress to a process that mgmtd no longer counts on fail soon."""

    def close(self) -> None:
        """Have all calls in progress fail soon, and later ones at once."""


class ChainForwarder:
    """The port on framed connections (proto/data_plane.md)."""

    def __init__(
        self,
        hello: storage_pb2.Hello,
        *,
        max_per_endpoint: int,
        open_connection: OpenConnection = Connection.open,
        runtime: Runtime = SYSTEM,
    ) -> None:
        self._hello = hello
        self._open = open_connection
        self._runtime = runtime
        self._max = max_per_endpoint
        self._guard = runtime.lock()
        self._pools: dict[int, ConnectionPool] = {}
        self._in_use: defaultdict[str, set[Connection]] = defaultdict(set)
        self._closed = False

    def forward(self, frames: Sequence[Frame], *, deadline_s: float) -> list[Records | Fs3Error]:
        calls = [_Call(self, frame, deadline_s) for frame in frames]
        try:
            while any(call.unfinished for call in calls):
                for call in calls:
                    call.send()
                for call in calls:
                    call.receive()
        finally:
            for call in calls:
                call.end()
        return [call.error or np.concatenate(call.results) for call in calls]

    def send_ahead(self, endpoint: str, piece: Piece, *, deadline_s: float) -> bool:
        lane = _AHEAD_LANES + piece.hop
        try:
            connection = self.borrow(endpoint, lane, deadline_s)
        except Fs3Error:
            return False
        try:
            if not connection.hello_reply.features & Feature.AHEAD:
                return False
            head = [piece.record.tobytes(), piece.sums.tobytes()]
            connection.send(Kind.AHEAD, head, [piece.data], count=1, hop=piece.hop, deadline_s=deadline_s)
        except Fs3Error:
            return False
        finally:
            self.give_back(connection, lane)
        return True

    def sync_list(
        self, endpoint: str, request: storage_pb2.SyncListRequest, *, deadline_s: float
    ) -> tuple[storage_pb2.SyncListReply, Records]:
        connection = self.borrow(endpoint, RECOVERY_LANE, deadline_s)
        try:
            connection.send(Kind.SYNC_LIST, [request.SerializeToString()], count=0, deadline_s=deadline_s)
            header, head = connection.receive_head()
            reply = storage_pb2.SyncListReply()
            reply.ParseFromString(bytes(head))
            page = np.zeros(header.count, dtype=CHUNK_META)
            if header.body_bytes != page.nbytes:
                connection.close()
                raise Corrupt(f"{endpoint} sent {header.body_bytes} bytes as {header.count} records")
            if len(page):
                connection.receive_body([page.view(np.uint8).data])
            return reply, page
        finally:
            self.give_back(connection, RECOVERY_LANE)

    def sync_done(self, endpoint: str, request: storage_pb2.SyncDoneRequest, *, deadline_s: float) -> None:
        connection = self.borrow(endpoint, RECOVERY_LANE, deadline_s)
        try:
            connection.send(Kind.SYNC_DONE, [request.SerializeToString()], count=0, deadline_s=deadline_s)
            connection.receive_head()
        finally:
            self.give_back(connection, RECOVERY_LANE)

    def read_chunk(
        self, endpoint: str, asked: Records, length: int, *, deadline_s: float
    ) -> tuple[int, memoryview, NDArray[np.uint32]]:
        connection = self.borrow(endpoint, REPAIR_LANE, deadline_s)
        try:
            flags = Flag.CHECKSUM | Flag.RELAXED
            connection.send(Kind.READ, [asked.tobytes()], count=1, flags=flags, deadline_s=deadline_s)
            header, head = connection.receive_head()
            if header.count != 1 or len(head) < RESULT.itemsize or header.body_bytes > length:
                connection.close()
                raise Corrupt(f"{endpoint} answered with {header.count} ranges of {header.body_bytes} bytes")
            result = np.frombuffer(head, dtype=RESULT, count=1)[0].copy()
            sums = np.frombuffer(head, dtype=SUM, offset=RESULT.itemsize).copy()
            data = memoryview(bytearray(header.body_bytes))
            connection.receive_body([data])
            trailer_status, _ = connection.receive_trailer()
        finally:
            self.give_back(connection, REPAIR_LANE)
        status = int(result["status"]) or trailer_status
        if status:
            raise from_code(status, f"{endpoint} has no good copy of it")
        if len(data) != length or int(result["chunk_length"]) != length:
            raise Conflict(f"{endpoint} has a chunk of {int(result['chunk_length'])} bytes, not {length}")
        cuts = checksum.pieces(0, length, length)
        if len(sums) != len(cuts) or any(
            checksum.crc(data[begin:end]) != value for (begin, end), value in zip(cuts, sums.tolist(), strict=True)
        ):
            raise Corrupt(f"the bytes that {endpoint} sent failed their checksum")
        return int(result["version"]), data, checksum.fine_sums(data)

    def cut_off(self, endpoint: str) -> None:
        with self._guard:
            in_use = list(self._in_use.get(endpoint, ()))
            pools = list(self._pools.values())
        self._hurry(in_use)
        for pool in pools:
            pool.drop_idle(endpoint)

    def close(self) -> None:
        with self._guard:
            self._closed = True
            in_use = [connection for connections in self._in_use.values() for connection in connections]
            pools = list(self._pools.values())
        self._hurry(in_use)
        for pool in pools:
            pool.close()

    def _hurry(self, connections: Iterable[Connection]) -> None:
        """Let nobody wait on these any longer; a connection's owner looks at its deadline every half second."""
        now_s = self._runtime.now_s()
        for connection in connections:
            connection.deadline_s = now_s

    def borrow(self, endpoint: str, lane: int, deadline_s: float) -> Connection:
        """A connection of this lane. Raises: Unavailable, Busy, PermissionDenied, Invalid."""
        with self._guard:
            if self._closed:
                raise Unavailable("this storage daemon is stopping")
            pool = self._pools.get(lane)
            if pool is None:
                pool = self._pools[lane] = ConnectionPool(
                    self._hello, max_per_endpoint=self._max, open_connection=self._open, runtime=self._runtime
                )
        connection = pool.borrow(endpoint, deadline_s=deadline_s, connect_timeout_s=_CONNECT_S)
        with self._guard:
            self._in_use[endpoint].add(connection)
        return connection

    def give_back(self, connection: Connection, lane: int) -> None:
        """Take a borrowed connection back, whatever became of it."""
        with self._guard:
            self._in_use[connection.endpoint].discard(connection)
            pool = self._pools[lane]
        pool.give_back(connection)


class _Call:
    """One frame on its way, cut into as many as the successor's limits ask for."""

    def __init__(self, owner: ChainForwarder, frame: Frame, deadline_s: float) -> None:
        self._owner = owner
        self._frame = frame
        self._deadline_s = deadline_s
        self._connection: Connection | None = None
        self._next = 0
        self._sent = 0
        self.results: list[Records] = []
        self.error: Fs3Error | None = None

    @property
    def unfinished(self) -> bool:
        return self.error is None and self._next < len(self._frame.records)

    def send(self) -> None:
        if not self.unfinished:
            return
        frame = self._frame
        try:
            if self._connection is None:
                self._connection = self._owner.borrow(frame.endpoint, frame.lane, self._deadline_s)
            hello = self._connection.hello_reply
            begin = self._next
            self._sent = fitting(
                [len(part) for part in frame.body[begin:]], hello.max_ranges or 1, hello.max_body_bytes or (1 << 62)
            )
            end = begin + self._sent
            self._connection.send(
                Kind.WRITE,
                [frame.records[begin:end].tobytes(), *(sums.tobytes() for sums in frame.sums[begin:end])],
                frame.body[begin:end],
                count=self._sent,
                hop=frame.hop,
                deadline_s=self._deadline_s,
            )
        except Fs3Error as error:
            self.error = error

    def receive(self) -> None:
        if self.error is not None or not self._sent:
            return
        assert self._connection is not None
        try:
            header, head = self._connection.receive_head()
            if header.count != self._sent or header.body_bytes:
                self._connection.close()
                raise Corrupt(f"{self._frame.endpoint} answered {header.count} of {self._sent} updates")
            self.results.append(np.frombuffer(head, dtype=RESULT, count=header.count).copy())
            self._next += self._sent
            self._sent = 0
        except Fs3Error as error:
            self.error = error

    def end(self) -> None:
        if self._connection is not None:
            self._owner.give_back(self._connection, self._frame.lane)


def fitting(lengths: Sequence[int], max_count: int, max_bytes: int) -> int:
    """How many updates of these lengths, at least one, go into one frame."""
    total = 0
    for count, length in enumerate(lengths[:max_count]):
        total += length
        if total > max_bytes and count:
            return count
    return min(len(lengths), max_count)
