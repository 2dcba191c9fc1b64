"""Reading a batch of chunk ranges: one request per storage node, verified bytes straight into the caller's memory, and
failover inside the call.

    while ranges are left:
        choose a replica for each                            select_core
        send every endpoint its request, then receive from each in turn, into place; check every sum     verify_core
        what failed goes round again: another replica, the tail, a newer routing, a pause                retry_core

A call ends with every range answered, or raises; bytes that fail their sum are never reported as read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fs3.client import plan_core, verify_core
from fs3.client.peers import SLACK_BYTES, Peers
from fs3.client.plan_core import I64
from fs3.client.retry_core import Step, after_read
from fs3.client.select_core import NONE, ReplicaTable, choose
from fs3.clock import lease_now_s
from fs3.errors import Corrupt, Fs3Error, NotFound, StaleRouting, Unavailable, from_code
from fs3.ids import chunk_name
from fs3.transport.connection import Connection
from fs3.transport.frame_core import Flag, Header, Kind
from fs3.transport.messages import LISTED, RESULT, SUM, Records

IN_FLIGHT = 2  # requests sent ahead on one connection
LANE_BYTES = 8 << 20  # a node that owes more than this sends over several connections
MAX_LANES = 4


@dataclass(slots=True)
class _Lane:
    """What one connection is asked in one attempt: `places` index the call's ranges, in frames still to be sent."""

    endpoint: int
    places: I64
    connection: Connection
    waiting: deque[I64] = field(default_factory=deque)
    sent: dict[int, I64] = field(default_factory=dict)


