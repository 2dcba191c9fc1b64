"""Reads of the tasks of one event loop, gathered into batches; `coalesce.AsyncReader` says why.

    read        a task's range is queued, and the end of this turn of the loop awaited
    send        all that waits: planned in numpy, a replica chosen for each, a frame to each endpoint
    answered    a frame's sums are verified at once, then each task gets its bytes; those ask for more, and so on

Turns go in step: as long as some of the last one's reads are unanswered the next gathers, up to a millisecond. A frame
costs a daemon as much as a hundred 4 KiB ranges, so few full ones serve more reads, and each of them sooner, than many
that overtake each other: from three daemons on two cores 1.4 times as many.

What cannot go this way is left to a thread.
"""

from __future__ import annotations

import asyncio
import operator
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from fs3.client import plan_core
from fs3.client.file import FileClient, OpenFile, file_table
from fs3.client.loop_lanes import Frame, LoopLanes
from fs3.client.peers import SLACK_BYTES
from fs3.client.plan_core import I64, FileTable
from fs3.client.reply_core import Found
from fs3.client.select_core import NONE, choose
from fs3.errors import Busy, Fs3Error, Invalid, Unavailable
from fs3.transport.messages import Records

RANGES_AT_ONCE = 1_024
SMALL_BYTES = 8 << 10  # a longer range is received straight into its place, by a thread
GATHER_S = 0.001
_MANY = 128  # reads that are worth a frame of their own, whatever is under way


@dataclass(slots=True)
class _Tag:
    """The reads [n] that a frame is for, and the targets that it asks."""

    asked: Sequence[Asked]
    targets: I64
    under_way: bool = False


Asked = tuple[OpenFile, int, int, "asyncio.Future[bytes]"]
"""A read that a task awaits: file, offset, length."""


