"""Snapshots of a SQLite store: read transactions, shared by the transactions that begin while nothing is committed.

Whether something was committed, by whatever process, `PRAGMA data_version` tells in a microsecond, from memory that
SQLite shares between processes. While a snapshot is open, SQLite's log cannot shrink: the engine lets go of the newest
one when it has become old, and when nobody has asked for it for a moment.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from fs3.kv import sqlite_log
from fs3.kv.api import SnapshotExpired
from fs3.kv.occ_core import Changes
from fs3.kv.sqlite_file import error_of, open_reader
from fs3.kv.transaction import Pairs

_SCAN_BLOCK = 256
_GETS_IN_A_ROW = 64
_FEW = 12  # keys, for which a statement each is as good
_SNAPSHOTS = 64
_SNAPSHOT_AGE_S = 10.0
_KEPT = 256  # values that a snapshot remembers, of at most so many bytes each
_KEPT_BYTES = 256

_TOGETHER = 64  # keys in one statement
_APART = 2  # neighbours are read as one range if it has no more than this many places for each key

_GET = "SELECT v FROM kv WHERE k = ?"
_GET_MANY = f"SELECT k, v FROM kv WHERE k IN ({','.join('?' * _TOGETHER)})"
_GET_NEIGHBOURS = "SELECT k, v FROM kv WHERE k >= ? AND k <= ? LIMIT ?"
_SCAN = "SELECT k, v FROM kv WHERE k >= ? AND k < ? ORDER BY k LIMIT ?"
_SCAN_BACK = "SELECT k, v FROM kv WHERE k >= ? AND k < ? ORDER BY k DESC LIMIT ?"


class SqliteSnapshot:
    """A read transaction of SQLite; its connection goes back to the pool when nobody refers to it any more.

    Reads run on the event loop: a point read costs some microseconds, a thread would cost ten times that. Long ranges
    are read in blocks, and other tasks are let in between these and after every few point reads.

    Nothing changes in a snapshot: some of what was read is remembered for the transactions that share it, which walk
    through the same directories again and again.
    """

    __slots__ = ("__weakref__", "_connection", "_gets", "_kept", "_path", "_pool", "opened_s", "version")

    def __init__(self, path: Path, pool: deque[sqlite3.Connection]) -> None:
        self._connection: sqlite3.Connection | None = None
        self._gets = 0
        self._kept: dict[bytes, bytes | None] = {}
        self.opened_s = time.monotonic()
        self._path = path
        self._pool = pool
        self._connection = pool.popleft() if pool else open_reader(path)
        self._connection.execute("BEGIN")
        self.version = sqlite_log.newest(self._connection)

    def release(self) -> None:
        """End the read transaction; later reads of it conflict."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._pool.append(connection)

    def __del__(self) -> None:
        self.release()

    def _rows(self, sql: str, parameters: tuple[object, ...]) -> list[tuple[bytes, ...]]:
        if self._connection is None:
            raise SnapshotExpired("too old, or one of too many: the transaction's snapshot was ended; begin a new one")
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise error_of(error, self._path) from None

    async def get(self, key: bytes) -> bytes | None:
        self._gets += 1
        if self._gets % _GETS_IN_A_ROW == 0:
            await asyncio.sleep(0)
        if key in self._kept and self._connection is not None:
            return self._kept[key]
        rows = self._rows(_GET, (key,))
        value = rows[0][0] if rows else None
        if value is None or len(value) <= _KEPT_BYTES:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[key] = value
        return value

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if len(keys) < _FEW:
            return [await self.get(key) for key in keys]
        found: dict[bytes, bytes] = {}
        ordered = sorted(keys)
        for at in range(0, len(ordered), _TOGETHER):
            if at:
                await asyncio.sleep(0)
            block = ordered[at : at + _TOGETHER]
            most = _APART * len(block)
            rows = self._rows(_GET_NEIGHBOURS, (block[0], block[-1], most)) if _neighbours(block) else None
            if rows is None or len(rows) == most:  # apart, or longer keys between them
                block += block[-1:] * (_TOGETHER - len(block))
                rows = self._rows(_GET_MANY, tuple(block))
            found.update(rows)  # type: ignore[arg-type]
        return [found.get(key) for key in keys]

    async def scan(self, begin: bytes, end: bytes, limit: int, reverse: bool) -> Pairs:
        found: Pairs = []
        while True:
            want = min(limit - len(found), _SCAN_BLOCK)
            block = [(key, value) for key, value in self._rows(_SCAN_BACK if reverse else _SCAN, (begin, end, want))]
            found += block
            if len(block) < want or len(found) == limit:
                return found
            begin, end = (begin, block[-1][0]) if reverse else (block[-1][0] + b"\0", end)
            await asyncio.sleep(0)


