"""The block files: data and its sums in one file (block_file.py), so that one fdatasync covers both.

(A sidecar in a file of its own would cost every durable write a second flush of the disk: 3 ms on the machine where
this was measured.) A file has its full length from the start and holes where it has not been grown, so that its mapping
never changes and is never shorter than what a reader was told; groups of slots are allocated with `posix_fallocate`,
their sums too, so that a full disk shows there.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fs3 import checksum
from fs3.block_file import HEADER_BYTES, PACKED_BYTES, BlockLayout
from fs3.errors import Corrupt, Fs3Error, NoSpace, Unavailable
from fs3.runtime import SYSTEM, Runtime
from fs3.storage import file_locks
from fs3.storage.allocator_core import CLASS_BYTES, FILES_PER_CLASS, Growth
from fs3.storage.raw_file import FileFolder, RawFile

_CRC = struct.Struct("<I")
_GROWN_AT = 2048  # its own sector: written when the file grows
_GROWN = struct.Struct("<QI")

Step = Callable[[str, int, int, int], None]  # what, file number, offset, bytes: called before each step that can fail


def no_step(_what: str, _file: int, _offset: int, _length: int) -> None:
    """The `Step` of production: nothing to do. Tests crash or fail there."""


def no_doubt() -> None:
    """For block files of which nobody asks after a failed sync what became of the bytes in the page cache."""


def disk_error(error: OSError, doing: str) -> Fs3Error:
    """What the engine raises for an error of the disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{doing}: the disk is full; remove data or add a disk")
    return Unavailable(f"{doing}: {os.strerror(error.errno or 0)}; look at the kernel's log for this disk")


class _SharedSync:
    """fdatasync for many threads: a call that begins after a write covers it, so those who wait share the next one."""

    def __init__(self, sync: Callable[[], None], runtime: Runtime) -> None:
        self._sync = sync
        self._turn = runtime.condition()
        self._started = 0
        self._finished = 0
        self._running = False
        self._failure: OSError | None = None
        self.calls = 0

    def __call__(self) -> None:
        """Everything written before this call is on stable storage after it.

        Raises: OSError. Once a sync has failed all later ones do: the kernel may have dropped the pages (fsyncgate).
        """
        with self._turn:
            wanted = self._started + 1
            while self._running and self._finished < wanted and self._failure is None:
                self._turn.wait()
            if self._failure is not None:
                raise OSError(self._failure.errno, os.strerror(self._failure.errno or 0))
            if self._finished >= wanted:
                return
            self._running = True
            self._started += 1
            self.calls += 1
            mine = self._started
        failure: OSError | None = None
        try:
            self._sync()
        except OSError as error:
            failure = error
        with self._turn:
            self._running = False
            self._finished = mine
            self._failure = self._failure or failure
            self._turn.notify_all()
        if failure is not None:
            raise failure


