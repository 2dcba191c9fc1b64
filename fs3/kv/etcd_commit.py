"""Sends transactions to etcd until it is known what became of them.

    send -> answered                      -> committed | refused | a counter had moved on: send with its new value
         -> not answered, and may be in   -> fence until answered -> committed | not in, and cannot be: send again
                                                                  -> no answer by the deadline: MaybeApplied

Commits of this process that add to the same counter wait for each other here, since only one of them could win.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence

from fs3.clock import lease_now_s
from fs3.errors import Busy, Conflict, Fs3Error, MaybeApplied, Unavailable
from fs3.kv.etcd_client import PAUSE_S, EtcdClient, Unanswered
from fs3.kv.etcd_core import (
    Committed,
    Counter,
    Fenced,
    Raced,
    Record,
    RecordGone,
    Refused,
    Translator,
    Work,
    fence,
    judge_fence,
)
from fs3.kv.etcd_records import Records
from fs3.kv.etcd_snapshot import EtcdSnapshot
from fs3.kv.occ_core import ReadSet, WriteSet
from fs3.kv.transaction import conflict_error

_COUNTERS = 1_024
_SENDING = 0.5  # the part of the time in which a commit may be sent; the rest is for finding out


class Committer:
    """The commits of one engine."""

    def __init__(self, client: EtcdClient, translator: Translator, records: Records, timeout_s: float) -> None:
        self._client = client
        self._translator = translator
        self._records = records
        self._timeout_s = timeout_s
        self._counters: OrderedDict[bytes, Counter] = OrderedDict()  # as this process saw them last
        self._locks: weakref.WeakValueDictionary[bytes, asyncio.Lock] = weakref.WeakValueDictionary()

    async def commit(self, snapshot: EtcdSnapshot, reads: ReadSet, writes: WriteSet, deadline_s: float) -> None:
        """Raises: Conflict, MaybeApplied, Invalid, Unavailable (nothing was written)."""
        revision = await snapshot.revision() if reads.keys or reads.ranges else 0
        unseen = [key for key in reads.keys if key not in snapshot.seen]
        await asyncio.gather(*map(snapshot.get, unseen))
        points = {key: snapshot.seen[key] for key in sorted(reads.keys)}
        work = Work(revision=revision, points=points, ranges=reads.ranges, writes=writes)
        if not writes:
            await self._check(work, deadline_s)
            return
        names = work.counters()
        async with self._alone_with(names):
            await self._records.enter()
            try:
                await self._settle(work, names, deadline_s)
            finally:
                self._records.leave()

    async def _check(self, work: Work, deadline_s: float) -> None:
        """Commit one that writes nothing: what it read must still be so."""
        request = self._translator.request(work, None, {})
        if not request.compare:
            return
        response = await self._client.repeat(request, deadline_s)
        if isinstance(self._translator.judge(request, None, {}, response), Refused):
            raise conflict_error()

    @contextlib.asynccontextmanager
    async def _alone_with(self, names: Sequence[bytes]) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for name in names:
                lock = self._locks.get(name)
                if lock is None:
                    lock = self._locks[name] = asyncio.Lock()
                await stack.enter_async_context(lock)
            yield

    async def _settle(self, work: Work, names: Sequence[bytes], deadline_s: float) -> None:
        """Send until it is in or refused."""
        counters = {name: self._counters.get(name, Counter()) for name in names}
        last_send_s = deadline_s - self._timeout_s * (1 - _SENDING)
        record: Record | None = None
        raced = False
        while lease_now_s() < last_send_s:
            record = record or await self._records.take(last_send_s)
            match await self._try(work, record, counters, deadline_s):
                case Committed(revision):
                    self._records.give_back(record, revision)
                    self._learn(work, counters, revision)
                    return
                case Refused():
                    self._records.give_back(record, record.revision)
                    raise conflict_error()
                case Raced(moved):
                    counters, raced = moved, True
                    record = self._records.moved(record, record.revision)
                case Fenced(revision):
                    record = self._records.moved(record, revision)
                case RecordGone():
                    record = None
        if record is not None:
            self._records.give_back(record, record.revision)
        if raced:
            raise Conflict("counters moved on faster than this transaction could follow; nothing was written")
        raise Unavailable("etcd did not take the transaction in time; nothing was written")

    async def _try(
        self, work: Work, record: Record, counters: Mapping[bytes, Counter], deadline_s: float
    ) -> Committed | Refused | Raced | RecordGone | Fenced:
        """Send once, and know. Raises: Fs3Error, of which only MaybeApplied leaves it open whether it is in."""
        try:
            request = self._translator.request(work, record, counters)
            response = await self._client.send(request, deadline_s)
        except Unanswered:
            return await self._find_out(record, deadline_s)
        except Busy:
            await asyncio.sleep(PAUSE_S)
            return Fenced(record.revision)  # it was not let in: the record is where it was
        except Fs3Error:
            self._records.give_back(record, record.revision)
            raise
        return self._translator.judge(request, record, counters, response)

    async def _find_out(self, record: Record, deadline_s: float) -> Committed | Fenced | RecordGone:
        """What became of a commit that was not answered. Raises: MaybeApplied."""
        try:
            outcome = judge_fence(record, await self._client.repeat(fence(record), deadline_s))
        except (Unavailable, Busy) as error:
            raise MaybeApplied(f"whether the transaction was committed could not be found out: {error}") from None
        if isinstance(outcome, RecordGone) and lease_now_s() >= deadline_s:
            # This process was stopped for so long that a record which says yes may have been swept.
            raise MaybeApplied("whether the transaction was committed was asked too late")
        return outcome

    def _learn(self, work: Work, counters: dict[bytes, Counter], revision: int) -> None:
        """The counters' values are those that were just written."""
        for name, seen in counters.items():
            self._counters[name] = Counter(work.writes.resolve(name, seen.value), revision)
            self._counters.move_to_end(name)
        while len(self._counters) > _COUNTERS:
            self._counters.popitem(last=False)
