"""The chunk engine of one disk: block files for the bytes, RocksDB for the records, an index in memory for lookups.

How one update goes through, and why a crash at any point loses nothing that was acknowledged:

    1  take the chunk's lock; decide the new version's parts; verify what was sent and what is kept of the old version
    2  write the new version into a free block, with its sums              (nobody knows of it yet)
    3  fdatasync the block file, shared with other writers of the file     (if durable)
    4  one metadata batch: the pending record, or the committed one and the update's result; sync of the log, shared too
    5  publish to the index: lookups see it
    6  retire the block that the old version had: reusable once the batch is on stable storage and its readers are done

A crash before 4 leaves a block that no record names, which the next opening finds free. The port, its values and the
rule for readers are in engine_api.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Corrupt, Fs3Error
from fs3.runtime import SYSTEM, Runtime
from fs3.storage import listing, opening, reading
from fs3.storage import metadata as md
from fs3.storage.allocator_core import Block
from fs3.storage.blocks import BlockFile, BlockFiles, Step, no_step
from fs3.storage.changes import Changes
from fs3.storage.chunk_locks import ChunkLocks, Key
from fs3.storage.commit import Committer, nothing
from fs3.storage.disk import Disk, folder_disk
from fs3.storage.engine_api import (
    AsIs,
    ChunkData,
    ChunkInfo,
    DedupEntry,
    DedupRecord,
    EngineConfig,
    EngineStats,
    Located,
    PendingChunk,
    Place,
    Reserved,
    Staged,
    TargetRecord,
    Update,
    Verdict,
)
from fs3.storage.fullness_core import Fullness
from fs3.storage.published import Published
from fs3.storage.space import Space
from fs3.storage.staging import Stager
from fs3.storage.targets import Targets
from fs3.transport.change_counters import ChangeCounters
from fs3.transport.messages import Records


class Engine:
    """See engine_api.ChunkEngine. Make one with `open`."""

    def __init__(
        self, disk: Disk, config: EngineConfig | None = None, *, step: Step = no_step, runtime: Runtime = SYSTEM
    ) -> None:
        """The engine on `disk`, which it closes. Raises: Corrupt."""
        config = config or EngineConfig()
        self.path = disk.name
        self._disk = disk
        self._metadata = disk.metadata
        self._files = BlockFiles(disk.folder, step=step, doubt=disk.doubt, runtime=runtime)
        try:
            self._files.open_all()
            loaded = opening.load(self._metadata, self._files, suspect_os=disk.lost_power)
            self._space = Space(
                disk.name, self._files, config, free_bytes=disk.free_bytes, shared_by=disk.shared_by, runtime=runtime
            )
            self._space.rebuild(loaded.used)
            if loaded.to_delete:
                self._metadata.apply((key, None) for key in loaded.to_delete)
            self._metadata.sync()
            disk.opened()
        except BaseException as error:
            self._metadata.close()
            self._files.close()
            disk.close()
            if isinstance(error, Corrupt) and disk.name not in str(error):
                raise Corrupt(f"{disk.name}: {error}") from None
            raise
        self._published = Published(
            loaded,
            self._files,
            self._retire,
            seed=runtime.random_bits(64),
            chunks=config.index_chunks,
            changes=disk.changes,
        )
        self._locks = ChunkLocks(runtime=runtime)
        name = f"fs3-commit-{Path(disk.name).name}"
        self._committer = Committer(self._metadata, self._space.synced, name=name, step=step, runtime=runtime)
        self._targets = Targets(
            disk.name, loaded.targets, self._metadata, self._committer, self._published, self._locks, runtime=runtime
        )
        self._stager = stager = Stager(self._published, self._files, self._space, self._drain)
        self._changes = Changes(self._metadata, self._published, stager, self._committer, self._locks, self._targets)
        self._closed = False
        self._corrupt = 0

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        cluster_id: str,
        node_id: int = 0,
        create: bool = False,
        config: EngineConfig | None = None,
        step: Step = no_step,
        shared_by: int = 1,
    ) -> Engine:
        """The engine in folder `path`, made there if `create` and the folder is empty or missing.

        Its disk is `shared_by` so many engines.

        Raises:
            Invalid: no engine there, a folder with other things in it, or another format.
            PermissionDenied: the folder belongs to another cluster, or to another node of it (0: any may open it).
            Unavailable: another process has it open.
            NoSpace: a new folder's disk has no room beyond what is kept for the metadata.
            Corrupt: its metadata or a block file is damaged; nothing was changed.
        """
        config = config or EngineConfig()
        disk = folder_disk(
            Path(path),
            cluster_id=cluster_id,
            node_id=node_id,
            create=create,
            write_buffer_bytes=config.write_buffer_bytes,
            least_bytes=config.reserve_bytes,
            shared_by=shared_by,
        )
        engine = cls(disk, config, step=step)
        opening.give_back_memory()
        return engine

    @property
    def lost_power(self) -> bool:
        """Whether what was written without syncs may have been lost before this opening."""
        return self._disk.lost_power

    @property
    def counters(self) -> ChangeCounters | None:
        return self._disk.changes

    def close(self) -> None:
        """Finish what was begun, sync, let go of the disk. Views of block files that callers keep stay readable."""
        if self._closed:
            return
        self._closed = True
        if self.counters is not None:
            self.counters.close()
        self._committer.close()
        self._metadata.close()
        self._files.close()
        self._disk.close()

    # Targets

    def create_target(self, target_id: int, chain_id: int) -> None:
        self._targets.create(target_id, chain_id)

    def drop_target(self, target_id: int) -> None:
        self._targets.drop(target_id)

    def targets(self) -> Mapping[int, TargetRecord]:
        return self._targets.records

    def get_state(self, target_id: int, key: bytes) -> bytes | None:
        return self._targets.get_state(target_id, key)

    def put_state(self, target_id: int, key: bytes, value: bytes) -> None:
        self._targets.put_state(target_id, key, value)

    # Readers

    def hold(self) -> int:
        return self._space.hold()

    def release(self, token: int) -> None:
        self._space.release(token)

    def pin(self, blocks: NDArray[np.int64]) -> int:
        return self._space.pin(blocks)

    def unpin(self, token: int) -> None:
        self._space.unpin(token)

    def lookup(self, target_ids: NDArray[np.uint32], hi: NDArray[np.uint64], lo: NDArray[np.uint64]) -> Located:
        return self._published.lookup(target_ids, hi, lo)

    def info(self, target_id: int, hi: int, lo: int) -> ChunkInfo:
        entry = self._published.get((target_id, hi, lo))
        return ChunkInfo(entry.file != 0, entry.version, entry.pending, entry.length, entry.chain_version)

    def place(self, target_id: int, hi: int, lo: int) -> Place | None:
        return self._published.place((target_id, hi, lo))

    def file(self, file_no: int) -> BlockFile:
        return self._files[file_no]

    def share(self, file_no: int) -> int:
        file = self._files[file_no]
        file.is_locked(file.position(0))  # raises where there are no such locks
        self._space.share(file_no)
        return file.open_to_read()

    def gather_fine(
        self, files: NDArray[np.int32], positions: NDArray[np.int64], block_index: NDArray[np.int64]
    ) -> NDArray[np.uint32]:
        return self._files.gather(files, positions, block_index, coarse=False)

    def gather_coarse(
        self, files: NDArray[np.int32], positions: NDArray[np.int64], unit_index: NDArray[np.int64]
    ) -> NDArray[np.uint32]:
        return self._files.gather(files, positions, unit_index, coarse=True)

    def read_verified(
        self, file_no: int, position: int, chunk_length: int, offset: int, length: int, out: memoryview | None = None
    ) -> tuple[memoryview, int]:
        try:
            return reading.read_part(self._files[file_no], position, chunk_length, offset, length, out)
        except Corrupt:
            self._corrupt += 1
            raise

    def read_chunk(self, target_id: int, hi: int, lo: int, *, pending: bool = False) -> ChunkData:
        key = (target_id, hi, lo)
        token = self._space.hold()
        try:
            if not pending:
                entry = self._published.get(key)
                if entry.file == 0:
                    raise reading.no_version(key, pending=False)
                location = (max(entry.file - 1, -1), entry.position)
                return reading.read_whole(self._files, key, location, entry.length, entry.version, entry.chain_version)
            version = self._published.pending.get(key)
            if version is None:
                raise reading.no_version(key, pending=True)
            position = self._files[version.file].position(version.slot) if version.file >= 0 else 0
            found = reading.read_whole(
                self._files, key, (version.file, position), version.length, version.version, version.chain_version
            )
            return found._replace(removed=version.removed)
        except Corrupt:
            self._corrupt += 1
            raise
        finally:
            self._space.release(token)

    # Writers

    def reserve(self, length: int) -> Reserved:
        return self._stager.reserve(length)

    def fill(self, reserved: Reserved, offset: int, data: memoryview) -> None:
        self._stager.fill(reserved, offset, data)

    def seal(self, reserved: Reserved, fine: NDArray[np.uint32], *, durable: bool) -> None:
        self._stager.seal(reserved, fine, durable=durable)

    def unreserve(self, reserved: Reserved) -> None:
        self._stager.unreserve(reserved)

    def stage(self, updates: Sequence[Update]) -> list[Staged | Fs3Error]:
        return self._changes.stage(updates)

    def commit(self, staged: Sequence[Staged], *, sync: bool = True) -> None:
        self._changes.commit(staged, sync=sync)

    def stage_and_commit(self, updates: Sequence[Update]) -> list[Staged | Fs3Error]:
        return self._changes.stage_and_commit(updates)

    def abort(self, staged: Sequence[Staged]) -> None:
        self._changes.abort(staged)

    def restage(self, update: Update) -> None:
        self._changes.restage(update)

    def pending_of(self, target_id: int) -> list[PendingChunk]:
        return self._changes.pending_of(target_id)

    def pending_staged(self, target_id: int, hi: int, lo: int) -> Staged:
        return self._changes.pending_staged(target_id, hi, lo)

    # Damage

    def verify(self, target_id: int, hi: int, lo: int) -> Verdict:
        token = self._space.hold()
        try:
            key = (target_id, hi, lo)
            # A record read during a hold names a block that the hold covers: records are written before they are
            # published, and only what is no longer published is retired.
            verdict = reading.verify(self._files, key, self._metadata.get(md.chunk_key(md.COMMITTED, *key)))
        finally:
            self._space.release(token)
        self._corrupt += bool(verdict.fault)
        return verdict

    def read_as_is(self, target_id: int, hi: int, lo: int, *, pending: bool = False) -> AsIs:
        token = self._space.hold()
        try:
            key = (target_id, hi, lo)
            if pending:
                record = self._published.pending.get(key)
                if record is None or record.removed:
                    raise reading.no_version(key, pending=True)
            else:
                record = reading.committed(key, self._metadata.get(md.chunk_key(md.COMMITTED, *key)))
            return reading.read_as_is(self._files, record)
        finally:
            self._space.release(token)

    @property
    def last_run(self) -> int:
        """The number of the daemon's last run on this disk; 0 if there was none."""
        return self._disk.last_run

    def note_run(self, number: int) -> None:
        """Remember the number of this run, durably."""
        self._disk.note_run(number)

    def damaged(self) -> Mapping[Key, int]:
        return self._published.damaged

    def mark_damaged(self, target_id: int, hi: int, lo: int, version: int) -> bool:
        return self._changes.mark_damaged(target_id, hi, lo, version)

    def clear_damage(self, target_id: int, hi: int, lo: int) -> None:
        self._changes.clear_damage(target_id, hi, lo)

    def repair(
        self, target_id: int, hi: int, lo: int, version: int, data: memoryview, fine: NDArray[np.uint32]
    ) -> None:
        self._changes.repair(target_id, hi, lo, version, data, fine)

    def _retire(self, block: Block, batch: int) -> None:
        if self._space.retire([block], batch):
            self._committer.lazy_sync()

    def _drain(self) -> None:
        self._committer.submit((), nothing, sync=True)

    # Results of updates

    def dedup(self, target_id: int, client: int, channel: int) -> DedupEntry | None:
        return self._published.results.get((target_id, client, channel))

    def dedup_records(self, target_id: int) -> list[DedupRecord]:
        return self._targets.results(target_id)

    def put_dedup(self, target_id: int, records: Sequence[DedupRecord], *, sync: bool = True) -> None:
        self._targets.put_results(target_id, records, sync=sync)

    def result_clients(self) -> set[int]:
        return self._targets.result_clients()

    def forget_clients(self, clients: Set[int], key: bytes, value: bytes) -> None:
        self._targets.forget_clients(clients, key, value)

    # Listing

    def metas(self, target_id: int, after: bytes, limit: int, *, removals: bool = False) -> Records:
        page = listing.metas(self._metadata, self._published.pending, target_id, after, limit, removals=removals)
        return listing.with_marks(page, self._published.damaged, target_id)

    def tombstones(self, target_id: int, after: bytes, limit: int) -> Records:
        return listing.tombstones(self._metadata, target_id, after, limit)

    def forget_tombstones(self, target_id: int, removals: Sequence[tuple[int, int, int]]) -> None:
        self._changes.forget_tombstones(target_id, removals)

    def list_chunks(self, target_id: int, hi: int, lo_from: int, limit: int, *, whole_kind: bool = False) -> Records:
        return listing.list_chunks(self._metadata, target_id, hi, lo_from, limit, whole_kind=whole_kind)

    def target_usage(self, target_id: int) -> tuple[int, int]:
        return self._published.usage.get(target_id, (0, 0))

    def space(self) -> tuple[int, int]:
        return self._space.total_and_free()

    def fullness(self) -> Fullness:
        return self._space.fullness()

    def failure(self) -> Fs3Error | None:
        return self._committer.failure or self._metadata.damage

    def stats(self) -> EngineStats:
        quarantined, holds, pins = self._space.counts
        return EngineStats(
            chunks=sum(chunks for _, chunks in list(self._published.usage.values())),
            pending=len(self._published.pending),
            tombstones=self._published.tombstones,
            used_bytes=self._space.used_bytes,
            grown_bytes=self._space.grown_bytes,
            quarantined=quarantined,
            locked=self._space.locked,
            holds=holds,
            pins=pins,
            index_bytes=self._published.index.nbytes,
            updates=self._changes.updates,
            updated_bytes=self._changes.updated_bytes,
            groups=self._committer.groups,
            wal_syncs=self._committer.syncs,
            file_syncs=sum(file.sync_calls for file in self._files),
            corrupt=self._corrupt,
            fullness=int(self._space.fullness()),
            damaged=len(self._published.damaged),
            repaired=self._changes.repaired,
        )
