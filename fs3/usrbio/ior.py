"""A ring of batches: what an application submits to the I/O process, and what comes of it.

Submitting is a few copies into shared memory and one wakeup that keeps the interpreter's lock; waiting is one call that
gives it up. Nothing in between needs it, so a thread that keeps the interpreter busy delays what was read at most by
the time that `wait` takes to get the lock back, once for all batches that have ended by then.

When the I/O process dies, every batch of reads under way is submitted again to the next one: reads change nothing, and
a dead process writes nothing more into the memory. A batch that has seen several processes die fails, and so does one
whose time is over. A process that neither ends its batches nor dies is killed some time after their deadline.

A batch of writes that a dead process had taken is not done again: what that one sent may still be on its way to a
storage daemon, and be done after anything that is acknowledged from now on. It ends as `MaybeApplied`.
"""

from __future__ import annotations

import os
import select
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.client.storage import LONGEST_S
from fs3.clock import deadline_after, lease_now_s
from fs3.errors import Fs3Error, Invalid, MaybeApplied, Unavailable, from_code
from fs3.transport.descriptors import close_all
from fs3.usrbio import control
from fs3.usrbio.batch import Done, Flight, Part, chunk_columns, file_columns
from fs3.usrbio.iov import Files, FileSet, Iov
from fs3.usrbio.link import Link
from fs3.usrbio.memory import SharedMemory, fence, ring_bell
from fs3.usrbio.ring_core import ApplicationRing
from fs3.usrbio.ring_format import RANGE_RESULT, Flag, Op, RingLayout
from fs3.usrbio.schedule_core import Priority
from fs3.usrbio.start import Wanted
from fs3.usrbio.writable import WritableFiles

__all__ = ["Done", "Ior"]

GRACE_S = 5.0  # that an I/O process may be silent beyond a batch's deadline
MOST_TRIES = 3  # I/O processes that may die of one batch
_NO_FILES = Files()
_BELL = os.EFD_NONBLOCK | os.EFD_CLOEXEC
_MAYBE = (
    "the I/O process ended while it wrote this batch: each of its ranges may have been written, or not, or may still be"
    " within a minute; read them, and write again what matters"
)


