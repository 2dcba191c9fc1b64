"""The embedded engine: optimistic transactions on one SQLite file.

    begin --> snapshot: a read transaction of SQLite, shared by all that begin at the same version
    commit -> validated on the event loop (occ_core), queued -> committer thread: everything that waits becomes
              one SQLite transaction and one fsync -> published on the event loop: new version, watchers, answers

Transactions are validated against commits that are queued but not yet durable too; a loser hears of it only once the
winner is published, so that its retry sees the winner's writes and does not spin. A snapshot may show a commit that is
durable but not yet published; validation then errs on the side of a conflict.

Reads run on the event loop: a point read costs some microseconds, a thread would cost ten times that. Long ranges are
read in blocks, and other tasks are let in between these and after every few point reads.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fs3.errors import Busy, Conflict, Fs3Error, MaybeApplied, NoSpace, Unavailable
from fs3.kv.api import Limits
from fs3.kv.occ_core import History, ReadSet, WriteSet, check_limits, decode_counter, encode_counter
from fs3.kv.sqlite_file import FileLock, error_of, open_reader, open_writer
from fs3.kv.transaction import BufferedTransaction, Pairs, conflict_error
from fs3.kv.watchers import Watchers

LIMITS = Limits(max_operations=100_000, max_transaction_bytes=10_000_000)
_WINDOW_CHANGES = 200_000
_SCAN_BLOCK = 256
_GETS_IN_A_ROW = 64
_GROUP_TRANSACTIONS = 512
_QUEUE_TRANSACTIONS = 16_384
_SNAPSHOTS = 16
_SNAPSHOT_AGE_S = 10.0

_GET = "SELECT v FROM kv WHERE k = ?"
_SCAN = "SELECT k, v FROM kv WHERE k >= ? AND k < ? ORDER BY k LIMIT ?"
_SCAN_BACK = "SELECT k, v FROM kv WHERE k >= ? AND k < ? ORDER BY k DESC LIMIT ?"
_PUT = "INSERT INTO kv VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v"
_DELETE = "DELETE FROM kv WHERE k = ?"
_DELETE_RANGE = "DELETE FROM kv WHERE k >= ? AND k < ?"


class _Snapshot:
    """A read transaction of SQLite; its connection goes back to the pool when nobody refers to it any more."""

    __slots__ = ("__weakref__", "_connection", "_gets", "_path", "_pool", "opened_s", "version")

    def __init__(self, version: int, path: Path, pool: deque[sqlite3.Connection]) -> None:
        self._connection: sqlite3.Connection | None = None
        self._gets = 0
        self.version = version
        self.opened_s = time.monotonic()
        self._path = path
        self._pool = pool
        self._connection = pool.popleft() if pool else open_reader(path)
        self._connection.execute("BEGIN")
        self._connection.execute("SELECT 1 FROM kv LIMIT 1").fetchone()  # this, not BEGIN, fixes the snapshot

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
            raise Conflict(f"the transaction outlived its snapshot ({_SNAPSHOT_AGE_S:g} s); begin a new one")
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise error_of(error, self._path) from None

    async def get(self, key: bytes) -> bytes | None:
        self._gets += 1
        if self._gets % _GETS_IN_A_ROW == 0:
            await asyncio.sleep(0)
        rows = self._rows(_GET, (key,))
        return rows[0][0] if rows else None

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


@dataclass(slots=True)
class _Job:
    """One validated transaction on its way to the disk."""

    version: int
    writes: WriteSet
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]


class SqliteKV:
    """Implements `fs3.kv.api.KVEngine`; belongs to one event loop and one process."""

    def __init__(self, path: Path | str, *, limits: Limits = LIMITS) -> None:
        """Open or create the store at `path`.

        Raises:
            Invalid: it is open in another process, not an fs3 store, of another format, or cannot be written.
            Corrupt, NoSpace, Unavailable: SQLite says so.
        """
        self._path = Path(path)
        self._limits = limits
        self._lock = FileLock(self._path)
        try:
            self._writer = open_writer(self._path)
        except Fs3Error:
            self._lock.release()
            raise
        self._history = History(_WINDOW_CHANGES)
        self._published = 0
        self._publications: dict[asyncio.Future[None], int] = {}  # who waits for which version
        self._watchers = Watchers()
        self._pool: deque[sqlite3.Connection] = deque()
        self._snapshots: deque[weakref.ref[_Snapshot]] = deque()  # oldest first
        self._current: _Snapshot | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._queued = 0
        self._failure: Fs3Error | None = None
        self._closed = self._released = False
        self._thread = threading.Thread(target=self._run, name="fs3-kv-committer", daemon=True)
        self._thread.start()

    @property
    def limits(self) -> Limits:
        return self._limits

    def begin(self) -> BufferedTransaction:
        """Raises: Unavailable after `close` or once the disk has failed."""
        self._check_open()
        if self._current is None or self._current.version != self._published or self._expired(self._current):
            self._current = None  # hand its connection back first, if nobody else reads there
            self._trim_snapshots()
            try:
                self._current = _Snapshot(self._published, self._path, self._pool)
            except sqlite3.Error as error:
                raise error_of(error, self._path) from None
            self._snapshots.append(weakref.ref(self._current))
        return BufferedTransaction(self._current, self)

    def watch(self, prefix: bytes) -> AsyncIterator[None]:
        return self._watchers.add(prefix)

    async def commit(self, read_version: int, reads: ReadSet, writes: WriteSet) -> None:
        """Called by the transaction. Cancellation leaves a queued transaction to be committed."""
        self._check_open()
        check_limits(self._limits, writes, reads)
        newer = self._history.conflict(read_version, reads)
        if newer is not None:
            await self._publication(newer)
            raise conflict_error()
        if not writes:
            return
        if self._queued >= _QUEUE_TRANSACTIONS:
            raise Busy(f"metadata store {self._path}: {self._queued} transactions wait for the disk; retry")
        loop = asyncio.get_running_loop()
        job = _Job(self._history.record(writes), writes, loop, loop.create_future())
        self._queued += 1
        self._jobs.put(job)
        await job.done

    async def close(self) -> None:
        """Commit what was queued, end the committer thread, release the file. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
        if not self._released:
            self._released = True
            self._release_files()
            self._watchers.close()

    def _release_files(self) -> None:
        self._current = None
        for ref in self._snapshots:
            snapshot = ref()
            if snapshot is not None:
                snapshot.release()
        self._snapshots.clear()
        while self._pool:
            self._pool.popleft().close()
        self._writer.close()  # the last connection moves the log into the file
        self._lock.release()

    def _check_open(self) -> None:
        if self._failure is not None:
            raise Unavailable(f"{self._failure}; restart the daemon")
        if self._closed:
            raise Unavailable(f"metadata store {self._path} is closed")

    def _expired(self, snapshot: _Snapshot) -> bool:
        return time.monotonic() - snapshot.opened_s > _SNAPSHOT_AGE_S

    def _trim_snapshots(self) -> None:
        """Forget snapshots that ended; end those that are too old or too many, for they keep the log from shrinking."""
        alive = [(ref, snapshot) for ref in self._snapshots if (snapshot := ref()) is not None]
        self._snapshots = deque(ref for ref, _ in alive)
        while alive and (len(alive) >= _SNAPSHOTS or self._expired(alive[0][1])):
            alive.pop(0)[1].release()
            self._snapshots.popleft()

    async def _publication(self, version: int) -> None:
        """Wait until every commit up to `version` is published, or has failed."""
        if version <= self._published:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._publications[waiter] = version
        try:
            await waiter
        finally:
            self._publications.pop(waiter, None)

    def _publish(self, group: list[_Job], error: Fs3Error | None) -> None:
        """On the event loop: the group is on disk, or was refused by it."""
        self._queued -= len(group)
        self._published = group[-1].version
        if isinstance(error, MaybeApplied):
            self._failure = error
        for job in group:
            if error is None:
                self._watchers.notify(job.writes)
            if not job.done.done():
                if error is None:
                    job.done.set_result(None)
                else:
                    job.done.set_exception(type(error)(str(error)))
        for waiter, version in list(self._publications.items()):
            if version <= self._published and not waiter.done():
                waiter.set_result(None)

    def _run(self) -> None:
        """The committer thread: take all that waits, commit it together, again."""
        failed: Fs3Error | None = None
        ending = False
        while not ending:
            job = self._jobs.get()
            group: list[_Job] = []
            while job is not None:
                group.append(job)
                if len(group) == _GROUP_TRANSACTIONS or self._jobs.empty():
                    break
                job = self._jobs.get()
            ending = job is None
            if group:
                error = failed or self._commit_group(group)
                if isinstance(error, MaybeApplied):
                    failed = Unavailable(f"{error}; restart the daemon")
                try:
                    group[0].loop.call_soon_threadsafe(self._publish, group, error)
                except RuntimeError:
                    ending = True  # the loop was closed without closing the store: nobody is left to answer

    def _commit_group(self, group: list[_Job]) -> Fs3Error | None:
        writes = group[0].writes
        if len(group) > 1:
            writes = WriteSet()
            for job in group:
                writes.merge(job.writes)
        committing = False
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            self._write(writes)
            committing = True
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            found = error_of(error, self._path)
            try:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
            except sqlite3.Error as second:
                return MaybeApplied(f"metadata store {self._path}: {error}, then {second}")
            if committing and not isinstance(found, NoSpace):
                return MaybeApplied(f"metadata store {self._path}: {error}")
            return found
        return None

    def _write(self, writes: WriteSet) -> None:
        for begin, end in writes.cleared:
            self._writer.execute(_DELETE_RANGE, (begin, end))
        puts: list[tuple[bytes, bytes]] = []
        deletes: list[tuple[bytes]] = []
        for key, write in sorted(writes.writes.items(), key=lambda item: item[0]):
            if isinstance(write, bytes):
                puts.append((key, write))
            elif write is None:
                deletes.append((key,))
            else:
                row = self._writer.execute(_GET, (key,)).fetchone()
                puts.append((key, encode_counter(decode_counter(row[0] if row else None) + write)))
        if deletes:
            self._writer.executemany(_DELETE, deletes)
        if puts:
            self._writer.executemany(_PUT, puts)
