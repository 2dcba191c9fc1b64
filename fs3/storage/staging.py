"""From an update to a new version of its chunk, written into a block that nobody knows of yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fs3 import checksum, ids
from fs3.errors import Conflict, Fs3Error, Invalid, NoSpace
from fs3.storage import content_core as content
from fs3.storage import metadata as md
from fs3.storage.allocator_core import LARGEST_BYTES, Block
from fs3.storage.blocks import BlockFile, BlockFiles, disk_error
from fs3.storage.chunk_locks import Key
from fs3.storage.content_core import DATA, OLD, Part
from fs3.storage.engine_api import Reserved, Staged, Update
from fs3.storage.index import Entry
from fs3.storage.metadata import Version
from fs3.storage.published import Published
from fs3.storage.space import Space
from fs3.transport.messages import Op, UpdateFlag

_ZEROS = memoryview(bytes(1 << 20))
_SYNC_FLAGS = UpdateFlag.SYNC_REPLACE | UpdateFlag.SYNC_REMOVE


@dataclass(slots=True)
class Prepared:
    """An update on its way: `version` is what its record will say, None if the chunk stays as it is.

    `erases`: committing it leaves no record at all. `damaged`: its bytes are known to fail their sums.
    """

    staged: Staged
    version: Version | None
    erases: bool = False
    data_bytes: int = 0
    damaged: bool = False
    synced: bool = False  # its bytes are on stable storage


class Stager:
    """Steps 1 to 3 of engine.py, for a caller that holds the chunk's lock."""

    def __init__(self, published: Published, files: BlockFiles, space: Space, drain: Callable[[], None]) -> None:
        self._published = published
        self._files = files
        self._space = space
        self._drain = drain

    def prepare(self, update: Update) -> Prepared:
        """Decide and write the new version.

        Raises: Invalid, Conflict (not a newer version), Corrupt (what was sent, or what is kept), NoSpace, Unavailable.
        """
        _check_limits(update)
        key = (update.target_id, update.hi, update.lo)
        base = self._published.get(key)
        before = self._published.pending.get(key)
        version = update.version or base.version + 1
        if update.flags & UpdateFlag.SYNC_REMOVE or update.op is Op.REMOVE:
            return self._remove(update, base, before)
        if update.op is Op.PUT_IF_ABSENT and base.file != 0:
            return Prepared(_staged(update, 0, base.length, applied=False), None)
        _check_version(update, version, base, before)
        # Recovery restores what was there: it may go on until the disk is really full.
        self._space.check_room(self._drain, makes_chunk=base.file == 0 and not update.flags & _SYNC_FLAGS)
        flags = 0 if update.durable else md.FLAG_OS
        op = Op.REPLACE if update.flags & UpdateFlag.SYNC_REPLACE else update.op
        parts = content.parts_of(op, update.offset, len(update.data), base.length, update.chunk_bytes)
        damaged, reserved = bool(update.flags & UpdateFlag.DAMAGED), update.reserved
        if damaged or reserved is not None:
            data_coarse: NDArray[np.uint32] | None = content.sums_as_sent(update.data, update.fine)
        else:
            data_coarse = content.check_update(update.data, update.offset if op is Op.WRITE else 0, update.fine)
        length = parts[-1].end if parts else 0
        file, slot, crc = -1, 0, checksum.crc(b"")
        if length:
            if len(parts) == 1 and parts[0].source == DATA:
                old: dict[Part, memoryview] = {}
                fine, coarse = update.fine, data_coarse
            else:
                old, fine = self._merge(update, base, parts)
                coarse = None
            if coarse is None:
                coarse = checksum.coarse_from_fine(fine, length)
            if reserved is None:
                block = self._write(parts, old, update, fine, coarse)
            else:
                block, reserved.used = Block(reserved.file, reserved.slot), True
            file, slot = block.file, block.slot
            crc = update.recorded_crc if damaged else checksum.crc(coarse.tobytes())
        record = Version(version, update.chain_version, length, file, slot, crc, flags)._replace(**_origin(update))
        staged = _staged(update, version, length, applied=True)
        synced = reserved is not None and reserved.synced
        return Prepared(staged, record, data_bytes=len(update.data), damaged=damaged and length > 0, synced=synced)

    def _remove(self, update: Update, base: Entry, before: Version | None) -> Prepared:
        recovery = bool(update.flags & UpdateFlag.SYNC_REMOVE)
        if recovery and update.version == 0:
            return Prepared(_staged(update, 0, 0, applied=True), _tombstone(update, 0), erases=True)
        if not recovery and base.file == 0 and before is None:
            return Prepared(_staged(update, base.version, 0, applied=False), None)
        version = update.version or base.version + 1
        _check_version(update, version, base, before)
        return Prepared(_staged(update, version, 0, applied=True), _tombstone(update, version))

    def _merge(
        self, update: Update, base: Entry, parts: list[Part]
    ) -> tuple[dict[Part, memoryview], NDArray[np.uint32]]:
        """The old bytes that stay, verified, and the 4 KiB sums of the new version."""
        old: dict[Part, memoryview] = {}
        old_fine = np.empty(0, dtype=np.uint32)
        if base.file > 0:
            file = self._files[base.file - 1]
            old_fine = file.fine(base.position, base.length)
            coarse = file.coarse(base.position, base.length)
            what = f"{file.path} ({ids.chunk_name(update.hi, update.lo)} of target {update.target_id})"
            content.check_sums(old_fine, coarse, base.length, what)  # the new version's are made of them
            for part in parts:
                if part.source == OLD:
                    begin, end = content.block_range(part.begin, part.end, base.length)
                    buffer = memoryview(bytearray(end - begin))
                    file.read(base.position + begin, buffer)
                    content.check_old(buffer, begin, base.length, old_fine, coarse, what)
                    old[part] = buffer[part.begin - begin : part.end - begin]
        return old, content.merged_fine(parts, old, base.length, old_fine, update.offset, update.data, update.fine)

    def _write(
        self,
        parts: list[Part],
        old: dict[Part, memoryview],
        update: Update,
        fine: NDArray[np.uint32],
        coarse: NDArray[np.uint32],
    ) -> Block:
        pieces: list[memoryview] = []
        for part in parts:
            if part.source == OLD:
                pieces.append(old[part])
            elif part.source == DATA:
                pieces.append(update.data)
            else:
                left = part.end - part.begin
                while left:
                    pieces.append(_ZEROS[:left])
                    left -= len(pieces[-1])
        return self._put(parts[-1].end, pieces, fine, coarse)

    def write_whole(self, data: memoryview, fine: NDArray[np.uint32], coarse: NDArray[np.uint32]) -> Block:
        """A chunk's bytes in a block of their own. Raises: NoSpace, Unavailable."""
        return self._put(len(data), [data], fine, coarse)

    def _put(
        self, length: int, pieces: list[memoryview], fine: NDArray[np.uint32], coarse: NDArray[np.uint32]
    ) -> Block:
        block = self._space.allocate(length, self._drain)
        file = self._files[block.file]
        try:
            file.write(block.slot, pieces, fine, coarse)
        except OSError as error:
            failure = disk_error(error, f"writing {file.path}")
            # A place that the disk cannot write would be the first to be handed out again, to every later write of its
            # size: the block stays allocated until the next opening.
            if isinstance(failure, NoSpace):
                self._space.give_back([block])
            raise failure from None
        return block

    def reserve(self, length: int) -> Reserved:
        """See `ChunkEngine.reserve`."""
        self._space.check_room(self._drain, makes_chunk=True)
        block = self._space.allocate(length, self._drain)
        return Reserved(block.file, block.slot, self._files[block.file].position(block.slot), length)

    def fill(self, reserved: Reserved, offset: int, data: memoryview) -> None:
        """See `ChunkEngine.fill`."""
        file = self._files[reserved.file]
        try:
            file.write_data(reserved.slot, offset, [data])
        except OSError as error:
            raise _failed(reserved, error, file) from None

    def seal(self, reserved: Reserved, fine: NDArray[np.uint32], *, durable: bool) -> None:
        """See `ChunkEngine.seal`."""
        file = self._files[reserved.file]
        try:
            file.write_sums(reserved.slot, fine, checksum.coarse_from_fine(fine, reserved.length))
            if durable:
                file.sync()
        except OSError as error:
            raise _failed(reserved, error, file) from None
        reserved.synced = durable

    def unreserve(self, reserved: Reserved) -> None:
        """See `ChunkEngine.unreserve`."""
        if not reserved.failed:  # as in `_put`
            self._space.give_back([Block(reserved.file, reserved.slot)])

    def sync(self, prepared: Sequence[Prepared]) -> None:
        """Bytes and sums of the durable ones are on stable storage after this. Raises: Unavailable."""
        files: dict[int, BlockFile] = {
            ready.version.file: self._files[ready.version.file]
            for ready in prepared
            if ready.version is not None and ready.version.file >= 0 and ready.staged.durable and not ready.synced
        }
        for file in files.values():
            file.sync()  # if not, the blocks stay allocated until the next opening: what they hold is unknown

    def give_back(self, prepared: Sequence[Prepared]) -> None:
        """Free the blocks of updates that came to nothing, and that no record names."""
        blocks = [
            Block(ready.version.file, ready.version.slot)
            for ready in prepared
            if ready.version is not None and ready.version.file >= 0
        ]
        self._space.give_back(blocks)


