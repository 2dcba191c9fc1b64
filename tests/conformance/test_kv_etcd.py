"""What only an engine on several machines has to do: lost answers, late requests, members that stop.

On three real members; what gets lost, gets lost in a TCP forwarder before one of them. Faults follow one another by
what the transactions achieve, not by a clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from forwarder import Forwarder
from kv_workload import Done, check_serial, etcd_revisions, in_etcd_order, prepare

from fs3.clock import deadline_after
from fs3.cluster.etcd import LocalEtcd
from fs3.errors import Conflict, Invalid, MaybeApplied, Unavailable
from fs3.kv.api import KVEngine, SnapshotExpired, transact
from fs3.kv.etcd import EtcdKV
from fs3.kv.etcd_client import EtcdClient
from fs3.kv.etcd_layout import Layout
from fs3.kv.etcd_tidy import KEEP_S, Tidier
from fs3.kv.etcd_watch import Follower
from fs3.kv.occ_core import decode_counter
from fs3.kv.watchers import Watch
from fs3.pb.etcd import etcd_pb2


@pytest.fixture
def name() -> str:
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def members(etcd: LocalEtcd) -> Iterator[LocalEtcd]:
    """The cluster, for a test that hurts it."""
    try:
        yield etcd
    finally:
        for member in etcd.members:
            if etcd.runs(member):
                etcd.send(member, signal.SIGCONT)
            else:
                etcd.restart(member)
        etcd.wait_healthy()


@contextlib.asynccontextmanager
async def opened(endpoints: list[str], name: str, *, timeout_s: float = 10.0) -> AsyncIterator[EtcdKV]:
    kv = EtcdKV(endpoints, name, timeout_s=timeout_s)
    try:
        yield kv
    finally:
        await kv.close()


@contextlib.asynccontextmanager
async def forwarded(etcd: LocalEtcd, name: str) -> AsyncIterator[tuple[Forwarder, EtcdKV, EtcdKV]]:
    """A forwarder before one member, an engine that asks it first, and one that asks the members themselves.

    The first one has a commit record already, so that its next commit is one request.
    """
    async with (
        Forwarder(etcd.endpoints[0]).running() as forwarder,
        opened([forwarder.address, *etcd.endpoints[1:]], name) as kv,
        opened(etcd.endpoints, name) as other,
    ):
        await put(kv, b"warm", b"")
        yield forwarder, kv, other


async def put(kv: KVEngine, key: bytes, value: bytes) -> None:
    txn = kv.begin()
    txn.put(key, value)
    await txn.commit()


async def value(kv: KVEngine, key: bytes) -> bytes | None:
    return await kv.begin().get(key)


def test_a_commit_whose_answer_is_lost_is_found_to_be_in(etcd: LocalEtcd, name: str) -> None:
    async def run() -> None:
        async with forwarded(etcd, name) as (forwarder, kv, other):
            for expected in (1, 2, 3):
                txn = kv.begin()
                txn.put(b"k", b"%d" % expected)
                txn.add(b"count", 1)
                assert await txn.get(b"warm") == b""
                kv._client._at = 0  # the forwarder's turn again
                forwarder.swallow(1)
                await txn.commit()
                assert forwarder.swallowed == expected
                assert decode_counter(await value(other, b"count")) == expected
                assert await value(kv, b"k") == b"%d" % expected

    asyncio.run(run())


def test_a_request_that_arrives_late_is_refused(etcd: LocalEtcd, name: str) -> None:
    async def run() -> None:
        async with forwarded(etcd, name) as (forwarder, kv, other):
            txn = kv.begin()
            assert await txn.get(b"warm") == b""
            txn.put(b"k", b"mine")
            forwarder.hold()
            commit = asyncio.ensure_future(txn.commit())
            await forwarder.held()
            forwarder.cut()
            await commit  # by another member
            assert await value(other, b"k") == b"mine"
            await put(other, b"k", b"later")
            await forwarder.release()
            assert await value(other, b"k") == b"later", "the first request was carried out as well"
            await put(kv, b"k", b"last")
            assert await value(other, b"k") == b"last"

    asyncio.run(run())


def test_an_outcome_that_cannot_be_found_out_is_said_to_be_unknown(etcd: LocalEtcd, name: str) -> None:
    async def run() -> None:
        async with (
            Forwarder(etcd.endpoints[0]).running() as forwarder,
            opened([forwarder.address], name, timeout_s=1.0) as kv,
            opened(etcd.endpoints, name) as other,
        ):
            await put(kv, b"warm", b"")
            txn = kv.begin()
            assert await txn.get(b"warm") == b""
            txn.put(b"k", b"mine")
            forwarder.hold()
            commit = asyncio.ensure_future(txn.commit())
            await forwarder.held()
            forwarder.cut()
            with pytest.raises(MaybeApplied):
                await commit
            await forwarder.release()
            assert await value(other, b"k") in (None, b"mine")
            await put(kv, b"k", b"again")  # the engine goes on
            assert await value(other, b"k") == b"again"

    asyncio.run(run())


def test_a_cancelled_commit_stops_nobody(etcd: LocalEtcd, name: str) -> None:
    async def run() -> None:
        async with forwarded(etcd, name) as (forwarder, kv, other):
            txn = kv.begin()
            assert await txn.get(b"warm") == b""
            txn.put(b"k", b"cancelled")
            forwarder.hold()
            commit = asyncio.ensure_future(txn.commit())
            await forwarder.held()
            forwarder.cut()
            commit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await commit
            await forwarder.release()  # it may still be carried out, once
            await put(kv, b"k", b"next")
            assert await value(other, b"k") == b"next"

    asyncio.run(run())


def test_a_commit_that_waits_too_long_for_its_turn_is_not_sent(etcd: LocalEtcd, name: str) -> None:
    async def run() -> None:
        async with (
            Forwarder(etcd.endpoints[0]).running() as forwarder,
            opened([forwarder.address], name, timeout_s=0.5) as kv,
        ):
            await put(kv, b"warm", b"")
            commits = []
            for index in range(4):  # each waits for the one before
                txn = kv.begin()
                txn.add(b"n", 1)
                txn.put(b"k%d" % index, b"")
                assert await txn.get(b"warm") == b""
                commits.append(txn.commit())
            forwarder.hold()
            outcomes = await asyncio.gather(*commits, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [MaybeApplied, Unavailable, Unavailable, Unavailable]

    asyncio.run(run())


def test_a_watch_whose_past_was_compacted_tells_of_it() -> None:
    async def run() -> None:
        watch = Watch(b"dir/")
        follower = Follower(EtcdClient(["127.0.0.1:9"]), b"a", b"b", watch)
        with pytest.raises(Unavailable, match="compacted"):
            follower._take(etcd_pb2.WatchResponse(canceled=True, compact_revision=7, cancel_reason="compacted"))
        await asyncio.wait_for(anext(watch), 30)
        assert follower._from == 8
        follower._take(etcd_pb2.WatchResponse(created=True))
        pending = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        assert not pending.done()
        follower._take(etcd_pb2.WatchResponse(events=[etcd_pb2.Event(kv=etcd_pb2.KeyValue(key=b"a", mod_revision=9))]))
        await asyncio.wait_for(pending, 30)
        assert follower._from == 10

    asyncio.run(run())


def test_nobody_who_could_answer_is_unavailable_and_nothing_was_written(name: str) -> None:
    async def run() -> None:
        async with opened(["127.0.0.1:9"], name, timeout_s=0.3) as kv:
            with pytest.raises(Unavailable):
                await value(kv, b"k")
            with pytest.raises(Unavailable):
                await put(kv, b"k", b"")

    asyncio.run(run())


Fault = Callable[[LocalEtcd, Callable[[int], Awaitable[None]]], Awaitable[None]]


async def kill_the_leader(etcd: LocalEtcd, commits: Callable[[int], Awaitable[None]]) -> None:
    leader = etcd.leader()
    etcd.kill(leader)
    await commits(40)
    etcd.restart(leader)


async def kill_a_follower(etcd: LocalEtcd, commits: Callable[[int], Awaitable[None]]) -> None:
    follower = etcd.leader() % 3 + 1
    etcd.kill(follower)
    await commits(40)
    etcd.restart(follower)


async def stop_the_leader(etcd: LocalEtcd, commits: Callable[[int], Awaitable[None]]) -> None:
    leader = etcd.leader()
    etcd.send(leader, signal.SIGSTOP)
    await commits(40)
    etcd.send(leader, signal.SIGCONT)


async def stop_the_majority(etcd: LocalEtcd, commits: Callable[[int], Awaitable[None]]) -> None:
    leader = etcd.leader()
    both = (leader, leader % 3 + 1)
    for member in both:
        etcd.send(member, signal.SIGSTOP)
    for member in both:
        etcd.send(member, signal.SIGCONT)
    await commits(40)


async def move_the_leader(etcd: LocalEtcd, commits: Callable[[int], Awaitable[None]]) -> None:
    etcd.move_leader(etcd.leader() % 3 + 1)
    await commits(40)


FAULTS = [kill_the_leader, move_the_leader, stop_the_leader, kill_a_follower, stop_the_majority]


class Clients:
    """Clients that run random transactions on several engines until they are told to stop."""

    def __init__(self, engines: list[EtcdKV], *, clients: int, seed: int) -> None:
        self._engines = engines
        self._clients = clients
        self._seed = seed
        self._enough = False
        self._changed = asyncio.Condition()
        self.done: list[Done] = []
        self.unknown: list[Done] = []
        self.refused: list[bytes] = []

    async def commits(self, number: int) -> None:
        """Wait for so many more commits."""
        target = len(self.done) + number
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.done) >= target)

    async def run_during(self, faults: Awaitable[None]) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._client(number))
            await faults
            self._enough = True

    async def _client(self, number: int) -> None:
        rng = random.Random(self._seed * 100 + number)
        kv = self._engines[number % len(self._engines)]
        turn = 0
        while not self._enough:
            turn += 1
            mark = b"own/%d/%d/%d" % (self._seed, number, turn)
            try:
                txn, one = await prepare(kv, rng, mark)
            except (Unavailable, SnapshotExpired):
                continue
            try:
                await txn.commit()
            except (Conflict, Unavailable):
                self.refused.append(mark)
            except MaybeApplied:
                self.unknown.append(one)
            else:
                self.done.append(one)
            async with self._changed:
                self._changed.notify_all()

    async def check(self, endpoints: list[str], name: str) -> None:
        """What was acknowledged is there, what was refused is not, and all of it equals a serial run."""
        marks = await etcd_revisions(endpoints, name)
        assert all(one.mark in marks for one in self.done)
        assert not any(mark in marks for mark in self.refused)
        there = [*self.done, *(one for one in self.unknown if one.mark in marks)]
        assert len(marks) == len(there)
        async with opened(endpoints, name) as kv:
            await check_serial(kv, await in_etcd_order(endpoints, name, there))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_transactions_stay_serializable_while_members_fail(members: LocalEtcd, name: str, fault: Fault) -> None:
    async def run() -> None:
        async with opened(members.endpoints, name) as one, opened(members.endpoints[::-1], name) as two:
            clients = Clients([one, two], clients=6, seed=FAULTS.index(fault))

            async def faults() -> None:
                await clients.commits(20)
                await fault(members, clients.commits)
                await clients.commits(20)

            await clients.run_during(faults())
        await asyncio.to_thread(members.wait_healthy)
        await clients.check(members.endpoints, name)

    asyncio.run(run())


def test_transactions_stay_serializable_while_answers_get_lost(etcd: LocalEtcd, name: str) -> None:
    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            forwarders = [await stack.enter_async_context(Forwarder(at).running()) for at in etcd.endpoints]
            addresses = [forwarder.address for forwarder in forwarders]
            engines = [await stack.enter_async_context(opened(addresses, name)) for _ in range(2)]
            clients, rng = Clients(engines, clients=6, seed=7), random.Random(7)

            async def faults() -> None:
                for _ in range(25):
                    await clients.commits(4)
                    for forwarder in forwarders:
                        forwarder.swallow(rng.randint(1, 12))

            await clients.run_during(faults())
            assert sum(forwarder.swallowed for forwarder in forwarders) > 10
        await clients.check(etcd.endpoints, name)

    asyncio.run(run())


def test_a_watch_outlives_the_member_that_told_it(members: LocalEtcd, name: str) -> None:
    async def run() -> None:
        async with opened(members.endpoints, name) as kv, opened(members.endpoints[1:], name) as other:
            await put(other, b"warm", b"")
            watch = kv.watch(b"dir/")
            await put(kv, b"dir/a", b"")
            await asyncio.wait_for(anext(watch), 30)
            members.send(1, signal.SIGSTOP)
            await put(other, b"dir/b", b"")
            await asyncio.wait_for(anext(watch), 30)
            members.send(1, signal.SIGCONT)
            await put(other, b"dis", b"")
            pending = asyncio.ensure_future(anext(watch))
            await put(other, b"dir/c", b"")
            await asyncio.wait_for(pending, 30)

    asyncio.run(run())


def test_what_fits_into_a_transaction_etcd_takes_and_one_more_is_invalid(etcd: LocalEtcd, name: str) -> None:
    async def run() -> None:
        async with opened(etcd.endpoints, name) as kv:
            for number, fits in ((126, True), (127, False)):  # and a stamp, and the commit record
                txn = kv.begin()
                for index in range(number):
                    txn.put(b"kind%04d%d" % (index, number), b"")
                await commits_or_not(txn.commit, fits)
            assert len(await kv.begin().range(b"kind", b"kine", limit=999)) == 126
            for number, fits in ((126, True), (127, False)):
                txn = kv.begin()
                for index in range(number):
                    txn.read_conflict(b"kind%04d" % index)
                txn.add(b"n", 1)
                await commits_or_not(txn.commit, fits)
            for size, fits in ((93_000, True), (99_500, False)):
                txn = kv.begin()
                for index in range(16):
                    txn.put(b"big/%d" % index, b"v" * size)
                await commits_or_not(txn.commit, fits)

    async def commits_or_not(commit: Callable[[], Awaitable[None]], fits: bool) -> None:
        if fits:
            await commit()
        else:
            with pytest.raises(Invalid, match=r"at most (128|1500000|1571840) "):
                await commit()

    asyncio.run(run())


async def look(tidier: Tidier, client: EtcdClient, now_s: float) -> int:
    revision = (await client.range(etcd_pb2.RangeRequest(key=b"x"), deadline_after(10))).header.revision
    return await tidier.tidy(revision, now_s, deadline_after(10))


def test_one_engine_after_the_other_tidies(etcd: LocalEtcd, name: str) -> None:
    async def run() -> None:
        client = EtcdClient(etcd.endpoints)
        first, second = (Tidier(client, Layout(name)) for _ in range(2))
        async with opened(etcd.endpoints, name) as kv:
            for tidier in (first, second):
                await put(kv, b"k", b"")
                assert await look(tidier, client, 0.0) == 0
            assert await look(first, client, KEEP_S) > 0
            assert await look(second, client, KEEP_S) == 0, "the first has done it since the second looked last"
            assert await look(second, client, 2 * KEEP_S) > 0
        await client.close()

    asyncio.run(run())


def test_old_history_stamps_and_records_go_and_whoever_needs_them_conflicts(etcd: LocalEtcd, name: str) -> None:
    async def run() -> None:
        layout, client = Layout(name), EtcdClient(etcd.endpoints)

        async def keys(between: tuple[bytes, bytes]) -> int:
            begin, end = between
            return len((await client.range(etcd_pb2.RangeRequest(key=begin, range_end=end), deadline_after(10))).kvs)

        async with opened(etcd.endpoints, name) as kv, opened(etcd.endpoints, name) as other:
            tidier = Tidier(client, layout)
            await put(kv, b"one/a", b"1")
            await put(other, b"two/a", b"1")
            ranged, pointed, reading = kv.begin(), kv.begin(), kv.begin()
            assert await ranged.range(b"one/", b"one0", limit=9) == [(b"one/a", b"1")]
            assert await pointed.get(b"one/a") == await reading.get(b"one/a") == b"1"
            await put(other, b"one/b", b"2")
            await put(other, b"two/a", b"2")
            assert (await keys(layout.stamps()), await keys(layout.records())) == (2, 2)
            assert await look(tidier, client, 0.0) == 0
            assert await look(tidier, client, KEEP_S - 1) == 0
            assert await look(tidier, client, KEEP_S) > 0
            assert await look(tidier, client, KEEP_S) == 0, "the floor rises no more"
            assert (await keys(layout.stamps()), await keys(layout.records())) == (0, 0)
            assert await keys(layout.floors()) == 1
            for txn in (ranged, pointed):
                txn.put(b"mine", b"")
            with pytest.raises(Conflict):
                await ranged.commit()
            await pointed.commit()  # what it read is what is there
            fresh = kv.begin()
            assert await fresh.get(b"one/a") == b"1"
            old, new = await asyncio.gather(reading.get(b"two/a"), fresh.get(b"two/a"), return_exceptions=True)
            assert isinstance(old, SnapshotExpired)
            assert new == b"2", "reads that are gathered do not suffer for each other"
            assert await fresh.range(b"one/", b"one0", limit=9) == [(b"one/a", b"1"), (b"one/b", b"2")]
            fresh.put(b"mine", b"fresh")
            await fresh.commit()
            await put(other, b"one/c", b"3")
            await transact(kv, lambda txn: txn.range(b"one/", b"one0", limit=9))
        await client.close()

    asyncio.run(run())
