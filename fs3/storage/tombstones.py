"""Forgetting removals, some time after them: the head's chore, and why nothing that was removed comes back by it.

A removed chunk leaves a tombstone of its version, so that a frame from before the removal, which a successor may meet
late, is known for old. The head looks at its tombstones every `tombstone_s`; those that it has seen before, unchanged,
it sends down the chain as FORGET (chunk, version), under the chunk's lock:

    head  -- FORGET v -->  middle  -- FORGET v -->  tail erases, durably
          erases  <-- ack --         erases  <-- ack --

A replica erases the tombstone of exactly that version, with nothing pending, and not before its successor has; one that
has no record of the chunk passes the FORGET on and acknowledges; anything else is a Conflict, and nothing is erased in
front of it. So at any time a chunk's tombstone is there on the first replicas of the chain and gone on the last ones.

    interrupted     A FORGET that did not come through leaves just that; the next round goes on with it.
    a new head      has the tombstone or not. If it has, it continues the version, and its update is FRESH, which the
                    replicas that have forgotten take at any version. If it has not, nobody behind it has, and the new
                    chunk begins at version 1 everywhere.
    re-creation     takes the same lock. Before the FORGET: that finds a chunk, Conflict. After it: FRESH, as above.
    late FORGET     One that its sender has given up finds the tombstone, as good as ever; or another version, Conflict;
                    or that version again, of a chunk that began anew: no, see "late frames".
    a SYNCING       successor has, once recovery is complete, the tombstones of the replica in front of it and no
    successor       others, of earlier times or an earlier recovery (resync_core.py). While there is one, nothing is
                    forgotten (Busy).
    late frames     An update whose frame got no answer may be applied by the successor at any later time, as long as
                    the chain's version is the frame's; also FORGET itself. So a replica does not pass on a FORGET of a
                    chunk about which it has sent a frame, under this version, that was never answered (doubts_core.py):
                    the tombstones of that replica, and of all in front of it, stay until the chain's version has
                    changed. A frame of an older version that a replica took in before it heard of the newer one is
                    refused once it has the chunk's lock (replication.py).
    a power loss    Erased durably before the ack: no tombstone comes back behind a replica that has none. One that
                    comes back in front of it is the state after an interrupted FORGET.

Clients' late frames need no tombstones: they are known by their results (session_fence.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Fs3Error
from fs3.ids import chunk_bytes
from fs3.storage.chain_state import ChainState, Role
from fs3.storage.replication import Replication
from fs3.transport.messages import CHUNK_META, Records

_BATCH = 256
_PER_S = 2_000  # FORGETs of one target
_MOST = 1 << 20  # tombstones of one target that are looked at in one round
_PAGE = 4_096
_CALL_S = 5.0
_WAIT_S = 1.0  # while the successor is SYNCING


@dataclass(slots=True)
class _Round:
    """The tombstones [n] that a target had at `seen_s`, and how many of them are done with."""

    seen_s: float
    hi: NDArray[np.uint64]
    lo: NDArray[np.uint64]
    version: NDArray[np.uint64]
    done: int = 0


class Tombstones:
    """See the module. Used by one thread."""

    def __init__(self, state: ChainState, replication: Replication, *, tombstone_s: float) -> None:
        self._state = state
        self._replication = replication
        self._now_s = replication.runtime.now_s
        self._tombstone_s = tombstone_s
        self._rounds: dict[int, _Round] = {}

    def forget(self, target_id: int) -> float | None:
        """A chore (chores.py): one step for a target; None if it is the head of no chain. Raises: Fs3Error."""
        role = next((role for role in self._state.roles() if role.target_id == target_id), None)
        if role is None or not role.head:
            self._rounds.pop(target_id, None)
            return None
        if role.successor is not None and role.successor.syncing:
            return min(_WAIT_S, self._tombstone_s)
        current = self._rounds.get(target_id)
        if current is None or current.done == len(current.hi):
            self._rounds[target_id] = self._look(target_id)
            return self._tombstone_s
        left_s = current.seen_s + self._tombstone_s - self._now_s()
        if left_s > 0:
            return left_s
        batch = slice(current.done, current.done + _BATCH)
        chunks = list(zip(current.hi[batch].tolist(), current.lo[batch].tolist(), strict=True))
        current.done += len(chunks)
        self._send(role, chunks, current.version[batch].tolist())
        return len(chunks) / _PER_S

    def _look(self, target_id: int) -> _Round:
        engine = self._state.engine(target_id)
        pages: list[Records] = [np.zeros(0, dtype=CHUNK_META)]
        seen_s = self._now_s()
        if engine.stats().tombstones:
            after, count = b"", 0
            while count < _MOST:
                page = engine.tombstones(target_id, after, _PAGE)
                pages.append(page)
                count += len(page)
                if len(page) < _PAGE:
                    break
                after = chunk_bytes(int(page["hi"][-1]), int(page["lo"][-1]))
        every = np.concatenate(pages)
        return _Round(seen_s, every["hi"].copy(), every["lo"].copy(), every["version"].copy())

    def _send(self, role: Role, chunks: list[tuple[int, int]], versions: list[int]) -> None:
        try:
            role, acting = self._state.enter(role.chain_id, role.version)
        except Fs3Error:
            return  # changed just now; the next round has them again
        try:
            engine = self._state.engine(role.target_id)
            due = []
            for chunk, version in zip(chunks, versions, strict=True):
                info = engine.info(role.target_id, *chunk)
                if info.version == version and not info.found and not info.pending:
                    due.append((chunk, version))
            if due and role.head:
                self._replication.forget(acting, role, due, deadline_s=self._now_s() + _CALL_S)
        finally:
            self._state.leave(acting)
