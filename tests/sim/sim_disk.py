"""A disk that loses what it may lose: block files and the metadata store with a volatile and a durable image.

    write ── page cache (volatile) ── sync ── stable storage (durable)

What is kept is the volatile image, and for everything that is not durable yet what it replaced. A SIGKILL changes
nothing; a power loss decides, per sector of 4 KiB and drawn by the seed, how many of the writes that no sync has
covered are there, and may tear the last of them. The metadata store is an atomic log: of its unsynced batches a prefix
survives. A sync that fails has lost its pages: they look written until the power goes ("fsyncgate", as on Linux).
"""

from __future__ import annotations

import bisect
import errno
import os
import random
import sys
from collections.abc import Callable, Iterable, Sequence

from sim_kernel import ProcessEnded, SimProcess, Simulation

from fs3.errors import NoSpace, Unavailable
from fs3.storage.disk import Disk
from fs3.storage.metadata import Put

SECTOR = 4096
_TEAR = 512
_HEAD_BYTES = 1 << 20  # where a block file's data begins: before it are its header and sums

Undo = tuple[int, bytes]  # position, what was there


class SimDisk:
    """One disk of one machine; survives the processes that use it. `capacity_bytes` is for block files."""

    def __init__(self, sim: Simulation, name: str, *, capacity_bytes: int = 256 << 20, sync_s: float = 0.001) -> None:
        self.sim = sim
        self.name = name
        self.capacity_bytes = capacity_bytes
        self.full = False  # nothing more can be allocated
        self.slow = 1.0
        self.fail_syncs = 0  # so many of the next syncs fail
        self.fail_writes = 0
        self.fail_reads = 0
        self.lost_power = False
        self.last_run = 0
        self.epoch = 0  # counts power losses
        self.files: dict[str, _Image] = {}
        self.store = _Store()
        self.owner: SimProcess | None = None
        self._sync_s = sync_s
        self.random = sim.stream(f"disk/{name}")

    def attach(self, process: SimProcess) -> Disk:
        """The port for an engine in `process`. Raises: Unavailable: another process has it."""
        if self.owner is not None and self.owner.alive:
            raise Unavailable(f"{self.name}: in use by process {self.owner.name}; stop that daemon first")
        self.owner = process

        def opened() -> None:
            self.lost_power = False

        def doubt() -> None:
            self.lost_power = True

        def note_run(number: int) -> None:
            self.last_run = number

        return Disk(
            name=self.name,
            folder=_Folder(self, process),
            metadata=SimMetadata(self, process),
            free_bytes=self.free_bytes,
            lost_power=self.lost_power,
            opened=opened,
            doubt=doubt,
            last_run=self.last_run,
            note_run=note_run,
            close=lambda: None,
        )

    def free_bytes(self) -> int:
        return 0 if self.full else max(0, self.capacity_bytes - sum(image.allocated for image in self.files.values()))

    def lose_power(self) -> None:
        """What no sync has covered is gone, or half there. The machine's processes must be dead already."""
        assert self.owner is None or not self.owner.alive
        self.epoch += 1
        self.lost_power = True
        dropped = torn = 0
        for image in self.files.values():
            one_dropped, one_torn = image.lose_power(self.random)
            dropped, torn = dropped + one_dropped, torn + one_torn
        batches = self.store.lose_power(self.random)
        self.sim.note(f"{self.name}: power lost: {dropped} sectors dropped, {torn} torn, {batches} batches lost")
        for what, count in (("dropped", dropped), ("torn", torn), ("batches", batches)):
            if count:
                self.sim.emit("disk", self.owner, disk=self.name, what=what, count=count)

    def replace(self) -> None:
        """A new, empty disk in its place."""
        assert self.owner is None or not self.owner.alive
        self.files, self.store, self.lost_power = {}, _Store(), False
        self.epoch += 1

    def corrupt(self, chance: random.Random, *, sums: bool = False, where: Sequence[tuple[str, int, int]] = ()) -> bool:
        """Change a byte at rest, in something that was written; False if nothing was. `where`: in one of these parts of
        files (name, position, length)."""
        places = [
            (image, position, length)
            for image in self.files.values()
            for position, length in image.written.items()
            if (position < _HEAD_BYTES) == sums
        ]
        if where:
            places = [(self.files[name], position, length) for name, position, length in where]
        if not places:
            return False
        image, position, length = places[chance.randrange(len(places))]
        at = position + chance.randrange(length)
        image.data[at] ^= 1 << chance.randrange(8)
        self.sim.note(f"{self.name}: a byte of {image.name} at {at} ({'sums' if sums else 'data'}) is changed")
        self.sim.emit("disk", self.owner, disk=self.name, what="corrupted", file=image.name, position=at, sums=sums)
        return True

    def wait(self, process: SimProcess, seconds: float, done: Callable[[], None] | None = None) -> None:
        """Have the calling thread wait for the disk; `done` runs whatever becomes of the process, unless power goes."""
        sim = self.sim
        thread = sim.current
        assert thread is not None, "only a simulated thread can wait for a disk"
        epoch = self.epoch

        def ready() -> None:
            if epoch == self.epoch:
                if done is not None:
                    done()
                if process.alive:
                    thread.wake()

        sim.after(seconds * self.slow, ready)
        thread.park()

    def sync_time(self) -> float:
        chance = self.random
        return self._sync_s * (0.3 + chance.random()) * (10 if chance.random() < 0.02 else 1)

    def fails(self, what: str) -> bool:
        """Whether this is one of the operations that are to fail."""
        left = getattr(self, what)
        if left:
            setattr(self, what, left - 1)
            self.sim.note(f"{self.name}: EIO ({what})")
            self.sim.emit("disk", self.owner, disk=self.name, what="eio", of=what)
        return left > 0


