"""The collector: what nobody names any more is taken apart in the background.

    session not renewed for the lease --> its unpublished inode is queued
    queued directory                  --> its entries are queued, page by page, then it is gone
    queued file                       --> after a delay (for its last readers), its chunks are removed, then it is gone
    entry of the trash that is due    --> is removed as by hand: what nobody names any more is queued
    new quota of a directory          --> what is below it is counted, page by page

All state lies in the store, so a restart, or a second collector, only repeats what is safe to repeat. A round does a
bounded amount of work, so that ordinary operations get their turn. A file whose chunks cannot be removed now stays
queued and keeps nobody else waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter

from fs3.clock import lease_now_s, wall_now_ns
from fs3.errors import Fs3Error
from fs3.ids import InodeId
from fs3.inode import Inode, InodeType
from fs3.kv import keys
from fs3.kv.api import KVEngine, Transaction, transact
from fs3.meta import dentry, idempotency, inode
from fs3.meta.gc_pass import PAGE, Pass
from fs3.meta.gc_quota import QuotaCounting
from fs3.meta.gc_trash import TRASH_GRACE_S, TrashExpiry
from fs3.meta.gc_turn import CollectorTurn
from fs3.meta.quota import Charges
from fs3.meta.sizes import page_of, while_too_much
from fs3.meta.unchanged_core import Unchanged

_log = logging.getLogger(__name__)

_REMOVALS_AT_ONCE = 8
_COUNTED = {
    "sessions_expired": "Write sessions whose client stopped renewing",
    "entries_detached": "Entries of removed directories that were taken apart",
    "files_removed": "Dead files whose chunks were removed",
    "trash_expired": "Entries of the trash whose time was over",
    "quota_pages_counted": "Pages of directories that were counted for new quotas",
    "removals_failed": "Attempts to remove a dead file's chunks that failed",
}


class ChunkRemover(Protocol):
    """Where the collector gets rid of a dead file's chunks."""

    async def remove_file(self, inode: Inode) -> None:
        """Remove every chunk of `inode` (`fs3.meta.inode.known_length` says how far they can reach).

        Removing what is gone already succeeds. Raises: Fs3Error, and it is tried again later.
        """
        ...


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did."""

    sessions_expired: int = 0
    entries_detached: int = 0
    files_removed: int = 0
    removals_failed: int = 0
    trash_expired: int = 0
    quota_pages_counted: int = 0
    answers_forgotten: bool = False

    @property
    def productive(self) -> bool:
        """Whether there may be more to do at once."""
        return bool(
            self.sessions_expired
            or self.entries_detached
            or self.files_removed
            or self.trash_expired
            or self.quota_pages_counted
            or self.answers_forgotten
        )


class Collector:
    """One per meta daemon, of which one at a time works; several at once would do no harm."""

    def __init__(
        self,
        kv: KVEngine,
        remover: ChunkRemover,
        *,
        session_lease_s: float,
        delay_s: float,
        interval_s: float,
        trash_grace_s: float = TRASH_GRACE_S,
        registry: CollectorRegistry | None = None,
        now: Callable[[], float] = lease_now_s,
        wall_ns: Callable[[], int] = wall_now_ns,
        owner: int | None = None,
    ) -> None:
        """`delay_s`: how long chunks outlive their file; `interval_s`: the pause when there is nothing to do.

        `trash_grace_s`: for how long the collector must have seen an entry of the trash to be due by `wall_ns`.
        `registry` gets counters of what was done; `owner` is a number that no other collector has, random by default.
        """
        self._now = now
        self._kv = kv
        self._at_once = page_of(kv.limits)
        self._remover = remover
        self._session_lease_s = session_lease_s
        self._delay_s = delay_s
        self._interval_s = interval_s
        self._sessions = Pass(keys.SESSION)
        self._queue = Pass(keys.GC_QUEUE)
        self._trash = TrashExpiry(kv, trash_grace_s, wall_ns)
        self._quotas = QuotaCounting(kv)
        self._period = Unchanged()
        self._turn = CollectorTurn(kv, secrets.randbits(63) if owner is None else owner)
        self._failing: set[InodeId] = set()
        self._counted = {
            name: Counter(f"fs3_meta_gc_{name}", text, registry=registry) for name, text in _COUNTED.items()
        }

    async def run(self) -> None:
        """Collect, in turn with other daemons, until cancelled; what was not finished is left to the next collector."""
        try:
            while True:
                done = Round()
                try:
                    now_s = self._now()
                    if await self._turn.ours(now_s):
                        done = await self.round(now_s)
                except Fs3Error as error:
                    _log.warning("collection paused: %s", error)
                await asyncio.sleep(0 if done.productive else self._interval_s)
        finally:
            with contextlib.suppress(Fs3Error):
                await self._turn.end()

    async def round(self, now_s: float) -> Round:
        """One bounded round at `now_s`. Raises: Fs3Error of the store."""
        expired = await self._expire_sessions(now_s)
        trash_expired = await self._trash.round(now_s)
        detached, ready = 0, []
        for key, value in await self._queue.page(self._kv, now_s):
            dead = inode.decode(value)
            if dead.type is InodeType.DIRECTORY:
                detached += await while_too_much(self._kv, partial(detach_page, directory=dead.inode_id), self._at_once)
            elif self._queue.seen.age_s(now_s, key, value) >= self._delay_s:
                ready.append(dead)
        removed = await self._remove_files(ready)
        done = Round(
            sessions_expired=expired,
            entries_detached=detached,
            files_removed=removed,
            removals_failed=len(ready) - removed,
            trash_expired=trash_expired,
            quota_pages_counted=await self._quotas.round(now_s),
            answers_forgotten=await self._forget_answers(now_s),
        )
        for name, counter in self._counted.items():
            counter.inc(getattr(done, name))
        return done

    async def _expire_sessions(self, now_s: float) -> int:
        expired = 0
        for key, value in await self._sessions.page(self._kv, now_s):
            if self._sessions.seen.age_s(now_s, key, value) < self._session_lease_s:
                continue
            inode_id = InodeId(keys.inode_of(key))
            if await transact(self._kv, partial(expire_session, inode_id=inode_id, seen=value)):
                _log.info("inode %d: its writer stopped renewing, and its session ended", inode_id)
                expired += 1
        return expired

    async def _remove_files(self, ready: list[Inode]) -> int:
        """Remove the chunks of `ready`, then, many at once, their records; how many succeeded."""
        slots = asyncio.Semaphore(_REMOVALS_AT_ONCE)
        removed: list[InodeId] = []

        async def remove(dead: Inode) -> None:
            async with slots:
                try:
                    await self._remover.remove_file(dead)
                except Fs3Error as error:
                    if dead.inode_id not in self._failing:
                        _log.warning("chunks of inode %d stay for now: %s", dead.inode_id, error)
                        self._failing.add(dead.inode_id)
                    return
            removed.append(dead.inode_id)

        async with asyncio.TaskGroup() as group:
            for dead in ready:
                group.create_task(remove(dead))
        for at in range(0, len(removed), self._at_once):
            await transact(self._kv, partial(forget_dead, inode_ids=removed[at : at + self._at_once]))
        self._failing.difference_update(removed)
        return len(removed)

    async def _forget_answers(self, now_s: float) -> bool:
        period = await idempotency.current_period(self._kv.begin())
        if self._period.age_s(now_s, b"period", b"%d" % period) >= idempotency.KEEP_S:
            await transact(self._kv, lambda txn: idempotency.start_period(txn, period))
        return await transact(self._kv, lambda txn: idempotency.forget(txn, PAGE))


async def expire_session(txn: Transaction, inode_id: InodeId, seen: bytes) -> bool:
    """End a session that is still as `seen`, and with it a file that has no name; whether it was."""
    if await txn.get(keys.session(inode_id)) != seen:
        return False
    inode.end_session(txn, await inode.load(txn, inode_id))
    return True


async def detach_page(txn: Transaction, directory: InodeId, limit: int) -> int:
    """Queue up to `limit` entries of a dead directory, and forget it once it has none; how many things were done."""
    if await txn.get(keys.gc_queue(directory)) is None:
        return 0  # another collector was faster
    page, charges = await dentry.load_page(txn, directory, b"", limit), Charges(txn)
    for name, entry in page:
        child = await inode.load(txn, entry.inode_id)
        dentry.remove(txn, directory, name)
        await inode.drop_tree(txn, child, child.ctime_ns, charges)
    await charges.settle()
    if len(page) < limit:
        inode.forget_listing(txn, directory)
        txn.delete(keys.gc_queue(directory))
    return max(len(page), 1)


async def forget_dead(txn: Transaction, inode_ids: list[InodeId]) -> None:
    """The last record of dead files whose chunks are gone."""
    for inode_id in inode_ids:
        txn.delete(keys.gc_queue(inode_id))
