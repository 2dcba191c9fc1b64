"""The blocks of an engine as its threads use them.

Of what is free on a disk that several engines share, each counts an equal part as its own, so that all of them together
tell what the disk has, and each is nearly full, and full, when the disk is (sooner, if it holds more than the others).

The allocator's and the quarantine's decisions are made under one lock, which readers take for an instant too; files
grow outside it, so that a slow `fallocate` stops no reader. The limits of disk and quota are checked here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fs3.errors import NoSpace
from fs3.runtime import SYSTEM, Runtime
from fs3.storage.allocator_core import (
    CLASS_BYTES,
    FILES_PER_CLASS,
    Allocator,
    Block,
    Growth,
    Quarantine,
    class_of,
)
from fs3.storage.blocks import BlockFile, BlockFiles, disk_error
from fs3.storage.engine_api import EngineConfig
from fs3.storage.fullness_core import Fullness, fullness

_LOG = logging.getLogger("fs3.storage")

_BLOCK_SHIFT = 44  # physical id of a block: file << 44 | position >> 12
_POSITION_SHIFT = 12
_LOOK_S = 0.25
_ASK_LOCKS_S = 0.1
_MEANS = {
    Fullness.NORMAL: "there is room again",
    Fullness.NEARLY: "the disk is nearly full",
    Fullness.NO_NEW: "the disk is so full that no new chunks are taken",
    Fullness.NO_WRITES: "the disk is full, and takes nothing but removals",
}
_UNSYNCED_BYTES = 64 << 20  # of freed blocks that wait for a sync of the metadata before one is asked for


def block_ids(file: NDArray[np.int32], position: NDArray[np.int64]) -> NDArray[np.int64]:
    """The physical ids [n] of blocks; negative where `file` is."""
    ids: NDArray[np.int64] = (file.astype(np.int64) << _BLOCK_SHIFT) | (position >> _POSITION_SHIFT)
    return ids


def block_id(file: int, position: int) -> int:
    """`block_ids` of one."""
    return file << _BLOCK_SHIFT | position >> _POSITION_SHIFT


class Space:
    """Allocation, reuse and limits."""

    def __init__(
        self,
        folder: str,
        files: BlockFiles,
        config: EngineConfig,
        *,
        free_bytes: Callable[[], int],
        shared_by: int = 1,
        runtime: Runtime = SYSTEM,
    ) -> None:
        self._folder = folder
        self._free_bytes = free_bytes
        self._shared_by = shared_by
        self._files = files
        self._config = config
        self._lock = threading.Lock()  # only ever held for an instant
        self._grow_lock = runtime.lock()
        self._allocator = Allocator(file_bytes=config.file_bytes, group_bytes=config.group_bytes)
        self._quarantine = Quarantine()
        self._shared: set[int] = set()  # files of which clients have, or had, descriptors
        self._locked: set[int] = set()  # blocks that would be free if no client had locked them
        self._asked_s = float("-inf")  # when it was last asked whether they still are
        self._unsynced_bytes = 0  # about: since the last sync
        self._runtime = runtime
        self._fullness = Fullness.NORMAL
        self._looked_s = float("-inf")

    def rebuild(self, used: dict[int, NDArray[np.int64]]) -> None:
        """Take over the slots in use, by file. Raises: Corrupt."""
        for file in self._files:
            self._allocator.add_file(file.file_no, file.slots)
            slots = used.get(file.file_no, np.empty(0, dtype=np.int64))
            self._allocator.rebuild(file.file_no, self._with_locked(file, slots), file.grown_slots())
        self._say_if_it_cannot_grow()

    def _with_locked(self, file: BlockFile, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """`slots`, and those that are free but for clients of an earlier run, who may be reading them yet."""
        try:
            locked = file.locked_slots()
        except OSError:  # a filesystem without such locks: nobody was given a descriptor to read by
            return slots
        if not len(locked):
            return slots
        self._shared.add(file.file_no)
        free = np.setdiff1d(locked[locked < file.grown_slots()], slots)
        self._locked.update(self._id(Block(file.file_no, slot)) for slot in free.tolist())
        return np.concatenate([slots, free])

    def share(self, file_no: int) -> None:
        """A client gets a descriptor of this file: from now on its blocks may be locked."""
        with self._lock:
            self._shared.add(file_no)

    def _say_if_it_cannot_grow(self) -> None:
        """A disk of which no more is free than is kept for the metadata: it would start, and refuse what is written."""
        free, reserve = self._free_bytes(), self._config.reserve_bytes
        if free <= reserve:
            _LOG.warning(
                "%s: its disk has %d MiB free, and %d MiB are kept for the metadata (reserve_bytes): no chunks are"
                " taken beyond the %d MiB that its block files have room for; make room, or use a larger disk",
                self._folder,
                free >> 20,
                reserve >> 20,
                (self.grown_bytes - self.used_bytes) >> 20,
            )

    def allocate(self, length: int, drain: Callable[[], None]) -> Block:
        """A block for `length` bytes; `drain` syncs the metadata, so that freed blocks come back.

        Raises: NoSpace, Unavailable.
        """
        wanted = class_of(length)
        for attempt in range(2):
            block = self._take(wanted) or self._take_unlocked(wanted) or self._grow(wanted)
            if block is not None:
                return block
            # On a full disk the room is in freed blocks of other sizes; a large block for few bytes beats a refusal.
            for larger in range(wanted + 1, len(CLASS_BYTES)):
                block = self._take(larger)
                if block is not None:
                    return block
            if attempt == 0:
                drain()
        raise NoSpace(
            f"{self._folder}: no room for a block of {CLASS_BYTES[wanted]} bytes; remove data, add a disk, "
            f"or raise max_bytes ({self._config.max_bytes or 'no limit'})"
        )

    def _take(self, cls: int) -> Block | None:
        with self._lock:
            return self._allocator.allocate(cls)

    def _take_unlocked(self, cls: int) -> Block | None:
        if not self._locked:
            return None
        self._ask_locks()
        return self._take(cls)

    def _ask_locks(self) -> None:
        """Free the blocks that clients have unlocked since they were last asked for."""
        now_s = self._runtime.now_s()
        with self._lock:
            if self._locked and now_s - self._asked_s >= _ASK_LOCKS_S:
                self._asked_s = now_s
                locked, self._locked = self._locked, set()
                self._free(list(locked))

    def _grow(self, cls: int) -> Block | None:
        with self._grow_lock:
            with self._lock:
                block = self._allocator.allocate(cls)
                growth = self._allocator.growth(cls)
            if block is not None or growth is None or not self._has_room(growth):
                return block
            try:
                file = self._file_for(growth)
                file.grow(growth)
            except OSError as error:
                failure = disk_error(error, f"growing block files in {self._folder}")
                if isinstance(failure, NoSpace):
                    return None
                raise failure from None
            self._looked_s = float("-inf")
            with self._lock:
                self._allocator.grown(growth)
                return self._allocator.allocate(cls)

    def _file_for(self, growth: Growth) -> BlockFile:
        if growth.file not in self._files:
            slots = self._allocator.slots_of_new_file(growth.file // FILES_PER_CLASS)
            self._files.create(growth.file, slots)
            with self._lock:
                self._allocator.add_file(growth.file, slots)
        return self._files[growth.file]

    def _has_room(self, growth: Growth) -> bool:
        return growth.slots * CLASS_BYTES[growth.file // FILES_PER_CLASS] <= self._growable_bytes()

    def _growable_bytes(self) -> int:
        free = (self._free_bytes() - self._config.reserve_bytes) // self._shared_by
        if self._config.max_bytes:
            free = min(free, self._config.max_bytes // self._shared_by - self.grown_bytes)
        return max(0, free)

    @property
    def grown_bytes(self) -> int:
        with self._lock:
            return self._allocator.grown_bytes

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return self._allocator.used_bytes

    @property
    def counts(self) -> tuple[int, int, int]:
        """(blocks in quarantine, holds, pins)."""
        with self._lock:
            return self._quarantine.counts

    @property
    def locked(self) -> int:
        """How many freed blocks clients still keep."""
        return len(self._locked)

    def fullness(self) -> Fullness:
        """What the disk's fullness stops; looked up again after some time, or if it stops anything."""
        now_s = self._runtime.now_s()
        if self._fullness is not Fullness.NORMAL or now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            total, free = self.total_and_free()
            config = self._config
            before, self._fullness = (
                self._fullness,
                fullness(
                    self._fullness,
                    used=total - free,
                    total=total,
                    disk_free=self._free_bytes(),
                    warn_used=config.warn_used,
                    refuse_used=config.refuse_used,
                    hard_reserve=min(config.hard_reserve_bytes, config.reserve_bytes),
                ),
            )
            if self._fullness is not before:
                level = logging.WARNING if self._fullness > before else logging.INFO
                _LOG.log(level, "%s: %d of %d bytes are free: %s", self._folder, free, total, _MEANS[self._fullness])
        return self._fullness

    def check_room(self, drain: Callable[[], None], *, makes_chunk: bool) -> None:
        """`drain` as for `allocate`. Raises: NoSpace, if the disk is too full for an update that is no removal;
        Unavailable."""
        level = self.fullness()
        if makes_chunk and level is Fullness.NO_NEW and self._awaits_sync():
            drain()  # removals that were not synced: nobody may come to sync them
            level = self.fullness()
        if level is Fullness.NO_WRITES or (makes_chunk and level is Fullness.NO_NEW):
            raise NoSpace(f"{self._folder}: {_MEANS[level]}; remove data, or add a disk")

    def total_and_free(self) -> tuple[int, int]:
        """Bytes for chunks."""
        if self._locked:
            self._ask_locks()
        with self._lock:
            used, grown = self._allocator.used_bytes, self._allocator.grown_bytes
        free = grown - used + self._growable_bytes()
        return used + free, free

    def hold(self) -> int:
        with self._lock:
            return self._quarantine.hold()

    def release(self, token: int) -> None:
        with self._lock:
            self._quarantine.release(token)
            self._reclaim()

    def pin(self, blocks: NDArray[np.int64]) -> int:
        kept = blocks[blocks >= 0].tolist()
        with self._lock:
            return self._quarantine.pin(kept)

    def unpin(self, token: int) -> None:
        with self._lock:
            self._free(self._quarantine.unpin(token))

    def retire(self, blocks: Sequence[Block], batch: int) -> bool:
        """No record names these blocks from metadata batch `batch` on. True: it is time to sync the metadata, as that
        frees much, or shows that a full disk has room."""
        with self._lock:
            self._quarantine.retire([self._id(block) for block in blocks], batch)
            self._reclaim()
            self._unsynced_bytes += sum(CLASS_BYTES[block.file // FILES_PER_CLASS] for block in blocks)
            full = self._fullness >= Fullness.NO_NEW and self._quarantine.awaits_sync
            return full or self._unsynced_bytes >= _UNSYNCED_BYTES

    def synced(self, batch: int) -> None:
        """Metadata batches up to `batch` are durable."""
        with self._lock:
            self._quarantine.synced(batch)
            self._unsynced_bytes = 0
            self._reclaim()

    def _awaits_sync(self) -> bool:
        with self._lock:
            return self._quarantine.awaits_sync

    def give_back(self, blocks: Sequence[Block]) -> None:
        """Free blocks that no record ever named."""
        with self._lock:
            for block in blocks:
                self._allocator.free(block)

    def _reclaim(self) -> None:
        self._free(self._quarantine.reclaim())

    def _free(self, ids: Sequence[int]) -> None:
        for physical in ids:
            file = physical >> _BLOCK_SHIFT
            position = (physical & (1 << _BLOCK_SHIFT) - 1) << _POSITION_SHIFT
            if file in self._shared and self._is_locked(file, position):
                self._locked.add(physical)
                continue
            self._allocator.free(Block(file, self._files[file].slot(position)))

    def _is_locked(self, file: int, position: int) -> bool:
        try:
            return self._files[file].is_locked(position)
        except OSError:  # there could be locks when the file was shared
            return True

    def _id(self, block: Block) -> int:
        return block.file << _BLOCK_SHIFT | self._files[block.file].position(block.slot) >> _POSITION_SHIFT
