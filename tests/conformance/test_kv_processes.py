"""One store in several processes: serializable across them, fresh at every begin, and no death stops others.

On SQLite and on etcd, except what only a file can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import secrets
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kv_workload
import pytest
from kv_workload import Done, check_serial, in_commit_order, in_etcd_order, open_store

from fs3.errors import Conflict, MaybeApplied, Unavailable
from fs3.kv.api import KVEngine, Transaction, transact
from fs3.kv.occ_core import decode_counter
from fs3.kv.sqlite import SqliteKV

_ADDER = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(kv_workload.__file__).parent)!r})
from kv_workload import open_store

async def main():
    kv = open_store(sys.argv[1])
    print("open", flush=True)
    for number in range(int(sys.argv[3])):
        txn = kv.begin()
        txn.put(f"{{sys.argv[2]}}/{{number:08}}".encode(), b"")
        txn.add(b"count", 1)
        await txn.commit()
        print(number, flush=True)
    await kv.close()

asyncio.run(main())
"""


@pytest.fixture(params=["sqlite", "etcd"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that is not there yet, as `open_store` takes it."""
    if request.param == "sqlite":
        return str(tmp_path / "kv.db")
    return f"test-{secrets.token_hex(4)}@{','.join(request.getfixturevalue('etcd').endpoints)}"


@contextlib.contextmanager
def adder(store: str | Path, name: str, times: int) -> Iterator[subprocess.Popen[str]]:
    """A process that adds to `count` and notes each time under its name; it says "open", then counts what committed."""
    command = [sys.executable, "-c", _ADDER, str(store), name, str(times)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        yield child


async def count(kv: KVEngine) -> int:
    return decode_counter(await kv.begin().get(b"count"))


async def notes(kv: KVEngine, name: str) -> int:
    return len(await kv.begin().range(f"{name}/".encode(), f"{name}0".encode(), limit=100_000))


async def increment(txn: Transaction) -> None:
    """As a reader and writer: loses against every adder that comes in between."""
    number = decode_counter(await txn.get(b"count"))
    txn.put(b"count", (number + 1).to_bytes(8, "little"))


def test_transactions_of_two_processes_equal_a_serial_run(store: str, tmp_path: Path) -> None:
    children = []
    for seed in (1, 2):
        result = str(tmp_path / f"{seed}.done")
        command = [sys.executable, kv_workload.__file__, store, str(seed), "6", "60", result]
        children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "open\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        child.communicate()
        assert child.returncode == 0
    done = [Done(**one) for seed in (1, 2) for one in pickle.loads((tmp_path / f"{seed}.done").read_bytes())]
    assert 100 < len(done) < 720, "some must commit and some must lose"

    async def check() -> None:
        kv = open_store(store)
        name, at, endpoints = store.partition("@")
        ordered = await in_etcd_order(endpoints.split(","), name, done) if at else in_commit_order(Path(store), done)
        await check_serial(kv, ordered)
        await kv.close()

    asyncio.run(check())


def test_counters_of_two_processes_and_a_reader_between_them(store: str) -> None:
    async def run() -> None:
        kv = open_store(store)
        with adder(store, "one", 150) as one, adder(store, "two", 150) as two:
            for _ in range(20):
                await transact(kv, increment, attempts=10_000)
            await asyncio.to_thread(one.communicate)
            await asyncio.to_thread(two.communicate)
            assert one.returncode == two.returncode == 0
        assert await count(kv) == 320
        assert (await notes(kv, "one"), await notes(kv, "two")) == (150, 150)
        await kv.close()

    asyncio.run(run())


def test_what_another_process_committed_is_seen_by_the_next_begin_and_conflicts_with_the_last(store: str) -> None:
    async def run() -> None:
        kv = open_store(store)
        with adder(store, "other", 30) as other:
            assert other.stdout is not None
            for expected in range(30):
                old = kv.begin()
                before = await notes_in(old)
                assert other.stdout.readline() == f"{expected}\n"
                assert await notes_in(kv.begin()) >= max(expected + 1, before)
                assert await notes_in(old) == before
                if before <= expected:  # it committed after `old` began: a phantom
                    old.put(b"mine", b"")
                    with pytest.raises(Conflict):
                        await old.commit()
        await kv.close()

    async def notes_in(txn: Transaction) -> int:
        return len(await txn.range(b"other/", b"other0", limit=1_000))

    asyncio.run(run())


def test_a_process_that_dies_anywhere_in_a_commit_stops_nobody_and_leaves_no_half(store: str) -> None:
    async def run() -> None:
        kv = open_store(store)
        lives = 5
        acknowledged, own = [0] * lives, 0
        for life in range(lives):
            with adder(store, f"life{life}", 1_000_000) as child:
                assert child.stdout is not None
                while acknowledged[life] < 5 + 5 * life:
                    acknowledged[life] = int(child.stdout.readline()) + 1
                    await transact(kv, increment, attempts=10_000)
                    own += 1
                child.send_signal(signal.SIGKILL)
                rest = child.stdout.read().split()
                acknowledged[life] = max(acknowledged[life], len(rest) and int(rest[-1]) + 1)
            await transact(kv, increment)
            own += 1
        noted = [await notes(kv, f"life{life}") for life in range(lives)]
        assert all(there >= told for there, told in zip(noted, acknowledged, strict=True))
        assert all(there <= told + 1 for there, told in zip(noted, acknowledged, strict=True))
        assert await count(kv) == sum(noted) + own, "a transaction is there whole or not at all"
        await kv.close()

    asyncio.run(run())


def test_a_watch_fires_for_other_processes(store: str) -> None:
    async def run() -> None:
        kv = open_store(store)
        watch, elsewhere = kv.watch(b"other/"), kv.watch(b"elsewhere/")
        waits = asyncio.ensure_future(anext(elsewhere))
        for turn in range(2):
            with adder(store, "other", 1) as child:
                await asyncio.wait_for(anext(watch), 30)
                assert await notes(kv, "other") == 1, turn
                child.communicate()
        assert not waits.done()
        waits.cancel()
        await kv.close()

    asyncio.run(run())


def test_two_processes_that_create_the_store_at_once_share_it(tmp_path: Path) -> None:
    for turn in range(2):
        path = tmp_path / f"{turn}.db"
        command = [sys.executable, "-c", _ADDER, str(path), "x", "20"]
        children = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
        assert [child.wait() for child in children] == [0, 0, 0]

        async def total(path: Path = path) -> int:
            kv = SqliteKV(path)
            try:
                return await count(kv)
            finally:
                await kv.close()

        assert asyncio.run(total()) == 60


def test_an_unknown_outcome_fails_one_engine_and_the_other_goes_on(tmp_path: Path) -> None:
    def deny_commit(action: int, what: str | None, *_: str | None) -> int:
        denied = action == sqlite3.SQLITE_TRANSACTION and what == "COMMIT"
        return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK

    async def run() -> None:
        first, second = SqliteKV(tmp_path / "kv.db"), SqliteKV(tmp_path / "kv.db")
        await transact(first, increment)
        first._committer.writer.set_authorizer(deny_commit)
        with pytest.raises(MaybeApplied):
            await transact(first, increment)
        with pytest.raises(Unavailable, match="restart the daemon"):
            first.begin()
        for expected in (2, 3):  # the first one's commit did not happen, and holds no lock
            await transact(second, increment)
            assert await count(second) == expected
        await first.close()
        await transact(second, increment)
        await second.close()

    asyncio.run(run())


def test_a_process_that_keeps_the_write_lock_is_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        monkeypatch.setattr("fs3.kv.sqlite_turn._WAIT_S", 0.05)
        kv = SqliteKV(tmp_path / "kv.db")
        stuck = sqlite3.connect(tmp_path / "kv.db", isolation_level=None)
        stuck.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="another process has kept its write lock"):
            await transact(kv, increment)
        stuck.execute("ROLLBACK")
        await transact(kv, increment)
        assert await count(kv) == 1
        stuck.close()
        await kv.close()

    asyncio.run(run())
