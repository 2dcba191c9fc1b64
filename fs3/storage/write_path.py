"""The write path of one storage process: frames of updates in, results out, and the upkeep of its targets' replicas.

The server calls `update` for every WRITE frame, on threads that each belong to one hop: a thread at hop h waits only
for hop h + 1 of another process, so no circle of processes can wait for each other. What happens to an update is in
replication.py (and craq_core.py); who may do what under which routing in chain_state.py; recovery in resync.py.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Busy, Fs3Error, Unavailable
from fs3.pb import mgmtd_pb2, storage_pb2
from fs3.routing import Routing
from fs3.runtime import SYSTEM, Lock, Runtime
from fs3.sessions import SessionTable
from fs3.storage.ahead import Ahead, Arrival
from fs3.storage.chain_state import Acting, ChainState, Duty, Role
from fs3.storage.chores import Chores
from fs3.storage.engine_api import ChunkEngine
from fs3.storage.forward import ForwardPort
from fs3.storage.inspection import inspect
from fs3.storage.read_table import ReadTable
from fs3.storage.repair import Repair
from fs3.storage.replication import Replication
from fs3.storage.resync import Recovery
from fs3.storage.session_fence import SessionFence
from fs3.storage.tombstones import Tombstones
from fs3.storage.upkeep import Upkeep
from fs3.storage.write_frames import Actings, Frames, waves
from fs3.storage.write_item import Item
from fs3.storage.write_stats import WriteStats, stats_of
from fs3.transport.frame_core import Header
from fs3.transport.messages import CHUNK_META, RESULT, Records

_LOG = logging.getLogger("fs3.storage")
_CHORE_THREADS = 4
_RECOVERY_THREADS = 2
_FORGET_AFTER_S = 1.0  # one pass over the results for all sessions that end in such a time
_SUSPECT_EVERY_S = 0.5
_REPAIR_IN_S = 1.0  # after a change of the chains
MAX_SYNC_PAGE = 65_536


class WritePath:
    """The targets on `engines` (by disk number), in daemon `node_id` of this `generation`. Thread-safe.

    `poke` is called from any thread when a heartbeat should go out now, `suspect(node_id, generation)` when a
    successor's process did not answer, `may_write()` tells whether the daemon's lease still holds. Removals are
    forgotten between one and two `tombstone_s` after them.
    """

    def __init__(
        self,
        engines: Mapping[int, ChunkEngine],
        port: ForwardPort,
        *,
        node_id: int,
        generation: int,
        poke: Callable[[], None],
        suspect: Callable[[int, int], None],
        may_write: Callable[[], bool],
        tombstone_s: float = 600.0,
        recovery_bytes_s: float = 0.0,
        runtime: Runtime = SYSTEM,
    ) -> None:
        self._runtime = runtime
        self._engines = engines
        self._tombstone_s = tombstone_s
        self._port = port
        self._may_write = may_write
        self._suspect_mgmtd = suspect
        self._suspected_s: dict[tuple[int, int], float] = {}
        self._recovering: defaultdict[int, Lock] = defaultdict(runtime.lock)
        self._chores = Chores(
            {
                "create": lambda target_id: self._upkeep.create(target_id),
                "drop": lambda target_id: self._upkeep.drop(target_id),
                "claim": lambda target_id: self._upkeep.claim(target_id),
                "prepare": lambda target_id: self._upkeep.prepare(target_id),
                "settle": lambda target_id: self._upkeep.settle(target_id),
            },
            threads=_CHORE_THREADS,
            runtime=runtime,
        )
        self._syncs = Chores(
            {"sync": lambda chain_id: self._recovery.sync(chain_id)}, threads=_RECOVERY_THREADS, runtime=runtime
        )
        self._sessions = SessionFence(engines, runtime=runtime)
        self.state = ChainState(
            engines, node_id=node_id, generation=generation, poke=poke, ask=self._ask, runtime=runtime
        )
        self._replication = Replication(
            self.state,
            port,
            suspect=self._suspect,
            settle=lambda target_id, in_s: self._chores.ask("settle", target_id, in_s=in_s),
            standing=self._sessions.standing,
            mend=lambda key, deadline_s: self.repair.mend(key, deadline_s),
            look=lambda key: self.repair.look(key),
            runtime=runtime,
        )
        self._repairs = Chores({"repair": lambda _: self.repair.round()}, threads=1, runtime=runtime)
        self.repair = Repair(
            self.state, port, ask=lambda in_s: self._repairs.ask("repair", 0, in_s=in_s), runtime=runtime
        )
        self._upkeep = Upkeep(self.state, self._replication)
        self._recovery = Recovery(
            self.state,
            port,
            self._replication,
            sessions=self._sessions,
            mend=self.repair.mend,
            bytes_s=recovery_bytes_s,
        )
        self.ahead = Ahead(
            self.state,
            port,
            may_write=may_write,
            ask=lambda in_s: self._housekeeping.ask("ahead", 0, in_s=in_s),
            runtime=runtime,
        )
        self._frames = Frames(self.state, self.ahead, self._recovering)
        tombstones = Tombstones(self.state, self._replication, tombstone_s=tombstone_s)
        self._housekeeping = Chores(
            {
                "sessions": self._sessions.forget,
                "tombstones": tombstones.forget,
                "ahead": lambda _: self.ahead.expire(),
            },
            threads=1,
            runtime=runtime,
        )

    def close(self) -> None:
        """Let what runs end, soon: calls to other processes fail from now on. The engines stay open."""
        self._replication.close()
        self._recovery.close()
        self._port.close()
        self._chores.close()
        self._syncs.close()
        self._housekeeping.close()
        self._repairs.close()

    # mgmtd's side: called from the daemon's event loop, nothing here blocks

    def on_routing(self, routing: Routing) -> None:
        """Act on a newer routing."""
        for endpoint in self.state.on_routing(routing):
            self._port.cut_off(endpoint)
        if self.repair.has_work():
            self._repairs.ask("repair", 0, in_s=_REPAIR_IN_S)
        for role in self.state.roles():
            if role.head:
                self._housekeeping.ask("tombstones", role.target_id, in_s=self._tombstone_s)

    def on_sessions(self, table: SessionTable) -> None:
        """Act on a newer table of client sessions: take nothing more of those that have ended, then forget them."""
        if self._sessions.adopt(table):
            for disk in self._engines:
                self._housekeeping.ask("sessions", disk, in_s=_FORGET_AFTER_S)

    def on_create(self, wanted: Iterable[mgmtd_pb2.CreateTarget]) -> None:
        """Make the targets that are not there yet, in the background."""
        for target in wanted:
            self._upkeep.want(target)
            self._chores.ask("create", target.target_id)

    def on_drop(self, target_ids: Iterable[int]) -> None:
        """Delete targets that were taken out of their chains for good, in the background."""
        for target_id in target_ids:
            if self.state.has(target_id):
                self._chores.ask("drop", target_id)

    def local_targets(self) -> list[mgmtd_pb2.LocalTarget]:
        """What the next heartbeat says of this process's targets."""
        return self.state.local_targets()

    # The read path's questions

    def serving(self, chain_id: int, chain_version: int) -> int:
        """The target that answers reads of a chain. Raises: StaleRouting, Unavailable."""
        return self.state.serving(chain_id, chain_version)

    @property
    def reads(self) -> ReadTable:
        """`serving` as arrays; replaced as a whole when anything changes."""
        return self.state.reads

    def inspect(self, ranges: Records) -> Records:
        """CHUNK_META of chunks on this process's targets, for an operator; see inspection.py."""
        return inspect(self.state, ranges)

    # Frames

    def update(
        self,
        header: Header,
        updates: Records,
        sums: NDArray[np.uint32],
        body: memoryview,
        hop: int,
        *,
        deadline_s: float | None = None,
    ) -> Records:
        """Apply a WRITE frame; blocks until every update is answered or the deadline has passed.

        Shapes: UPDATE [n], u32 [sum of n_sums], bytes [sum of length] -> RESULT [n]. `hop` 0 is a client's. One update
        that fails does not fail the others.

        Raises:
            Invalid: the frame's parts do not fit together; nothing was changed.
            Unavailable: this daemon's lease has run out.
        """
        if deadline_s is None:
            deadline_s = self._runtime.now_s() + header.deadline_ms / 1_000
        if hop == 0 and not self._may_write():
            raise Unavailable("this storage daemon has lost touch with mgmtd")
        results = np.zeros(len(updates), dtype=RESULT)
        actings: Actings = {}
        arrivals: list[Arrival] = []
        try:
            arrived = self._frames.arrived(updates, sums, hop, deadline_s, arrivals)
            items = self._frames.items(updates, sums, body, hop, results, actings, arrived)
            self._replication.counts.updates += len(items)
            for wave in waves(items):
                self._run(list(wave.values()), deadline_s)
            for row, item in items.items():
                results["status"][row] = item.error.code if item.error is not None else 0
                if item.error is None:
                    results["version"][row], results["chunk_length"][row] = item.version, item.length
        finally:
            for entered in actings.values():
                if not isinstance(entered, Fs3Error):
                    self.state.leave(entered[1])
            for arrival in arrivals:
                self.ahead.end(arrival)
        return results

    def sync_list(self, request: storage_pb2.SyncListRequest) -> tuple[storage_pb2.SyncListReply, Records]:
        """What the SYNCING target here has, for its predecessor: CHUNK_META. Raises: StaleRouting, Unavailable."""
        role, acting = self._enter_syncing(request.chain_id, request.chain_version)
        try:
            limit = min(max(request.limit, 1), MAX_SYNC_PAGE)
            page = self.state.engine(role.target_id).metas(role.target_id, request.after, limit, removals=True)
            assert page.dtype == CHUNK_META
            return storage_pb2.SyncListReply(more=len(page) == limit), page
        finally:
            self.state.leave(acting)

    def sync_done(self, request: storage_pb2.SyncDoneRequest) -> None:
        """The predecessor says that the SYNCING target here has everything. Raises: StaleRouting, Unavailable."""
        role, acting = self._enter_syncing(request.chain_id, request.chain_version)
        try:
            self._sessions.follow(self.state.engine(role.target_id), role.target_id, request.sessions)
        finally:
            self.state.leave(acting)
        self.state.sync_done(request.chain_id, request.chain_version)
        for disk in self._engines:  # the predecessor may have sent results that are forgotten here
            self._housekeeping.ask("sessions", disk, in_s=_FORGET_AFTER_S)

    def report(self, ranges: Records) -> Records:
        """A client's REPORT of bytes that failed their sums: RANGE [n] -> RESULT [n]. Blocks."""
        return self.repair.report(ranges)

    def stats(self) -> WriteStats:
        """What this write path has done, and does."""
        return stats_of(self.state, self._replication, self.repair.counts, self.ahead.figures)

    def idle(self) -> bool:
        """Whether no upkeep runs or waits; what is to be forgotten may wait."""
        return self._chores.idle() and self._syncs.idle() and self._housekeeping.resting() and self.ahead.empty()

    def _run(self, items: list[Item], deadline_s: float) -> None:
        """One wave. At a SYNCING replica live updates and the predecessor's results must not overtake each other."""
        targets = sorted({item.key[0] for item in items if item.role.duty is Duty.SYNC})
        held = [self._recovering[target_id] for target_id in targets]
        try:
            taken = 0
            for lock in held:
                if not lock.acquire(timeout=max(deadline_s - self._runtime.now_s(), 0.0)):
                    break
                taken += 1
            if taken < len(held):
                for item in items:
                    item.done, item.error = True, Busy("another update of the SYNCING replica took too long")
                return
            self._replication.run(items, deadline_s=deadline_s)
        finally:
            for lock in held[:taken]:
                lock.release()

    def _enter_syncing(self, chain_id: int, chain_version: int) -> tuple[Role, Acting]:
        role, acting = self.state.enter(chain_id, chain_version)
        if role.duty is not Duty.SYNC:
            self.state.leave(acting)
            raise Unavailable(f"target {role.target_id} is not SYNCING")
        return role, acting

    # Upkeep: chores

    def _ask(self, kind: str, number: int) -> None:
        (self._syncs if kind == "sync" else self._chores).ask(kind, number)

    def _suspect(self, node_id: int, generation: int) -> None:
        now_s = self._runtime.now_s()
        key = (node_id, generation)
        if now_s - self._suspected_s.get(key, -_SUSPECT_EVERY_S) >= _SUSPECT_EVERY_S:
            self._suspected_s[key] = now_s
            self._suspect_mgmtd(node_id, generation)