class _Image:
    """A block file: `data` is what a reader sees, the undo logs lead back to what is on stable storage."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.data = bytearray(size)
        self.unsynced: list[Undo] = []
        self.syncing: list[list[Undo]] = []
        self.lost: list[Undo] = []  # pages of a sync that failed: clean in memory, and not on the disk
        self.groups: dict[int, int] = {}
        self.allocated = 0
        self.written: dict[int, int] = {}

    def write(self, part: memoryview, position: int) -> None:
        end = position + len(part)
        self.unsynced.append((position, bytes(self.data[position:end])))
        self.data[position:end] = part

    def is_unsynced(self, position: int, length: int) -> bool:
        """Whether bytes of this part are written and not synced."""
        logs = (self.unsynced, *self.syncing)
        return any(at < position + length and position < at + len(old) for log in logs for at, old in log)

    def begin_sync(self) -> list[Undo]:
        covered, self.unsynced = self.unsynced, []
        self.syncing.append(covered)
        return covered

    def end_sync(self, covered: list[Undo], *, failed: bool) -> None:
        begun = [other is covered for other in self.syncing].index(True)
        del self.syncing[begun]
        if failed:
            self.lost += covered
            return
        # What it wrote is there, whatever becomes of an earlier sync of the same sectors, be it of a dead process.
        before = [log for log in (self.lost, *self.syncing[:begun]) if log]
        if before:
            durable = {sector for undo in covered for sector in _sectors(undo)}
            for log in before:
                log[:] = [piece for undo in log for piece in _cut(undo) if piece[0] // SECTOR not in durable]

    def lose_power(self, chance: random.Random) -> tuple[int, int]:
        log = [(undo, True) for undo in self.lost]
        log += [(undo, False) for covered in self.syncing for undo in covered]
        log += [(undo, False) for undo in self.unsynced]
        by_sector: dict[int, list[tuple[Undo, bool]]] = {}
        for undo, lost in log:
            for piece in _cut(undo):
                by_sector.setdefault(piece[0] // SECTOR, []).append((piece, lost))
        mode = chance.random()  # all gone, all there, or each for itself
        dropped = torn = 0
        for pieces in by_sector.values():
            kept = 0 if mode < 0.3 else len(pieces) if mode < 0.45 else chance.randrange(len(pieces) + 1)
            while kept and pieces[kept - 1][1]:
                kept -= 1
            tear = kept < len(pieces) and not pieces[kept][1] and chance.random() < 0.1
            for number in range(len(pieces) - 1, kept - 1, -1):
                position, old = pieces[number][0]
                cut = 0
                if tear and number == kept:
                    cut = min(len(old), chance.randrange(SECTOR // _TEAR) * _TEAR)
                    torn += 1
                self.data[position + cut : position + len(old)] = old[cut:]
            dropped += kept < len(pieces)
        self.unsynced, self.syncing, self.lost = [], [], []
        return dropped, torn


def _sectors(undo: Undo) -> range:
    return range(undo[0] // SECTOR, (undo[0] + len(undo[1]) - 1) // SECTOR + 1)


def _cut(undo: Undo) -> list[Undo]:
    """An undo in pieces that each lie in one sector."""
    position, old = undo
    pieces = []
    for sector in _sectors(undo):
        begin, end = max(position, sector * SECTOR), min(position + len(old), (sector + 1) * SECTOR)
        pieces.append((begin, old[begin - position : end - position]))
    return pieces


class _Folder:
    """A `FileFolder` on a disk."""

    def __init__(self, disk: SimDisk, process: SimProcess) -> None:
        self._disk = disk
        self._process = process

    def names(self) -> list[str]:
        return sorted(self._disk.files)

    def create(self, name: str, size: int, header: bytes) -> _File:
        disk = self._disk
        if not self._process.alive:
            raise ProcessEnded
        if disk.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        image = _Image(name, size)
        image.data[: len(header)] = header

        def there() -> None:
            disk.files[name] = image

        disk.wait(self._process, disk.sync_time(), there)
        return _File(disk, self._process, image)

    def open(self, name: str) -> _File:
        return _File(self._disk, self._process, self._disk.files[name])


class _File:
    """A `RawFile` of one process."""

    fd = -1

    def __init__(self, disk: SimDisk, process: SimProcess, image: _Image) -> None:
        self.path = f"{disk.name}/blocks/{image.name}"
        self.view = memoryview(image.data).toreadonly()
        self._disk = disk
        self._process = process
        self._image = image

    def write(self, parts: Sequence[memoryview], position: int) -> None:
        disk = self._disk
        self._check("fail_writes")
        if disk.slow > 1:
            disk.wait(self._process, 0.0005)
        at = position
        for part in parts:
            self._image.write(part, at)
            at += len(part)
        if at > position and position >= SECTOR:
            self._image.written[position] = at - position

    def read(self, out: memoryview, position: int) -> int:
        self._check("fail_reads")
        if self._disk.slow > 1 and self._disk.sim.current is not None:
            self._disk.wait(self._process, 0.0005)
        found = self.view[position : position + len(out)]
        out[: len(found)] = found
        return len(found)

    def allocate(self, position: int, length: int) -> None:
        disk, image = self._disk, self._image
        if not self._process.alive:
            raise ProcessEnded
        if position in image.groups:
            return
        if disk.free_bytes() < length:
            disk.sim.emit("disk", self._process, disk=disk.name, what="full")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        image.groups[position] = length
        image.allocated += length

    def sync(self) -> None:
        disk, image = self._disk, self._image
        if not self._process.alive:
            raise ProcessEnded
        covered = image.begin_sync()
        failed = disk.fails("fail_syncs")
        disk.wait(self._process, disk.sync_time(), lambda: image.end_sync(covered, failed=failed))
        if failed:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def close(self) -> None:
        pass

    def _check(self, what: str) -> None:
        if not self._process.alive:
            raise ProcessEnded
        if self._disk.fails(what):
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class _Store:
    """The metadata of a disk: what a reader sees, and per unsynced batch what it replaced."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.keys: list[bytes] = []
        self.unsynced: list[list[tuple[bytes, bytes | None]]] = []

    def apply(self, puts: Iterable[Put]) -> None:
        undo = []
        for key, value in puts:
            undo.append((key, self.values.get(key)))
            self._set(key, value)
        self.unsynced.append(undo)

    def durable(self, key: bytes) -> bytes | None:
        """What a power loss would leave of a key if it took all that is not synced."""
        value = self.values.get(key)
        for undo in reversed(self.unsynced):
            for changed, before in reversed(undo):
                if changed == key:
                    value = before
        return value

    def _set(self, key: bytes, value: bytes | None) -> None:
        known = key in self.values
        if value is not None:
            self.values[key] = value
            if not known:
                bisect.insort(self.keys, key)
        elif known:
            del self.values[key]
            del self.keys[bisect.bisect_left(self.keys, key)]

    def lose_power(self, chance: random.Random) -> int:
        kept = chance.randrange(len(self.unsynced) + 1)
        lost = self.unsynced[kept:]
        for undo in reversed(lost):
            for key, value in reversed(undo):
                self._set(key, value)
        self.unsynced = []
        return len(lost)


