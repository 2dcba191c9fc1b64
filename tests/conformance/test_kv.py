"""What every metadata store must do: one suite, run on each engine, and on two engines that share one store.

Serializability is checked by replaying: transactions with random reads (points and ranges) and writes run
concurrently; then every committed one must have seen exactly what a serial run in commit order shows.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kv_workload import Done, check_serial, in_commit_order, in_etcd_order, run_clients

from fs3.errors import Conflict, Invalid, Unavailable
from fs3.kv.api import KVEngine, Limits, Transaction, transact
from fs3.kv.etcd import EtcdKV
from fs3.kv.memory import MemoryKV
from fs3.kv.occ_core import decode_counter
from fs3.kv.sqlite import SqliteKV

Open = Callable[..., KVEngine]
Body = Callable[[KVEngine], Awaitable[None]]


class Alternating:
    """Two engines on one store, as two processes have them; every other transaction begins at the other one."""

    def __init__(self, first: KVEngine, second: KVEngine) -> None:
        self._engines = [first, second]
        self._turn = itertools.cycle(self._engines)

    @property
    def limits(self) -> Limits:
        return self._engines[0].limits

    def begin(self) -> Transaction:
        return next(self._turn).begin()

    def watch(self, prefix: bytes) -> AsyncIterator[None]:
        return self._engines[0].watch(prefix)

    async def close(self) -> None:
        for engine in self._engines:
            await engine.close()


class AlternatingEtcd(Alternating):
    """The same on etcd. A begin is followed by asking for a revision, and what the other engine commits meanwhile is
    seen; so that the tests can tell what is seen, commits here wait for both engines' revisions."""

    _engines: list[EtcdKV]  # type: ignore[assignment]

    def begin(self) -> Transaction:
        txn = super().begin()
        commit = txn.commit

        async def later() -> None:
            for engine in self._engines:
                await engine.settled()
            await commit()

        return _Delayed(txn, later)  # type: ignore[return-value]


class _Delayed:
    """A transaction that commits by another way."""

    def __init__(self, txn: Transaction, commit: Callable[[], Awaitable[None]]) -> None:
        self._txn = txn
        self.commit = commit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)


@dataclass(frozen=True)
class Store:
    """A store that is not there yet: how engines open it, and in which order it holds what was done."""

    open: Open
    order: Callable[[list[Done]], Awaitable[list[Done]]]


