"""The embedded engine: optimistic transactions on one SQLite file, which the processes of a machine may share.

    begin  -> a snapshot: a read transaction of SQLite that shows all that any process has committed (sqlite_snapshot)
    commit -> queued -> decided and written by the committer thread, together with all that waits (sqlite_commit)
    watch  -> told of this process's commits at once, of others' within 50 ms, from the log in the file (sqlite_log)

A version is a place in that log, so processes agree on versions. A process that dies, wherever it is, leaves nothing
behind: SQLite's log is recovered by the next who opens it, and its locks end with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from fs3.errors import Busy, Fs3Error, MaybeApplied, Unavailable
from fs3.kv.api import Limits
from fs3.kv.occ_core import ReadSet, WriteSet, check_limits
from fs3.kv.sqlite_commit import Committer, Job
from fs3.kv.sqlite_file import FileLock, check_shareable, open_writer
from fs3.kv.sqlite_snapshot import Snapshots
from fs3.kv.sqlite_turn import Turn
from fs3.kv.transaction import BufferedTransaction
from fs3.kv.watchers import Watchers

LIMITS = Limits(max_operations=100_000, max_transaction_bytes=10_000_000)
_QUEUE_TRANSACTIONS = 16_384
_LOOK_S = 0.05
_REST_S = 0.25


class SqliteKV:
    """Implements `fs3.kv.api.KVEngine`; belongs to one event loop."""

    def __init__(self, path: Path | str, *, limits: Limits = LIMITS, exclusive: bool = False) -> None:
        """Open or create the store at `path`; `exclusive` keeps every other process out.

        Raises:
            Invalid: another process wants it alone (or has it, if this one does), it is not an fs3 store, of another
                format, cannot be written, or lies where it cannot be shared.
            Corrupt, NoSpace, Unavailable: SQLite says so.
        """
        self._path = Path(path)
        self._limits = limits
        with contextlib.ExitStack() as stack:
            if not exclusive:
                check_shareable(self._path)
            lock = FileLock(self._path, exclusive=exclusive)
            stack.callback(lock.release)
            turn = Turn(self._path)
            stack.callback(turn.close)
            with turn:
                writer = open_writer(self._path)
            stack.callback(writer.close)  # the last connection moves the log into the file
            self._snapshots = Snapshots(self._path)
            stack.callback(self._snapshots.close)
            self._committer = Committer(self._path, writer, turn, self._publish)
            self._resources = stack.pop_all()
        self._watchers = Watchers()
        self._seen = 0  # up to which version watches were told
        self._looking = self._resting = False
        self._queued = 0
        self._failure: Fs3Error | None = None
        self._closed = False

    @property
    def limits(self) -> Limits:
        return self._limits

    def begin(self, *, patient: bool = False) -> BufferedTransaction:
        """Raises: Unavailable after `close` or once the disk has failed."""
        self._check_open()
        if patient:
            return BufferedTransaction(self._snapshots.apart(), self)
        if not self._resting:
            self._resting = True
            self._rest_again(-1)
        return BufferedTransaction(self._snapshots.newest(), self)

    def watch(self, prefix: bytes) -> AsyncIterator[None]:
        """Raises: Unavailable, as `begin`."""
        self._check_open()
        self._look()  # a watch counts from now on
        watch = self._watchers.add(prefix)
        if not self._looking:
            self._looking = True
            self._look_again()
        return watch

    async def commit(self, read_version: int, reads: ReadSet, writes: WriteSet) -> None:
        """Called by the transaction. Cancellation leaves a queued transaction to be committed."""
        self._check_open()
        check_limits(self._limits, writes, reads)
        if not writes and self._snapshots.version() == read_version:
            return
        if self._queued >= _QUEUE_TRANSACTIONS:
            raise Busy(f"metadata store {self._path}: {self._queued} transactions wait for the disk; retry")
        job = Job(read_version, reads, writes, asyncio.get_running_loop())
        self._queued += 1
        self._committer.submit(job)
        await job.done

    async def close(self) -> None:
        """Commit what was queued, end the committer thread, release the file. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._committer.end()
        await asyncio.get_running_loop().run_in_executor(None, self._committer.join)
        self._resources.close()
        self._watchers.close()

    def _check_open(self) -> None:
        if self._failure is not None:
            raise Unavailable(f"{self._failure}; restart the daemon")
        if self._closed:
            raise Unavailable(f"metadata store {self._path} is closed")

    def _publish(self, group: list[Job], error: Fs3Error | None) -> None:
        """On the event loop: the group is on disk, or was refused by it."""
        self._queued -= len(group)
        self._snapshots.let_go()
        if isinstance(error, MaybeApplied):
            self._failure = error
        for job in group:
            job.settle(error)
        if self._watchers and not self._closed:
            with contextlib.suppress(Fs3Error):
                self._look()

    def _rest_again(self, asked: int) -> None:
        """Every so often while there are transactions: let go of a snapshot that nobody asks for any more."""
        if self._closed or self._snapshots.asked == asked:
            self._resting = False
            self._snapshots.let_go()
        else:
            asyncio.get_running_loop().call_later(_REST_S, self._rest_again, self._snapshots.asked)

    def _look_again(self) -> None:
        """Every so often while somebody watches: other processes commit too."""
        if self._closed or not self._watchers:
            self._looking = False
            return
        with contextlib.suppress(Fs3Error):  # whoever asks for something next gets to know it
            self._look()
        asyncio.get_running_loop().call_later(_LOOK_S, self._look_again)

    def _look(self) -> None:
        """Tell the watches what was committed since the last look, by whomever."""
        version = self._snapshots.version()
        if version == self._seen:
            return
        if self._watchers:
            begin, rows = self._snapshots.changes_after(self._seen)
            if begin > self._seen:
                self._watchers.notify(None)
            for _, changes in rows:
                self._watchers.notify(changes)
        self._seen = version
