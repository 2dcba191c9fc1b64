"""What a storage daemon does for its targets by itself: make them, bring them into order when they are off duty, finish
the pending versions that nobody works on. Chores: each tells in how many seconds it wants to go on, None if it is done.
"""

from __future__ import annotations

import logging

from fs3.errors import Fs3Error, Unavailable
from fs3.pb import mgmtd_pb2
from fs3.storage.chain_state import ChainState, Duty
from fs3.storage.engine_api import Staged
from fs3.storage.replication import Replication
from fs3.storage.target_core import Phase

_LOG = logging.getLogger("fs3.storage")
_SETTLE_CHUNKS = 64
_SETTLE_S = 5.0
_AGAIN_S = 0.1
_NEVER = 1 << 62


class Upkeep:
    """See the module. Every chore may raise Fs3Error, and is then tried again."""

    def __init__(self, state: ChainState, replication: Replication) -> None:
        self._state = state
        self._replication = replication
        self._runtime = replication.runtime
        self._wanted: dict[int, mgmtd_pb2.CreateTarget] = {}

    def want(self, target: mgmtd_pb2.CreateTarget) -> None:
        """Remember what `create` is to make."""
        self._wanted[target.target_id] = target

    def create(self, target_id: int) -> float | None:
        """Make a target that mgmtd wants here."""
        wanted = self._wanted.get(target_id)
        if wanted is not None:
            self._state.create(wanted)
            self._wanted.pop(target_id, None)
        return None

    def drop(self, target_id: int) -> float | None:
        """Delete a target that was taken out of its chain for good."""
        if not self._state.let_go(target_id):
            return None  # mgmtd says so again, after the routing that says the same
        if not self._state.drained(target_id, _NEVER, self._runtime.now_s() + 1.0):
            return _AGAIN_S
        self._wanted.pop(target_id, None)
        engine = self._state.engine(target_id)
        known = target_id in engine.targets()
        _, chunks = engine.target_usage(target_id)
        try:
            engine.drop_target(target_id)  # if it is not known any more: goes on with what a full disk stopped
        except Unavailable as error:
            self._state.broken(engine, error)
            return None  # its next opening finishes it, or mgmtd asks again
        if known:
            _LOG.info("target %d is deleted, with %d chunks: it is in no chain any more", target_id, chunks)
        return None

    def claim(self, target_id: int) -> float | None:
        """Note that a target in no chain has missed nothing."""
        if self._state.stand(target_id).phase is Phase.COMPLETE:
            self._state.claim(target_id)
        return None

    def prepare(self, target_id: int) -> float | None:
        """Bring a target that is off duty into order, so that it can come back.

        What is pending on one that others went on without stays until recovery replaces it: a power loss may have made
        that of what everybody had committed, and then it is a copy of acknowledged bytes, perhaps the last good one
        (own_bytes.py).
        """
        stand = self._state.stand(target_id)
        if stand.phase not in (Phase.RECALLING, Phase.CLEARING):
            return None
        if not self._state.drained(target_id, _NEVER, self._runtime.now_s() + 1.0):
            return _AGAIN_S
        engine = self._state.engine(target_id)
        pending: list[Staged] = []
        try:
            if stand.phase is Phase.RECALLING:
                pending = [engine.pending_staged(target_id, one.hi, one.lo) for one in engine.pending_of(target_id)]
                engine.commit(pending, sync=True)
        except Unavailable as error:
            self._state.broken(engine, error)
            return None
        for one in pending:
            self._replication.look((target_id, one.hi, one.lo))
        if pending:
            _LOG.info("target %d: %d pending versions committed", target_id, len(pending))
        self._state.prepared(target_id, stand)
        return None

    def settle(self, target_id: int) -> float | None:
        """Finish pending versions that nobody is working on: after a chain change, or after an update gave up."""
        role = next((role for role in self._state.roles() if role.target_id == target_id), None)
        if role is None or role.duty is not Duty.SERVE:
            return None
        try:
            role, acting = self._state.enter(role.chain_id, role.version)
        except Fs3Error:
            return None  # changed just now, and asked again for
        locks = self._replication.locks
        failed = False
        try:
            chunks = [(one.hi, one.lo) for one in self._state.engine(target_id).pending_of(target_id)]
            for begin in range(0, len(chunks), _SETTLE_CHUNKS):
                some = chunks[begin : begin + _SETTLE_CHUNKS]
                # A chunk that is locked has somebody working on it, who asks for this chore should he give up.
                got = locks.acquire([(target_id, *chunk) for chunk in some], self._runtime.now_s())
                try:
                    free = [chunk for chunk in some if (target_id, *chunk) in got]
                    deadline_s = self._runtime.now_s() + _SETTLE_S
                    items = self._replication.settle_chunks(acting, role, free, deadline_s=deadline_s)
                    failed = failed or any(item.error is not None for item in items)
                finally:
                    locks.release(got)
        finally:
            self._state.leave(acting)
        return 1.0 if failed else None
