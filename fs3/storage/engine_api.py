"""What a chunk engine takes and gives: the values, and the port that the storage daemon's rooms code against.

An engine keeps the chunks of the targets of one disk. Every chunk has at most one committed and one pending version
(CRAQ); data is copied on write, so a block that a reader was told of never changes while the reader holds it. All
methods block and may be called from any thread. `fs3/storage/engine.py` is the implementation, on block files and
RocksDB.

How a reader stays safe: `hold()`, then `lookup`, then read or send, then `release`. A block that any lookup after a
`hold` named is neither reused nor overwritten before its `release`. A hold costs O(1) however many blocks it covers,
but delays the reuse of every block freed meanwhile; for long times (a mapped block, an unacknowledged reply), `pin`
the blocks during a hold and release the hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Fs3Error, Invalid
from fs3.storage.fullness_core import Fullness
from fs3.transport.change_counters import ChangeCounters
from fs3.transport.messages import Op, Records, UpdateFlag


@dataclass(slots=True, kw_only=True)
class Update:
    """One change of one chunk, as an engine applies it.

    `fine` are the writer's sums of the update's 4 KiB pieces, cut on the chunk's grid (`checksum.fine_sums`).
    `version` is the version the chunk is to become; 0 lets the engine take the one after the committed one. With
    `UpdateFlag.SYNC_REPLACE` or `SYNC_REMOVE` it may also be lower than what is there. SYNC_REMOVE with version 0
    erases the chunk without leaving a tombstone. `durable=False` (page cache suffices) skips the syncs.
    """

    target_id: int
    hi: int
    lo: int
    op: Op
    offset: int = 0
    data: memoryview = field(default_factory=lambda: memoryview(b""))
    fine: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, dtype=np.uint32))
    version: int = 0
    chain_version: int = 0
    chunk_bytes: int = 64 << 20
    durable: bool = True
    client: int = 0  # 0: no deduplication is recorded
    channel: int = 0
    seq: int = 0
    flags: UpdateFlag = UpdateFlag.NONE
    recorded_crc: int = 0  # with UpdateFlag.DAMAGED: of the coarse sums that the writer's bytes had
    reserved: Reserved | None = None  # where `data`, a whole chunk, lies already, verified, and sealed with `fine`


@dataclass(slots=True, eq=False)
class Reserved:
    """A block that bytes are put into before their update comes; `used` once the update has it, `failed` if the disk
    did not take its bytes. The byte offset of the block in its file is `position`."""

    file: int
    slot: int
    position: int
    length: int
    used: bool = False
    failed: bool = False
    synced: bool = False


@dataclass(slots=True, kw_only=True)
class Staged:
    """A pending version, on stable storage if its update asked for it; what `commit` and `abort` need.

    `version` is what the chunk becomes and `length` the chunk's length then. `applied` is false when nothing is to be
    done: PUT_IF_ABSENT found the chunk (`version` 0), REMOVE found none (`version` that of the tombstone, or 0).
    """

    target_id: int
    hi: int
    lo: int
    version: int
    length: int
    chain_version: int
    applied: bool
    removes: bool
    durable: bool
    client: int = 0
    channel: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Located:
    """What `lookup` knows of n chunks, as parallel arrays [n].

    `found` is false for an absent chunk, a tombstone, and a chunk that only has a pending version; `version` is then
    that of the tombstone, or 0. `pending` is the pending version or 0. `file` is -1 where there is no block (not found,
    or empty); `position` is the byte offset of the block in its file; `block` the physical id that `pin` takes
    (negative: none).
    """

    found: NDArray[np.bool_]
    version: NDArray[np.uint64]
    pending: NDArray[np.uint64]
    length: NDArray[np.uint32]
    chain_version: NDArray[np.uint32]
    file: NDArray[np.int32]
    position: NDArray[np.int64]
    block: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.found)


class Place(NamedTuple):
    """What `place` knows of one chunk that has a block; as in `Located`."""

    version: int
    pending: int
    length: int
    file: int
    position: int
    block: int


class DedupEntry(NamedTuple):
    """The result of the last update of one (client, channel) on a target; `status` as on the wire."""

    seq: int
    version: int
    length: int
    status: int = 0


class DedupRecord(NamedTuple):
    """A `DedupEntry` with its key, as it travels with resync."""

    client: int
    channel: int
    entry: DedupEntry


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """A target as the engine keeps it."""

    target_id: int
    chain_id: int


class PendingChunk(NamedTuple):
    """A chunk with a pending version."""

    hi: int
    lo: int
    version: int
    chain_version: int
    length: int
    removes: bool
    committed_version: int
    client: int
    channel: int
    seq: int


class ChunkData(NamedTuple):
    """A chunk's bytes, verified, with the sums of their 4 KiB blocks."""

    version: int
    chain_version: int
    length: int
    removed: bool
    data: memoryview
    fine: NDArray[np.uint32]