class ReadCall:
    """One call's ranges [m] and how far they have come. Lives for the call, used by its thread (and its lanes')."""

    def __init__(self, peers: Peers, kind: Kind, ranges: Records, deadline_s: float, begun_s: float) -> None:
        self._peers = peers
        self._kind = kind
        self._ranges = ranges
        self._deadline_s = deadline_s
        self._begun_s = begun_s
        self._lengths: I64 = ranges["length"].astype(np.int64)
        self._out = memoryview(b"")
        self._out_offsets: I64 = np.zeros(0, dtype=np.int64)
        self.listed: Records = np.zeros(0, dtype=LISTED)  # what a QUERY for the chunks of a file was answered
        self.results: Records = np.zeros(len(ranges), dtype=RESULT)
        self._code: NDArray[np.uint16] = np.zeros(len(ranges), dtype=np.uint16)
        self._asked: I64 = np.full(len(ranges), NONE, dtype=np.int64)  # the target asked last
        self._why: dict[int, str] = {}  # error code -> the last message that came with it
        self._tried: dict[int, set[int]] = {}  # range -> targets not to ask again for now
        self._corrupt: dict[int, set[int]] = {}
        self._tail: set[int] = set()

    def into(self, out: memoryview, out_offsets: I64) -> None:
        """Where the bytes of a READ go."""
        self._out, self._out_offsets = out, out_offsets

    def run(self) -> Records:
        """The results [m]: status 0 or NotFound.

        Raises:
            Corrupt: no replica has the bytes of a range; names the chunk and the targets.
            Unavailable: a range was not answered before the deadline.
            Fs3Error: an answer that another try will not change.
        """
        todo: I64 = np.arange(len(self._ranges), dtype=np.int64)
        attempt = 0
        while len(todo):
            step, version = self._attempt(todo)
            todo = todo[self._code[todo] != 0]
            if not len(todo):
                break
            if lease_now_s() >= self._deadline_s:
                raise self._give_up(int(todo[0]))
            if step is Step.REFRESH:
                self._peers.refresh(version, attempt, self._deadline_s)
            elif step is Step.PAUSE:
                self._peers.pause(attempt, self._deadline_s)
            attempt += 1
        return self.results

    def _attempt(self, todo: I64) -> tuple[Step, int]:
        """Ask for `todo` once; what to do before the next attempt, and the version of the routing used."""
        table = self._peers.table()
        self._code[todo] = Unavailable.code
        try:
            rows = table.rows(self._ranges["chain"][todo])
        except StaleRouting as error:
            self._why[Unavailable.code] = str(error)
            return Step.REFRESH, table.version
        columns = self._columns(table, todo, rows)
        reachable = columns != NONE
        if not reachable.all():
            chain = int(self._ranges["chain"][todo[int(np.argmin(reachable))]])
            self._why.setdefault(Unavailable.code, f"chain {chain} has no serving target that answers")
            for place in todo[~reachable].tolist():
                self._tried.pop(place, None)
        asked, rows, columns = todo[reachable], rows[reachable], columns[reachable]
        if len(asked):
            self._ranges["chain_version"][asked] = table.chain_version[rows]
            self._asked[asked] = table.target[rows, columns]
            self._exchange(table, asked, table.endpoint[rows, columns])
        step = Step.REFRESH if len(asked) < len(todo) else Step.OTHER
        for place in asked[self._code[asked] != 0].tolist():
            step = self._judge(place, table, step)
        return step, table.version

    def _columns(self, table: ReplicaTable, todo: I64, rows: I64) -> I64:
        candidates = table.endpoint[rows]
        usable = candidates != NONE
        if self._tried or self._tail:
            for index, place in enumerate(todo.tolist()):
                if place in self._tried:
                    usable[index] &= ~np.isin(table.target[rows[index]], list(self._tried[place]))
                if place in self._tail and usable[index].any():
                    usable[index, : np.flatnonzero(usable[index])[-1]] = False
        avoided = self._peers.avoided(table)
        if avoided is not None:
            better = usable & ~avoided[candidates]
            usable = np.where(better.any(axis=1, keepdims=True), better, usable)
        return choose(
            candidates,
            usable,
            self._lengths[todo],
            self._peers.loads(table),
            slack=SLACK_BYTES,
            rotation=self._peers.rotation(),
            groups=rows,
        )

    def _judge(self, place: int, table: ReplicaTable, step: Step) -> Step:
        """Note what a failed range needs; the more patient of that and `step`. Raises: what cannot be retried."""
        code, target = int(self._code[place]), int(self._asked[place])
        wanted = after_read(code)
        if wanted is Step.FAIL:
            raise from_code(code, f"{self._name(place)}: {self._why.get(code, 'refused')}")
        if wanted is Step.OTHER:
            tried = self._tried.setdefault(place, set())
            tried.add(target)
            if code == Corrupt.code:
                self._corrupt.setdefault(place, set()).add(target)
            row = int(table.rows(self._ranges["chain"][place : place + 1])[0])
            serving = {int(other) for other in table.target[row] if other != NONE}
            if serving <= self._corrupt.get(place, set()):
                names = ", ".join(str(other) for other in sorted(serving))
                raise Corrupt(f"{self._name(place)} failed its checksum on every serving target ({names})")
            if serving <= tried:
                self._tried[place] = set(self._corrupt.get(place, ()))
                return Step.REFRESH
            return step
        if wanted is Step.TAIL:
            again = place in self._tail
            self._tail.add(place)
            return Step.PAUSE if again and step is Step.OTHER else step
        return wanted if step is not Step.REFRESH else step

    def _give_up(self, place: int) -> Fs3Error:
        code = int(self._code[place])
        waited_s = lease_now_s() - self._begun_s
        return Unavailable(
            f"{self._name(place)} was not read within {waited_s:.1f} s: {self._why.get(code, 'no answer')}"
        )

    def _name(self, place: int) -> str:
        return chunk_name(int(self._ranges["hi"][place]), int(self._ranges["lo"][place]))

    def _exchange(self, table: ReplicaTable, places: I64, endpoints: I64) -> None:
        """Ask each endpoint for its ranges and take in what comes; sets `_code` of all of them."""
        lanes: list[_Lane] = []
        asked = [(endpoint, places[mine]) for endpoint, mine in plan_core.group_by(endpoints)]
        for endpoint, mine in asked:
            self._peers.add_load(table.endpoints[endpoint], int(self._lengths[mine].sum()))
        try:
            for endpoint, mine in asked:
                lanes += self._open_lanes(table, endpoint, mine)
            for lane in lanes:
                self._guard(table, lane, self._begin)
            self._drain_all(table, lanes)
        finally:
            for lane in lanes:
                if lane.sent:
                    lane.connection.close()
                self._peers.give_back(lane.connection)
            for endpoint, mine in asked:
                self._peers.add_load(table.endpoints[endpoint], -int(self._lengths[mine].sum()))

    def _open_lanes(self, table: ReplicaTable, endpoint: int, places: I64) -> list[_Lane]:
        """Connections to an endpoint, one unless there is much to receive, with the ranges shared out among them.

        Only the first is waited for: a call that held one connection and waited for another could wait for its like.
        """
        wanted = max(1, min(MAX_LANES, len(places), int(self._lengths[places].sum()) // LANE_BYTES))
        connections: list[Connection] = []
        try:
            connections.append(self._peers.borrow(table, endpoint, deadline_s=self._deadline_s))
            while len(connections) < wanted:
                connections.append(self._peers.borrow(table, endpoint, deadline_s=self._deadline_s, wait=False))
        except Fs3Error as error:
            if not connections:
                self._note(table, endpoint, places, error)
                return []
        parts = np.array_split(places, len(connections))
        return [_Lane(endpoint, part, one) for part, one in zip(parts, connections, strict=True)]

    def _drain_all(self, table: ReplicaTable, lanes: list[_Lane]) -> None:
        large = sum(int(self._lengths[lane.places].sum()) for lane in lanes) >= LANE_BYTES
        if len(lanes) < 2 or not large:
            for lane in lanes:
                self._guard(table, lane, self._drain)
            return
        threads = self._peers.lanes()
        running = [threads.submit(self._guard, table, lane, self._drain) for lane in lanes[1:]]
        try:
            self._guard(table, lanes[0], self._drain)
        finally:
            wait(running)
        for one in running:
            one.result()

    def _guard(self, table: ReplicaTable, lane: _Lane, part: Callable[[_Lane], None]) -> None:
        """Run a part of a lane; an error is noted for every range that it left unanswered."""
        try:
            part(lane)
        except Fs3Error as error:
            for places in [*lane.sent.values(), *lane.waiting]:
                self._note(table, lane.endpoint, places, error)
            lane.sent.clear()
            lane.waiting.clear()
            if lane.connection.outstanding:
                lane.connection.close()

    def _note(self, table: ReplicaTable, endpoint: int, places: I64, error: Fs3Error) -> None:
        self._code[places] = error.code
        self._why[error.code] = str(error)
        if isinstance(error, Unavailable):
            self._peers.failed(table, endpoint)

    def _begin(self, lane: _Lane) -> None:
        hello = lane.connection.hello_reply
        cuts = plan_core.frames(
            self._lengths[lane.places], max_count=hello.max_ranges or 1, max_bytes=hello.max_body_bytes
        )
        lane.waiting.extend(lane.places[begin:end] for begin, end in cuts)
        for _ in range(min(IN_FLIGHT, len(lane.waiting))):
            self._send(lane)

    def _send(self, lane: _Lane) -> None:
        places = lane.waiting[0]
        flags = Flag.CHECKSUM if self._kind == Kind.READ else Flag.NONE
        request = lane.connection.send(
            self._kind,
            [self._ranges[places].tobytes()],
            count=len(places),
            flags=flags,
            deadline_s=self._deadline_s,
        )
        lane.sent[request] = lane.waiting.popleft()

    def _drain(self, lane: _Lane) -> None:
        connection = lane.connection
        while lane.sent:
            header, head = connection.receive_head()
            places = lane.sent[header.request_id]
            if header.count != len(places):
                connection.close()
                raise Corrupt(f"{connection.endpoint} answered {header.count} of {len(places)} ranges")
            self._take_in(connection, header, head, places)
            del lane.sent[header.request_id]
            if lane.waiting:
                self._send(lane)

    def _take_in(self, connection: Connection, header: Header, head: memoryview, places: I64) -> None:
        """Receive one reply's body into place and check it; sets results and codes of `places`."""
        count = len(places)
        results = np.frombuffer(head, dtype=RESULT, count=count).copy()
        sums = np.frombuffer(head, dtype=SUM, offset=count * RESULT.itemsize).copy()
        lengths: I64 = results["length"].astype(np.int64)
        if self._kind == Kind.QUERY:
            body = memoryview(bytearray(header.body_bytes))
            connection.receive_body([body])
            self.listed = np.frombuffer(body, dtype=LISTED)
            bad = np.zeros(count, dtype=np.bool_)
        else:
            if (lengths > self._lengths[places]).any() or int(lengths.sum()) != header.body_bytes:
                connection.close()
                raise Corrupt(f"{connection.endpoint} sent other bytes than were asked for")
            starts = self._out_offsets[places]
            connection.receive_body([self._out[a:b] for a, b in plan_core.out_runs(starts, lengths)])
            bad = self._unverified(places, lengths, results["chunk_length"].astype(np.int64), sums)
        codes = results["status"].copy()
        codes[codes == NotFound.code] = 0
        if bad.any():
            self._why[Corrupt.code] = f"{connection.endpoint} sent bytes that fail their checksum"
            codes[bad & (codes == 0)] = Corrupt.code
        status, record = connection.receive_trailer()
        if status and record < count:
            codes[record] = status
        for code in np.unique(codes[codes != 0]).tolist():
            self._why.setdefault(code, f"{connection.endpoint} answered {from_code(code, '').__class__.__name__}")
        self.results[places] = results
        self._code[places] = codes

    def _unverified(self, places: I64, lengths: I64, chunk_lengths: I64, sums: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which of a reply's ranges have bytes that do not match their sums: [places]."""
        offsets: I64 = self._ranges["offset"][places].astype(np.int64)
        if ((offsets + lengths > chunk_lengths) & (lengths > 0)).any():
            return np.ones(len(places), dtype=np.bool_)
        cuts = verify_core.cuts(offsets, lengths, chunk_lengths)
        if len(cuts.begin) != len(sums):
            return np.ones(len(places), dtype=np.bool_)
        if (cuts.count == 1).all():
            shift = self._out_offsets[places] - offsets
            return _flags(len(places), verify_core.mismatches(self._out, cuts.begin + shift, cuts.end + shift, sums))
        owner = np.repeat(np.arange(len(places)), cuts.count)
        shift = (self._out_offsets[places] - offsets)[owner]
        wrong = verify_core.mismatches(self._out, cuts.begin + shift, cuts.end + shift, sums)
        return _flags(len(places), owner[wrong])


def _flags(count: int, places: I64) -> NDArray[np.bool_]:
    flags = np.zeros(count, dtype=np.bool_)
    flags[places] = True
    return flags
