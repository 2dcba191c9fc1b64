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
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Busy, Conflict, Fs3Error, Unavailable, from_code
from fs3.ids import chunk_name
from fs3.runtime import SYSTEM, Runtime
from fs3.storage import craq_core
from fs3.storage.chain_state import Acting, ChainState, Duty, Role
from fs3.storage.craq_core import After, Say
from fs3.storage.engine_api import ChunkEngine
from fs3.storage.forward import ForwardPort, Frame
from fs3.storage.write_item import Item, grouped, is_whole, outgoing, slices
from fs3.storage.write_locks import Key, WriteLocks
from fs3.transport.messages import Records

K = TypeVar("K", bound=Hashable)

_LOG = logging.getLogger("fs3.storage")
_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.5
_WHOLE_BYTES = 64 << 20  # of whole chunks read at once to be forwarded
_SETTLE_AGAIN_S = 1.0
_NO_SUMS = np.empty(0, dtype=np.uint32)


@dataclass(slots=True)
class Counts:
    """Counters of the write path; each is only ever added to."""

    updates: int = 0
    forwarded: int = 0
    forward_failures: int = 0
    settled: int = 0
    recovered_chunks: int = 0
    recovered_bytes: int = 0
    removed_chunks: int = 0
    recoveries: int = 0


