"""Updates on their way through one replica: decide, stage, forward, commit, for a whole batch at once.

Each update holds its chunk's lock until it is answered. It is staged durably, then forwarded, and committed on the
successor's ack; at the end of the chain staging and committing are one durable batch. In front of the end the commit is
not synced: the pending version is on stable storage and names its client's update, so a replica that crashed finds it.
What becomes of it then depends on what the chain has become (chain_state.py):

    it was the last that served      it commits its pending versions before it serves again
    others went on without it        it drops them; what they were comes back with recovery
    it goes on, behind it is another every pending version is forwarded again, whole
    it goes on as the tail, or alone every pending version is committed, durably

The same holds without a crash, when the chain changes under an update that is being forwarded: the update takes the
role that its target has now. So no acknowledged update is lost, and none is applied twice: the client's (client,
channel, seq) goes down the chain with the update and into the batch that commits it.

A pending version whose bytes fail their sums cannot be sent again, and cannot be dropped either: a replica behind may
have it, and have shown it to readers. So its replica leaves the chain to those behind it (ASIDE), who know, and comes
back through recovery. If the one behind is only being synced nobody else has it: then it goes there as it is, marked.

An update from a predecessor that waited for its chunk's lock while the chain changed is refused: what it was sent for
is over, and others of the new version may have gone before it. One whose outcome is not known when it must be answered
is answered Unavailable, and its pending version is finished by the settling chore.

Two kinds of update make no version and are not staged (Item.bare); they are forwarded, and done here, durably, once the
successor has done them. NOTE: an update was answered though it changed nothing. FORGET: see tombstones.py.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

from fs3.errors import Busy, Conflict, Corrupt, Fs3Error, Invalid, StaleRouting, Unavailable
from fs3.ids import chunk_name
from fs3.runtime import SYSTEM, Runtime
from fs3.storage import craq_core, own_bytes
from fs3.storage.chain_state import Acting, ChainState, Duty, Role
from fs3.storage.channel_core import Standing, newer_results
from fs3.storage.craq_core import After, Say
from fs3.storage.engine_api import ChunkEngine, DedupEntry, DedupRecord
from fs3.storage.forward import ForwardPort
from fs3.storage.repair import Mend
from fs3.storage.sending import Sender
from fs3.storage.write_counts import Counts
from fs3.storage.write_item import Item, grouped, is_whole, slices
from fs3.storage.write_locks import Key, WriteLocks
from fs3.transport.messages import Op, UpdateFlag

_LOG = logging.getLogger("fs3.storage")
_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.5
_SETTLE_AGAIN_S = 1.0


class Replication:
    """The pipeline. Blocking; any number of threads. `standing` tells what is known of a client on a target; `mend`
    repairs a damaged chunk, until a deadline, and tells whether it did; `look` finds out whether one is damaged."""

    def __init__(
        self,
        state: ChainState,
        port: ForwardPort,
        *,
        suspect: Callable[[int, int], None],
        settle: Callable[[int, float], None],
        standing: Callable[[ChunkEngine, int, int], Standing],
        mend: Callable[[Key, float], Mend],
        look: Callable[[Key], object],
        runtime: Runtime = SYSTEM,
    ) -> None:
        self.runtime = runtime
        self._state = state
        self._sender = Sender(port, suspect=suspect, runtime=runtime)
        self._settle = settle
        self._standing = standing
        self._mend = mend
        self._look = look
        self._closing = False
        self.locks = WriteLocks(runtime=runtime)
        self.counts = Counts()

    @property
    def sent(self) -> tuple[int, int]:
        """(updates forwarded, frames that got no answer)"""
        return self._sender.forwarded, self._sender.failures

    def close(self) -> None:
        """Try nothing again: what is not finished keeps its pending version, and its client is told to come back."""
        self._closing = True

    def run(self, items: Sequence[Item], *, deadline_s: float) -> None:
        """Take updates of distinct chunks to their answers, which are left in them."""
        try:
            self._lock(items, deadline_s)
            self._stage(self._decide([item for item in items if not item.done], deadline_s), deadline_s)
            self.finish([item for item in items if not item.done], deadline_s=deadline_s)
        finally:
            self._unlock(items)

    def settle_chunks(
        self, acting: Acting, role: Role, chunks: Sequence[tuple[int, int]], *, deadline_s: float
    ) -> list[Item]:
        """Finish the pending versions of chunks whose locks the caller holds; the items tell what became of them."""
        engine = self._state.engine(role.target_id)
        items = []
        for hi, lo in chunks:
            if engine.info(role.target_id, hi, lo).pending:
                item = Item((role.target_id, hi, lo), acting, role, engine, own=False)
                self._resume(item)
                items.append(item)
        self.finish(items, deadline_s=deadline_s)
        self.counts.settled += len(items)
        return items

    def forget(
        self, acting: Acting, role: Role, removals: Sequence[tuple[tuple[int, int], int]], *, deadline_s: float
    ) -> list[Item]:
        """At the head: have the chain forget removals (chunk, version) whose chunks nobody is changing now."""
        engine = self._state.engine(role.target_id)
        version_of = {(role.target_id, *chunk): version for chunk, version in removals}
        got = self.locks.acquire(sorted(version_of), self.runtime.now_s())
        items = [
            Item(key, acting, role, engine, Op.FORGET, version=version_of[key], locked=True) for key in sorted(got)
        ]
        try:
            self._decide(items, deadline_s)
            self.finish([item for item in items if not item.done], deadline_s=deadline_s)
        finally:
            self._unlock(items)
        return items

    # From the lock to the pending version

    def _lock(self, items: Sequence[Item], deadline_s: float) -> None:
        # Half of the time that is left: the other half is for what comes after.
        now_s = self.runtime.now_s()
        got = self.locks.acquire(sorted(item.key for item in items), now_s + (deadline_s - now_s) / 2)
        for item in items:
            item.locked = item.key in got
            if not item.locked:
                self._answer(item, error=Busy(f"{chunk_name(*item.key[1:])} is being written; try again"))

    def _unlock(self, items: Sequence[Item]) -> None:
        self.locks.release([item.key for item in items if item.locked])
        for item in items:
            item.locked = False

    def _decide(self, items: Sequence[Item], deadline_s: float) -> list[tuple[Item, int]]:
        """The items to be staged, each with its version; answered, or resumed, are the others."""
        staging: list[tuple[Item, int]] = []
        blocked: list[Item] = []
        passing: list[Item] = []
        for item in items:
            decision = self._decision(item, deadline_s)
            if decision.say is Say.SETTLE:
                blocked.append(item)
            elif decision.say is Say.ANSWER:
                self._answer(item, decision.version, decision.length, decision.error)
            elif decision.say is Say.RESUME:
                self._resume(item)
            elif decision.say is Say.PASS:
                item.op = Op.FORGET if item.op is Op.FORGET else Op.NOTE
                item.version, item.length = decision.version, decision.length
                passing.append(item)
            else:
                staging.append((item, decision.version))
        current = [item for item in passing if self._is_current(item)]
        self._perform([item for item in current if item.role.successor is None])
        if blocked:
            settled: dict[Key, Item] = {}
            for _, group in grouped(blocked, lambda item: id(item.acting)):
                chunks = [item.key[1:] for item in group]
                for one in self.settle_chunks(group[0].acting, group[0].role, chunks, deadline_s=deadline_s):
                    settled[one.key] = one
            free = []
            for item in blocked:
                error = settled[item.key].error if item.key in settled else None
                if error is None:
                    free.append(item)
                else:
                    self._answer(item, error=Busy(f"an earlier update is not finished: {error}"))
            staging += self._decide(free, deadline_s)
        return staging

    def _decision(self, item: Item, deadline_s: float) -> craq_core.Decision:
        target_id, hi, lo = item.key
        info = item.engine.info(target_id, hi, lo)
        if item.op is Op.FORGET:
            return self._stale(item) or craq_core.forget_decides(hi, lo, item.version, info)
        client, channel, _ = item.identity
        result = item.engine.dedup(target_id, client, channel)
        pending = None
        if info.pending:
            staged = item.engine.pending_staged(target_id, hi, lo)
            pending = (staged.client, staged.channel, staged.seq)
        if item.from_client:
            standing = self._standing(item.engine, target_id, client)  # after the result: see session_fence.py
            retry = bool(item.flags & UpdateFlag.RETRY)
            # A chunk whose bytes are lost is as good as absent to who would only write it if it were; not while
            # somebody is away who may have them.
            lost = item.op is Op.PUT_IF_ABSENT and item.key in item.engine.damaged()
            lost = lost and self._mended(item.key, deadline_s) is Mend.LOST and self._state.whole(item.role.chain_id)
            op = Op.REPLACE if lost else item.op
            decision = craq_core.head_decides(op, item.identity, info, result, pending, standing=standing, retry=retry)
            if decision.say is Say.ANSWER:
                return own_bytes.still_true(item, decision, lambda key: self._mended(key, deadline_s))
            return decision
        if (stale := self._stale(item)) is not None:
            return stale
        if item.op is Op.NOTE:
            return craq_core.note_decides(item.identity, item.version, item.length, result)
        if item.role.duty is Duty.SYNC:
            if item.flags & UpdateFlag.DAMAGED:
                own_bytes.keep_better(item)
            return craq_core.syncing_decides(hi, lo, item.version, item.role.version, info)
        fresh = bool(item.flags & UpdateFlag.FRESH)
        return craq_core.replica_decides(
            hi, lo, item.version, info, fresh=fresh, identity=item.identity, pending=pending
        )

    def _stale(self, item: Item) -> craq_core.Decision | None:
        """A refusal, if the chain has changed since the frame came; to be asked under the chunk's lock."""
        now = self._state.role(item.role.chain_id)
        if now is not None and now.version == item.role.version:
            return None
        error = StaleRouting(f"chain {item.role.chain_id} has changed since version {item.role.version}")
        return craq_core.Decision(Say.ANSWER, error=error)

    def _resume(self, item: Item) -> None:
        """It is pending here already, or something else under its number is, which it is refused for."""
        item.staged = item.engine.pending_staged(*item.key)
        item.first = False
        if not item.own:
            return
        try:
            own_bytes.regain(item)
        except Invalid as error:
            item.staged = None
            self._answer(item, error=error)

    def _stage(self, staging: Sequence[tuple[Item, int]], deadline_s: float, *, mended: bool = False) -> None:
        again: list[tuple[Item, int]] = []
        version_of = {id(item): version for item, version in staging}
        current = [item for item, _ in staging if self._is_current(item)]
        for _, group in grouped(current, lambda item: (id(item.engine), item.role.successor is None)):
            engine, ends = group[0].engine, group[0].role.successor is None
            updates = [item.update(version_of[id(item)]) for item in group]
            try:
                results = engine.stage_and_commit(updates) if ends else engine.stage(updates)
            except Fs3Error as error:
                self._engine_failed(engine, error)
                results = [error] * len(group)
            for item, result in zip(group, results, strict=True):
                if isinstance(result, Corrupt) and not mended and self._mends(item, deadline_s):
                    again.append((item, version_of[id(item)]))
                elif isinstance(result, Fs3Error):
                    self._engine_failed(engine, result)
                    self._answer(item, error=result)
                elif ends:
                    self._answer(item, result.version, result.length)
                elif not result.applied:
                    self._answer(item, error=Conflict(f"{chunk_name(*item.key[1:])}: this replica lacks the chunk"))
                else:
                    item.staged = result
        if again:
            self._stage(again, deadline_s, mended=True)

    def _mends(self, item: Item, deadline_s: float) -> bool:
        """Whether the old version, which an update at the head keeps a part of, was damaged and is whole again. (Behind
        the head it is enough to refuse: the predecessor then sends the whole chunk.)"""
        if not item.from_client or item.op not in (Op.WRITE, Op.TRUNCATE):
            return False
        return self._mended(item.key, deadline_s) is Mend.WHOLE

    def _mended(self, key: Key, deadline_s: float) -> Mend:
        """What becomes of a damaged chunk in half of the time that is left."""
        try:
            return self._mend(key, self.runtime.now_s() + (deadline_s - self.runtime.now_s()) / 2)
        except Fs3Error:
            return Mend.UNKNOWN

    def _is_current(self, item: Item) -> bool:
        """Settling another update may have moved this one on to a newer role: with the tail's eyes of before, it would
        be committed without the replica that has joined."""
        if item.acting.version != item.role.version:
            try:
                item.role = self._state.renew(item.acting)
            except Fs3Error as error:
                self._answer(item, error=error)
        return not item.done

    # From the pending version to the answer

    def finish(self, items: Sequence[Item], *, deadline_s: float) -> None:
        """Forward and commit pending versions, under whatever role their targets have meanwhile, until the deadline."""
        left = list(items)
        pause_s = _FIRST_PAUSE_S
        while left:
            seen = self._state.changes()
            left = self._attempt(left, deadline_s)
            now_s = self.runtime.now_s()
            if left and (now_s >= deadline_s or self._closing):
                for item in left:
                    self._leave_pending(item, str(item.error or "the chain did not answer in time"))
                return
            if left:
                self._state.wait_changed(seen, min(pause_s, deadline_s - now_s))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _leave_pending(self, item: Item, why: str) -> None:
        """Answer what nobody knows the outcome of; what is left pending is seen to later."""
        self._answer(item, error=Unavailable(why))
        if item.lost:
            self._state.step_aside(item.role, f"a pending version has lost its bytes ({why})")
        if not item.bare:
            self._settle(item.key[0], _SETTLE_AGAIN_S)

    def _attempt(self, items: Sequence[Item], deadline_s: float) -> list[Item]:
        """Ask every successor once; the items that must be tried again, with the reason in `error`."""
        left: list[Item] = []
        ready: list[Item] = []
        asking: list[Item] = []
        for item in items:
            try:
                item.role = self._state.renew(item.acting)
            except Fs3Error as error:
                self._answer(item, error=error)
                continue
            if item.role.successor is None:
                ready.append(item)
            elif item.op is Op.FORGET and (why := self._sender.must_remember(item)):
                self._answer(item, error=Busy(why))
            else:
                asking.append(item)
        self._conclude(ready, sync=True)
        for group in slices(asking):
            acked, dropped = [], []
            for item, refusal in zip(group, self._sender.forward(group, deadline_s), strict=True):
                after = craq_core.after_forward(refusal.code if refusal else 0, first=item.first, whole=is_whole(item))
                if after is After.COMMIT:
                    acked.append(item)
                elif item.op is Op.FORGET or (item.bare and after is not After.RETRY):
                    self._answer(item, error=refusal)
                elif after is After.ABORT:
                    dropped.append(item)
                    item.error = refusal
                elif after is After.KEEP:
                    self._leave_pending(item, f"kept, since a replica behind may have it: {refusal}")
                else:
                    item.first = item.first and after is After.WHOLE  # which is a refusal, like those of ABORT
                    item.whole = item.whole or after is After.WHOLE
                    item.error = refusal
                    left.append(item)
            self._conclude(acked, sync=False)
            self._abort(dropped)
        return left

    def _conclude(self, items: Sequence[Item], *, sync: bool) -> None:
        """Everybody behind is done with these."""
        self._commit([item for item in items if not item.bare], sync=sync)
        self._perform([item for item in items if item.bare])

    def _commit(self, items: Sequence[Item], *, sync: bool) -> None:
        for _, group in grouped(items, lambda item: (id(item.engine), item.durable)):
            engine = group[0].engine
            staged = [item.staged for item in group if item.staged is not None]
            try:
                engine.commit(staged, sync=sync and any(one.durable for one in staged))
            except Fs3Error as error:
                self._engine_failed(engine, error)
                for item in group:
                    self._leave_pending(item, f"committed behind, not here: {error}")
                continue
            for item, one in zip(group, staged, strict=True):
                if sync and not item.own:
                    self.look(item.key)
                self._answer(item, one.version, one.length)

    def look(self, key: Key) -> None:
        """Look at a version that was committed without a look at its bytes."""
        with contextlib.suppress(Fs3Error):  # if not now, a reader or the scrubber finds what is wrong with it
            self._look(key)

    def _perform(self, items: Sequence[Item]) -> None:
        """Do what makes no version; durable, so that what is in front may go by it."""
        for (_, target_id, op), group in grouped(items, lambda item: (id(item.engine), item.key[0], item.op)):
            engine = group[0].engine
            try:
                if op is Op.FORGET:
                    engine.forget_tombstones(target_id, [(*item.key[1:], item.version) for item in group])
                    self.counts.forgotten += len(group)
                else:
                    self._note(engine, target_id, group)
            except Fs3Error as error:
                self._engine_failed(engine, error)
                for item in group:
                    self._answer(item, error=error)
                continue
            for item in group:
                self._answer(item, item.version, item.length)

    def _note(self, engine: ChunkEngine, target_id: int, items: Sequence[Item]) -> None:
        records = []
        for item in items:
            client, channel, seq = item.identity
            records.append(DedupRecord(client, channel, DedupEntry(seq, item.version, item.length)))
        known = {}
        for record in records:
            entry = engine.dedup(target_id, record.client, record.channel)
            if entry is not None:
                known[record.client, record.channel] = entry
        engine.put_dedup(target_id, newer_results(known, records))
        self.counts.notes += len(items)

    def _abort(self, items: Sequence[Item]) -> None:
        for _, group in grouped(items, lambda item: id(item.engine)):
            engine = group[0].engine
            try:
                engine.abort([item.staged for item in group if item.staged is not None])
            except Fs3Error as error:
                self._engine_failed(engine, error)
                for item in group:
                    self._leave_pending(item, f"refused behind ({item.error}), and not dropped here: {error}")
                continue
            for item in group:
                self._answer(item, error=item.error)

    def _answer(self, item: Item, version: int = 0, length: int = 0, error: Fs3Error | None = None) -> None:
        item.done, item.version, item.length, item.error = True, version, length, error
        if error is not None:
            _LOG.debug("target %d, %s: %s", item.key[0], chunk_name(*item.key[1:]), error)
        if item.locked:
            item.locked = False
            self.locks.release([item.key])

    def _engine_failed(self, engine: ChunkEngine, error: Fs3Error) -> None:
        if isinstance(error, Unavailable):
            self._state.broken(engine, error)
