"""Which physical block holds what: size classes, free bitmaps, growth by groups, and when a freed block may be reused.

Block sizes run from 64 KiB to 64 MiB, four per doubling, so at most a fifth of a block is slack (3FS has powers of two;
a 4.29 MiB KV page must not take 8 MiB). A class's blocks lie in a few large files; a file is an array of equal slots,
grown a group of up to 256 slots at a time. Free slots are one integer per group, its lowest set bit the next to hand
out; the lowest group of the lowest file comes first, so data stays dense and written slots are reused before new ones.

Nothing here is stored. Which slots are in use is read off the chunk records when an engine opens (`Allocator.rebuild`),
so no crash can leak a block or give one to two chunks.

A freed block is not free at once. `Quarantine` keeps it until (1) the metadata batch that gave it up is on stable
storage (else a crash would bring back a record whose block has been overwritten, sums and all), (2) every reader whose
lookup may have named it is done, (3) nobody has pinned it.
"""

from __future__ import annotations

import bisect
import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Corrupt

SMALLEST_BYTES = 64 << 10
LARGEST_BYTES = 64 << 20
CLASS_BYTES: tuple[int, ...] = (
    *(SMALLEST_BYTES * quarter // 4 << doubling for doubling in range(10) for quarter in (4, 5, 6, 7)),
    LARGEST_BYTES,
)
FILES_PER_CLASS = 1024  # file number = class * FILES_PER_CLASS + n
GROUP_SLOTS = 256


def class_of(length: int) -> int:
    """The smallest class whose blocks hold `length` bytes."""
    assert 0 < length <= LARGEST_BYTES, length
    return bisect.bisect_left(CLASS_BYTES, length)


class Block(NamedTuple):
    """A physical block: slot `slot` of block file `file`."""

    file: int
    slot: int


class Growth(NamedTuple):
    """Slots [first, first + slots) of `file`, to be allocated on disk before `Allocator.grown` hands them out."""

    file: int
    first: int
    slots: int


class _FileSpace:
    """The free slots of one file; groups below `len(free)` are grown."""

    __slots__ = ("free", "group_slots", "open_groups", "slots")

    def __init__(self, slots: int, group_slots: int) -> None:
        self.slots = slots
        self.group_slots = group_slots
        self.free: list[int] = []
        self.open_groups: list[int] = []  # a heap of groups that may have a free slot; each at most once

    def group_size(self, group: int) -> int:
        return min(self.group_slots, self.slots - group * self.group_slots)

    @property
    def grown_slots(self) -> int:
        return min(len(self.free) * self.group_slots, self.slots)


class Allocator:
    """The free slots of all block files of an engine."""

    def __init__(self, *, file_bytes: int, group_bytes: int) -> None:
        self._file_bytes = file_bytes
        self._group_bytes = group_bytes
        self._spaces: dict[int, _FileSpace] = {}
        self._files: dict[int, list[int]] = {}  # class -> its files, ascending
        self.used_bytes = 0

    def slots_of_new_file(self, cls: int) -> int:
        """How many blocks a new file of the class has."""
        return max(1, self._file_bytes // CLASS_BYTES[cls])

    def add_file(self, file: int, slots: int) -> None:
        """Know a file with no slot grown yet."""
        assert file not in self._spaces, file
        block_bytes = CLASS_BYTES[file // FILES_PER_CLASS]
        self._spaces[file] = _FileSpace(slots, max(1, min(GROUP_SLOTS, self._group_bytes // block_bytes)))
        bisect.insort(self._files.setdefault(file // FILES_PER_CLASS, []), file)

    def rebuild(self, file: int, used: NDArray[np.int64], grown_slots: int) -> None:
        """Take over what the records say: slots `used` [n] of `file`, of which `grown_slots` were ever grown.

        Raises: Corrupt, if two records name one block or one lies outside the file.
        """
        space = self._spaces[file]
        if len(used) and (used.min() < 0 or used.max() >= space.slots):
            raise Corrupt(f"block file {file} has {space.slots} blocks, and a chunk record names block {used.max()}")
        counts = np.bincount(used, minlength=1)
        if counts.max() > 1:
            raise Corrupt(f"block {counts.argmax()} of block file {file} belongs to two chunk records")
        grown_slots = max(min(grown_slots, space.slots), int(used.max()) + 1 if len(used) else 0)
        groups = -(-grown_slots // space.group_slots)
        free = np.ones(groups * space.group_slots, dtype=np.uint8)
        free[used] = 0
        free[space.slots :] = 0
        rows = np.packbits(free.reshape(groups, space.group_slots), axis=1, bitorder="little")
        space.free = [int.from_bytes(row.tobytes(), "little") for row in rows]
        space.open_groups = [group for group, mask in enumerate(space.free) if mask]
        self.used_bytes += len(used) * CLASS_BYTES[file // FILES_PER_CLASS]

    def allocate(self, cls: int) -> Block | None:
        """A free block of the class, or None: then `growth` says how to get more."""
        for file in self._files.get(cls, ()):
            space = self._spaces[file]
            while space.open_groups:
                group = space.open_groups[0]
                mask = space.free[group]
                if not mask:
                    heapq.heappop(space.open_groups)
                    continue
                low = mask & -mask
                space.free[group] = mask ^ low
                if mask == low:
                    heapq.heappop(space.open_groups)
                self.used_bytes += CLASS_BYTES[cls]
                return Block(file, group * space.group_slots + low.bit_length() - 1)
        return None

    def growth(self, cls: int) -> Growth | None:
        """The next group of the class, in a known file or in a new one; None: there can be no more files."""
        files = self._files.get(cls, ())
        for file in files:
            space = self._spaces[file]
            group = len(space.free)
            if group * space.group_slots < space.slots:
                return Growth(file, group * space.group_slots, space.group_size(group))
        if len(files) >= FILES_PER_CLASS:
            return None
        slots = self.slots_of_new_file(cls)
        group_slots = max(1, min(GROUP_SLOTS, self._group_bytes // CLASS_BYTES[cls]))
        return Growth(cls * FILES_PER_CLASS + len(files), 0, min(group_slots, slots))

    def grown(self, growth: Growth) -> None:
        """The disk has the slots of `growth`; its file is known by now."""
        space = self._spaces[growth.file]
        assert growth.first == len(space.free) * space.group_slots, growth
        space.free.append((1 << growth.slots) - 1)
        heapq.heappush(space.open_groups, len(space.free) - 1)

    def free(self, block: Block) -> None:
        """Give a block back."""
        space = self._spaces[block.file]
        group, bit = divmod(block.slot, space.group_slots)
        mask = space.free[group]
        assert not mask >> bit & 1, f"{block} freed twice"
        if not mask and group not in space.open_groups:
            heapq.heappush(space.open_groups, group)
        space.free[group] = mask | 1 << bit
        self.used_bytes -= CLASS_BYTES[block.file // FILES_PER_CLASS]

    @property
    def grown_bytes(self) -> int:
        """Bytes of all slots that are allocated on disk."""
        return sum(space.grown_slots * CLASS_BYTES[file // FILES_PER_CLASS] for file, space in self._spaces.items())


class Quarantine:
    """Freed blocks on their way back to the allocator, by physical id."""

    def __init__(self) -> None:
        self._retired: deque[tuple[int, int, int]] = deque()  # (order, batch, block)
        self._order = 0
        self._holds: OrderedDict[int, int] = OrderedDict()  # token -> the order at its start
        self._pins: dict[int, int] = {}
        self._pinned_by: dict[int, tuple[int, ...]] = {}
        self._awaiting_unpin: set[int] = set()
        self._token = 0
        self._synced_batch = 0

    def hold(self) -> int:
        """From now on nothing that is retired comes back, until `release` of the token."""
        self._token += 1
        self._holds[self._token] = self._order
        return self._token

    def release(self, token: int) -> None:
        """End a hold."""
        del self._holds[token]

    def pin(self, blocks: Iterable[int]) -> int:
        """Keep these blocks until `unpin` of the token; counted, so several pins of a block add up."""
        self._token += 1
        kept = tuple(blocks)
        pins = self._pins
        for block in kept:
            pins[block] = pins.get(block, 0) + 1
        self._pinned_by[self._token] = kept
        return self._token

    def unpin(self, token: int) -> list[int]:
        """End a pin; the blocks that are free by it."""
        freed: list[int] = []
        for block in self._pinned_by.pop(token):
            left = self._pins[block] - 1
            if left:
                self._pins[block] = left
                continue
            del self._pins[block]
            if block in self._awaiting_unpin:
                self._awaiting_unpin.remove(block)
                freed.append(block)
        return freed

    def retire(self, blocks: Sequence[int], batch: int) -> None:
        """No record names these blocks once metadata batch `batch` is durable; lookups no longer name them now."""
        for block in blocks:
            self._retired.append((self._order, batch, block))
            self._order += 1

    def synced(self, batch: int) -> None:
        """Metadata batches up to `batch` are on stable storage."""
        self._synced_batch = max(self._synced_batch, batch)

    def reclaim(self) -> list[int]:
        """The retired blocks that are free by now, each once."""
        oldest = next(iter(self._holds.values())) if self._holds else self._order
        freed: list[int] = []
        while self._retired:
            order, batch, block = self._retired[0]
            if order >= oldest or batch > self._synced_batch:
                break
            self._retired.popleft()
            if block in self._pins:
                self._awaiting_unpin.add(block)
            else:
                freed.append(block)
        return freed

    @property
    def awaits_sync(self) -> bool:
        """Whether a sync of the metadata would bring blocks nearer to the allocator."""
        return bool(self._retired) and self._retired[-1][1] > self._synced_batch

    @property
    def counts(self) -> tuple[int, int, int]:
        """(blocks in quarantine, holds, pins)."""
        return len(self._retired) + len(self._awaiting_unpin), len(self._holds), len(self._pinned_by)