@pytest.fixture(params=["memory", "sqlite", "sqlite-shared", "etcd", "etcd-shared"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    path = tmp_path / "kv.db"

    async def as_heard(done: list[Done]) -> list[Done]:
        return done

    async def as_logged(done: list[Done]) -> list[Done]:
        return in_commit_order(path, done)

    if request.param == "memory":
        return Store(MemoryKV, as_heard)
    if request.param == "sqlite":
        return Store(lambda **options: SqliteKV(path, **options), as_heard)
    if request.param == "sqlite-shared":
        return Store(lambda **options: Alternating(SqliteKV(path, **options), SqliteKV(path, **options)), as_logged)
    endpoints, name = request.getfixturevalue("etcd").endpoints, f"test-{secrets.token_hex(4)}"

    async def by_revision(done: list[Done]) -> list[Done]:
        return await in_etcd_order(endpoints, name, done)

    def open_etcd(**options: Any) -> KVEngine:
        return EtcdKV(endpoints, name, **options)

    if request.param == "etcd":
        return Store(open_etcd, by_revision)

    def open_two(**options: Any) -> KVEngine:  # which ask different members first
        return AlternatingEtcd(open_etcd(**options), EtcdKV(endpoints[::-1], name, **options))

    return Store(open_two, by_revision)


@pytest.fixture
def open_kv(store: Store) -> Open:
    return store.open


def drive(open_kv: Open, body: Body, **options: Limits) -> None:
    async def run() -> None:
        kv = open_kv(**options)
        try:
            await body(kv)
        finally:
            await kv.close()

    asyncio.run(run())


async def put(kv: KVEngine, **pairs: str) -> None:
    txn = kv.begin()
    for key, value in pairs.items():
        txn.put(key.encode(), value.encode())
    await txn.commit()


async def dump(kv: KVEngine) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in await kv.begin().range(b"", b"\xff", limit=10_000)}


async def loses(txn_commit: Awaitable[None]) -> bool:
    try:
        await txn_commit
    except Conflict:
        return True
    return False


def test_a_transaction_reads_its_snapshot_and_its_own_writes(open_kv: Open) -> None:
    async def body(kv: KVEngine) -> None:
        await put(kv, a="1", b="2", c="3")
        txn = kv.begin()
        await put(kv, a="changed", d="new")
        assert await txn.get(b"a") == b"1"
        assert await txn.get(b"d") is None
        txn.put(b"aa", b"own")
        txn.delete(b"b")
        txn.delete_range(b"c", b"d")
        txn.put(b"cc", b"own")
        assert await txn.get(b"c") is None
        assert await txn.range(b"a", b"z", limit=10) == [(b"a", b"1"), (b"aa", b"own"), (b"cc", b"own")]
        assert await txn.range(b"a", b"z", limit=2, reverse=True) == [(b"cc", b"own"), (b"aa", b"own")]
        assert await txn.range(b"b", b"b", limit=1) == []
        assert await dump(kv) == {"a": "changed", "b": "2", "c": "3", "d": "new"}

    drive(open_kv, body)


def test_range_limits_and_order_over_many_keys(open_kv: Open) -> None:
    async def body(kv: KVEngine) -> None:
        names = [f"k{index:04}" for index in range(1_000)]
        for at in range(0, 1_000, 100):  # as many as fit into a transaction of every engine
            await put(kv, **{name: name for name in names[at : at + 100]})
        txn = kv.begin()
        txn.delete_range(b"k0100", b"k0900")
        txn.put(b"k0500", b"own")
        left = [*names[:100], "k0500", *names[900:]]
        for reverse in (False, True):
            for limit in (1, 99, 100, 101, 150, 1_000):
                found = await txn.range(b"k", b"l", limit=limit, reverse=reverse)
                assert [key.decode() for key, _ in found] == (left[::-1] if reverse else left)[:limit]
        whole = await kv.begin().range(b"k", b"l", limit=700, reverse=True)
        assert [key.decode() for key, _ in whole] == names[::-1][:700]

    drive(open_kv, body)


def test_many_keys_at_once_are_what_each_is(open_kv: Open) -> None:
    async def body(kv: KVEngine) -> None:
        numbers = [b"N" + number.to_bytes(8, "big") for number in range(150)]
        names = [b"name-%d" % (number * number) for number in range(70)]
        letters = [b"L%c" % letter for letter in range(ord("a"), ord("z"))]
        between = [b"Ld/%03d" % number for number in range(90)]  # longer keys, among neighbours
        stored = [*numbers[:100:3], *names[:60], *letters[::2], *between]
        for at in range(0, len(stored), 40):
            txn = kv.begin()
            for key in stored[at : at + 40]:
                txn.put(key, b"<" + key + b">")
            await txn.commit()
        txn = kv.begin()
        txn.put(numbers[1], b"own")
        txn.delete(numbers[3])
        txn.delete_range(names[2], names[2] + b"\0")
        for keys in ([], names[:1], names[:5], names, numbers, letters, [*names, *numbers, *names[::-1], b"", b"\xff"]):
            for one in (txn, kv.begin()):
                assert await one.get_many(keys) == [await one.get(key) for key in keys]
        assert (await txn.get_many([numbers[1], numbers[3], names[2]])) == [b"own", None, None]

    drive(open_kv, body)


def test_what_conflicts_and_what_does_not(open_kv: Open) -> None:
    async def body(kv: KVEngine) -> None:
        async def outcome(read: Callable[..., Awaitable[object]], change: Callable[..., None]) -> bool:
            """Whether a transaction that read loses against one that changed."""
            txn, other = kv.begin(), kv.begin()
            other.delete_range(b"", b"\xff")
            other.put(b"b", b"1")
            other.put(b"d", b"1")
            await other.commit()
            txn, other = kv.begin(), kv.begin()
            await read(txn)
            txn.put(b"mine", b"1")
            change(other)
            await other.commit()
            return await loses(txn.commit())

        async def conflict_on_key(txn: Transaction) -> None:
            txn.read_conflict(b"b")

        async def conflict_on_range(txn: Transaction) -> None:
            txn.read_conflict_range(b"b", b"c")

        listed = lambda txn: txn.range(b"a", b"e", limit=10)  # noqa: E731
        first = lambda txn: txn.range(b"a", b"e", limit=1)  # noqa: E731
        last = lambda txn: txn.range(b"a", b"e", limit=1, reverse=True)  # noqa: E731
        point = lambda txn: txn.get(b"b")  # noqa: E731
        absent = lambda txn: txn.get(b"c")  # noqa: E731
        many = lambda txn: txn.get_many([b"b", b"c"])  # noqa: E731

        # fmt: off
        cases = [
            (point, lambda o: o.put(b"b", b"2"), True),
            (point, lambda o: o.put(b"bb", b"2"), False),
            (point, lambda o: o.delete(b"b"), True),
            (point, lambda o: o.add(b"b", 1), True),
            (point, lambda o: o.delete_range(b"a", b"c"), True),
            (point, lambda o: o.delete_range(b"c", b"e"), False),
            (absent, lambda o: o.put(b"c", b"2"), True),
            (many, lambda o: o.put(b"c", b"2"), True),
            (many, lambda o: o.delete(b"b"), True),
            (many, lambda o: o.put(b"bb", b"2"), False),
            (lambda txn: txn.get_many([b"b", b"c"], snapshot=True), lambda o: o.put(b"b", b"2"), False),
            (listed, lambda o: o.put(b"c", b"2"), True),
            (listed, lambda o: o.delete(b"d"), True),
            (listed, lambda o: o.delete_range(b"c", b"x"), True),
            (listed, lambda o: o.put(b"e", b"2"), False),
            (first, lambda o: o.put(b"a", b"2"), True),
            (first, lambda o: o.put(b"c", b"2"), False),
            (first, lambda o: o.delete(b"b"), True),
            (last, lambda o: o.put(b"dd", b"2"), True),
            (last, lambda o: o.put(b"c", b"2"), False),
            (lambda txn: txn.get(b"b", snapshot=True), lambda o: o.put(b"b", b"2"), False),
            (lambda txn: txn.range(b"a", b"e", limit=9, snapshot=True), lambda o: o.put(b"c", b"2"), False),
            (conflict_on_key, lambda o: o.put(b"b", b"2"), True),
            (conflict_on_key, lambda o: o.put(b"c", b"2"), False),
            (conflict_on_range, lambda o: o.put(b"bb", b"2"), True),
            (conflict_on_range, lambda o: o.put(b"c", b"2"), False),
        ]
        # fmt: on
        for number, (read, change, expected) in enumerate(cases):
            assert await outcome(read, change) is expected, f"case {number}"

    drive(open_kv, body)


def test_a_conflict_writes_nothing_and_blind_writes_never_conflict(open_kv: Open) -> None:
    async def body(kv: KVEngine) -> None:
        await put(kv, a="1")
        loser, winner = kv.begin(), kv.begin()
        assert await loser.get(b"a") == await winner.get(b"a") == b"1"
        loser.put(b"a", b"loser")
        loser.put(b"b", b"loser")
        winner.put(b"a", b"winner")
        await winner.commit()
        with pytest.raises(Conflict):
            await loser.commit()
        first, second = kv.begin(), kv.begin()
        first.put(b"a", b"first")
        second.put(b"a", b"second")
        await first.commit()
        await second.commit()
        assert await dump(kv) == {"a": "second"}

    drive(open_kv, body)


def test_adders_commute_and_readers_of_the_counter_conflict(open_kv: Open) -> None:
    async def body(kv: KVEngine) -> None:
        async def add(delta: int) -> None:
            txn = kv.begin()
            txn.add(b"n", delta)
            await txn.commit()

        await asyncio.gather(*(add(delta) for delta in range(-20, 31)))
        assert decode_counter(await kv.begin().get(b"n")) == sum(range(-20, 31))
        txn = kv.begin()
        txn.add(b"n", 5)
        assert decode_counter(await txn.get(b"n")) == sum(range(-20, 31)) + 5
        await add(1)
        assert await loses(txn.commit())
        txn = kv.begin()
        txn.delete(b"n")
        txn.add(b"n", -7)
        txn.put(b"m", (2**63 - 1).to_bytes(8, "little"))
        txn.add(b"m", 1)
        await txn.commit()
        assert decode_counter(await kv.begin().get(b"n")) == -7
        assert decode_counter(await kv.begin().get(b"m")) == -(2**63)

    drive(open_kv, body)


def test_write_skew_is_refused(open_kv: Open) -> None:
    async def body(kv: KVEngine) -> None:
        await put(kv, on_call_a="yes", on_call_b="yes")
        first, second = kv.begin(), kv.begin()
        for txn, own in ((first, b"on_call_a"), (second, b"on_call_b")):
            assert len(await txn.range(b"on_call", b"on_calm", limit=9)) == 2
            txn.delete(own)
        lost = await asyncio.gather(loses(first.commit()), loses(second.commit()))
        assert sorted(lost) == [False, True]
        assert len(await dump(kv)) == 1

    drive(open_kv, body)


@pytest.mark.parametrize("seed", range(6))
def test_concurrent_transactions_equal_a_serial_run(store: Store, seed: int) -> None:
    async def body(kv: KVEngine) -> None:
        done, lost = await run_clients(kv, seed=seed, clients=8, transactions=25)
        await check_serial(kv, await store.order(done))
        assert lost > 5 and len(done) > 50, "the run must exercise both outcomes"

    drive(store.open, body)


def test_transact_retries_until_it_wins_and_gives_up_after_its_attempts(open_kv: Open) -> None:
    async def body(kv: KVEngine) -> None:
        async def increment(txn: Transaction) -> None:
            txn.put(b"n", str(int(await txn.get(b"n") or b"0") + 1).encode())

        await asyncio.gather(*(transact(kv, increment, attempts=64) for _ in range(40)))
        assert await kv.begin().get(b"n") == b"40"

        async def sabotaged(txn: Transaction) -> None:
            await increment(txn)
            await transact(kv, increment)

        with pytest.raises(Conflict):
            await transact(kv, sabotaged, attempts=3)
        assert await kv.begin().get(b"n") == b"43"

    drive(open_kv, body)


def test_watch_reports_changes_under_its_prefix_only(open_kv: Open) -> None:
    async def body(kv: KVEngine) -> None:
        watch, everything = kv.watch(b"dir/"), kv.watch(b"")
        await put(kv, **{"other": "1"})
        await asyncio.wait_for(anext(everything), 30)
        pending = asyncio.ensure_future(anext(watch))
        await put(kv, **{"dis": "1"})
        assert not pending.done()
        await put(kv, **{"dir/a": "1"})
        await asyncio.wait_for(pending, 30)
        txn = kv.begin()
        txn.delete_range(b"d", b"e")
        await txn.commit()
        await asyncio.wait_for(anext(watch), 30)
        txn = kv.begin()
        txn.add(b"dir/n", 1)
        await txn.commit()
        await asyncio.wait_for(anext(watch), 30)
        pending = asyncio.ensure_future(anext(watch))
        await kv.close()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(pending, 30)

    drive(open_kv, body)


def test_limits_refuse_the_whole_transaction(open_kv: Open) -> None:
    async def body(kv: KVEngine) -> None:
        for key, value, said in (
            (b"k" * 11, b"", "key of 11 bytes"),
            (b"", b"", "key of 0 bytes"),
            (b"k", b"v" * 21, "value of 21 bytes"),
        ):
            txn = kv.begin()
            txn.put(b"innocent", b"1")
            txn.put(key, value)
            with pytest.raises(Invalid, match=said):
                await txn.commit()
        txn = kv.begin()
        for index in range(9):
            txn.put(b"%d" % index, b"")
        with pytest.raises(Invalid, match=r"operations.*: at most 8"):
            await txn.commit()
        txn = kv.begin()
        for index in range(8):
            txn.put(b"%d" % index, b"v" * 20)
        with pytest.raises(Invalid, match="168 bytes: at most 150"):
            await txn.commit()
        assert await dump(kv) == {}
        await put(kv, **{"k" * 10: "v" * 20})

    limits = Limits(max_operations=8, max_transaction_bytes=150, max_key_bytes=10, max_value_bytes=20)
    drive(open_kv, body, limits=limits)


def test_a_closed_store_says_so(open_kv: Open) -> None:
    async def body(kv: KVEngine) -> None:
        txn = kv.begin()
        txn.put(b"a", b"1")
        await kv.close()
        with pytest.raises(Unavailable):
            kv.begin()
        with pytest.raises(Unavailable):
            await txn.commit()

    drive(open_kv, body)
