"""The replicated engine: optimistic transactions on an etcd cluster, which any number of processes share.

    begin  -> a revision of etcd, one linearizable read that transactions share (etcd_snapshot)
    read   -> at that revision, from any member's history; point reads are gathered (etcd_reads)
    commit -> one request that etcd applies whole or not at all (etcd_core: how, and why no conflict is missed),
              sent until its outcome is known (etcd_commit, etcd_records)
    watch  -> a stream per watch (etcd_watch)

Within one engine, a transaction's snapshot is not newer than its begin: commits wait for the revisions that begins have
asked for. Other processes' commits may come in between, and are seen. Every engine also tidies up (etcd_tidy).
"""

from __future__ import annotations

import asyncio
import logging
import sys
import weakref
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace

from fs3.clock import deadline_after, lease_now_s
from fs3.errors import Busy, Fs3Error, Unavailable
from fs3.kv.api import Limits
from fs3.kv.etcd_client import EtcdClient
from fs3.kv.etcd_commit import Committer
from fs3.kv.etcd_core import Translator
from fs3.kv.etcd_layout import Grouping, Layout, by_kind
from fs3.kv.etcd_reads import Reads
from fs3.kv.etcd_records import Records
from fs3.kv.etcd_snapshot import EtcdSnapshot, Revisions
from fs3.kv.etcd_tidy import EVERY_S, Tidier
from fs3.kv.etcd_watch import Follower
from fs3.kv.occ_core import ReadSet, WriteSet, check_limits
from fs3.kv.transaction import BufferedTransaction
from fs3.kv.watchers import Watch

LIMITS = Limits(max_operations=128, max_transaction_bytes=1_500_000)
"""What etcd allows unless its members are told otherwise: so many comparisons, and so many changes. A transaction also
pays an operation for its commit record and one for each group of keys that it changes; a key that is put inside a
removed range splits that range."""

TIMEOUT_S = 10.0
_QUEUE_TRANSACTIONS = 16_384

log = logging.getLogger(__name__)


class EtcdKV:
    """Implements `fs3.kv.api.KVEngine`; belongs to one event loop."""

    def __init__(
        self,
        endpoints: Sequence[str],
        name: str = "fs3",
        *,
        limits: Limits = LIMITS,
        grouping: Grouping = by_kind,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """The store `name` in the cluster whose members serve clients at `endpoints` ("host:port").

        `grouping` says which keys share a stamp, and must be the same in all processes that use the store; `limits`
        may allow more if every member was started with a higher --max-txn-ops.

        Raises: Invalid if there is no endpoint or the name cannot be one.
        """
        self._layout = Layout(name)
        self._limits = limits
        self._sizes = replace(limits, max_operations=sys.maxsize)  # operations are counted as etcd does (etcd_core)
        self._timeout_s = timeout_s
        self._client = EtcdClient(endpoints)
        self._revisions = Revisions(self._client, self._layout, timeout_s)
        self._reads = Reads(self._client, timeout_s, limits.max_operations)
        translator = Translator(self._layout, grouping, limits.max_operations)
        self._records = Records(self._client, self._layout)
        self._committer = Committer(self._client, translator, self._records, timeout_s)
        self._tidier = Tidier(self._client, self._layout)
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tidying: asyncio.Task[None] | None = None
        self._commits = 0
        self._idle = asyncio.Event()
        self._closed = False

    @property
    def limits(self) -> Limits:
        return self._limits

    def begin(self, *, patient: bool = False) -> BufferedTransaction:
        """Raises: Unavailable after `close`."""
        self._check_open()
        if self._tidying is None:
            self._tidying = self._spawn(self._tidy())
        snapshot = EtcdSnapshot(self._client, self._reads, self._layout, self._revisions.newest(), self._timeout_s)
        return BufferedTransaction(snapshot, _Commit(self, snapshot))

    def watch(self, prefix: bytes) -> AsyncIterator[None]:
        """Raises: Unavailable after `close`."""
        self._check_open()
        watch = Watch(prefix)
        self._watches.add(watch)
        follower = Follower(self._client, *self._layout.watched(prefix), watch)
        self._spawn(follower.run(self._revisions.newest))
        return watch

    async def check(self, timeout_s: float) -> None:
        """See that etcd takes changes, and that the store is of this engine's format or new.

        Raises: Invalid if it is of another format, Unavailable, and whatever etcd refuses it with.
        """
        await self._records.check(deadline_after(timeout_s))

    async def settled(self) -> None:
        """Wait until every transaction that has begun by now knows its snapshot, or that it will not."""
        await self._revisions.settled()

    async def commit(self, snapshot: EtcdSnapshot, reads: ReadSet, writes: WriteSet) -> None:
        """Called by the transaction."""
        self._check_open()
        check_limits(self._sizes, writes, reads)
        if self._commits >= _QUEUE_TRANSACTIONS:
            raise Busy(f"metadata store in etcd: {self._commits} transactions wait for it; retry")
        self._commits += 1
        try:
            deadline_s = deadline_after(self._timeout_s)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self.settled()
            except TimeoutError:
                raise Unavailable("etcd did not answer in time; nothing was written") from None
            await self._committer.commit(snapshot, reads, writes, deadline_s)
        finally:
            self._commits -= 1
            if not self._commits:
                self._idle.set()

    async def close(self) -> None:
        """Wait for the commits under way, and close the connections. Safe to call twice."""
        self._closed = True
        for watch in list(self._watches):
            watch.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._commits:
            self._idle.clear()
            await self._idle.wait()
        await self._client.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the metadata store is closed")

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tidy(self) -> None:
        """Now and then; whoever closes the engine cancels it."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                revision = await asyncio.shield(self._revisions.newest())
                floor = await self._tidier.tidy(revision, lease_now_s(), deadline_after(EVERY_S))
            except Fs3Error as error:
                log.warning("tidying the metadata store in etcd: %s", error)
            else:
                log.debug("the floor of the metadata store in etcd is %d", floor)


class _Commit:
    """Implements `fs3.kv.transaction.Committer` for one transaction, whose snapshot it keeps."""

    __slots__ = ("_kv", "_snapshot")

    def __init__(self, kv: EtcdKV, snapshot: EtcdSnapshot) -> None:
        self._kv = kv
        self._snapshot = snapshot

    async def commit(self, read_version: int, reads: ReadSet, writes: WriteSet) -> None:
        await self._kv.commit(self._snapshot, reads, writes)