def _failed(reserved: Reserved, error: OSError, file: BlockFile) -> Fs3Error:
    failure = disk_error(error, f"writing {file.path}")
    reserved.failed |= not isinstance(failure, NoSpace)
    return failure


def _check_limits(update: Update) -> None:
    if not 0 < update.chunk_bytes <= LARGEST_BYTES:
        raise Invalid(f"chunk_bytes {update.chunk_bytes}: must be from 1 to {LARGEST_BYTES}")
    if update.op is Op.REMOVE and len(update.data):
        raise Invalid(f"REMOVE with {len(update.data)} bytes: it takes none")


def _check_version(update: Update, version: int, base: Entry, before: Version | None) -> None:
    if update.flags & _SYNC_FLAGS:
        return
    known = max(base.version, before.version - 1 if before is not None else 0)
    if version <= known:
        raise Conflict(
            f"target {update.target_id}, {ids.chunk_name(update.hi, update.lo)}: an update to version {version}, "
            f"but the chunk is at {base.version}" + (f" with {before.version} pending" if before is not None else "")
        )


def _tombstone(update: Update, version: int) -> Version:
    flags = md.FLAG_REMOVED | (0 if update.durable else md.FLAG_OS)
    return Version(version, update.chain_version, 0, -1, 0, 0, flags)._replace(**_origin(update))


def _origin(update: Update) -> dict[str, int]:
    return {"client": update.client, "channel": update.channel, "seq": update.seq}


def _staged(update: Update, version: int, length: int, *, applied: bool) -> Staged:
    return Staged(
        target_id=update.target_id,
        hi=update.hi,
        lo=update.lo,
        version=version,
        length=length,
        chain_version=update.chain_version,
        applied=applied,
        removes=update.op is Op.REMOVE or bool(update.flags & UpdateFlag.SYNC_REMOVE),
        durable=update.durable,
        client=update.client,
        channel=update.channel,
        seq=update.seq,
    )


def key_of(update: Update | Staged) -> Key:
    """The chunk of an update."""
    return update.target_id, update.hi, update.lo