def _neighbours(ordered: Sequence[bytes]) -> bool:
    """Whether these keys lie close together, as numbers that are counted up do, and their range holds little else."""
    first, last = ordered[0], ordered[-1]
    if len(first) != len(last):
        return False
    return int.from_bytes(last, "big") - int.from_bytes(first, "big") < _APART * len(ordered)


class Snapshots:
    """All snapshots of an engine, and what it knows of others' commits; for the event loop's thread."""

    def __init__(self, path: Path) -> None:
        """Raises: as `open_reader`."""
        self._path = path
        self._probe = open_reader(path)
        self._pool: deque[sqlite3.Connection] = deque()
        self._open: deque[weakref.ref[SqliteSnapshot]] = deque()  # oldest first
        self._apart: weakref.WeakSet[SqliteSnapshot] = weakref.WeakSet()
        self._current: SqliteSnapshot | None = None
        self._seen = -1
        self.asked = 0  # how often `newest` was called

    def newest(self) -> SqliteSnapshot:
        """A snapshot that shows everything that any process has committed. Raises: Fs3Error of SQLite."""
        self.asked += 1
        try:
            seen = self._committed()  # before the snapshot: what is committed in between must not pass unnoticed
            if self._current is None or seen != self._seen or self._expired(self._current):
                self._current = None  # hand its connection back first, if nobody else reads there
                self._trim()
                self._current = SqliteSnapshot(self._path, self._pool)
                self._open.append(weakref.ref(self._current))
                self._seen = seen
        except sqlite3.Error as error:
            raise error_of(error, self._path) from None
        return self._current

    def apart(self) -> SqliteSnapshot:
        """One for a single transaction, which no age ends. Raises: Fs3Error of SQLite."""
        try:
            snapshot = SqliteSnapshot(self._path, self._pool)
        except sqlite3.Error as error:
            raise error_of(error, self._path) from None
        self._apart.add(snapshot)
        return snapshot

    def let_go(self) -> None:
        """Keep the newest snapshot no longer than its users do."""
        self._current = None

    def version(self) -> int:
        """The newest committed version. Raises: Fs3Error of SQLite."""
        try:
            return sqlite_log.newest(self._probe)
        except sqlite3.Error as error:
            raise error_of(error, self._path) from None

    def changes_after(self, version: int) -> tuple[int, list[tuple[int, Changes]]]:
        """As `sqlite_log.after`. Raises: Fs3Error of SQLite."""
        try:
            return sqlite_log.after(self._probe, version)
        except sqlite3.Error as error:
            raise error_of(error, self._path) from None

    def close(self) -> None:
        """End every snapshot and close every connection."""
        self._current = None
        for ref in self._open:
            snapshot = ref()
            if snapshot is not None:
                snapshot.release()
        self._open.clear()
        for snapshot in list(self._apart):
            snapshot.release()
        while self._pool:
            self._pool.popleft().close()
        self._probe.close()

    def _committed(self) -> int:
        """A number that is another one after a commit of whatever connection."""
        return int(self._probe.execute("PRAGMA data_version").fetchall()[0][0])

    def _expired(self, snapshot: SqliteSnapshot) -> bool:
        return time.monotonic() - snapshot.opened_s > _SNAPSHOT_AGE_S

    def _trim(self) -> None:
        """Forget snapshots that ended; end those that are too old or too many."""
        alive = [(ref, snapshot) for ref in self._open if (snapshot := ref()) is not None]
        self._open = deque(ref for ref, _ in alive)
        while alive and (len(alive) >= _SNAPSHOTS or self._expired(alive[0][1])):
            alive.pop(0)[1].release()
            self._open.popleft()