class LoopReads:
    """What goes on in one loop, whose thread alone may call this; after `close` nothing is asked."""

    def __init__(self, files: FileClient, loop: asyncio.AbstractEventLoop, *, batches: int, max_waiting: int) -> None:
        self.loop = loop
        self._files = files
        self._peers = files.storage.peers
        self._batches = batches
        self._max_waiting = max_waiting
        self._waiting: deque[Asked] = deque()
        self._blocking: deque[Asked] = deque()  # to be read by a thread
        self._known: tuple[dict[int, OpenFile], FileTable] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._lanes = LoopLanes(self._peers, loop, self._threads, self._answered)
        self._turn_ends = False
        self._gathering = False
        self._under_way = 0  # reads
        self._running = 0  # batches in threads
        self._closed = False

    def ask(self, handle: OpenFile, offset: int, length: int) -> asyncio.Future[bytes]:
        """Read a range with this turn's others. Raises: Busy, Invalid."""
        if type(offset) is not int or type(length) is not int:
            offset, length = _whole(offset, "offset"), _whole(length, "length")
        if not isinstance(handle, OpenFile):
            raise Invalid(f"a file of type {type(handle).__name__}: read what `open_read` or `open_many` gave")
        if len(self._waiting) + len(self._blocking) + self._under_way >= self._max_waiting:
            raise Busy(f"{self._max_waiting} reads are unanswered; ask for fewer at once")
        answer = self.loop.create_future()
        self._waiting.append((handle, offset, length, answer))
        if not self._turn_ends:
            self._turn_ends = True
            self.loop.call_soon(self._turn)
        return answer

    def close(self, *, forked: bool = False) -> None:
        """Close the connections and end the threads; what is unanswered, and not with a thread by now, is Unavailable.
        `forked`: all that is a parent process's."""
        self._closed = True
        self._lanes.close(forked=forked)
        if not forked and not self.loop.is_closed():
            for asked in _awaited([*self._waiting, *self._blocking]):
                asked[3].set_exception(Unavailable("the AsyncReader was closed"))
        if self._pool is not None and not forked:
            self._pool.shutdown(wait=False)

    # -- turns

    def _turn(self) -> None:
        """Send what waits, unless what is under way will soon be answered and there will be more to send together."""
        self._turn_ends = False
        if self._closed:
            return
        while self._waiting and (not self._under_way or len(self._waiting) >= max(self._under_way, _MANY)):
            self._send(self._take())
        if self._waiting and not self._gathering:
            self._gathering = True
            self.loop.call_later(GATHER_S, self._gathered)
        self._run_blocking()

    def _gathered(self) -> None:
        """Wait no longer for what is under way."""
        self._gathering = False
        if self._closed:
            return
        self._send(self._take())
        self._run_blocking()

    def _take(self) -> list[Asked]:
        """As many reads as are sent together, less those that nobody waits for any more."""
        waiting = self._waiting
        if len(waiting) <= RANGES_AT_ONCE:
            batch = list(waiting)
            waiting.clear()
        else:
            batch = [waiting.popleft() for _ in range(RANGES_AT_ONCE)]
        return _awaited(batch)

    def _send(self, batch: list[Asked]) -> None:
        if not batch:
            return
        try:
            table = self._peers.table()
            asked, ranges, lengths = self._plan(batch)
            rows = table.rows(ranges["chain"])
        except Fs3Error:
            self._blocking.extend(batch)
            return
        if not asked:
            return
        candidates = table.endpoint[rows]
        usable = candidates != NONE
        avoided = self._peers.avoided(table)
        if avoided is not None:
            usable &= ~avoided[candidates]
        if not usable.any(axis=1).all():
            self._blocking.extend(asked)
            return
        load, rotation = self._peers.loads(table), self._peers.rotation()
        columns = choose(candidates, usable, lengths, load, slack=SLACK_BYTES, rotation=rotation, groups=rows)
        ranges["chain_version"] = table.chain_version[rows]
        each = np.arange(len(rows))
        endpoints, targets = candidates[each, columns], table.target[rows, columns]
        deadline_s = self._files.storage.deadline_s()
        for endpoint, mine in plan_core.group_by(endpoints):
            if len(mine) == len(asked):
                frame = Frame(table, endpoint, ranges, int(lengths.sum()), deadline_s, _Tag(asked, targets))
            else:
                tag = _Tag([asked[place] for place in mine.tolist()], targets[mine])
                frame = Frame(table, endpoint, ranges[mine], int(lengths[mine].sum()), deadline_s, tag)
            self._ask(frame)

    def _ask(self, frame: Frame) -> None:
        asked = frame.tag.asked
        if self._lanes.ask(frame):
            frame.tag.under_way = True
            self._under_way += len(asked)
        else:
            self._blocking.extend(asked)

    def _plan(self, batch: list[Asked]) -> tuple[list[Asked], Records, I64]:
        """Those reads [n] that are small and lie within their files and in one chunk each, as ranges [n], and their
        lengths [n]; the others are left to the threads.

        Raises: Invalid: a number is too large for an array.
        """
        handles, offsets, lengths, _ = zip(*batch, strict=True)
        files, index = self._table_of(handles)
        count = len(batch)
        offset, length = plan_core.column(offsets, count, "offsets"), plan_core.column(lengths, count, "lengths")
        size = files.chunk_bytes[index]
        chunk = offset // size
        within = offset - chunk * size
        well = (length > 0) & (length <= SMALL_BYTES) & (within + length <= size)
        well &= (offset >= 0) & (offset <= files.length[index] - length)
        if not well.all():
            self._blocking.extend(batch[place] for place in np.flatnonzero(~well).tolist())
            batch = [batch[place] for place in np.flatnonzero(well).tolist()]
            index, chunk, within, length = index[well], chunk[well], within[well], length[well]
        return batch, plan_core.chunk_ranges(files, index, chunk, within, length), length

    def _table_of(self, handles: Sequence[OpenFile]) -> tuple[FileTable, I64]:
        """The files of reads [n] as arrays, and which of them each is: [n]. The last turn's table if they are its."""
        distinct = {id(handle): handle for handle in handles}
        known = self._known
        if known is None or known[0].keys() != distinct.keys():
            known = self._known = distinct, file_table(list(distinct.values()))
        if len(distinct) == 1:
            return known[1], np.zeros(len(handles), dtype=np.int64)
        place = {number: index for index, number in enumerate(known[0])}
        return known[1], np.array([place[id(handle)] for handle in handles], dtype=np.int64)

    def _answered(self, frame: Frame, found: Found | None) -> None:
        """See `LoopLanes`."""
        tag: _Tag = frame.tag
        if tag.under_way:
            tag.under_way = False
            self._under_way -= len(tag.asked)
        if found is None:
            self._blocking.extend(tag.asked)
        else:
            for asked, data in zip(tag.asked, found.data, strict=True):
                if data is not None and not asked[3].done():
                    asked[3].set_result(data)
                elif data is None and not frame.hedged:
                    self._blocking.append(asked)
            for place in found.corrupt:
                hi, lo, chain = frame.ranges[["hi", "lo", "chain"]][place].tolist()
                self._peers.report(int(tag.targets[place]), hi, lo, chain)
        if not self._turn_ends and not self._closed:
            # After the tasks that have just been answered, which may ask for more.
            self._turn_ends = True
            self.loop.call_soon(self._turn)

    # -- threads

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._batches, thread_name_prefix="fs3-coalesce")
        return self._pool

    def _run_blocking(self) -> None:
        while self._blocking and self._running < self._batches:
            batch = _awaited([self._blocking.popleft() for _ in range(min(len(self._blocking), RANGES_AT_ONCE))])
            if batch:
                self._running += 1
                self._threads().submit(self._run, batch)

    def _run(self, batch: list[Asked]) -> None:
        answers: list[bytes | BaseException]
        try:
            answers = read_each(self._files, batch)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the tasks that wait must get it
            answers = [error] * len(batch)
        try:
            self.loop.call_soon_threadsafe(self._finish, batch, answers)
        except RuntimeError:
            return  # the loop was closed meanwhile: nobody waits any more

    def _finish(self, batch: list[Asked], answers: list[bytes | BaseException]) -> None:
        self._running -= 1
        for asked, answer in zip(batch, answers, strict=True):
            if asked[3].done():
                continue
            if isinstance(answer, BaseException):
                asked[3].set_exception(answer)
            else:
                asked[3].set_result(answer)
        if not self._closed:
            self._run_blocking()


