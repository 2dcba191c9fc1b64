"""The two ends of a ring, as state machines over memory that both see; no system calls, no clock, no threads.

    application   claim a slot -> write the batch -> publish      ...      reap -> the slot is free again
    I/O process                             take (copies, checks) -> work -> complete

What makes it safe, with one thread at a time at either end (the I/O process's workers take turns):

- Each counter has one writer. It is stored as 8 aligned bytes in one piece (memoryview of "Q"), after the entries that
  it covers: whoever dies in between has published nothing. `fence` stands between the two where the machine may let
  others see stores in another order (x86-64 does not).
- A slot belongs to the application until its batch is published, then to the I/O process until its completion is, and
  then to the application again. So depth bounds both queues, and neither can overflow.
- Every batch has a sequence number that never comes again. It stands in the slot, the submission and the completion: a
  completion that is not of the batch now in its slot is stale, and ignored.
- The I/O process believes nothing: it copies a batch before it looks at it, and a ring that makes no sense ends.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.client.storage import RANGE
from fs3.errors import Busy, Invalid
from fs3.usrbio.ring_format import (
    COLUMNS,
    COMPLETED,
    COMPLETION,
    HEADER_BYTES,
    MESSAGE_BYTES,
    OF_CHUNKS,
    RANGE_RESULT,
    REAPED,
    SLOT,
    SUBMISSION,
    SUBMITTED,
    TAKEN,
    WANTED,
    Flag,
    Op,
    RingLayout,
    write_header,
)

I64 = NDArray[np.int64]

_SLOT = struct.Struct("<QqHHIII")
_SUBMISSION = struct.Struct("<QII")
_COMPLETION = struct.Struct("<QQIHHQ")
_FLAGS = int(Flag.IF_ABSENT | Flag.OS_DURABILITY)


def _nothing() -> None:
    """The fence of a machine that needs none."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A batch of the application's that has a slot."""

    seq: int
    slot: int


@dataclass(frozen=True, slots=True)
class Ended:
    """How a batch ended: `status` 0 or an error's code with its `message`. `results` are RANGE_RESULT records [n]."""

    ticket: Ticket
    status: int
    message: str
    results: NDArray[Any]


class _Memory:
    """A ring's parts, as views."""

    def __init__(self, layout: RingLayout, memory: memoryview) -> None:
        self.layout = layout
        self.bytes = memory
        self.counters = memory[:HEADER_BYTES].cast("Q")
        self.columns: I64 = np.ndarray((layout.depth, COLUMNS, layout.ranges), "<i8", memory, layout.columns)
        self.results: NDArray[Any] = np.ndarray((layout.depth, layout.ranges), RANGE_RESULT, memory, layout.results)

    def slot_at(self, slot: int) -> int:
        return self.layout.slots + slot * SLOT.itemsize

    def submission_at(self, number: int) -> int:
        return self.layout.submissions + number % self.layout.depth * SUBMISSION.itemsize

    def completion_at(self, number: int) -> int:
        return self.layout.completions + number % self.layout.depth * COMPLETION.itemsize

    def message_at(self, slot: int) -> int:
        return self.layout.messages + slot * MESSAGE_BYTES


