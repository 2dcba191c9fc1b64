"""Reading a batch of chunk ranges: one request per storage node, verified bytes straight into the caller's memory, and
failover inside the call.

    while ranges are left:
        choose a replica for each                            select_core
        send every endpoint its request, then receive from each in turn, into place; check every sum     verify_core
        what failed goes round again: another replica, the tail, a newer routing, a pause                retry_core

A call ends with every range answered, or raises; bytes that fail their sum are never reported as read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fs3.client.exchange import Batch, Exchange
from fs3.client.peers import SLACK_BYTES, Peers
from fs3.client.plan_core import I64
from fs3.client.read_one import Begun
from fs3.client.retry_core import Step, after_read
from fs3.client.same_host import LOCAL_BYTES
from fs3.client.select_core import NONE, ReplicaTable, choose, unserved
from fs3.errors import Corrupt, Fs3Error, StaleRouting, Unavailable, from_code
from fs3.ids import chunk_name
from fs3.transport.frame_core import Kind
from fs3.transport.messages import RESULT, Records


class RangeCorrupt(Corrupt):
    """No replica has the bytes of range number `place` of a call."""

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


class ReadCall:
    """One call's ranges [m] and how far they have come. Lives for the call, used by its thread (and its lanes')."""

    def __init__(
        self,
        peers: Peers,
        kind: Kind,
        ranges: Records,
        deadline_s: float,
        begun_s: float,
        *,
        out: memoryview | None = None,
        out_offsets: I64 | None = None,
    ) -> None:
        self._peers = peers
        self._begun_s = begun_s
        count = len(ranges)
        self.batch = Batch(
            kind,
            ranges,
            ranges["length"].astype(np.int64),
            deadline_s,
            memoryview(b"") if out is None else out,
            np.zeros(count, dtype=np.int64) if out_offsets is None else out_offsets,
            np.zeros(count, dtype=RESULT),
            np.zeros(count, dtype=np.uint16),
            np.full(count, NONE, dtype=np.int64),
        )
        self._large = kind == Kind.READ and int(self.batch.lengths.sum()) >= LOCAL_BYTES * count
        self._tried: dict[int, set[int]] = {}  # range -> targets not to ask again for now
        self._corrupt: dict[int, set[int]] = {}
        self._tail: set[int] = set()

    def run(self, begun: Begun | None = None) -> Records:
        """The results [m]: status 0 or NotFound. With `begun` the call's one range has been asked for.

        Raises:
            RangeCorrupt: no replica has the bytes of a range; names the chunk and the targets.
            Unavailable: a range was not answered before the deadline.
            Fs3Error: an answer that another try will not change.
        """
        try:
            self._run(begun)
        finally:
            if self._corrupt:
                self._report()
        return self.batch.results

    def _run(self, begun: Begun | None) -> None:
        todo: I64 = np.arange(len(self.batch.ranges), dtype=np.int64)
        attempt = 0
        while len(todo):
            step, version = self._attempt(todo) if begun is None else self._go_on(begun)
            begun = None
            todo = todo[self.batch.code[todo] != 0]
            if not len(todo):
                break
            if self._peers.runtime.now_s() >= self.batch.deadline_s:
                raise self._give_up(int(todo[0]))
            if step is Step.REFRESH:
                self._peers.refresh(version, attempt, self.batch.deadline_s)
            elif step is Step.PAUSE:
                self._peers.pause(attempt, self.batch.deadline_s)
            attempt += 1
            self.batch.patient = attempt > 1

    def _report(self) -> None:
        """Tell the daemons which chunks came damaged, or were said to be; they look for themselves."""
        for place, targets in self._corrupt.items():
            chunk = self.batch.ranges[["hi", "lo", "chain"]][place]
            for target in sorted(targets):
                self._peers.report(target, *chunk.tolist())

    def _attempt(self, todo: I64) -> tuple[Step, int]:
        """Ask for `todo` once; what to do before the next attempt, and the version of the routing used."""
        table = self._peers.table()
        self.batch.code[todo] = Unavailable.code
        try:
            rows = table.rows(self.batch.ranges["chain"][todo])
        except StaleRouting as error:
            self.batch.why[Unavailable.code] = str(error)
            return Step.REFRESH, table.version
        columns = self._columns(table, todo, rows)
        reachable = columns != NONE
        if not reachable.all():
            chain = int(self.batch.ranges["chain"][todo[int(np.argmin(reachable))]])
            self.batch.why.setdefault(Unavailable.code, unserved(self._peers.mgmtd.routing, chain))
            for place in todo[~reachable].tolist():
                self._tried.pop(place, None)
        asked, rows, columns = todo[reachable], rows[reachable], columns[reachable]
        if len(asked):
            self.batch.ranges["chain_version"][asked] = table.chain_version[rows]
            self.batch.targets[asked] = table.target[rows, columns]
            Exchange(self._peers, table, self.batch).run(asked, table.endpoint[rows, columns])
        step = Step.REFRESH if len(asked) < len(todo) else Step.OTHER
        return self._judge_all(asked, table, step), table.version

    def _go_on(self, begun: Begun) -> tuple[Step, int]:
        """As `_attempt`, where that was begun by somebody else (read_one.py)."""
        table, lane = begun.table, begun.lane
        rows = table.rows(self.batch.ranges["chain"][lane.places])
        columns = (table.endpoint[rows] == lane.endpoint).argmax(axis=1)
        self.batch.ranges["chain_version"][lane.places] = table.chain_version[rows]
        self.batch.targets[lane.places] = table.target[rows, columns]
        Exchange(self._peers, table, self.batch).go_on(lane)
        return self._judge_all(lane.places, table, Step.OTHER), table.version

    def _judge_all(self, asked: I64, table: ReplicaTable, step: Step) -> Step:
        """What to do before the next attempt, for the sake of those of `asked` that failed."""
        for place in asked[self.batch.code[asked] != 0].tolist():
            step = self._judge(place, table, step)
        return step

    def _columns(self, table: ReplicaTable, todo: I64, rows: I64) -> I64:
        candidates = table.endpoint[rows]
        usable = candidates != NONE
        if not usable.any():
            return np.full(len(todo), NONE, dtype=np.int64)  # perhaps there is no endpoint at all
        if self._tried or self._tail:
            for index, place in enumerate(todo.tolist()):
                if place in self._tried:
                    usable[index] &= ~np.isin(table.target[rows[index]], list(self._tried[place]))
                if place in self._tail and usable[index].any():
                    usable[index, : np.flatnonzero(usable[index])[-1]] = False
        avoided = self._peers.avoided(table)
        if avoided is not None:
            usable = _rather(usable, ~avoided[candidates])
        if self._large:
            near = self._peers.same_host.near(table)
            if near is not None:
                usable = _rather(usable, near[candidates])
        return choose(
            candidates,
            usable,
            self.batch.lengths[todo],
            self._peers.loads(table),
            slack=SLACK_BYTES,
            rotation=self._peers.rotation(),
            groups=rows,
        )

    def _judge(self, place: int, table: ReplicaTable, step: Step) -> Step:
        """Note what a failed range needs; the more patient of that and `step`. Raises: what cannot be retried."""
        code, target = int(self.batch.code[place]), int(self.batch.targets[place])
        wanted = after_read(code)
        if wanted is Step.FAIL:
            raise from_code(code, f"{self._name(place)}: {self.batch.why.get(code, 'refused')}")
        if wanted is Step.OTHER:
            tried = self._tried.setdefault(place, set())
            tried.add(target)
            if code == Corrupt.code:
                self._corrupt.setdefault(place, set()).add(target)
            row = int(table.rows(self.batch.ranges["chain"][place : place + 1])[0])
            serving = {int(other) for other in table.target[row] if other != NONE}
            if serving <= self._corrupt.get(place, set()):
                names = ", ".join(str(other) for other in sorted(serving))
                raise RangeCorrupt(
                    f"{self._name(place)} failed its checksum on every serving target ({names}) of chain"
                    f" {int(self.batch.ranges['chain'][place])}; restore it from its source",
                    place,
                )
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
        code = int(self.batch.code[place])
        waited_s = self._peers.runtime.now_s() - self._begun_s
        return Unavailable(
            f"{self._name(place)} was not read within {waited_s:.1f} s: {self.batch.why.get(code, 'no answer')}"
        )

    def _name(self, place: int) -> str:
        return chunk_name(int(self.batch.ranges["hi"][place]), int(self.batch.ranges["lo"][place]))


def _rather(usable: NDArray[np.bool_], better: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`usable` [m, r] without those that are not `better`, where any is."""
    best = usable & better
    return np.where(best.any(axis=1, keepdims=True), best, usable)