class SimMetadata:
    """A `MetadataStore` of one process; as with RocksDB, one that failed to write takes no more until reopened."""

    damage = None

    def __init__(self, disk: SimDisk, process: SimProcess) -> None:
        self._disk = disk
        self._process = process
        self._failed: type[NoSpace] | type[Unavailable] | None = None

    def _begin(self, doing: str) -> None:
        if not self._process.alive:
            raise ProcessEnded
        if self._failed is not None:
            raise self._failed(f"metadata in {self._disk.name} {doing}: an earlier write failed")

    def apply(self, puts: Iterable[Put]) -> None:
        self._begin("cannot be written")
        disk = self._disk
        batch = list(puts)
        if disk.full:
            if disk.random.random() < 0.5:  # it may be in the log all the same
                disk.store.apply(batch)
            self._failed = NoSpace
            disk.sim.emit("disk", self._process, disk=disk.name, what="full")
            raise NoSpace(f"metadata in {disk.name} cannot be written: the disk is full; remove data or add a disk")
        disk.store.apply(batch)

    def sync(self) -> None:
        self._begin("cannot be synced")
        disk, store = self._disk, self._disk.store
        count = len(store.unsynced)
        failed = disk.fails("fail_syncs")

        def done() -> None:
            if not failed:
                del store.unsynced[:count]

        disk.wait(self._process, disk.sync_time(), done)
        if failed:
            self._failed = Unavailable
            raise Unavailable(f"metadata in {disk.name} cannot be synced: {os.strerror(errno.EIO)}")

    def reopen(self) -> None:
        if not self._process.alive:
            raise ProcessEnded
        disk = self._disk
        disk.wait(self._process, disk.sync_time())
        self._failed = None
        if disk.full:
            raise NoSpace(f"metadata in {disk.name} cannot be written: the disk is full; make room on it")

    def get(self, key: bytes) -> bytes | None:
        return self._disk.store.values.get(key)

    def scan(self, prefix: bytes, start: bytes = b"", limit: int = sys.maxsize) -> list[tuple[bytes, bytes]]:
        store = self._disk.store
        at = bisect.bisect_left(store.keys, prefix + start)
        found = []
        while at < len(store.keys) and len(found) < limit and store.keys[at].startswith(prefix):
            key = store.keys[at]
            found.append((key, store.values[key]))
            at += 1
        return found

    def close(self) -> None:
        pass