class AsIs(NamedTuple):
    """A version of a chunk as the disk has it, unverified; `recorded_crc` is of the coarse sums it was written with."""

    version: int
    chain_version: int
    data: memoryview
    fine: NDArray[np.uint32]
    recorded_crc: int
    durable: bool


class Verdict(NamedTuple):
    """What `verify` found: `fault` is empty if the committed `version`, of `length` bytes, is as it was written."""

    version: int
    length: int
    fault: str


class ChunkInfo(NamedTuple):
    """What is known of one chunk without its bytes; `found` as in `Located`."""

    found: bool
    version: int
    pending: int
    length: int
    chain_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Sizes of one engine; a folder may be reopened with others."""

    max_bytes: int = 0  # of a disk's block files, sums included; 0: as much as the disk has
    reserve_bytes: int = 256 << 20  # of the disk, kept free for the metadata's own files
    hard_reserve_bytes: int = 64 << 20  # below that only removals are taken; never more than reserve_bytes
    warn_used: float = 0.96  # of the room for chunks: a warning from there on; 1: never
    refuse_used: float = 0.98  # ... and no new chunks from there on; 1: until it is full
    file_bytes: int = 64 << 30  # data of one block file; fixed when a file is made
    group_bytes: int = 64 << 20  # a file grows by so much, but by at most 256 blocks
    index_chunks: int = 1 << 16  # room in the first index
    write_buffer_bytes: int = 32 << 20  # of RocksDB

    def __post_init__(self) -> None:
        if not 0 < self.warn_used <= self.refuse_used <= 1:
            raise Invalid(
                f"warn_used {self.warn_used}, refuse_used {self.refuse_used}: shares of a disk, the warning first"
            )
        for name in ("max_bytes", "reserve_bytes", "hard_reserve_bytes"):
            if getattr(self, name) < 0:
                raise Invalid(f"{name} {getattr(self, name)}: must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counters since the engine was opened, and gauges."""

    chunks: int
    pending: int
    tombstones: int
    used_bytes: int  # blocks in use, committed and pending
    grown_bytes: int  # allocated on disk for blocks
    quarantined: int  # freed blocks that may not be reused yet
    locked: int  # freed blocks that a client has locked, of this run of the daemon or an earlier one
    holds: int
    pins: int
    index_bytes: int
    updates: int
    updated_bytes: int
    groups: int  # metadata batches written
    wal_syncs: int
    file_syncs: int
    corrupt: int  # reads that found bytes not to match their sums
    fullness: int  # fullness_core.Fullness
    damaged: int  # chunks marked as such
    repaired: int


class BlockView(Protocol):
    """One block file, open for as long as the engine is.

    `fd` is open for reading and writing; `view` is the whole file mapped for reading. `sums` is the mapped area of u32
    sums: the k-th 4 KiB sum of the block at `position` is `sums[fine_at(position) + k]`, the k-th 256 KiB sum
    `sums[coarse_at(position) + k]`.
    """

    block_bytes: int

    @property
    def fd(self) -> int: ...
    @property
    def view(self) -> memoryview: ...
    @property
    def sums(self) -> NDArray[np.uint32]: ...
    def fine_at(self, position: int) -> int: ...
    def coarse_at(self, position: int) -> int: ...