def _whole(value: Any, what: str) -> int:
    """Raises: Invalid: it is no whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise Invalid(f"{what} of type {type(value).__name__}: it must be a whole number") from None


def _awaited(batch: list[Asked]) -> list[Asked]:
    if any([asked[3].done() for asked in batch]):  # a list is twice as fast as a generator
        return [asked for asked in batch if not asked[3].done()]
    return batch


def read_each(files: FileClient, batch: Sequence[Asked]) -> list[bytes | BaseException]:
    """Each range's bytes, or the error that concerns it; blocks. Raises: Unavailable: it concerns them all."""
    handles = {id(asked[0]): asked[0] for asked in batch}
    place = {number: index for index, number in enumerate(handles)}
    index = np.array([place[id(asked[0])] for asked in batch], dtype=np.int64)
    lengths = [asked[2] for asked in batch]
    try:
        out = bytearray(sum(min(max(asked[2], 0), asked[0].length) for asked in batch))
        files.read_batch(list(handles.values()), index, np.array([asked[1] for asked in batch]), np.array(lengths), out)
    except Unavailable:
        raise
    except (Fs3Error, TypeError) as error:
        # One bad range must not fail its neighbours, and each must hear of its own file.
        return [error] if len(batch) == 1 else [answer for asked in batch for answer in read_each(files, [asked])]
    ends = np.cumsum(lengths)
    return [bytes(out[begin:end]) for begin, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]
