"""The SQLite store's file, format 2: its tables, and the bytes of its log's records, as docs/formats.md says."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from fs3.errors import Corrupt
from fs3.kv.occ_core import Changes
from fs3.kv.sqlite import SqliteKV

CHANGES = Changes([b"a", b"bc"], [(b"d", b"ef")])
PACKED = "02000000 01000000 01000000 02000000 01000000 02000000 61 6263 64 6566"


def test_a_record() -> None:
    raw = CHANGES.pack()
    assert raw == bytes.fromhex(PACKED)
    assert Changes.unpack(raw) == CHANGES
    assert Changes.unpack(Changes([], []).pack()) == Changes([], [])


@pytest.mark.parametrize("length", [0, 7, 8, 20, 24, 29])
def test_a_record_cut_short_or_too_long_is_refused(length: int) -> None:
    raw = bytes.fromhex(PACKED)
    with pytest.raises(Corrupt):
        Changes.unpack(raw[:length])
    with pytest.raises(Corrupt):
        Changes.unpack(raw + b"x" * (length + 1))


def test_the_file(tmp_path: Path) -> None:
    async def run() -> None:
        kv = SqliteKV(tmp_path / "kv.db")
        for delta in (5, 2):
            txn = kv.begin()
            txn.put(b"a", b"1")
            txn.add(b"bc", delta)
            txn.delete_range(b"d", b"ef")
            await txn.commit()
        await kv.close()

    asyncio.run(run())
    connection = sqlite3.connect(tmp_path / "kv.db")
    assert connection.execute("PRAGMA application_id").fetchone() == (0x66733301,)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert connection.execute("SELECT k, v FROM kv").fetchall() == [(b"a", b"1"), (b"bc", bytes([7] + [0] * 7))]
    size = len(bytes.fromhex(PACKED))
    assert connection.execute("SELECT version, since, changes FROM log").fetchall() == [
        (size, 0, bytes.fromhex(PACKED)),
        (2 * size, size, bytes.fromhex(PACKED)),
    ]
    connection.close()
