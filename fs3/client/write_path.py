"""Changing a batch of chunks: one request per head of a chain and frame, repeated under the same (channel, seq) until
every update has a definite answer.

A write has one way in, the head; it goes down the chain and comes back acknowledged by every replica. When the head
dies, or the chain changes under the write, the client waits for mgmtd to name the new chain and sends the same update
again: replicas that have applied it answer from their memory of the channel. What is still unknown at the deadline is
MaybeApplied, and its channel is never used again.

That memory lasts as long as this process's session with mgmtd. If a head says that the session has ended (the process
was stopped, or cut off, for long), what certainly was not applied is sent again under a new session; an update one of
whose attempts got no answer may have been applied and forgotten, and is MaybeApplied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fs3 import checksum
from fs3.checksum import Bytes
from fs3.client import plan_core
from fs3.client.channels import Channel
from fs3.client.identity import Identity
from fs3.client.peers import Peers
from fs3.client.plan_core import I64
from fs3.client.retry_core import UNCERTAIN, Step, after_write
from fs3.client.select_core import NONE, ReplicaTable, unserved
from fs3.errors import (
    Busy,
    Corrupt,
    Fs3Error,
    Invalid,
    MaybeApplied,
    NoSpace,
    SessionEnded,
    StaleRouting,
    Unavailable,
    from_code,
)
from fs3.ids import chunk_name
from fs3.transport.connection import Connection
from fs3.transport.frame_core import Feature, Kind
from fs3.transport.messages import AHEAD, RESULT, UPDATE, Op, Records, UpdateFlag

_WHOLE_OPS = (Op.REPLACE, Op.PUT_IF_ABSENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkUpdate:
    """One change of one chunk; `messages.Op` says what `offset` and `data` mean to it.

    `chunk_bytes` is the largest size the chunk may reach. `fine`, if given, are `checksum.fine_sums(data, offset)`.
    """

    hi: int
    lo: int
    chain: int
    op: Op = Op.REPLACE
    offset: int = 0
    data: Bytes = b""
    chunk_bytes: int = 64 << 20
    durable: bool = True
    fine: NDArray[np.uint32] | None = None


@dataclass(slots=True)
class _Lane:
    """The updates of one attempt that go to one head: frames to send, one at a time."""

    endpoint: int
    connection: Connection
    waiting: deque[I64] = field(default_factory=deque)
    sent: I64 | None = None


class WriteCall:
    """One call's updates [n] and how far they have come. Used by one thread."""

    def __init__(self, peers: Peers, updates: Sequence[ChunkUpdate], deadline_s: float, begun_s: float) -> None:
        self._peers = peers
        self._updates = updates
        self._deadline_s = deadline_s
        self._begun_s = begun_s
        self._data = [checksum.flat(update.data) for update in updates]
        self._sums = [
            update.fine if update.fine is not None else checksum.fine_sums(data, update.offset)
            for update, data in zip(updates, self._data, strict=True)
        ]
        self._records = _records(updates, self._data, self._sums)
        self._lengths: I64 = self._records["length"].astype(np.int64)
        self._lengths[self._records["op"] == Op.TRUNCATE] = 0
        count = len(updates)
        self.results: Records = np.zeros(count, dtype=RESULT)
        self._code: NDArray[np.uint16] = np.full(count, Unavailable.code, dtype=np.uint16)
        self._tries: I64 = np.zeros(count, dtype=np.int64)
        self._uncertain: NDArray[np.bool_] = np.zeros(count, dtype=np.bool_)
        self._flags = self._records["flags"].copy()
        self._why: dict[int, str] = {}

    def run(self) -> list[Fs3Error | None]:
        """What became of each update: None (its result is in `results`) or the error.

        Raises: Busy: too many updates of this client are in flight; none was sent.
        """
        todo: I64 = np.arange(len(self._updates), dtype=np.int64)
        sessions = 0
        while len(todo):
            try:
                identity = self._peers.identity(self._deadline_s)
                channels = identity.channels.take(len(todo), self._deadline_s)
            except (Busy, Unavailable) as error:
                if not sessions and isinstance(error, Busy):
                    raise
                self._fail(todo, error)
                break
            sessions += 1
            self._in_session(identity, channels, todo)
            ended = todo[self._code[todo] == SessionEnded.code]
            if not len(ended) or not self._peers.session_ended(identity):
                break
            todo = ended[~self._uncertain[ended]]
            if self._peers.runtime.now_s() >= self._deadline_s:
                self._fail(todo, Unavailable("this process's session had ended, and no time was left for another"))
                break
        return [self._outcome(place) for place in range(len(self._updates))]

    def _in_session(self, identity: Identity, channels: list[Channel], todo: I64) -> None:
        self._records["client"][todo] = identity.client_id
        self._records["channel"][todo] = [channel.channel for channel in channels]
        self._records["seq"][todo] = [channel.seq for channel in channels]
        try:
            self._until_settled(todo)
        except BaseException:
            self._uncertain[todo] |= self._code[todo] != 0
            raise
        finally:
            retired = (self._uncertain[todo] & (self._code[todo] != 0)).tolist()
            definite = [channel for channel, gone in zip(channels, retired, strict=True) if not gone]
            identity.channels.give_back(definite, retired=len(channels) - len(definite))

    def _until_settled(self, todo: I64) -> None:
        attempt = 0
        try:
            while len(todo):
                version = self._attempt(todo)
                steps = [
                    after_write(int(self._code[place]), int(self._tries[place])) if self._code[place] else Step.FAIL
                    for place in todo.tolist()
                ]
                todo = todo[np.array([step is not Step.FAIL for step in steps], dtype=np.bool_)]
                if not len(todo) or self._peers.runtime.now_s() >= self._deadline_s:
                    return
                if Step.REFRESH in steps:
                    self._peers.refresh(version, attempt, self._deadline_s)
                else:
                    self._peers.pause(attempt, self._deadline_s)
                attempt += 1
        except Fs3Error as error:  # the client was closed, say, which does not take back what it has sent
            self._fail(todo, error)

    def _attempt(self, todo: I64) -> int:
        """Send `todo` to the heads of their chains once; the version of the routing that named them."""
        table = self._peers.table()
        self._tries[todo] += 1
        self._records["flags"][todo] = np.where(
            self._uncertain[todo], self._flags[todo] | np.uint16(UpdateFlag.RETRY), self._flags[todo]
        )
        try:
            rows = table.rows(self._records["chain"][todo])
        except StaleRouting as error:
            self._fail(todo, error)
            return table.version
        heads = table.endpoint[rows, 0]
        headless = heads == NONE
        if headless.any():
            why = unserved(self._peers.mgmtd.routing, int(table.chains[rows[headless][0]]))
            self._fail(todo[headless], StaleRouting(why))
            todo, rows, heads = todo[~headless], rows[~headless], heads[~headless]
        self._records["chain_version"][todo] = table.chain_version[rows]
        lanes: list[_Lane] = []
        try:
            for endpoint, mine in plan_core.group_by(heads):
                lane = self._open(table, endpoint, todo[mine])
                if lane is not None:
                    lanes.append(lane)
            while lanes and any(lane.waiting for lane in lanes):
                for lane in lanes:
                    if lane.waiting:
                        self._send(table, lane)
                for lane in lanes:
                    if lane.sent is not None:
                        self._receive(table, lane)
        finally:
            for lane in lanes:
                if lane.sent is not None:
                    lane.connection.close()
                self._peers.give_back(lane.connection)
        return table.version

    def _open(self, table: ReplicaTable, endpoint: int, places: I64) -> _Lane | None:
        try:
            connection = self._peers.borrow(table, endpoint, deadline_s=self._deadline_s)
        except Fs3Error as error:
            self._fail(places, error)
            if isinstance(error, Unavailable):
                self._peers.failed(table, endpoint)
            return None
        connection.stall_s = self._peers.write_stall_s
        hello = connection.hello_reply
        lengths = self._lengths[places]
        cuts = plan_core.frames(
            lengths, int(lengths.sum()), max_count=hello.max_ranges or 1, max_bytes=hello.max_body_bytes
        )
        return _Lane(endpoint, connection, deque(places[begin:end] for begin, end in cuts))

    def _send(self, table: ReplicaTable, lane: _Lane) -> None:
        places = lane.waiting.popleft()
        lane.sent = places
        indexes = places.tolist()
        ahead = self._ahead(table, lane, places)
        records = self._records[places]
        records["flags"][ahead] |= np.uint16(UpdateFlag.AHEAD)
        head = [records.tobytes(), *(self._sums[place].tobytes() for place in indexes)]
        body = [self._data[place] for place, gone in zip(indexes, ahead.tolist(), strict=True) if not gone]
        try:
            for place in places[ahead].tolist():
                self._send_ahead(lane, place)
            lane.connection.send(Kind.WRITE, head, body, count=len(places), deadline_s=self._deadline_s)
        except Fs3Error as error:
            self._broke(table, lane, error)

    def _ahead(self, table: ReplicaTable, lane: _Lane, places: I64) -> NDArray[np.bool_]:
        """Which of these updates' bytes go ahead of them: those of large whole chunks, if there are replicas behind the
        head that they could reach while they are still being sent; once."""
        piece = self._peers.piece_bytes
        ahead: NDArray[np.bool_] = (
            (self._lengths[places] >= 2 * piece)
            & np.isin(self._records["op"][places], _WHOLE_OPS)
            & (self._tries[places] == 1)
        )
        if not ahead.any() or not lane.connection.hello_reply.features & Feature.AHEAD:
            return np.zeros(len(places), dtype=np.bool_)
        behind = table.endpoint[table.rows(self._records["chain"][places]), 1:2]
        ahead &= (behind != NONE).any(axis=1)
        return ahead

    def _send_ahead(self, lane: _Lane, place: int) -> None:
        data, sums, step = self._data[place], self._sums[place], self._peers.piece_bytes
        record = np.zeros(1, dtype=AHEAD)
        for name in ("hi", "lo", "chain", "chain_version", "client", "channel", "seq", "flags"):
            record[name] = self._records[name][place]
        record["chunk_length"] = len(data)
        for begin in range(0, len(data), step):
            piece = data[begin : begin + step]
            record["offset"], record["length"] = begin, len(piece)
            fine = sums[begin // checksum.FINE_BYTES : -(-(begin + len(piece)) // checksum.FINE_BYTES)]
            head = [record.tobytes(), fine.tobytes()]
            lane.connection.send(Kind.AHEAD, head, [piece], count=1, deadline_s=self._deadline_s)

    def _receive(self, table: ReplicaTable, lane: _Lane) -> None:
        places = lane.sent
        assert places is not None
        try:
            header, head = lane.connection.receive_head()
            if header.count != len(places) or header.body_bytes:
                lane.connection.close()
                raise Corrupt(f"{lane.connection.endpoint} answered {header.count} of {len(places)} updates")
            results = np.frombuffer(head, dtype=RESULT, count=len(places)).copy()
            lane.connection.receive_body(())
        except Fs3Error as error:
            self._broke(table, lane, error)
            return
        lane.sent = None
        self.results[places] = results
        self._code[places] = results["status"]
        for code in np.unique(results["status"][results["status"] != 0]).tolist():
            self._why.setdefault(code, _refusal(code, lane.connection.endpoint))
        self._uncertain[places] |= np.isin(results["status"], list(UNCERTAIN))

    def _broke(self, table: ReplicaTable, lane: _Lane, error: Fs3Error) -> None:
        """The frame that is out got no answer, or one for all of it; the frames after it wait for the next attempt."""
        assert lane.sent is not None
        if error.code in UNCERTAIN or lane.connection.closed:
            self._uncertain[lane.sent] = True
        self._fail(lane.sent, error)
        for places in lane.waiting:
            self._fail(places, error)
        lane.sent = None
        lane.waiting.clear()
        if isinstance(error, Unavailable):
            self._peers.failed(table, lane.endpoint)

    def _fail(self, places: I64, error: Fs3Error) -> None:
        self._code[places] = error.code
        self._why[error.code] = str(error)

    def _outcome(self, place: int) -> Fs3Error | None:
        code = int(self._code[place])
        if code == 0:
            return None
        update = self._updates[place]
        name, why = chunk_name(update.hi, update.lo), self._why.get(code, "no answer")
        if self._uncertain[place]:
            waited_s = self._peers.runtime.now_s() - self._begun_s
            return MaybeApplied(f"{name}: the outcome of a write is unknown after {waited_s:.1f} s: {why}")
        if after_write(code, int(self._tries[place])) is Step.REFRESH:
            return Unavailable(
                f"{name} was not written within {self._peers.runtime.now_s() - self._begun_s:.1f} s: {why}"
            )
        return from_code(code, f"{name}: {why}")


def _refusal(code: int, endpoint: str) -> str:
    if code == SessionEnded.code:
        return f"{endpoint} says that this process's session with the cluster has ended"
    if code == NoSpace.code:
        return f"no space left on {endpoint} or on a replica behind it; remove files or add a disk"
    return f"{endpoint} answered {type(from_code(code, '')).__name__}"


def _records(updates: Sequence[ChunkUpdate], data: Sequence[memoryview], sums: Sequence[NDArray[np.uint32]]) -> Records:
    records = np.zeros(len(updates), dtype=UPDATE)
    for name in ("hi", "lo", "offset", "chain", "op", "chunk_bytes"):
        try:
            records[name] = [getattr(update, name) for update in updates]
        except OverflowError as error:
            raise Invalid(f"`{name}` of an update: {error}") from None
    records["length"] = [len(one) for one in data]
    records["n_sums"] = [len(one) for one in sums]
    records["flags"] = [UpdateFlag.NONE if update.durable else UpdateFlag.OS_DURABILITY for update in updates]
    return records