class ApplicationRing:
    """The end that submits."""

    def __init__(self, layout: RingLayout, memory: memoryview, fence: Callable[[], None] = _nothing) -> None:
        """`memory` is zero and the ring's alone."""
        write_header(memory, layout)
        self.layout = layout
        self._memory = _Memory(layout, memory)
        self._fence = fence
        self._free = list(range(layout.depth - 1, -1, -1))
        self._held: dict[int, Ticket] = {}  # by slot
        self._counts: dict[int, int] = {}  # ranges of the batch in a slot
        self._numbers: dict[int, int] = {}  # of the submission of the batch in a slot, if it was published
        self._prepared: list[Ticket] = []
        self._next_seq = 1
        self._submitted = self._reaped = 0

    @property
    def held(self) -> int:
        """Batches that have a slot: prepared, under way, or ended and not reaped."""
        return len(self._held)

    def prepare(
        self,
        op: Op,
        count: int,
        parts: Sequence[tuple[int, memoryview]],
        *,
        files: int,
        iov: int,
        deadline_ns: int,
        flags: Flag = Flag.NONE,
    ) -> Ticket:
        """Write a batch into a free slot; `parts` are bytes and the column at which they begin. Nobody sees it yet.

        Raises: Busy: as many batches as the ring is deep are under way.
        """
        if not self._free:
            raise Busy(
                f"{self.layout.depth} batches are under way, as many as the ring is deep: wait for one, or have it"
                " deeper"
            )
        assert 0 < count <= self.layout.ranges, count
        slot, seq, memory = self._free[-1], self._next_seq, self._memory
        base = self.layout.columns + slot * COLUMNS * 8 * self.layout.ranges
        for column, data in parts:
            at = base + column * 8 * self.layout.ranges
            memory.bytes[at : at + len(data)] = data
        _SLOT.pack_into(memory.bytes, memory.slot_at(slot), seq, deadline_ns, op, flags, count, files, iov)
        self._free.pop()
        self._next_seq += 1
        ticket = self._held[slot] = Ticket(seq, slot)
        self._counts[slot] = count
        self._prepared.append(ticket)
        return ticket

    def publish(self) -> int:
        """Let the I/O process see what is prepared; how many batches that is."""
        if not self._prepared:
            return 0
        memory, number = self._memory, self._submitted
        for ticket in self._prepared:
            _SUBMISSION.pack_into(memory.bytes, memory.submission_at(number), ticket.seq, ticket.slot, 0)
            self._numbers[ticket.slot] = number
            number += 1
        self._fence()
        memory.counters[SUBMITTED] = number
        published, self._submitted = len(self._prepared), number
        self._prepared.clear()
        return published

    def reap(self) -> list[Ended]:
        """What has ended since the last time; its slots are free."""
        memory = self._memory
        completed = memory.counters[COMPLETED]
        if completed == self._reaped:
            return []
        self._fence()
        ended = []
        for number in range(self._reaped, min(completed, self._reaped + self.layout.depth)):
            seq, _, slot, status, _, _ = _COMPLETION.unpack_from(memory.bytes, memory.completion_at(number))
            ticket = self._held.get(slot)
            if ticket is not None and ticket.seq == seq:
                ended.append(Ended(ticket, status, self._message(slot, status), self._results(slot)))
                self._let_go(slot)
        self._reaped = completed
        memory.counters[REAPED] = completed
        return ended

    def want(self, count: int) -> bool:
        """Be woken when so many more batches have ended than were reaped; False: they have, and nobody will wake."""
        counters, wanted = self._memory.counters, self._reaped + count
        counters[WANTED] = wanted
        self._fence()  # either this sees what has ended, or the other side what is wanted
        return bool(counters[COMPLETED] < wanted)

    def taken(self, ticket: Ticket) -> bool:
        """Whether the I/O process, which is no more, may have begun with a batch: it says so before it does."""
        number = self._numbers.get(ticket.slot)
        return number is not None and number < self._memory.counters[TAKEN]

    def begin_again(self) -> list[Ticket]:
        """Start over with another I/O process, once the one before is no more; what was under way, oldest first.

        Slots and their batches stay as they are: each is to be put back or dropped.
        """
        self._prepared.clear()
        self._numbers.clear()
        self._submitted = self._reaped = 0
        for counter in (SUBMITTED, TAKEN, COMPLETED, REAPED, WANTED):
            self._memory.counters[counter] = 0
        return sorted(self._held.values(), key=lambda ticket: ticket.seq)

    def put_back(self, ticket: Ticket) -> None:
        """Publish this batch again, with the next `publish`; tickets come back in rising order."""
        assert self._held[ticket.slot] == ticket, ticket
        self._prepared.append(ticket)

    def drop(self, ticket: Ticket) -> None:
        """Give up a batch that no I/O process has; its slot is free."""
        assert self._held[ticket.slot] == ticket, ticket
        if ticket in self._prepared:
            self._prepared.remove(ticket)
        self._let_go(ticket.slot)

    def _let_go(self, slot: int) -> None:
        del self._held[slot]
        del self._counts[slot]
        self._numbers.pop(slot, None)
        self._free.append(slot)

    def _message(self, slot: int, status: int) -> str:
        if not status:
            return ""
        at = self._memory.message_at(slot)
        return bytes(self._memory.bytes[at : at + MESSAGE_BYTES]).rstrip(b"\0").decode("utf-8", "replace")

    def _results(self, slot: int) -> NDArray[Any]:
        return self._memory.results[slot, : self._counts[slot]].copy()


@dataclass(frozen=True, slots=True)
class Request:
    """A batch as the I/O process took it: all of it a copy. `columns` is [4, n] of ranges of files, `ranges` RANGE [n]
    of chunks; `places` [n] says where in the memory `iov` the bytes go, or are."""

    seq: int
    slot: int
    op: Op
    count: int
    files: int
    iov: int
    deadline_ns: int
    columns: I64
    ranges: NDArray[Any]
    places: I64
    flags: Flag = Flag.NONE


