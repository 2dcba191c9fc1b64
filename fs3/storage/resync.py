"""Recovery of the SYNCING replica behind this one: what differs is copied, chunk by chunk, while writes go on.

    results of updates -> chunks and tombstones, page by page, as resync_core says -> what was pending -> SYNC_DONE

Live updates reach the SYNCING replica as whole chunks from the moment it joined the chain (replication.py), so recovery
waits until nobody acts on an older version of the chain, and then needs to look at every chunk once. It takes the
chunk's lock, looks again, and sends what the chunk is at that moment; pending versions are finished on the way. Any
change of the chain ends it; the next version of the chain starts it again, which copies only what still differs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Busy, Corrupt, Fs3Error, StaleRouting, Unavailable, from_code
from fs3.ids import chunk_name
from fs3.pb import storage_pb2
from fs3.storage import resync_core
from fs3.storage.allocator_core import LARGEST_BYTES
from fs3.storage.chain_state import Acting, ChainState, Duty, Role, Successor
from fs3.storage.engine_api import ChunkEngine
from fs3.storage.forward import RECOVERY_LANE, ForwardPort, Frame
from fs3.storage.pace_core import Pace
from fs3.storage.repair import Mend
from fs3.storage.replication import Replication
from fs3.storage.resync_core import Chunk
from fs3.storage.session_fence import SessionFence
from fs3.storage.write_locks import Key
from fs3.transport.messages import UPDATE, Op, Records, UpdateFlag

_LOG = logging.getLogger("fs3.storage")
_PAGE = 4_096
_BATCH_CHUNKS = 64
_BATCH_BYTES = 16 << 20
_RESULTS = 2_048  # in one frame
_CALL_S = 15.0
_DRAIN_S = 2.0
_AGAIN_S = 0.1
_NO_SUMS = np.empty(0, dtype=np.uint32)


class Recovery:
    """Brings SYNCING successors up to date, all together at no more than `bytes_s` (0: as fast as it goes).

    `mend` repairs a damaged chunk, until a deadline.
    """

    def __init__(
        self,
        state: ChainState,
        port: ForwardPort,
        replication: Replication,
        *,
        sessions: SessionFence,
        mend: Callable[[Key, float], Mend],
        bytes_s: float = 0.0,
        page_chunks: int = _PAGE,
    ) -> None:
        self.sessions = sessions
        self.mend = mend
        self.closing = replication.runtime.event()
        self._pace = Pace(bytes_s)
        self._pacing = replication.runtime.lock()
        self.state = state
        self.port = port
        self.replication = replication
        self.page_chunks = page_chunks

    def sync(self, chain_id: int) -> float | None:
        """Bring the successor of a chain up to date; in how many seconds to try again, None if there is no need.

        Raises: Fs3Error: it failed, and must be tried again.
        """
        role = self.state.role(chain_id)
        if role is None or role.duty is not Duty.SERVE or role.successor is None or not role.successor.syncing:
            return None
        try:
            role, acting = self.state.enter(chain_id, role.version)
        except Fs3Error:
            return None  # the chain has changed just now, and asks again if need be
        try:
            if not self.state.drained(role.target_id, role.version, self.replication.runtime.now_s() + _DRAIN_S):
                return _AGAIN_S
            assert role.successor is not None
            _Pass(self, role, role.successor, acting).run()
        except _ChainChanged:
            return None
        except StaleRouting:
            return _AGAIN_S  # one of the two has not heard of the newest chain yet
        finally:
            self.state.leave(acting)
        return None

    def close(self) -> None:
        """Let passes end soon."""
        self.closing.set()

    def rest(self, bytes_: int) -> None:
        """Wait as long as it takes that `bytes_` were not too much; hold no lock."""
        with self._pacing:
            wait_s = self._pace.spent(bytes_, self.replication.runtime.now_s())
        if wait_s:
            self.closing.wait(wait_s)


class _ChainChanged(Exception):
    """The chain is not what it was when this pass began."""


class _Pass:
    """One attempt, under one version of the chain."""

    def __init__(self, owner: Recovery, role: Role, successor: Successor, acting: Acting) -> None:
        self._state = owner.state
        self._port = owner.port
        self._replication = owner.replication
        self._sessions = owner.sessions
        self._owner = owner
        self._page = owner.page_chunks
        self._role = role
        self._successor = successor
        self._acting = acting
        self._engine: ChunkEngine = owner.state.engine(role.target_id)
        self._copied = self._removed = self._bytes = 0

    def run(self) -> None:
        """Raises: Fs3Error, _ChainChanged."""
        self._send_results()
        for plan in self._plans():
            self._send_chunks(sorted([*plan.transfer, *plan.remove]))
        self._send_chunks(self._left_pending())
        self._say_done()
        self._replication.counts.recoveries += 1
        _LOG.info(
            "chain %d v%d: target %d is up to date: %d chunks (%d bytes) copied, %d removed",
            self._role.chain_id,
            self._role.version,
            self._successor.target_id,
            self._copied,
            self._bytes,
            self._removed,
        )

    def _say_done(self) -> None:
        """Raises: Fs3Error, _ChainChanged."""
        give_up_s = self._after(_CALL_S)
        while True:
            self._check()
            request = storage_pb2.SyncDoneRequest(
                chain_id=self._role.chain_id,
                chain_version=self._role.version,
                sessions=self._sessions.version(self._engine, self._role.target_id),
            )
            seen = self._state.changes()
            try:
                self._port.sync_done(self._successor.endpoint, request, deadline_s=self._after(_CALL_S))
            except StaleRouting:  # of the chain, or of the sessions that have ended: it will hear of them from mgmtd
                if self._after(0.0) >= give_up_s:
                    raise
            else:
                return
            self._state.wait_changed(seen, _AGAIN_S)

    def _after(self, seconds: float) -> float:
        return self._replication.runtime.now_s() + seconds

    def _check(self) -> None:
        if self._owner.closing.is_set() or self._state.role(self._role.chain_id) != self._role:
            raise _ChainChanged

    def _left_pending(self) -> list[Chunk]:
        """What was pending when the replica joined: whoever was behind before may have shown it, so it must be there
        before the replica serves."""
        pending = self._engine.pending_of(self._role.target_id)
        return [(one.hi, one.lo) for one in pending if one.chain_version < self._role.version]

    def _plans(self) -> Iterator[resync_core.Plan]:
        after: bytes | None = b""
        while after is not None:
            self._check()
            request = storage_pb2.SyncListRequest(
                chain_id=self._role.chain_id, chain_version=self._role.version, after=after, limit=self._page
            )
            deadline_s = self._after(_CALL_S)
            reply, there = self._port.sync_list(self._successor.endpoint, request, deadline_s=deadline_s)
            here = self._engine.metas(self._role.target_id, after, self._page, removals=True)
            here, there, after = resync_core.stretch(here, len(here) == self._page, there, reply.more)
            yield resync_core.compare(here, there)

    def _send_chunks(self, chunks: Sequence[Chunk]) -> None:
        for batch in self._batches(chunks):
            self._check()
            before = self._bytes
            self._send_batch(batch)
            self._owner.rest(self._bytes - before)

    def _batches(self, chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
        batch: list[Chunk] = []
        size = 0
        for chunk in chunks:
            length = self._engine.info(self._role.target_id, *chunk).length
            if batch and (len(batch) == _BATCH_CHUNKS or size + length > _BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(chunk)
            size += length
        if batch:
            yield batch

    def _send_batch(self, batch: list[Chunk]) -> None:
        """Send what these chunks are now. Raises: Fs3Error."""
        target_id = self._role.target_id
        deadline_s = self._after(_CALL_S)
        locks = self._replication.locks
        got = locks.acquire([(target_id, *chunk) for chunk in batch], deadline_s - _CALL_S / 2)
        try:
            chunks = [chunk for chunk in batch if (target_id, *chunk) in got]
            settled = self._replication.settle_chunks(self._acting, self._role, chunks, deadline_s=deadline_s)
            for item in settled:
                if item.error is not None:
                    raise Unavailable(f"{chunk_name(*item.key[1:])}: a pending update is not finished: {item.error}")
            self._check()
            reached = {item.key[1:] for item in settled}
            self._send_frame([chunk for chunk in chunks if chunk not in reached], deadline_s)
        finally:
            locks.release(got)
        if len(chunks) < len(batch):
            raise Busy(f"{len(batch) - len(chunks)} chunks stayed locked by writers")

    def _send_frame(self, chunks: Sequence[Chunk], deadline_s: float) -> None:
        records = np.zeros(len(chunks), dtype=UPDATE)
        sums: list[NDArray[np.uint32]] = []
        body: list[memoryview] = []
        for row, chunk in enumerate(chunks):
            info = self._engine.info(self._role.target_id, *chunk)
            records["hi"][row], records["lo"][row] = chunk
            records["version"][row] = info.version
            sync = UpdateFlag.SYNC_REPLACE if info.found else UpdateFlag.SYNC_REMOVE
            data, fine = memoryview(b""), _NO_SUMS
            if info.found:
                data, fine, damaged_crc = self._content(chunk, deadline_s)
                if damaged_crc is not None:
                    sync |= UpdateFlag.DAMAGED
                    records["reserved"][row] = damaged_crc
            sums.append(fine)
            body.append(data)
            records["op"][row], records["flags"][row] = (Op.REPLACE if info.found else Op.REMOVE), sync
            records["length"][row], records["n_sums"][row] = len(data), len(fine)
            self._copied += info.found
            self._removed += not info.found
            self._bytes += len(data)
        records["chunk_bytes"] = LARGEST_BYTES
        self._send(records, sums, body, deadline_s)
        counts = self._replication.counts
        counts.recovered_chunks += int((records["flags"] & UpdateFlag.SYNC_REPLACE != 0).sum())
        counts.removed_chunks += int((records["flags"] == UpdateFlag.SYNC_REMOVE).sum())
        counts.recovered_bytes += sum(len(data) for data in body)

    def _content(self, chunk: Chunk, deadline_s: float) -> tuple[memoryview, NDArray[np.uint32], int | None]:
        """Bytes and sums of a chunk; if nobody has good ones, what is here, and the crc that its sums should have.

        To wait for better ones would keep the chain a replica short for ever. The successor is told, and becomes as
        honest about them as this replica is: it answers Corrupt, and goes on looking for a good copy. But while one
        who serves and may have them cannot be asked, recovery waits; who does not serve is not drained meanwhile
        (fs3/mgmtd/intent_core.py).

        Raises: Unavailable: to be tried again.
        """
        key = (self._role.target_id, *chunk)
        try:
            data = self._engine.read_chunk(*key)
        except Corrupt:
            outcome = self._owner.mend(key, deadline_s - _CALL_S / 2)
            if outcome is Mend.LOST:
                found = self._engine.read_as_is(*key)
                return found.data, found.fine, found.recorded_crc
            if outcome is Mend.UNKNOWN:
                raise Unavailable(
                    f"{chunk_name(*chunk)}: damaged here, and others cannot be asked for it now"
                ) from None
            data = self._engine.read_chunk(*key)
        return data.data, data.fine, None

    def _send_results(self) -> None:
        known = self._engine.dedup_records(self._role.target_id)
        for begin in range(0, len(known), _RESULTS):
            some = known[begin : begin + _RESULTS]
            records = np.zeros(len(some), dtype=UPDATE)
            records["client"] = [record.client for record in some]
            records["channel"] = [record.channel for record in some]
            for name, column in (("seq", "seq"), ("version", "version"), ("offset", "length"), ("reserved", "status")):
                records[name] = [getattr(record.entry, column) for record in some]
            records["op"], records["flags"] = Op.REPLACE, UpdateFlag.SYNC_RESULT
            self._check()
            nothing = [memoryview(b"")] * len(some)
            self._send(records, [_NO_SUMS] * len(some), nothing, self._after(_CALL_S))

    def _send(
        self, records: Records, sums: Sequence[NDArray[np.uint32]], body: Sequence[memoryview], deadline_s: float
    ) -> None:
        if not len(records):
            return
        records["chain"], records["chain_version"] = self._role.chain_id, self._role.version
        frame = Frame(self._successor.endpoint, self._role.position + 1, RECOVERY_LANE, records, sums, body)
        (answer,) = self._port.forward([frame], deadline_s=deadline_s)
        if isinstance(answer, Fs3Error):
            raise answer
        wrong = np.flatnonzero(answer["status"])
        if len(wrong):
            row = int(wrong[0])
            raise from_code(int(answer["status"][row]), f"target {self._successor.target_id} refused a chunk")
