"""The committer of a SQLite store: one thread that decides and writes all that waits, in one SQLite transaction.

    take all jobs that wait -> our turn, and SQLite's write lock -> learn what other processes committed since we last
    looked -> decide each job by what it read (occ_core), in order, jobs of the same group included -> write data and
    log, COMMIT: one fsync for all -> back to the event loop with every job's outcome

Deciding under the write lock is what makes processes agree: nobody can commit between the decision and the write. A
loser hears of it together with the winners, so that its retry sees their writes and does not spin.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fs3.errors import Corrupt, Fs3Error, MaybeApplied, NoSpace, Unavailable
from fs3.kv import sqlite_log
from fs3.kv.occ_core import Changes, History, ReadSet, WriteSet, decode_counter, encode_counter
from fs3.kv.sqlite_file import error_of
from fs3.kv.sqlite_turn import Turn
from fs3.kv.transaction import conflict_error

_WINDOW_CHANGES = 200_000
_GROUP_TRANSACTIONS = 512

_GET = "SELECT v FROM kv WHERE k = ?"
_PUT = "INSERT INTO kv VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v"
_DELETE = "DELETE FROM kv WHERE k = ?"
_DELETE_RANGE = "DELETE FROM kv WHERE k >= ? AND k < ?"


@dataclass(slots=True, eq=False)
class Job:
    """One transaction on its way to the disk; `lost` is set by the committer."""

    read_version: int
    reads: ReadSet
    writes: WriteSet
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None] = field(init=False)
    lost: bool = False

    def __post_init__(self) -> None:
        self.done = self.loop.create_future()

    def settle(self, error: Fs3Error | None) -> None:
        """On the event loop: tell who waits; `error` is what befell the whole group."""
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(type(error)(str(error)))
        elif self.lost:
            self.done.set_exception(conflict_error())
        else:
            self.done.set_result(None)


Outcome = Callable[[list[Job], Fs3Error | None], None]


class Committer:
    """Owns the writing connection. `publish` is called on the event loop with each group and what befell it."""

    def __init__(self, path: Path, writer: sqlite3.Connection, turn: Turn, publish: Outcome) -> None:
        self.writer = writer
        self._path = path
        self._turn = turn
        self._publish = publish
        self._history = History(_WINDOW_CHANGES)
        self._history.restart(sqlite_log.newest(writer))
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fs3-kv-committer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def end(self) -> None:
        """Let the thread end after what was submitted."""
        self._jobs.put(None)

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        failed: Fs3Error | None = None
        ending = False
        while not ending:
            job = self._jobs.get()
            group: list[Job] = []
            while job is not None:
                group.append(job)
                if len(group) == _GROUP_TRANSACTIONS or self._jobs.empty():
                    break
                job = self._jobs.get()
            ending = job is None
            if group:
                error = failed or self._commit(group)
                if isinstance(error, MaybeApplied):
                    failed = Unavailable(f"{error}; restart the daemon")
                try:
                    group[0].loop.call_soon_threadsafe(self._publish, group, error)
                except RuntimeError:
                    ending = True  # the loop was closed without closing the store: nobody is left to answer

    def _commit(self, group: list[Job]) -> Fs3Error | None:
        committing = False
        base = self._history.version
        try:
            self._turn.begin(self.writer)
            sqlite_log.catch_up(self.writer, self._history, min(job.read_version for job in group))
            base = self._history.version
            winners = self._decide(group)
            if winners:
                version = self._write(winners, base)
                committing = True
                self.writer.execute("COMMIT")
                self._history.advance(version)
            else:
                self.writer.execute("ROLLBACK")
        except (sqlite3.Error, Unavailable, Corrupt) as error:
            self._history.restart(base)  # it may hold versions that never were; whoever began before begins again
            found = error_of(error, self._path) if isinstance(error, sqlite3.Error) else error
            try:
                if self.writer.in_transaction:
                    self.writer.execute("ROLLBACK")
            except sqlite3.Error as second:
                return MaybeApplied(f"metadata store {self._path}: {error}, then {second}")
            if committing and not isinstance(found, NoSpace):
                return MaybeApplied(f"metadata store {self._path}: {error}")
            return found
        return None

    def _decide(self, group: list[Job]) -> list[WriteSet]:
        """Mark the losers; what the others write, in order. Each winner gets a version of its own for the next."""
        winners = []
        for job in group:
            if self._history.conflict(job.read_version, job.reads) is not None:
                job.lost = True
            elif job.writes:
                self._history.record(job.writes)
                winners.append(job.writes)
        return winners

    def _write(self, winners: list[WriteSet], base: int) -> int:
        """Write data and log; the version to which the file then is."""
        writes = winners[0]
        if len(winners) > 1:
            writes = WriteSet()
            for one in winners:
                writes.merge(one)
        changes = Changes.of(writes)
        for begin, end in changes.cleared:
            self.writer.execute(_DELETE_RANGE, (begin, end))
        puts: list[tuple[bytes, bytes]] = []
        deletes: list[tuple[bytes]] = []
        for key in changes.keys:
            write = writes.writes[key]
            if isinstance(write, bytes):
                puts.append((key, write))
            elif write is None:
                deletes.append((key,))
            else:
                row = self.writer.execute(_GET, (key,)).fetchone()
                puts.append((key, encode_counter(decode_counter(row[0] if row else None) + write)))
        if deletes:
            self.writer.executemany(_DELETE, deletes)
        if puts:
            self.writer.executemany(_PUT, puts)
        return sqlite_log.append(self.writer, base, changes, len(winners))
