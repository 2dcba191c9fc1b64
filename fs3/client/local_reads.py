"""Reading from the block files of daemons on this host: the daemon says where (LOCATE), the client reads.

    borrow a connection over the daemon's Unix socket; LOCATE: places, sums, and descriptors of files it has none of yet
    preadv into the caller's memory, the rest of cut 4 KiB blocks beside it; verify every block not verified before
    acknowledge, with the next request or alone: until then the daemon keeps the blocks

Nothing fails here: what is not read, or does not match, for whatever reason, is left to be asked for by READ, which
then says what is wrong. Why bytes that are not summed again are right all the same: `BlockRead.bytes`. A daemon that is
late is given up for another replica as READs are (hedges.py); its answer is of no use any more when it comes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import FINE_BYTES
from fs3.client import plan_core
from fs3.client.block_read import BlockRead
from fs3.client.hedges import Hedges
from fs3.client.kept_places import are_counters
from fs3.client.plan_core import I64
from fs3.client.same_host import OFF_S, SameHost
from fs3.client.select_core import ReplicaTable
from fs3.errors import Corrupt, Fs3Error, Unavailable
from fs3.transport.change_counters import NOT_KEPT
from fs3.transport.connection import Connection
from fs3.transport.descriptors import close_all
from fs3.transport.frame_core import Flag, Kind
from fs3.transport.local import LocalConnection
from fs3.transport.messages import FILE_KEY, PLACE, RESULT, SUM, Records

FRAME_BYTES = 64 << 20
FRAME_RANGES = 1_024
IN_FLIGHT = 2


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
        self,
        here: SameHost,
        hedges: Hedges,
        table: ReplicaTable,
        ranges: Records,
        out: memoryview,
        out_offsets: I64,
        deadline_s: float,
        *,
        failed: Callable[[int], None],
    ) -> None:
        """`failed(endpoint)` hears of late daemons that never answer."""
        self._here = here
        self._hedges = hedges
        self._failed = failed
        self._table = table
        self._ranges = ranges
        self._out = out
        self._out_offsets = out_offsets
        self._deadline_s = deadline_s
        self._lanes: list[_Lane] = []
        self._edges = (memoryview(bytearray(FINE_BYTES)), memoryview(bytearray(FINE_BYTES)))
        self.left: list[tuple[int, I64]] = []  # (endpoint, places) that were not read, and are to be asked for by READ
        self.silent: list[tuple[int, I64]] = []  # ... of daemons that did not answer in time
        self.late: list[tuple[int, I64]] = []  # ... that may yet answer, but others are asked
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
        socket, node = self._here.socket(self._table, endpoint), self._table.nodes[endpoint]
        try:
            connection = self._here.borrow(socket, int(node.node_id), deadline_s=self._deadline_s)
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
        self._hedges.asked()

    def finish(self) -> None:
        """Read what was asked for; `taken`, `left` and `silent` then tell what became of it."""
        for lane in list(self._lanes):
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
            if self._is_late(lane):
                return
            header, head = connection.receive_head()
            places = lane.sent[header.request_id]
            self._take(lane, head, places)
            del lane.sent[header.request_id]
            lane.begun_s = self._here.now_s()
            if lane.waiting:
                self._send(lane)  # and acknowledges what has just been read

    def _is_late(self, lane: _Lane) -> bool:
        """Wait for the next reply of a lane; True: it is late, and the lane has been given up for other replicas.

        Raises: Unavailable: nothing came for as long as a daemon may be silent.
        """
        hedges, connection, now_s = self._hedges, lane.connection, self._here.now_s
        if not hedges.enabled:
            return False
        end_s = min(self._deadline_s, lane.begun_s + self._here.stall_s)
        due_s = lane.begun_s + hedges.after_s(connection.endpoint, 0)
        while connection.wait(min(due_s, end_s)) is None:
            if now_s() >= end_s:
                connection.close()
                raise Unavailable(f"{connection.endpoint} did not answer in time")
            places = np.concatenate([*lane.sent.values(), *lane.waiting])
            if self._others_have(places) and hedges.spend():
                self._let_go(lane, places)
                return True
            due_s = now_s() + hedges.after_s(connection.endpoint, 0)
        hedges.replied(connection.endpoint, 0, now_s() - lane.begun_s)
        return False

    def _others_have(self, places: I64) -> bool:
        table = self._table
        return bool((table.serving[table.rows(self._ranges["chain"][places])] > 1).all())

    def _let_go(self, lane: _Lane, places: I64) -> None:
        here, failed, endpoint = self._here, self._failed, lane.endpoint  # and not this, which has the caller's memory

        def give_back(connection: Connection) -> None:
            connection.close()  # the descriptors that came with the answer were not taken in
            here.give_back(connection)

        self._lanes.remove(lane)
        self.late.append((endpoint, places))
        self._hedges.let_go(
            lane.connection,
            0,
            lane.begun_s,
            lost=lambda: failed(endpoint),
            endpoint=self._table.endpoints[endpoint],
            give_back=give_back,
        )

    def _take(self, lane: _Lane, head: memoryview, places: I64) -> None:
        connection = lane.connection
        results, sums, where, keys = parsed(head, len(places), connection.endpoint)
        fresh = connection.fresh()
        if len(fresh) != len(keys):
            close_all(fresh)  # this process may have no more open: the others do not go to waste
            connection.close()
            raise Unavailable(f"{connection.endpoint} sent {len(fresh)} of {len(keys)} descriptors")
        run = (connection.endpoint, connection.hello_reply.generation)
        for key, fd in zip(keys.tolist(), fresh, strict=True):
            if are_counters(key):
                self._here.counters(run, key, fd)
                os.close(fd)
            else:
                connection.files[key] = fd
        unread = np.ones(len(places), dtype=np.bool_)
        reads = self._reads(connection, places, results, sums, where)
        skipped = [row for row, read in reads.items() if self._here.read_trusted(read)]
        others = sorted(reads.keys() - set(skipped))
        for row in others:
            reads[row].foresee()
        for row in [*skipped, *(row for row in others if self._here.read(reads[row]))]:
            read = reads[row]
            unread[row] = False
            file, state, position = where[row].item()
            if state != NOT_KEPT:
                hi, lo, _, _, chain, _ = self._ranges[places[row]].item()
                self._here.keep(run, (hi, lo, chain), read, state, file, position)
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