class Ior:
    """For one thread at a time, and for the process that made it. Use it as a context manager, or close it."""

    def __init__(
        self,
        wanted: Wanted,
        *,
        depth: int = 64,
        ranges: int = 1_024,
        priority: int = Priority.NORMAL,
        timeout_s: float = 30.0,
    ) -> None:
        """See `UsrBio.ior`."""
        if priority not in list(Priority):
            raise Invalid(f"priority {priority}: it must be 0 (high), 1 (normal) or 2 (low)")
        _check_timeout(timeout_s)
        layout = RingLayout(depth, ranges)
        self.depth, self.ranges = depth, ranges
        self._wanted = wanted
        self._priority = int(priority)
        self._timeout_s = timeout_s
        self._pid = os.getpid()
        self._flights: dict[int, Flight] = {}  # by number, oldest first
        self._done: list[Done] = []
        self._link: Link | None = None
        self._bells = os.eventfd(0, _BELL), os.eventfd(0, _BELL)
        self._close_bells = weakref.finalize(self, close_all, self._bells)
        self._events = select.epoll()
        self._events.register(self._bells[1], select.EPOLLIN | select.EPOLLET)
        self._memory = SharedMemory.make(layout.bytes, "fs3-ring")
        self._ring = ApplicationRing(layout, self._memory.view, fence)
        self._closed = False
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def under_way(self) -> int:
        """Batches submitted whose end `wait` has not told yet."""
        return len(self._flights) + len(self._done)

    def read(
        self,
        files: Files,
        index: NDArray[np.integer],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        iov: Iov,
        places: NDArray[np.int64],
        *,
        timeout_s: float | None = None,
        submit: bool = True,
    ) -> int:
        """Submit a batch: `lengths[i]` bytes at `offsets[i]` of `files[index[i]]` to `iov.view[places[i] :]`, each i.

        Its number, by which `wait` names it. Until then the memory there belongs to the batch. Without `submit` it
        waits for the next `submit`, or `wait`.

        Raises:
            Invalid: the columns are not of one length, or hold other than whole numbers; too many ranges for a batch of
                this ring. Whether ranges lie within their files and the memory is told when the batch ends.
            Busy: as many batches as the ring is deep are under way.
            Unavailable: there is no I/O process, and none can be started.
        """
        if not isinstance(files, Files):
            raise Invalid("these files are open for writing; to read from them, open them with `open_files` too")
        count = len(lengths)
        parts = file_columns(count, index, offsets, lengths, places)
        return self._prepare(Op.READ, count, parts, files, iov, timeout_s, submit)

    def write(
        self,
        files: WritableFiles,
        index: NDArray[np.integer],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        iov: Iov,
        places: NDArray[np.int64],
        *,
        timeout_s: float | None = None,
        submit: bool = True,
    ) -> int:
        """Submit a batch: `lengths[i]` bytes of `iov.view[places[i] :]` to `offsets[i]` of `files[index[i]]`, each i.

        Until `wait` names its number the bytes there must stay as they are. Then what has no error is in its file, on
        every serving replica, on stable storage unless the file's layout says otherwise; gaps beyond a file's end are
        zeros. Batches under way at once that write the same bytes end in any order; within one that is refused.

        Raises: as `read`; Invalid: `files` are closed, or open for reading. What a range or the cluster does not allow
            is told when the batch ends: Invalid (nothing of the batch was written), NoSpace, QuotaExceeded, InUse,
            Unavailable (the range was not written), MaybeApplied (nobody knows).
        """
        if not isinstance(files, WritableFiles):
            raise Invalid("these files are open for reading; to write into them, open them with `open_for_writing`")
        files.check()
        count = len(lengths)
        parts = file_columns(count, index, offsets, lengths, places)
        return self._prepare(Op.WRITE, count, parts, files, iov, timeout_s, submit)

    def read_chunks(
        self,
        ranges: NDArray[Any],
        iov: Iov,
        places: NDArray[np.int64],
        *,
        timeout_s: float | None = None,
        submit: bool = True,
    ) -> int:
        """As `read`, for RANGE records [n] of chunks: one that does not exist is status NotFound in its result, one
        that is shorter than its range a smaller `length`; neither is an error."""
        return self._prepare(
            Op.READ_CHUNKS, len(ranges), chunk_columns(ranges, places), _NO_FILES, iov, timeout_s, submit
        )

    def write_chunks(
        self,
        ranges: NDArray[Any],
        iov: Iov,
        places: NDArray[np.int64],
        *,
        if_absent: bool = False,
        durable: bool = True,
        timeout_s: float | None = None,
        submit: bool = True,
    ) -> int:
        """As `write`, whole chunks: each of the RANGE records [n], of distinct chunks and from offset 0, becomes these
        bytes. With `if_absent` one that exists stays, with `length` 0 in its result; without `durable` the page cache
        of every replica will do."""
        flags = (Flag.IF_ABSENT if if_absent else Flag.NONE) | (Flag.NONE if durable else Flag.OS_DURABILITY)
        parts = chunk_columns(ranges, places)
        return self._prepare(Op.WRITE_CHUNKS, len(ranges), parts, _NO_FILES, iov, timeout_s, submit, flags)

    def submit(self) -> int:
        """Hand over what was prepared without `submit`; how many batches."""
        self._check()
        published = self._ring.publish()
        if published:
            ring_bell(self._bells[0])
        return published

    def wait(self, at_least: int = 1, timeout_s: float | None = None) -> list[Done]:
        """What has ended, `at_least` so many batches unless fewer are under way or `timeout_s` is over before.

        Waits in one call that lets other threads run. Every batch ends: by itself, or soon after its deadline.
        """
        self.submit()
        until_s = None if timeout_s is None else deadline_after(timeout_s)
        looked = False
        while True:
            self._reap()
            if len(self._done) >= at_least or not self._flights:
                break
            overdue_s = min(flight.deadline_s for flight in self._flights.values()) + GRACE_S
            left_s = (overdue_s if until_s is None else min(until_s, overdue_s)) - lease_now_s()
            if looked and until_s is not None and until_s <= overdue_s and left_s <= 0:
                break
            looked = True
            if not self._ring.want(min(at_least - len(self._done), len(self._flights))):
                continue
            events = self._events.poll(max(left_s, 0.0), 2)
            if self._link is None or any(descriptor != self._bells[1] for descriptor, _ in events):
                self._revive()
            elif not events and lease_now_s() >= overdue_s:
                self._link.kill()  # and the socket hangs up
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """End the ring. Batches under way end before this returns, and nobody hears of them."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        if self._link is not None:
            latest_s = max((flight.deadline_s for flight in self._flights.values()), default=lease_now_s())
            self._link.close(max(latest_s - lease_now_s(), 0.0) + GRACE_S)
        for seq, flight in self._flights.items():
            flight.iov.take_back(self, seq)
        self._flights.clear()
        del self._ring  # and with it the last views of the memory
        self._memory.close()
        self._events.close()
        self._close_bells()

    def __enter__(self) -> Ior:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _prepare(
        self,
        op: Op,
        count: int,
        parts: Sequence[Part],
        files: FileSet,
        iov: Iov,
        timeout_s: float | None,
        submit: bool,
        flags: Flag = Flag.NONE,
    ) -> int:
        self._check()
        if not 0 < count <= self.ranges:
            raise Invalid(f"a batch of {count} ranges: this ring takes from 1 to {self.ranges} in one (`ranges`)")
        if timeout_s is not None:
            _check_timeout(timeout_s)
        if self._ring.held < self.depth:  # else it is Busy
            self._know(iov, files)
        deadline_s = deadline_after(self._timeout_s if timeout_s is None else timeout_s)
        ticket = self._ring.prepare(
            op, count, parts, files=files.number, iov=iov.number, deadline_ns=int(deadline_s * 1e9), flags=flags
        )
        self._flights[ticket.seq] = Flight(ticket, op, count, iov, files, deadline_s)
        iov.lend(self, ticket.seq)
        if submit:
            self.submit()
        return ticket.seq

    def _know(self, iov: Iov, files: FileSet) -> None:
        """Have the I/O process know what a batch names. Raises: Unavailable: there is none."""
        for last in (False, True):
            try:
                if self._link is None:
                    self._attach()
                assert self._link is not None
                self._link.know(iov, files, (flight.files for flight in self._flights.values()))
            except control.Closed:
                self._revive()
                if last:
                    raise
            else:
                return

    def _attach(self) -> None:
        """Connect, and have the ring worked on. Raises: as `Link`."""
        link = Link(self._wanted)
        try:
            link.add_ring(self._memory.descriptor, self._memory.size, self._bells, self._priority)
        except BaseException:
            link.close()
            raise
        self._events.register(link.descriptor, select.EPOLLRDHUP)
        self._link = link

    def _reap(self) -> None:
        for ended in self._ring.reap():
            error = from_code(ended.status, ended.message) if ended.status else None
            self._end(self._flights[ended.ticket.seq], error, ended.results)

    def _end(self, flight: Flight, error: Fs3Error | None, results: NDArray[Any]) -> None:
        seq = flight.ticket.seq
        self._done.append(Done(seq, error, results))
        del self._flights[seq]
        flight.iov.take_back(self, seq)

    def _revive(self) -> None:
        """The I/O process is gone, and nobody writes into our memory: go on with another one."""
        self._reap()
        if self._link is not None:
            self._events.unregister(self._link.descriptor)
            self._link.close()
            self._link = None
        begun = {seq for seq, flight in self._flights.items() if flight.writes and self._ring.taken(flight.ticket)}
        again = [self._flights[ticket.seq] for ticket in self._ring.begin_again()]
        failure: Fs3Error | None = None
        try:
            self._attach()
        except Fs3Error as error:
            failure = error
        for flight in again:
            try:
                if flight.ticket.seq in begun:
                    raise MaybeApplied(_MAYBE)
                self._put_back(flight, failure)
            except Fs3Error as error:
                self._fail(flight, error)
        if self._ring.publish():
            ring_bell(self._bells[0])

    def _put_back(self, flight: Flight, failure: Fs3Error | None) -> None:
        """Submit a batch again. Raises: Fs3Error: why it must fail."""
        if failure is not None:
            raise Unavailable(f"the I/O process ended while it {flight.did}, and: {failure}")
        if flight.tries >= MOST_TRIES:
            raise Unavailable(f"{flight.tries} I/O processes have ended while they {flight.did} this batch")
        if lease_now_s() >= flight.deadline_s:
            raise Unavailable(f"the I/O process ended while it {flight.did}, and the batch's time is over")
        assert self._link is not None
        self._link.know(flight.iov, flight.files, (one.files for one in self._flights.values()))
        flight.tries += 1
        self._ring.put_back(flight.ticket)

    def _fail(self, flight: Flight, error: Fs3Error) -> None:
        self._ring.drop(flight.ticket)
        results = np.zeros(flight.count, dtype=RANGE_RESULT)
        results["status"] = error.code
        self._end(flight, error, results)

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise Invalid(
                f"this ring belongs to process {self._pid}, of which this one is a child: open USRBIO again here"
            )
        if self._closed:
            raise Invalid("this ring is closed")


def _check_timeout(timeout_s: float) -> None:
    """Raises: Invalid."""
    if not 0 < timeout_s <= LONGEST_S:
        raise Invalid(f"a timeout of {timeout_s} s: it must be more than 0, and at most {LONGEST_S:,.0f}")
