"""What only the SQLite engine promises: the file, crashes, exclusive use, group commit, bounded snapshots.

That processes may share it is in tests/conformance/test_kv_processes.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fs3.errors import Conflict, Invalid, NoSpace
from fs3.kv import sqlite_log
from fs3.kv.api import KVEngine, SnapshotExpired, Transaction
from fs3.kv.sqlite import SqliteKV

_WRITER = """
import asyncio, os, sys
from fs3.kv.sqlite import SqliteKV

async def main():
    kv = SqliteKV(sys.argv[1])
    for number in range(1_000_000):
        txn = kv.begin()
        txn.put(b"n%08d" % number, b"value")
        txn.add(b"count", 1)
        await txn.commit()
        print(number, flush=True)
        if number == int(sys.argv[2]):
            os._exit(7)

asyncio.run(main())
"""


async def keys(kv: KVEngine) -> int:
    return len(await kv.begin().range(b"n", b"o", limit=100_000))


async def put(kv: KVEngine, key: bytes, value: bytes) -> None:
    txn = kv.begin()
    txn.put(key, value)
    await txn.commit()


def reopened(path: Path) -> tuple[int, int]:
    """How many rows the store has, and what its counter says."""

    async def run() -> tuple[int, int]:
        kv = SqliteKV(path)
        try:
            return await keys(kv), int.from_bytes(await kv.begin().get(b"count") or b"", "little")
        finally:
            await kv.close()

    return asyncio.run(run())


def test_reopened_after_os_exit_everything_committed_is_there(tmp_path: Path) -> None:
    path = tmp_path / "kv.db"
    done = subprocess.run([sys.executable, "-c", _WRITER, path, "20"], check=False, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert reopened(path) == (21, 21)


def test_reopened_after_sigkill_everything_acknowledged_is_there(tmp_path: Path) -> None:
    path = tmp_path / "kv.db"
    with subprocess.Popen([sys.executable, "-c", _WRITER, path, "-1"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        acknowledged = 0
        for line in child.stdout:
            acknowledged = int(line) + 1
            if acknowledged == 50:
                child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL and acknowledged >= 50
    rows, count = reopened(path)
    assert rows == count and rows >= acknowledged


def test_who_wants_a_store_alone_keeps_others_out_and_is_named(tmp_path: Path) -> None:
    async def run() -> None:
        kv = SqliteKV(tmp_path / "kv.db")
        with pytest.raises(Invalid, match=f"in use by process {os.getpid()}; stop it"):
            SqliteKV(tmp_path / "kv.db", exclusive=True)
        await kv.close()
        kv = SqliteKV(tmp_path / "kv.db", exclusive=True)
        with pytest.raises(Invalid, match=f"in use by process {os.getpid()}, which wants it alone"):
            SqliteKV(tmp_path / "kv.db")
        program = f"from fs3.kv.sqlite import SqliteKV; SqliteKV({str(tmp_path / 'kv.db')!r})"
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=subprocess.PIPE)
        _, said = await other.communicate()
        assert other.returncode != 0 and f"in use by process {os.getpid()}".encode() in said
        await kv.close()
        again = SqliteKV(tmp_path / "kv.db")
        await again.close()
        await again.close()

    asyncio.run(run())


def test_files_that_are_not_ours_are_refused_untouched(tmp_path: Path) -> None:
    text = tmp_path / "notes.db"
    text.write_bytes(b"these are notes, not a database" * 100)
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE kv (k BLOB PRIMARY KEY, v BLOB)")
    connection.close()
    newer = tmp_path / "newer.db"
    asyncio.run(SqliteKV(newer).close())
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version=9")
    connection.close()
    for path, said in ((text, "not an fs3"), (foreign, "not an fs3"), (newer, "has format 9, this fs3 reads format 2")):
        before = path.read_bytes()
        with pytest.raises(Invalid, match=said):
            SqliteKV(path)
        assert path.read_bytes() == before
    with pytest.raises(Invalid, match="choose a folder"):
        SqliteKV(tmp_path / "missing" / "kv.db")


def test_concurrent_commits_share_disk_transactions_and_one_conflict_spares_the_rest(tmp_path: Path) -> None:
    async def run() -> None:
        kv = SqliteKV(tmp_path / "kv.db")
        transactions = 0

        def count(statement: str) -> None:
            nonlocal transactions
            transactions += statement == "COMMIT"

        kv._committer.writer.set_trace_callback(count)
        losers = [kv.begin(), kv.begin()]
        for txn in losers:
            await txn.get(b"hot")
            txn.put(b"hot", b"1")

        async def write(number: int) -> None:
            txn = kv.begin()
            txn.put(b"n%08d" % number, b"value")
            await txn.commit()

        outcomes = await asyncio.gather(
            *(txn.commit() for txn in losers), *(write(number) for number in range(300)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), Conflict] + [type(None)] * 300
        assert await keys(kv) == 300
        assert 1 <= transactions < 30
        await kv.close()

    asyncio.run(run())


def test_close_waits_for_what_was_submitted(tmp_path: Path) -> None:
    async def run() -> None:
        kv = SqliteKV(tmp_path / "kv.db")
        tasks = []
        for number in range(50):
            txn = kv.begin()
            txn.put(b"n%08d" % number, b"value")
            tasks.append(asyncio.ensure_future(txn.commit()))
        await asyncio.sleep(0)
        await kv.close()
        assert all(task.done() and task.exception() is None for task in tasks)
        assert not (tmp_path / "kv.db-wal").exists(), "the log is folded into the file"

    asyncio.run(run())
    assert reopened(tmp_path / "kv.db")[0] == 50


def test_a_full_disk_refuses_the_transaction_and_the_store_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        kv = SqliteKV(tmp_path / "kv.db")
        (pages,) = kv._committer.writer.execute("PRAGMA page_count").fetchone()
        kv._committer.writer.execute(f"PRAGMA max_page_count={pages + 20}")
        txn = kv.begin()
        for number in range(20):
            txn.put(b"n%08d" % number, b"v" * 90_000)
        with pytest.raises(NoSpace, match="free space on its disk"):
            await txn.commit()
        assert await keys(kv) == 0
        txn = kv.begin()
        txn.put(b"n", b"small")
        await txn.commit()
        assert await keys(kv) == 1
        await kv.close()

    asyncio.run(run())


def test_long_reads_let_other_tasks_run(tmp_path: Path) -> None:
    async def run() -> None:
        kv = SqliteKV(tmp_path / "kv.db")
        txn = kv.begin()
        for number in range(2_000):
            txn.put(b"n%08d" % number, b"value")
        await txn.commit()
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        await keys(kv)
        assert turns >= 2_000 // 256
        turns = 0
        txn = kv.begin()
        for number in range(2_000):
            await txn.get(b"n%08d" % number)
        assert turns >= 2_000 // 64 - 1
        task.cancel()
        await kv.close()

    asyncio.run(run())


def test_transactions_that_are_never_ended_do_not_pile_up(tmp_path: Path) -> None:
    async def run() -> None:
        kv = SqliteKV(tmp_path / "kv.db")
        forgotten = []
        for number in range(100):
            txn = kv.begin()
            assert await keys_of(txn) == number
            forgotten.append(txn)
            change = kv.begin()
            change.put(b"n%08d" % number, b"value")
            await change.commit()
        with pytest.raises(SnapshotExpired, match="begin a new one"):
            await forgotten[0].get(b"n")
        assert await keys_of(forgotten[-1]) == 99
        assert len(kv._snapshots._pool) + len(kv._snapshots._open) < 90
        del forgotten, txn, change
        await kv.close()

    async def keys_of(txn: Transaction) -> int:
        return len(await txn.range(b"n", b"o", limit=1_000))

    asyncio.run(run())


def test_what_a_snapshot_remembers_is_what_it_shows(tmp_path: Path) -> None:
    """Also what is not there; a later one shows what was committed since, and one that was ended nothing."""

    async def run() -> None:
        kv = SqliteKV(tmp_path / "kv.db")
        await put(kv, b"here", b"old")
        early = kv.begin()
        for _ in range(2):
            assert (await early.get(b"here"), await early.get(b"absent")) == (b"old", None)
            await put(kv, b"here", b"new")
            await put(kv, b"absent", b"new")
        late = kv.begin()
        assert (await late.get(b"here"), await late.get(b"absent")) == (b"new", b"new")
        ended = early._open()
        kv._snapshots.close()
        with pytest.raises(SnapshotExpired):
            await ended.get(b"here")
        await kv.close()

    asyncio.run(run())


def test_what_a_snapshot_remembers_is_bounded(tmp_path: Path) -> None:
    async def run() -> None:
        kv = SqliteKV(tmp_path / "kv.db")
        values = {b"n%d" % number: bytes(number) for number in range(600)}
        txn = kv.begin()
        for key, value in values.items():
            txn.put(key, value)
        await txn.commit()
        snapshot = kv._snapshots.newest()
        for key, value in values.items():
            assert await snapshot.get(key) == value
        kept = snapshot._kept
        assert 0 < len(kept) <= 256 and max(len(value) for value in kept.values() if value is not None) <= 256
        await kv.close()

    asyncio.run(run())


def test_a_store_of_the_format_before_is_upgraded_and_keeps_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "kv.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE kv (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID")
        connection.execute("INSERT INTO kv VALUES (?, ?)", (b"n1", b"old"))
        connection.execute("PRAGMA application_id=0x66733301")
        connection.execute("PRAGMA user_version=1")
    connection.close()

    async def run() -> None:
        for _ in range(2):
            kv = SqliteKV(path)
            txn = kv.begin()
            assert await txn.get(b"n1") == b"old"
            txn.put(b"n2", b"new")
            await txn.commit()
            assert await keys(kv) == 2
            await kv.close()

    asyncio.run(run())


def test_the_log_is_bounded_and_who_began_before_it_conflicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_log, "WINDOW_BYTES", 6_400)

    async def run() -> None:
        kv, other = SqliteKV(tmp_path / "kv.db"), SqliteKV(tmp_path / "kv.db")
        old = other.begin()
        assert await old.get(b"untouched") is None
        old.put(b"mine", b"1")
        for number in range(700):
            change = kv.begin()
            change.put(b"n%08d" % number, b"value")
            await change.commit()
        connection = sqlite3.connect(tmp_path / "kv.db")
        (rows, size) = connection.execute("SELECT count(*), sum(length(changes)) FROM log").fetchone()
        connection.close()
        assert 100 < rows < 400 and size <= 6_400 + 100
        with pytest.raises(Conflict):
            await old.commit()
        young = other.begin()
        assert await keys(other) == 700
        young.put(b"mine", b"1")
        await young.commit()
        await other.close()
        await kv.close()

    asyncio.run(run())


def test_an_idle_store_holds_no_snapshot_and_lets_the_log_of_sqlite_shrink(tmp_path: Path) -> None:
    async def run() -> None:
        kv, idle = SqliteKV(tmp_path / "kv.db"), SqliteKV(tmp_path / "kv.db")
        assert await keys(idle) == 0
        assert idle._snapshots._current is not None
        idle._rest_again(idle._snapshots.asked)  # what its timer does when nobody has asked since
        txn = kv.begin()
        for number in range(100):
            txn.put(b"n%08d" % number, b"v" * 10_000)
        await txn.commit()
        kv._snapshots.let_go()
        writer = kv._committer.writer
        assert writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, "no reader was in the way"
        assert (tmp_path / "kv.db-wal").stat().st_size == 0
        await idle.close()
        await kv.close()

    asyncio.run(run())


def test_a_network_file_system_is_refused_unless_the_store_is_wanted_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fs3.kv.sqlite_file.network_file_system", lambda path, mounts: "nfs4")
    with pytest.raises(Invalid, match=r"kv\.db is on a network file system \(nfs4\).*local disk"):
        SqliteKV(tmp_path / "kv.db")
    assert not list(tmp_path.iterdir())
    asyncio.run(SqliteKV(tmp_path / "kv.db", exclusive=True).close())
