"""One round of a read: send every endpoint its request, then receive from each in turn, straight into place.

All requests are out before the first reply is awaited, so the nodes work side by side though one thread drives them.
Where much is to be received and there are cores for it, several connections with a thread each beat one (on two cores
they do not: 2.3 GB/s against 3.2). Small replies are verified
together at the end, in as few numpy calls as one of them would take; large ones as they come, while the next is on its
way.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fs3.client import plan_core, verify_core
from fs3.client.local_reads import LocalReads
from fs3.client.peers import Peers
from fs3.client.plan_core import I64
from fs3.client.race import Race
from fs3.client.same_host import LOCAL_BYTES
from fs3.client.select_core import ReplicaTable
from fs3.client.verify_core import Foreseen, Pieces
from fs3.errors import Corrupt, Fs3Error, NotFound, Unavailable, from_code
from fs3.transport.connection import Connection
from fs3.transport.frame_core import Flag, Header, Kind
from fs3.transport.messages import LISTED, RESULT, SUM, Records

IN_FLIGHT = 2  # requests sent ahead on one connection
LANE_BYTES = 8 << 20  # a node that owes more than this sends over several connections
LARGE_BYTES = 1 << 20  # a reply of so many bytes is verified while it comes
STEP_BYTES = 1 << 20  # at a time; less would wake this thread more often

Sums = NDArray[np.uint32]
_Asked = tuple[int, I64, int]  # endpoint, places in the batch, their bytes


@dataclass(slots=True)
class Batch:
    """The ranges [m] of a call, where their bytes go, and what is known of each.

    `code` is 0 only for a range whose result is final, and whose bytes, if it has any, have been verified.
    """

    kind: Kind
    ranges: Records
    lengths: I64
    deadline_s: float
    out: memoryview
    out_offsets: I64
    results: Records
    code: NDArray[np.uint16]
    targets: I64  # asked last
    patient: bool = False  # with a daemon that takes long to connect to: all have been tried
    why: dict[int, str] = field(default_factory=dict)  # error code -> the last message that came with it
    listed: Records = field(default_factory=lambda: np.zeros(0, dtype=LISTED))  # of a QUERY for a file's chunks


@dataclass(slots=True)
class Lane:
    """What one connection is asked in one round: `places` index the batch, in frames still to be sent."""

    endpoint: int
    places: I64
    bytes: int
    connection: Connection
    waiting: deque[I64] = field(default_factory=deque)
    sent: dict[int, I64] = field(default_factory=dict)
    since_s: float = 0.0  # when the oldest of them was sent, or the reply before it had been taken in
    hedged: bool = False


class Exchange:
    """One round of `batch` over the endpoints of `table`."""

    def __init__(self, peers: Peers, table: ReplicaTable, batch: Batch) -> None:
        self._peers = peers
        self._table = table
        self._batch = batch
        self._unverified: list[tuple[I64, Sums]] = []
        self._race = Race(peers, table, batch)
        self._interrupted = False  # the caller's thread was, and its connections are cut

    def run(self, places: I64, endpoints: I64) -> None:
        """Ask `endpoints[i]` for range `places[i]`, for all i; `batch` then tells what became of each."""
        self._batch.code[places] = Unavailable.code
        groups = [(endpoint, places[mine]) for endpoint, mine in plan_core.group_by(endpoints)]
        asked = [(endpoint, mine, int(self._batch.lengths[mine].sum())) for endpoint, mine in groups]
        for endpoint, _, size in asked:
            self._peers.add_load(self._table.endpoints[endpoint], size)
        try:
            near = self._near(places, endpoints)
            if near is None:
                self._ask(asked)
            else:
                self._read_here([one for one in asked if near[one[0]]], [one for one in asked if not near[one[0]]])
        finally:
            for endpoint, _, size in asked:
                self._peers.add_load(self._table.endpoints[endpoint], -size)

    def go_on(self, lane: Lane) -> None:
        """Take in what somebody else has asked for, as `run` does."""
        name = self._table.endpoints[lane.endpoint]
        self._batch.code[lane.places] = Unavailable.code
        self._peers.add_load(name, lane.bytes)
        try:
            self._take_all([lane], lane.bytes)
        finally:
            self._peers.add_load(name, -lane.bytes)

    def _near(self, places: I64, endpoints: I64) -> NDArray[np.bool_] | None:
        """The endpoints that some of this is read from without their help; None if it is better asked for."""
        if self._batch.kind != Kind.READ or not len(places):
            return None
        near = self._peers.same_host.near(self._table)
        if near is None:
            return None
        lengths = self._batch.lengths[places[near[endpoints]]]
        return near if len(lengths) and int(lengths.sum()) >= LOCAL_BYTES * len(lengths) else None

    def _read_here(self, near: list[_Asked], far: list[_Asked]) -> None:
        """`near` from the block files of this host while `far` is on its way; what is left of it from its daemons."""
        batch = self._batch
        with LocalReads(
            self._peers.same_host,
            self._peers.hedges,
            self._table,
            batch.ranges,
            batch.out,
            batch.out_offsets,
            batch.deadline_s,
            failed=functools.partial(self._peers.failed, self._table),
        ) as reads:
            for endpoint, places, _ in near:
                reads.begin(endpoint, places)
            if far:
                self._ask(far, meanwhile=reads.finish)
            else:
                reads.finish()
        for taken in reads.taken:
            batch.results[taken.places] = taken.results
            batch.code[taken.places] = 0
            if taken.results["status"].any():
                self._refused(taken.endpoint, taken.places, taken.results["status"])
        for endpoint, places in reads.silent:
            self._note(endpoint, places, Unavailable(f"{self._table.endpoints[endpoint]} did not answer in time"))
        for _, places in reads.late:
            batch.why[Unavailable.code] = "the daemons did not answer in time"
            batch.code[places] = Unavailable.code
        left = [(endpoint, places, int(batch.lengths[places].sum())) for endpoint, places in reads.left]
        if left:
            self._ask(left)

    def _ask(self, asked: list[_Asked], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Have the daemons send; `meanwhile` runs once they all have been asked."""
        lanes: list[Lane] = []

        def begin() -> None:
            for endpoint, mine, size in asked:
                lanes.extend(self._open(endpoint, mine, size))
            for lane in lanes:
                self._guard(lane, self._begin)
            meanwhile()

        self._take_all(lanes, sum(size for _, _, size in asked), begin)

    def _take_all(self, lanes: list[Lane], size: int, begin: Callable[[], None] = lambda: None) -> None:
        """Take in `size` bytes from `lanes`, which `begin` fills, and verify them."""
        try:
            begin()
            self._drain_all(lanes, size)
        finally:
            for lane in lanes:
                if lane.sent:
                    lane.connection.close()
                self._peers.give_back(lane.connection)
            self._race.ended()
        unverified, self._unverified = self._unverified, []
        self._verify(unverified)

    def _open(self, endpoint: int, places: I64, size: int) -> list[Lane]:
        """Connections to an endpoint, one unless there is much to receive, with the ranges shared out among them.

        Only the first is waited for: a call that held one connection and waited for another could wait for its like.
        """
        wanted = min(self._peers.max_lanes, len(places), size // LANE_BYTES)
        connections: list[Connection] = []
        try:
            deadline_s, patient = self._batch.deadline_s, self._batch.patient
            connections.append(self._peers.borrow(self._table, endpoint, deadline_s=deadline_s, patient=patient))
            while len(connections) < wanted:
                connections.append(
                    self._peers.borrow(self._table, endpoint, deadline_s=deadline_s, patient=patient, wait=False)
                )
        except Fs3Error as error:
            if not connections:
                self._note(endpoint, places, error)
                return []
        if len(connections) == 1:
            return [Lane(endpoint, places, size, connections[0])]
        parts = np.array_split(places, len(connections))
        return [
            Lane(endpoint, part, int(self._batch.lengths[part].sum()), one)
            for part, one in zip(parts, connections, strict=True)
        ]

    def _drain_all(self, lanes: list[Lane], size: int) -> None:
        if self._peers.max_lanes < 2 or len(lanes) < 2 or size < LANE_BYTES:
            for lane in lanes:
                self._guard(lane, self._drain)
            return
        threads = self._peers.lanes()
        running: list[Future[None]] = []
        try:
            for lane in lanes[1:]:
                try:
                    running.append(threads.submit(self._guard, lane, self._drain))
                except RuntimeError:  # the client was closed meanwhile: what has been asked for is taken in here
                    break
            for lane in (lanes[0], *lanes[1 + len(running) :]):
                self._guard(lane, self._drain)
            wait(running)
        except BaseException:
            self._interrupted = True
            for lane in lanes:
                lane.connection.interrupt()
            raise
        finally:
            wait(running)  # nobody writes into the caller's memory from here on
        for one in running:
            one.result()

    def _guard(self, lane: Lane, part: Callable[[Lane], None]) -> None:
        """Run a part of a lane; an error is noted for every range that it left unanswered."""
        try:
            part(lane)
        except Fs3Error as error:
            for places in [*lane.sent.values(), *lane.waiting]:
                self._note(lane.endpoint, places, error)
            lane.sent.clear()
            lane.waiting.clear()
            if lane.connection.outstanding:
                lane.connection.close()

    def _note(self, endpoint: int, places: I64, error: Fs3Error) -> None:
        self._batch.code[places] = error.code
        self._batch.why[error.code] = str(error)
        if isinstance(error, Unavailable) and not self._interrupted:
            self._peers.failed(self._table, endpoint)

    def _begin(self, lane: Lane) -> None:
        hello = lane.connection.hello_reply
        cuts = plan_core.frames(
            self._batch.lengths[lane.places], lane.bytes, max_count=hello.max_ranges, max_bytes=hello.max_body_bytes
        )
        lane.waiting.extend(lane.places[begin:end] for begin, end in cuts)
        for _ in range(min(IN_FLIGHT, len(lane.waiting))):
            self._send(lane)
        self._race.begun(lane)

    def _send(self, lane: Lane) -> None:
        batch, places = self._batch, lane.waiting[0]
        flags = Flag.CHECKSUM if batch.kind == Kind.READ and self._peers.verify else Flag.NONE
        head = batch.ranges[places].tobytes()
        request = lane.connection.send(batch.kind, [head], count=len(places), flags=flags, deadline_s=batch.deadline_s)
        lane.sent[request] = lane.waiting.popleft()

    def _drain(self, lane: Lane) -> None:
        while lane.sent:
            request, places = next(iter(lane.sent.items()))
            foreseen = self._foresee(places)
            if self._race.wait(lane, self._begin):
                continue
            connection = lane.connection
            header, head = connection.receive_head()
            connection.stall_s = self._race.silence_s(lane)
            places = lane.sent[header.request_id]
            sums_bytes = len(head) - len(places) * RESULT.itemsize
            if header.count != len(places) or sums_bytes < 0 or sums_bytes % SUM.itemsize:
                connection.close()
                raise Corrupt(f"{connection.endpoint} answered {header.count} of {len(places)} ranges")
            if header.request_id != request or not self._take_foreseen(connection, header, head, places, foreseen):
                self._take_in(connection, header, head, places)
            connection.stall_s = self._peers.stall_s
            del lane.sent[header.request_id]
            self._race.taken_in(lane)
            if lane.waiting:
                self._send(lane)

    def _foresee(self, places: I64) -> Foreseen | None:
        """What the reply will be like if nothing is amiss, worked out while the daemon works on it."""
        batch = self._batch
        if batch.kind != Kind.READ or not self._peers.verify:
            return None
        return verify_core.foresee(
            batch.ranges["offset"][places], batch.lengths[places], batch.out_offsets[places], batch.out
        )

    def _take_foreseen(
        self, connection: Connection, header: Header, head: memoryview, places: I64, foreseen: Foreseen | None
    ) -> bool:
        """Receive a reply that is as it was foreseen; False, and nothing is done, if it is not."""
        if foreseen is None or header.body_bytes != foreseen.bytes:
            return False
        batch, count = self._batch, len(places)
        results = np.frombuffer(head, dtype=RESULT, count=count)
        sums = np.frombuffer(head, dtype=SUM, offset=count * RESULT.itemsize)
        if len(sums) != count or results["status"].any() or (results["length"] != batch.lengths[places]).any():
            return False
        connection.receive_body(foreseen.runs)
        batch.results[places] = results
        status = np.zeros(count, dtype=np.uint16)
        _heed_trailer(connection, status)
        self._judge(places, places[foreseen.mismatches(sums)])
        if status.any():
            self._refused(connection.endpoint, places, status)
        return True

    def _take_in(self, connection: Connection, header: Header, head: memoryview, places: I64) -> None:
        """Receive one reply's body into place; sets results of `places`, and the codes of those without bytes."""
        batch, count = self._batch, len(places)
        bad: I64 | None = None  # not looked at yet
        results = np.frombuffer(head, dtype=RESULT, count=count)
        sums = np.frombuffer(head, dtype=SUM, offset=count * RESULT.itemsize).copy()
        batch.results[places] = results
        status = batch.results["status"][places]
        if batch.kind == Kind.QUERY:
            if header.body_bytes % LISTED.itemsize:
                connection.close()
                raise Corrupt(f"{connection.endpoint} listed chunks in {header.body_bytes} bytes")
            body = memoryview(bytearray(header.body_bytes))
            connection.receive_body([body])
            batch.listed = np.frombuffer(body, dtype=LISTED)
            batch.code[places] = 0
        else:
            lengths = results["length"].astype(np.int64)
            if not self._can_be(places, results, sums) or int(lengths.sum()) != header.body_bytes:
                connection.close()
                raise Corrupt(f"{connection.endpoint} sent other bytes than were asked for")
            if header.body_bytes >= LARGE_BYTES and self._peers.verify:
                bad = self._receive_verified(connection, places, sums)
            else:
                out = batch.out
                runs = plan_core.out_runs(batch.out_offsets[places], lengths)
                connection.receive_body([out[begin:end] for begin, end in runs])
        _heed_trailer(connection, status)
        if status.any():
            self._refused(connection.endpoint, places, status)
        if batch.kind == Kind.QUERY:
            return
        arrived = status == 0
        if not self._peers.verify:
            batch.code[places[arrived]] = 0
        elif bad is not None:
            self._judge(places[arrived], bad[~np.isin(bad, places[~arrived])])
        elif arrived.any():
            summed = np.repeat(arrived, batch.results["n_sums"][places]) if len(sums) else slice(0)
            self._unverified.append((places[arrived], sums[summed]))

    def _can_be(self, places: I64, results: Records, sums: Sums) -> bool:
        """Whether these may be the results of a READ of `places`: every range's bytes are some of those asked for, and
        of the chunk, and only one that has no status has any."""
        lengths: I64 = results["length"].astype(np.int64)
        most = results["chunk_length"].astype(np.int64) - self._batch.ranges["offset"][places]
        most[results["status"] != 0] = 0
        most = np.minimum(np.maximum(most, 0), self._batch.lengths[places])
        return bool((lengths <= most).all()) and (not len(sums) or int(results["n_sums"].sum()) == len(sums))

    def _receive_verified(self, connection: Connection, places: I64, sums: Sums) -> I64:
        """Receive a large reply in steps and verify each at once; the places whose bytes fail their sums."""
        memory = self._batch.out
        pieces = self._pieces(places)
        if len(pieces.begin) != len(sums):
            lengths = self._batch.results["length"][places].astype(np.int64)
            runs = plan_core.out_runs(self._batch.out_offsets[places], lengths)
            connection.receive_body([memory[begin:end] for begin, end in runs])
            return places
        bad: list[I64] = []
        for first, last in verify_core.steps(pieces.end - pieces.begin, STEP_BYTES):
            begin, end = pieces.begin[first:last], pieces.end[first:last]
            runs = plan_core.out_runs(begin, end - begin)
            connection.receive_body([memory[a:b] for a, b in runs], int((end - begin).sum()))
            failed = verify_core.mismatches(memory, begin, end, sums[first:last])
            if len(failed):
                bad.append(places[pieces.owner[first:last][failed]])
        return np.concatenate(bad) if bad else places[:0]

    def _refused(self, endpoint: str, places: I64, status: NDArray[np.uint16]) -> None:
        """Note the codes of ranges that have a status; that a chunk does not exist is an answer."""
        refused = status != 0
        self._batch.code[places[refused]] = np.where(status == NotFound.code, 0, status)[refused]
        for code in np.unique(status[refused]).tolist():
            name = type(from_code(code, "")).__name__
            self._batch.why.setdefault(code, f"{endpoint} answered {name}")

    def _verify(self, replies: list[tuple[I64, Sums]]) -> None:
        """Set the codes of ranges that have arrived: 0, or Corrupt if their bytes do not match their sums."""
        if not replies:
            return
        batch = self._batch
        places, sums = (
            replies[0] if len(replies) == 1 else (np.concatenate(part) for part in zip(*replies, strict=True))
        )
        pieces = self._pieces(places)
        if len(pieces.begin) == len(sums):
            bad = pieces.owner[verify_core.mismatches(batch.out, pieces.begin, pieces.end, sums)]
        elif len(replies) > 1:
            for reply in replies:
                self._verify([reply])
            return
        else:
            bad = np.arange(len(places))
        self._judge(places, places[bad])

    def _pieces(self, places: I64) -> Pieces:
        """What of the caller's memory each sum of these ranges covers, as their results say."""
        batch = self._batch
        results = batch.results[places]
        return verify_core.pieces_of(
            batch.ranges["offset"][places].astype(np.int64),
            results["length"].astype(np.int64),
            results["chunk_length"].astype(np.int64),
            batch.out_offsets[places],
        )

    def _judge(self, places: I64, bad: I64) -> None:
        """These ranges have arrived; the bytes of `bad` among them failed their sums."""
        batch = self._batch
        batch.code[places] = 0
        if len(bad):
            batch.code[bad] = Corrupt.code
            batch.why[Corrupt.code] = "the bytes sent failed their checksum"


def _heed_trailer(connection: Connection, status: NDArray[np.uint16]) -> None:
    """Note in the `status` of ranges [n] which one's bytes, says the trailer of their reply, could not be read after
    all. Raises: Corrupt."""
    trailer_status, record = connection.receive_trailer()
    if trailer_status:  # never that there is no such chunk, which would be an answer
        status[min(record, len(status) - 1)] = Corrupt.code if trailer_status == NotFound.code else trailer_status