class ChunkEngine(Protocol):
    """The port. Errors of single updates come back in their place; errors of the whole call are raised.

    `Unavailable` from any changing call means that the disk failed an fsync or the metadata store broke: the engine
    takes no more changes until it is reopened.
    """

    @property
    def counters(self) -> ChangeCounters | None:
        """What clients of this host see change here; None where that cannot be had."""

    def close(self) -> None: ...

    # targets
    def create_target(self, target_id: int, chain_id: int) -> None:
        """Durable; the same again is no error. Raises: Exists (other chain)."""

    def drop_target(self, target_id: int) -> None:
        """Forget a target, its chunks, results and state; durable."""

    def targets(self) -> Mapping[int, TargetRecord]: ...
    def get_state(self, target_id: int, key: bytes) -> bytes | None: ...
    def put_state(self, target_id: int, key: bytes, value: bytes) -> None:
        """Durable."""

    # readers
    def hold(self) -> int: ...
    def release(self, token: int) -> None: ...
    def pin(self, blocks: NDArray[np.int64]) -> int:
        """Keep `blocks` (negative ones are skipped) from reuse until `unpin`; call during the hold that covers them."""

    def unpin(self, token: int) -> None: ...
    def lookup(self, target_ids: NDArray[np.uint32], hi: NDArray[np.uint64], lo: NDArray[np.uint64]) -> Located: ...
    def info(self, target_id: int, hi: int, lo: int) -> ChunkInfo:
        """`lookup` for one chunk, without numpy's overhead."""

    def place(self, target_id: int, hi: int, lo: int) -> Place | None:
        """The same with its block; None if it has none."""

    def file(self, file_no: int) -> BlockView: ...
    def share(self, file_no: int) -> int:
        """A descriptor, the caller's, of a description of its own of a block file, open for reading alone. No block of
        the file that is locked on it (file_locks.py) during a hold is reused before the lock ends, also by engines
        that open the disk later. Raises: OSError."""

    def gather_fine(
        self, files: NDArray[np.int32], positions: NDArray[np.int64], block_index: NDArray[np.int64]
    ) -> NDArray[np.uint32]:
        """The 4 KiB sums number `block_index` of the blocks at `positions` of `files`: all [n]."""

    def gather_coarse(
        self, files: NDArray[np.int32], positions: NDArray[np.int64], unit_index: NDArray[np.int64]
    ) -> NDArray[np.uint32]: ...
    def read_verified(
        self, file_no: int, position: int, chunk_length: int, offset: int, length: int, out: memoryview | None = None
    ) -> tuple[memoryview, int]:
        """Bytes [offset, offset + length) of a block, whole 4 KiB blocks verified, and the sum of that part.

        The bytes are put into `out[:length]` if given. Raises: Corrupt.
        """

    def read_chunk(self, target_id: int, hi: int, lo: int, *, pending: bool = False) -> ChunkData:
        """Raises: NotFound (no such version), Corrupt."""

    # writers
    def reserve(self, length: int) -> Reserved:
        """A block for a chunk of `length` bytes; free again when the engine is opened next. Raises: NoSpace,
        Unavailable."""

    def fill(self, reserved: Reserved, offset: int, data: memoryview) -> None:
        """Put bytes into it. Raises: NoSpace, Unavailable."""

    def seal(self, reserved: Reserved, fine: NDArray[np.uint32], *, durable: bool) -> None:
        """All bytes are there, with these 4 KiB sums; on stable storage after this if `durable`. Raises: NoSpace,
        Unavailable."""

    def unreserve(self, reserved: Reserved) -> None:
        """Free a block that no update has used."""

    def stage(self, updates: Sequence[Update]) -> list[Staged | Fs3Error]:
        """Make each update its chunk's pending version, replacing a pending one; data and record durable on return.

        Of two updates of one chunk in a call the second gets Conflict.
        """

    def commit(self, staged: Sequence[Staged], *, sync: bool = True) -> None:
        """Pending -> committed, with the deduplication results in the same batch. A version that is no longer pending
        is skipped if it is committed. Raises: Conflict."""

    def stage_and_commit(self, updates: Sequence[Update]) -> list[Staged | Fs3Error]:
        """Both in one durable batch; updates of one chunk are applied in order."""

    def abort(self, staged: Sequence[Staged]) -> None:
        """Drop pending versions; durable. Raises: NoSpace, Unavailable."""

    def restage(self, update: Update) -> None:
        """Give a pending version its bytes again, by the update that it is of, in a new block; nothing else of it
        changes. Raises: Conflict (it is not pending, or these are not its bytes), Corrupt, NoSpace, Unavailable."""

    def pending_of(self, target_id: int) -> list[PendingChunk]:
        """In chunk-id order."""

    def pending_staged(self, target_id: int, hi: int, lo: int) -> Staged:
        """What `commit` takes, for a pending version found after a restart. Raises: NotFound."""

    # damage
    def verify(self, target_id: int, hi: int, lo: int) -> Verdict:
        """Read a committed chunk whole and compare bytes, sums and recorded sum of sums. Raises: NotFound."""

    def read_as_is(self, target_id: int, hi: int, lo: int, *, pending: bool = False) -> AsIs:
        """A committed chunk, or its pending version, without verification. Raises: NotFound."""

    def damaged(self) -> Mapping[tuple[int, int, int], int]:
        """The chunks (target, hi, lo) known to fail their sums, with the version; a new version ends it. Survives a
        restart, though not a power loss right after."""

    def mark_damaged(self, target_id: int, hi: int, lo: int, version: int) -> bool:
        """Note it; whether `version` is still the committed one. Raises: NoSpace, Unavailable."""

    def clear_damage(self, target_id: int, hi: int, lo: int) -> None:
        """Take a mark back. Raises: NoSpace, Unavailable."""

    def repair(
        self, target_id: int, hi: int, lo: int, version: int, data: memoryview, fine: NDArray[np.uint32]
    ) -> None:
        """Put the bytes that committed `version` had into a new block; durable. The version, the chain version, results
        and a pending version stay as they are.

        Raises: Conflict (another version is committed, or these are not its bytes), Corrupt (`data` fails `fine`),
            NoSpace, Unavailable.
        """

    # results of updates
    def dedup(self, target_id: int, client: int, channel: int) -> DedupEntry | None: ...
    def dedup_records(self, target_id: int) -> list[DedupRecord]: ...
    def put_dedup(self, target_id: int, records: Sequence[DedupRecord], *, sync: bool = True) -> None: ...
    def result_clients(self) -> set[int]:
        """Whose results are kept, on any target."""

    def forget_clients(self, clients: Set[int], key: bytes, value: bytes) -> None:
        """Drop the results of clients from all targets; in the same batch as a target's first results goes its state
        `key`. Not synced: what comes back with a power loss comes back together. Raises: NoSpace, Unavailable."""

    # listing
    def metas(self, target_id: int, after: bytes, limit: int, *, removals: bool = False) -> Records:
        """CHUNK_META records after chunk id `after` (b"": from the first), in order.

        Tombstones (META_REMOVED, length 0) only with `removals`; without, what is pending above one is told alone.
        """

    def tombstones(self, target_id: int, after: bytes, limit: int) -> Records:
        """CHUNK_META records (length 0) of the removals that are remembered."""

    def forget_tombstones(self, target_id: int, removals: Sequence[tuple[int, int, int]]) -> None:
        """Forget removals (hi, lo, version), each if its chunk is the tombstone of that version with nothing pending.
        Durable. Raises: NoSpace, Unavailable."""

    def list_chunks(self, target_id: int, hi: int, lo_from: int, limit: int, *, whole_kind: bool = False) -> Records:
        """LISTED records of the chunks of `hi` (or of its whole kind) from (hi, lo_from) on, in order of ids."""

    def target_usage(self, target_id: int) -> tuple[int, int]:
        """(bytes of blocks, chunks)."""

    def space(self) -> tuple[int, int]:
        """(total, free) bytes for chunks."""

    def fullness(self) -> Fullness:
        """What the disk's fullness stops now. Updates that it stops get NoSpace."""

    def failure(self) -> Fs3Error | None:
        """Why the disk takes no more changes, or cannot tell what it has; None while all is well."""

    def stats(self) -> EngineStats: ...