class Replication:
    """The pipeline. Blocking; any number of threads."""

    def __init__(
        self,
        state: ChainState,
        port: ForwardPort,
        *,
        suspect: Callable[[int, int], None],
        settle: Callable[[int, float], None],
        runtime: Runtime = SYSTEM,
    ) -> None:
        self.runtime = runtime
        self._state = state
        self._port = port
        self._suspect = suspect
        self._settle = settle
        self._closing = False
        self.locks = WriteLocks(runtime=runtime)
        self.counts = Counts()

    def close(self) -> None:
        """Try nothing again: what is not finished keeps its pending version, and its client is told to come back."""
        self._closing = True

    def run(self, items: Sequence[Item], *, deadline_s: float) -> None:
        """Take updates of distinct chunks to their answers, which are left in them."""
        try:
            self._lock(items, deadline_s)
            self._stage(self._decide([item for item in items if not item.done], deadline_s))
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
                item = Item((role.target_id, hi, lo), acting, role, engine)
                self._resume(item)
                item.own = False
                items.append(item)
        self.finish(items, deadline_s=deadline_s)
        self.counts.settled += len(items)
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
        for item in items:
            decision = self._decision(item)
            if decision.say is Say.SETTLE:
                blocked.append(item)
            elif decision.say is Say.ANSWER:
                self._answer(item, decision.version, decision.length, decision.error)
            elif decision.say is Say.RESUME:
                self._resume(item)
            else:
                staging.append((item, decision.version))
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
                    self._answer(item, error=Unavailable(f"an earlier update is not finished: {error}"))
            staging += self._decide(free, deadline_s)
        return staging

    def _decision(self, item: Item) -> craq_core.Decision:
        target_id, hi, lo = item.key
        info = item.engine.info(target_id, hi, lo)
        if item.from_client:
            client, channel, _ = item.identity
            pending = None
            if info.pending:
                staged = item.engine.pending_staged(target_id, hi, lo)
                pending = (staged.client, staged.channel, staged.seq)
            result = item.engine.dedup(target_id, client, channel)
            return craq_core.head_decides(item.op, item.identity, info, result, pending)
        if item.role.duty is Duty.SYNC:
            return craq_core.syncing_decides(hi, lo, item.version, item.role.version, info)
        return craq_core.replica_decides(hi, lo, item.version, info)

    def _resume(self, item: Item) -> None:
        item.staged = item.engine.pending_staged(*item.key)
        item.first = False

    def _stage(self, staging: Sequence[tuple[Item, int]]) -> None:
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
                if isinstance(result, Fs3Error):
                    self._answer(item, error=result)
                elif ends:
                    self._answer(item, result.version, result.length)
                elif not result.applied:
                    self._answer(item, error=Conflict(f"{chunk_name(*item.key[1:])}: this replica lacks the chunk"))
                else:
                    item.staged = result

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
                    self._answer(item, error=item.error or Unavailable("the chain did not answer in time"))
                    self._settle(item.key[0], _SETTLE_AGAIN_S)
                return
            if left:
                self._state.wait_changed(seen, min(pause_s, deadline_s - now_s))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

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
            (ready if item.role.successor is None else asking).append(item)
        self._commit(ready, sync=True)
        for group in slices(asking):
            outcomes = self._forward(group, deadline_s)
            acked, dropped = [], []
            for item, refusal in zip(group, outcomes, strict=True):
                after = craq_core.after_forward(refusal.code if refusal else 0, first=item.first, whole=is_whole(item))
                if after is After.COMMIT:
                    acked.append(item)
                elif after is After.ABORT:
                    dropped.append(item)
                    item.error = refusal
                elif after is After.KEEP:
                    self._answer(item, error=refusal)
                    self._settle(item.key[0], _SETTLE_AGAIN_S)
                else:
                    item.first = False
                    item.whole = item.whole or after is After.WHOLE
                    item.error = refusal
                    left.append(item)
            self._commit(acked, sync=False)
            self._abort(dropped)
        return left

    def _forward(self, items: Sequence[Item], deadline_s: float) -> list[Fs3Error | None]:
        """What the successors answered to each item."""
        outcome: dict[int, Fs3Error | None] = {}
        by_place: defaultdict[tuple[str, int], list[tuple[Item, Records, memoryview, NDArray[np.uint32]]]]
        by_place = defaultdict(list)
        for item in items:
            assert item.role.successor is not None
            try:
                place = (item.role.successor.endpoint, item.role.position + 1)
                by_place[place].append((item, *outgoing(item)))
            except Fs3Error as error:  # what is stored here cannot be read
                outcome[id(item)] = error
        groups = list(by_place.items())
        frames = [
            Frame(
                endpoint,
                hop,
                hop,
                np.concatenate([record for _, record, _, _ in group]),
                [sums for _, _, _, sums in group],
                [data for _, _, data, _ in group],
            )
            for (endpoint, hop), group in groups
        ]
        # A little less time than this replica has itself, so that its successor's answer still arrives.
        left_s = deadline_s - self.runtime.now_s()
        answers = self._port.forward(frames, deadline_s=deadline_s - min(0.25, left_s / 10))
        self.counts.forwarded += len(items)
        for (_, group), answer in zip(groups, answers, strict=True):
            if isinstance(answer, Fs3Error):
                self.counts.forward_failures += 1
                successor = group[0][0].role.successor
                assert successor is not None
                if isinstance(answer, Unavailable):
                    self._suspect(successor.node_id, successor.generation)
                # The frame may have been applied, whatever was said of it.
                why: Fs3Error = answer if answer.retryable else Unavailable(str(answer))
                outcome.update((id(item), why) for item, *_ in group)
                continue
            for (item, *_), status in zip(group, answer["status"].tolist(), strict=True):
                name, successor = chunk_name(*item.key[1:]), item.role.successor
                assert successor is not None
                outcome[id(item)] = (
                    from_code(status, f"{name}: target {successor.target_id} refused it") if status else None
                )
        return [outcome[id(item)] for item in items]

    def _commit(self, items: Sequence[Item], *, sync: bool) -> None:
        for _, group in grouped(items, lambda item: (id(item.engine), item.durable)):
            engine = group[0].engine
            staged = [item.staged for item in group if item.staged is not None]
            try:
                engine.commit(staged, sync=sync and any(one.durable for one in staged))
            except Fs3Error as error:
                self._engine_failed(engine, error)
                for item in group:
                    self._answer(item, error=Unavailable(f"committed behind, not here: {error}"))
                continue
            for item, one in zip(group, staged, strict=True):
                self._answer(item, one.version, one.length)

    def _abort(self, items: Sequence[Item]) -> None:
        for _, group in grouped(items, lambda item: id(item.engine)):
            engine = group[0].engine
            try:
                engine.abort([item.staged for item in group if item.staged is not None])
            except Fs3Error as error:
                self._engine_failed(engine, error)
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