class IoRing:
    """The end that takes. Its memory may change at any time in any way: nothing of it is used but as a checked copy."""

    def __init__(self, layout: RingLayout, memory: memoryview, fence: Callable[[], None] = _nothing) -> None:
        self.layout = layout
        self._memory = _Memory(layout, memory)
        self._fence = fence
        self._taken = self._completed = self._last_seq = 0
        self._under_way: dict[int, int] = {}  # slot -> seq

    @property
    def last_taken(self) -> int:
        """The number of the newest batch that was taken."""
        return self._last_seq

    def last_submitted(self) -> int:
        """The number of the newest batch that was submitted, or what the application says it is."""
        memory = self._memory
        submitted = memory.counters[SUBMITTED]
        if submitted == self._taken:
            return self._last_seq
        seq, _, _ = _SUBMISSION.unpack_from(memory.bytes, memory.submission_at(submitted - 1))
        return int(seq)

    def waiting(self) -> bool:
        """Whether there is something to take (or to refuse)."""
        return bool(self._memory.counters[SUBMITTED] != self._taken)

    def take(self) -> Request | None:
        """The next batch, if there is one. Raises: Invalid: the ring makes no sense, and is to be given up."""
        memory, layout = self._memory, self.layout
        submitted = memory.counters[SUBMITTED]
        if submitted == self._taken:
            return None
        self._fence()
        if not 0 < submitted - self._taken <= layout.depth:
            raise Invalid(f"{submitted - self._taken} batches submitted to a ring of depth {layout.depth}")
        seq, slot, _ = _SUBMISSION.unpack_from(memory.bytes, memory.submission_at(self._taken))
        if slot >= layout.depth or slot in self._under_way:
            raise Invalid(f"batch {seq} submitted in slot {slot}, which is not free or not there")
        if seq <= self._last_seq:
            raise Invalid(f"batch {seq} submitted after batch {self._last_seq}")
        found = _SLOT.unpack_from(memory.bytes, memory.slot_at(slot))
        in_slot, deadline_ns, op, flags, count, files, iov = found
        if in_slot != seq or not 0 < count <= layout.ranges or op not in list(Op) or flags & ~_FLAGS:
            raise Invalid(f"batch {seq}: slot {slot} holds batch {in_slot}, operation {op}, {flags:#x}, {count} ranges")
        columns = memory.columns[slot, :, :count].copy()
        ranges = np.zeros(0, dtype=RANGE)
        places = columns[3]
        if op in OF_CHUNKS:
            places = columns[COLUMNS - 1]
            begin = layout.columns + slot * COLUMNS * 8 * layout.ranges
            ranges = np.frombuffer(bytes(memory.bytes[begin : begin + count * RANGE.itemsize]), dtype=RANGE).copy()
        self._taken += 1
        memory.counters[TAKEN] = self._taken
        self._last_seq = seq
        self._under_way[slot] = seq
        return Request(seq, slot, Op(op), count, files, iov, deadline_ns, columns, ranges, places, Flag(flags))

    def overdue(self, now_ns: int) -> int:
        """How many batches are to be taken until all are whose time is over."""
        memory, layout = self._memory, self.layout
        count = 0
        for number in range(self._taken, min(memory.counters[SUBMITTED], self._taken + layout.depth)):
            _, slot, _ = _SUBMISSION.unpack_from(memory.bytes, memory.submission_at(number))
            if slot < layout.depth and _SLOT.unpack_from(memory.bytes, memory.slot_at(slot))[1] <= now_ns:
                count = number - self._taken + 1
        return count

    def complete(self, request: Request, status: int, message: str, results: NDArray[Any]) -> bool:
        """Tell the application how a batch ended, `results` are RANGE_RESULT records [n]; whether it is to be woken."""
        memory, slot = self._memory, request.slot
        seq = self._under_way.pop(slot)
        assert seq == request.seq, (seq, request.seq)
        memory.results[slot, : request.count] = results
        if status:
            at = memory.message_at(slot)
            raw = message.encode(errors="replace")[:MESSAGE_BYTES]  # it may have the application's words in it
            memory.bytes[at : at + MESSAGE_BYTES] = raw.ljust(MESSAGE_BYTES, b"\0")
        at = memory.completion_at(self._completed)
        _COMPLETION.pack_into(memory.bytes, at, request.seq, int(results["length"].sum()), slot, status, 0, 0)
        self._fence()
        self._completed += 1
        memory.counters[COMPLETED] = self._completed
        self._fence()  # see `want`
        return bool(self._completed == memory.counters[WANTED])