class BlockFile(BlockLayout):
    """One block file; safe for any number of threads that write different slots."""

    def __init__(
        self, raw: RawFile, layout: BlockLayout, *, step: Step, doubt: Callable[[], None], runtime: Runtime
    ) -> None:
        super().__init__(layout.file_no, layout.block_bytes, layout.slots, layout.version)
        self.path = raw.path
        self._raw = raw
        self._step = step
        self._doubt = doubt
        self._sums = np.frombuffer(raw.view, dtype="<u4", count=self.slots * self.stride, offset=HEADER_BYTES)
        self._shared_sync = _SharedSync(self._fdatasync, runtime)

    @classmethod
    def create(
        cls,
        folder: FileFolder,
        file_no: int,
        slots: int,
        *,
        step: Step = no_step,
        doubt: Callable[[], None] = no_doubt,
        runtime: Runtime = SYSTEM,
    ) -> BlockFile:
        """Raises: OSError."""
        layout = BlockLayout(file_no, CLASS_BYTES[file_no // FILES_PER_CLASS], slots)
        raw = folder.create(name_of(file_no), layout.file_bytes, layout.pack())
        return cls(raw, layout, step=step, doubt=doubt, runtime=runtime)

    @classmethod
    def open(
        cls,
        folder: FileFolder,
        file_no: int,
        *,
        step: Step = no_step,
        doubt: Callable[[], None] = no_doubt,
        runtime: Runtime = SYSTEM,
    ) -> BlockFile:
        """Raises: Corrupt (not a block file of this format)."""
        file = folder.open(name_of(file_no))
        try:
            raw = bytearray(PACKED_BYTES)
            raw = raw[: file.read(memoryview(raw), 0)]
            try:
                layout = BlockLayout.unpack(raw)
                if (layout.file_no, layout.block_bytes) != (file_no, CLASS_BYTES[file_no // FILES_PER_CLASS]):
                    raise ValueError("its header is damaged")
                if len(file.view) < layout.file_bytes:
                    raise ValueError("shorter than its header says")
            except ValueError as error:
                raise Corrupt(f"{file.path}: {error}; restore the file, or empty the disk to refill it") from None
            return cls(file, layout, step=step, doubt=doubt, runtime=runtime)
        except BaseException:
            file.close()
            raise

    @property
    def fd(self) -> int:
        return self._raw.fd

    @property
    def view(self) -> memoryview:
        return self._raw.view

    @property
    def sums(self) -> NDArray[np.uint32]:
        return self._sums

    @property
    def sync_calls(self) -> int:
        return self._shared_sync.calls

    def open_to_read(self) -> int:
        """A descriptor of another description of this file, open for reading alone. Raises: OSError."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def drop_cached(self) -> None:
        """Have what is read next come from the disk: pages that a failed sync did not write look as if it had."""
        if self.fd >= 0:
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def is_locked(self, position: int) -> bool:
        """Whether a client has locked bytes of the block at `position`. Raises: OSError (locks are unknown there)."""
        return file_locks.first_lock(self.fd, position, self.block_bytes) is not None

    def locked_slots(self) -> NDArray[np.int64]:
        """The slots of which clients have locked bytes, rising. Raises: OSError (locks are unknown there)."""
        if self.fd < 0:
            return np.empty(0, dtype=np.int64)
        first, end = self.data_at, self.position(self.slots)
        found = [
            np.arange(self.slot(begin), self.slot(stop - 1) + 1, dtype=np.int64)
            for begin, stop in file_locks.locks(self.fd, first, end - first)
        ]
        return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)

    def grown_slots(self) -> int:
        """How many slots were ever allocated on disk, as far as the header knows (a crash may have lost the last)."""
        raw = bytearray(_GROWN.size)
        self._raw.read(memoryview(raw), _GROWN_AT)
        grown, crc = _GROWN.unpack(raw)
        return min(grown, self.slots) if crc == checksum.crc(raw[:8]) else 0

    def grow(self, growth: Growth) -> None:
        """Allocate slots on disk. Raises: OSError; nothing is lost then, and trying again is right."""
        self._step("fallocate", self.file_no, self.position(growth.first), growth.slots * self.block_bytes)
        sums_bytes = self.stride * 4
        self._raw.allocate(HEADER_BYTES + growth.first * sums_bytes, growth.slots * sums_bytes)
        for at, length in self._runs(growth):
            self._raw.allocate(at, length)
        count = struct.pack("<Q", growth.first + growth.slots)
        self._raw.write([memoryview(count + _CRC.pack(checksum.crc(count)))], _GROWN_AT)

    def _runs(self, growth: Growth) -> list[tuple[int, int]]:
        """(offset, bytes) of the data of slots; what lies between blocks stays a hole."""
        if self.pitch == self.block_bytes:
            return [(self.position(growth.first), growth.slots * self.block_bytes)]
        slots = range(growth.first, growth.first + growth.slots)
        return [(self.position(slot), self.block_bytes) for slot in slots]

    def write(
        self, slot: int, parts: Sequence[memoryview], fine: NDArray[np.uint32], coarse: NDArray[np.uint32]
    ) -> None:
        """Put the concatenated parts and their sums into a slot. Raises: OSError."""
        self.write_data(slot, 0, parts)
        self.write_sums(slot, fine, coarse)

    def write_data(self, slot: int, offset: int, parts: Sequence[memoryview]) -> None:
        """Put the concatenated parts into a slot, from `offset` on. Raises: OSError."""
        position = self.position(slot) + offset
        self._step("write data", self.file_no, position, sum(len(part) for part in parts))
        self._raw.write(parts, position)

    def write_sums(self, slot: int, fine: NDArray[np.uint32], coarse: NDArray[np.uint32]) -> None:
        """Put the sums of a slot's bytes beside them. Raises: OSError."""
        at = HEADER_BYTES + slot * self.stride * 4
        both = np.zeros(self.stride, dtype="<u4")
        both[: len(fine)] = fine
        both[self.fine_sums : self.fine_sums + len(coarse)] = coarse
        self._step("write sums", self.file_no, at, both.nbytes)
        self._raw.write([both.data.cast("B")], at)

    def read(self, position: int, out: memoryview) -> None:
        """Fill `out` from `position`. Raises: Corrupt (the disk cannot read it)."""
        done = 0
        while done < len(out):
            try:
                got = self._raw.read(out[done:], position + done)
            except OSError as error:
                raise Corrupt(f"{self.path} at byte {position + done}: {os.strerror(error.errno or 0)}") from None
            if got == 0:
                raise Corrupt(f"{self.path} at byte {position + done}: the file ends there")
            done += got

    @contextlib.contextmanager
    def from_disk(self, most: int) -> Iterator[Callable[[int, int], memoryview]]:
        """Reads of (position, up to `most` bytes) that ask the disk itself, and leave the page cache as it is: whoever
        reads these bytes next should not find them gone, or in small pages. What one returns is there until the next.

        Where that cannot be had they are dropped from the page cache first. The reads raise: Corrupt.
        """
        scratch = memoryview(mmap.mmap(-1, -(-most // mmap.PAGESIZE) * mmap.PAGESIZE))  # on a page, as O_DIRECT asks
        direct = -1
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                direct = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)

        def read(position: int, length: int) -> memoryview:
            part = scratch[:length]
            if direct >= 0:
                with contextlib.suppress(OSError):  # alignment of another kind; or a bad sector, which is told below
                    whole = scratch[: -(-length // checksum.FINE_BYTES) * checksum.FINE_BYTES]
                    if os.preadv(direct, [whole], position) >= length:
                        return part
            if self.fd >= 0:
                os.posix_fadvise(self.fd, position, length, os.POSIX_FADV_DONTNEED)
            self.read(position, part)
            return part

        try:
            yield read
        finally:
            if direct >= 0:
                os.close(direct)

    def fine(self, position: int, length: int, first: int = 0) -> NDArray[np.uint32]:
        """The 4 KiB sums of the block at `position` from number `first` on, up to byte `length`; not by the mapping,
        so that a bad sector is an error. Raises: Corrupt."""
        return self._read_sums(self.fine_at(position) + first, -(-length // checksum.FINE_BYTES) - first)

    def coarse(self, position: int, length: int) -> NDArray[np.uint32]:
        """As `fine`, the 256 KiB sums."""
        return self._read_sums(self.coarse_at(position), -(-length // checksum.COARSE_BYTES))

    def _read_sums(self, at: int, count: int) -> NDArray[np.uint32]:
        out = np.empty(count, dtype="<u4")
        if count:
            self.read(HEADER_BYTES + at * 4, out.view(np.uint8).data)
        return out

    def sync(self) -> None:
        """What was written before is on stable storage after. Raises: Unavailable, and then for ever.

        Also where the disk is full (thin volumes, quotas): making room would bring back no page that was dropped.
        """
        try:
            self._shared_sync()
        except OSError as error:
            raise Unavailable(
                f"syncing {self.path}: {os.strerror(error.errno or 0)}; look at the kernel's log for this disk, and "
                f"restart its daemon"
            ) from None

    def _fdatasync(self) -> None:
        try:
            self._step("fdatasync", self.file_no, 0, 0)
            self._raw.sync()
        except OSError:
            self._doubt()  # before anybody can know, and restart the daemon
            raise
        self._step("fdatasync done", self.file_no, 0, 0)

    def close(self) -> None:
        """The mapping goes when the last view of it does."""
        self._raw.close()


class BlockFiles:
    """All block files of an engine, by number."""

    def __init__(
        self,
        folder: FileFolder,
        *,
        step: Step = no_step,
        doubt: Callable[[], None] = no_doubt,
        runtime: Runtime = SYSTEM,
    ) -> None:
        self._folder = folder
        self._step = step
        self._doubt = doubt
        self._runtime = runtime
        self._files: dict[int, BlockFile] = {}

    def open_all(self) -> None:
        """Raises: Corrupt."""
        for name in self._folder.names():
            file_no = _number_of(name)
            self._files[file_no] = BlockFile.open(
                self._folder, file_no, step=self._step, doubt=self._doubt, runtime=self._runtime
            )

    def create(self, file_no: int, slots: int) -> BlockFile:
        """Raises: OSError."""
        file = BlockFile.create(self._folder, file_no, slots, step=self._step, doubt=self._doubt, runtime=self._runtime)
        self._files[file_no] = file
        return file

    def __getitem__(self, file_no: int) -> BlockFile:
        return self._files[file_no]

    def __contains__(self, file_no: int) -> bool:
        return file_no in self._files

    def __iter__(self) -> Iterator[BlockFile]:
        return iter(list(self._files.values()))

    def gather(
        self, files: NDArray[np.int32], positions: NDArray[np.int64], index: NDArray[np.int64], *, coarse: bool
    ) -> NDArray[np.uint32]:
        """The sums number `index` of the blocks at `positions` of `files`; all [n]."""
        if len(files) == 0:
            return np.empty(0, dtype=np.uint32)
        first = int(files[0])
        if (files == first).all():
            file = self._files[first]
            picked: NDArray[np.uint32] = file.sums[
                (file.coarse_at(positions) if coarse else file.fine_at(positions)) + index
            ]
            return picked
        out = np.empty(len(files), dtype=np.uint32)
        for number in np.unique(files).tolist():
            rows = np.flatnonzero(files == number)
            file, where = self._files[number], positions[rows]
            out[rows] = file.sums[(file.coarse_at(where) if coarse else file.fine_at(where)) + index[rows]]
        return out

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def name_of(file_no: int) -> str:
    """What block file `file_no` is called."""
    cls, number = divmod(file_no, FILES_PER_CLASS)
    return f"{cls:02d}-{number:04d}.blk"


def _number_of(name: str) -> int:
    cls, _, number = name.removesuffix(".blk").partition("-")
    try:
        return int(cls) * FILES_PER_CLASS + int(number)
    except ValueError:
        raise Corrupt(f"{name}: not a block file's name") from None
