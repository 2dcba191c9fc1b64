"""Both ends of a ring over one memory: what is published arrives once, whatever crashes, fills up or makes no sense."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from fs3.client.storage import RANGE
from fs3.errors import Busy, Invalid, NotFound
from fs3.usrbio.ring_core import ApplicationRing, IoRing, Request, Ticket
from fs3.usrbio.ring_format import COMPLETED, RANGE_RESULT, SUBMITTED, WANTED, Op, RingLayout, read_header

DEPTH, RANGES = 4, 8


class Ring:
    """Both ends, and the memory between them."""

    def __init__(self, depth: int = DEPTH, ranges: int = RANGES) -> None:
        self.layout = RingLayout(depth, ranges)
        self.memory = memoryview(bytearray(self.layout.bytes))
        self.application = ApplicationRing(self.layout, self.memory)
        self.io = IoRing(read_header(self.memory), self.memory)
        self.counters = self.memory[:4_096].cast("Q")

    def prepare(self, count: int = 2, *, base: int = 0, deadline_ns: int = 123) -> Ticket:
        """A READ whose columns are distinct numbers from `base` on."""
        columns = [np.arange(count, dtype=np.int64) + base + 100 * place for place in range(4)]
        parts = [(place, column.data.cast("B")) for place, column in enumerate(columns)]
        return self.application.prepare(Op.READ, count, parts, files=7, iov=9, deadline_ns=deadline_ns)

    def take(self) -> Request:
        request = self.io.take()
        assert request is not None
        return request

    def complete(self, request: Request, status: int = 0, message: str = "") -> bool:
        results = np.zeros(request.count, dtype=RANGE_RESULT)
        results["length"] = request.seq
        return self.io.complete(request, status, message, results)


@pytest.fixture
def ring() -> Ring:
    return Ring()


def test_a_batch_goes_there_and_its_end_comes_back(ring: Ring) -> None:
    ticket = ring.prepare(3, base=5)
    assert ring.io.take() is None and not ring.io.waiting(), "seen before it was published"
    assert ring.application.publish() == 1 and ring.io.waiting()
    request = ring.take()
    assert (request.seq, request.slot, request.op, request.count) == (ticket.seq, ticket.slot, Op.READ, 3)
    assert (request.files, request.iov, request.deadline_ns) == (7, 9, 123)
    assert request.columns[:4].tolist() == [[5, 6, 7], [105, 106, 107], [205, 206, 207], [305, 306, 307]]
    assert request.places.tolist() == [305, 306, 307]
    assert ring.application.reap() == []
    ring.complete(request, NotFound.code, "no such é file")
    (ended,) = ring.application.reap()
    assert (ended.ticket, ended.status, ended.message) == (ticket, NotFound.code, "no such é file")
    assert ended.results["length"].tolist() == [ticket.seq] * 3
    assert ring.application.held == 0 and ring.application.reap() == [] and ring.io.take() is None


def test_a_message_with_what_is_no_text_arrives_without_it(ring: Ring) -> None:
    """An application may name its files as it likes, and finds them in messages."""
    ring.prepare()
    ring.application.publish()
    ring.complete(ring.take(), NotFound.code, "/dir/\udcff: no such file")
    (ended,) = ring.application.reap()
    assert (ended.status, ended.message) == (NotFound.code, "/dir/?: no such file")


def test_chunk_ranges_arrive_as_they_are(ring: Ring) -> None:
    ranges = np.zeros(RANGES, dtype=RANGE)
    ranges["hi"], ranges["lo"], ranges["length"] = np.arange(RANGES) + 1, 2**63, 4_096
    places = np.arange(RANGES, dtype=np.int64) * 10
    parts = [(0, ranges.view(np.uint8).data), (4, places.data.cast("B"))]
    ring.application.prepare(Op.READ_CHUNKS, RANGES, parts, files=0, iov=1, deadline_ns=1)
    ring.application.publish()
    request = ring.take()
    assert (request.ranges == ranges).all() and request.places.tolist() == places.tolist()


def test_it_is_full_at_its_depth_and_goes_on_when_one_is_reaped(ring: Ring) -> None:
    for _ in range(DEPTH):
        ring.prepare()
    with pytest.raises(Busy, match="as many as the ring is deep"):
        ring.prepare()
    assert ring.application.publish() == DEPTH
    requests = [ring.take() for _ in range(DEPTH)]
    ring.complete(requests[2])
    with pytest.raises(Busy):
        ring.prepare()
    assert len(ring.application.reap()) == 1
    assert ring.prepare().slot == requests[2].slot


def test_it_can_be_told_how_many_to_take_until_none_is_late(ring: Ring) -> None:
    for deadline_ns in (9, 30, 20, 40):
        ring.prepare(deadline_ns=deadline_ns)
    assert ring.io.overdue(100) == 0, "seen before it was published"
    assert ring.io.last_submitted() == ring.io.last_taken == 0
    ring.application.publish()
    assert ring.take().deadline_ns == 9
    assert (ring.io.last_taken, ring.io.last_submitted()) == (1, 4)
    assert [ring.io.overdue(now_ns) for now_ns in (19, 20, 30, 40)] == [0, 2, 2, 3]


@pytest.mark.parametrize("submitted", [2**64 - 1, DEPTH + 1])
def test_nonsense_is_not_looked_at_for_long(ring: Ring, submitted: int) -> None:
    ring.counters[SUBMITTED] = submitted
    assert ring.io.overdue(0) == DEPTH
    with pytest.raises(Invalid):
        ring.io.take()


def test_batches_end_in_any_order_and_both_queues_wrap_around() -> None:
    ring, chance = Ring(depth=3), random.Random(5)
    taken: list[Request] = []
    submitted: dict[int, int] = {}
    ended: set[int] = set()
    for step in range(2_000):
        if ring.application.held < 3 and chance.random() < 0.6:
            ticket = ring.prepare(1 + step % RANGES, base=step)
            submitted[ticket.seq] = step
            ring.application.publish()
        if (request := ring.io.take()) is not None:
            assert request.columns[0][0] == submitted[request.seq]
            taken.append(request)
        if taken and chance.random() < 0.6:
            ring.complete(taken.pop(chance.randrange(len(taken))))
        for one in ring.application.reap():
            assert one.ticket.seq not in ended and one.results["length"][0] == one.ticket.seq
            ended.add(one.ticket.seq)
    while (request := ring.io.take()) is not None:
        taken.append(request)
    for request in taken:
        ring.complete(request)
    ended |= {one.ticket.seq for one in ring.application.reap()}
    assert len(ended) > 300 and ended == set(submitted)


def test_an_application_that_dies_while_it_submits_has_submitted_nothing(ring: Ring) -> None:
    """Its counter is written last; until then the slots and the queue may hold anything."""
    ring.prepare()
    ring.memory[ring.layout.submissions : ring.layout.completions] = b"\xff" * (
        ring.layout.completions - ring.layout.submissions
    )
    assert ring.io.take() is None


def test_an_io_process_that_dies_while_it_completes_has_completed_nothing(ring: Ring) -> None:
    ring.prepare()
    ring.application.publish()
    before = ring.counters[COMPLETED]
    ring.complete(ring.take())
    ring.counters[COMPLETED] = before  # as if it had died just before this store
    assert ring.application.reap() == [] and ring.application.held == 1


def test_the_next_io_process_gets_what_was_under_way_oldest_first(ring: Ring) -> None:
    tickets = [ring.prepare(base=10 * number) for number in range(DEPTH)]
    ring.application.publish()
    requests = [ring.take() for _ in range(3)]
    ring.complete(requests[1])
    assert [one.ticket for one in ring.application.reap()] == [tickets[1]]
    again = ring.application.begin_again()
    assert again == [tickets[0], tickets[2], tickets[3]]
    ring.application.drop(again[1])
    for ticket in (again[0], again[2]):
        ring.application.put_back(ticket)
    assert ring.application.publish() == 2
    ring.io = IoRing(read_header(ring.memory), ring.memory)
    assert [ring.take().columns[0][0] for _ in range(2)] == [0, 30]
    assert ring.io.take() is None and ring.application.held == 2
    assert ring.prepare().seq == DEPTH + 1, "a number came again"


def test_it_can_be_told_what_a_dead_io_process_had_begun_with(ring: Ring) -> None:
    """It says so before it begins, so a batch that it has not told of it has not touched."""
    tickets = [ring.prepare() for _ in range(DEPTH - 1)]
    ring.application.publish()
    unpublished = ring.prepare()
    for number, ticket in enumerate(tickets):
        assert [ring.application.taken(one) for one in tickets] == [True] * number + [False] * (DEPTH - 1 - number)
        assert ring.take().seq == ticket.seq
    assert ring.application.taken(tickets[-1]) and not ring.application.taken(unpublished)
    for ticket in ring.application.begin_again()[:2]:
        ring.application.put_back(ticket)
    ring.application.publish()
    ring.io = IoRing(read_header(ring.memory), ring.memory)
    assert ring.take().seq == tickets[0].seq
    assert [ring.application.taken(one) for one in (*tickets, unpublished)] == [True, False, False, False]


def test_who_waits_is_woken_once_and_by_the_last_batch_that_is_awaited(ring: Ring) -> None:
    for _ in range(DEPTH):
        ring.prepare()
    ring.application.publish()
    requests = [ring.take() for _ in range(DEPTH)]
    assert ring.application.want(2)
    assert [ring.complete(request) for request in requests[:3]] == [False, True, False]
    assert not ring.application.want(2) and not ring.application.want(3), "what has ended already is waited for"
    assert len(ring.application.reap()) == 3
    assert ring.application.want(1) and ring.complete(requests[3])
    ring.application.begin_again()
    assert ring.counters[WANTED] == 0


def test_a_stale_completion_is_ignored(ring: Ring) -> None:
    first = ring.prepare()
    ring.application.publish()
    request = ring.take()
    ring.application.begin_again()
    ring.application.drop(first)
    ring.prepare()  # in the same slot
    ring.application.publish()
    ring.complete(request)  # of the batch that was there before
    assert ring.application.reap() == [] and ring.application.held == 1


Spoil = Callable[[Ring], None]


def _count(ring: Ring) -> None:
    ring.counters[SUBMITTED] = DEPTH + 1


def _back(ring: Ring) -> None:
    ring.take()
    ring.counters[SUBMITTED] = 0


def _slot(ring: Ring) -> None:
    ring.memory[ring.layout.submissions + 8] = DEPTH


def _number(ring: Ring) -> None:
    ring.memory[ring.layout.submissions] = 99


def _ranges(ring: Ring) -> None:
    at = ring.layout.slots + ring.application.begin_again()[0].slot * 64 + 20
    ring.memory[at] = RANGES + 1
    ring.counters[SUBMITTED] = 1


def _operation(ring: Ring) -> None:
    at = ring.layout.slots + ring.application.begin_again()[0].slot * 64 + 16
    ring.memory[at] = 9
    ring.counters[SUBMITTED] = 1


def _flags(ring: Ring) -> None:
    at = ring.layout.slots + ring.application.begin_again()[0].slot * 64 + 18
    ring.memory[at] = 4
    ring.counters[SUBMITTED] = 1


@pytest.mark.parametrize("spoil", [_count, _back, _slot, _number, _ranges, _operation, _flags])
def test_nonsense_ends_the_ring(ring: Ring, spoil: Spoil) -> None:
    ring.prepare()
    ring.application.publish()
    spoil(ring)
    with pytest.raises(Invalid):
        ring.io.take()


def test_what_changes_after_it_was_taken_changes_nothing(ring: Ring) -> None:
    ring.prepare(2, base=1)
    ring.application.publish()
    request = ring.take()
    ring.memory[ring.layout.columns :] = b"\xff" * (len(ring.memory) - ring.layout.columns)
    assert request.columns[0].tolist() == [1, 2] and request.places.tolist() == [301, 302]


@pytest.mark.parametrize(("depth", "ranges"), [(0, 1), (1_025, 1), (1, 0), (1, 65_537), (1_024, 65_536)])
def test_limits_of_a_ring(depth: int, ranges: int) -> None:
    with pytest.raises(Invalid):
        RingLayout(depth, ranges)


def test_memory_that_is_no_ring_is_refused(ring: Ring) -> None:
    for spoiled in (bytes(100), bytes(5_000), bytes(ring.memory[: ring.layout.bytes - 1])):
        with pytest.raises(Invalid):
            read_header(memoryview(bytearray(spoiled)))
    newer = bytearray(ring.memory)
    newer[8] = 3
    with pytest.raises(Invalid, match="version 3"):
        read_header(memoryview(newer))
