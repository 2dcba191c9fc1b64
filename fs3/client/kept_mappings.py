"""Chunks that this process has mapped (mapping.py) and hands out again, without asking and without a copy.

A mapping keeps its block from being reused, and the daemon's change counters tell whether the block is still the
chunk's newest version (kept_places.py). So ranges of a chunk that is mapped already cost a look at both, and pages that
were touched before are not faulted in again. Blocks that were not verified yet are compared with the sums in the block
file. Each mapping takes a descriptor of the process, and place on the disk once the chunk has changed: so there are not
many, and a thread lets go of those that do not hold or are not asked for.
"""

from __future__ import annotations

import errno
import mmap
import resource
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import crc, pieces, whole_blocks
from fs3.client.kept_places import BlockFile, Chunk
from fs3.client.plan_core import Asked
from fs3.client.verified_core import Identity, Verified, blocks_mask
from fs3.errors import Corrupt
from fs3.page_cache import populate, resident
from fs3.runtime import Runtime
from fs3.transport.change_counters import CounterView

MOST_BYTES = 1 << 30
IDLE_S = 10.0  # what was not handed out for so long is let go, at most once more so long after
_MOST = 512
_SHARE_OF_DESCRIPTORS = 8

BlockPlace = tuple[str, int, int, int]  # a daemon's socket and generation, the file's number, the position there


@dataclass(frozen=True, slots=True)
class Mapped:
    """A chunk's block, of which `view` is [chunk_length] bytes; its newest version while `counters` hold `state`."""

    memory: mmap.mmap
    view: memoryview
    place: BlockPlace
    identity: Identity
    file: BlockFile
    counters: CounterView
    word: int
    state: int

    def holds(self) -> bool:
        """Whether it was the newest version still when this was called."""
        return self.counters.hold(self.word, self.state)

    def resident(self, offset: int, length: int) -> bool:
        """Whether the page cache has all of a range."""
        at = len(self.memory) - len(self.view) + offset
        return resident(self.memory, at, at + length)


class Handed(NamedTuple):
    """A range as read-only memory, and its blocks, as bits, if they were compared with their sums just now."""

    view: memoryview
    mapped: Mapped
    matched: int


class KeptMappings:
    """Of all daemons of this host. Thread-safe."""

    def __init__(self, verified: Verified, runtime: Runtime, *, idle_s: float = IDLE_S) -> None:
        self._verified = verified
        self._runtime = runtime
        self._idle_s = idle_s
        self._most = min(_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE_OF_DESCRIPTORS)
        self._kept: dict[Chunk, Mapped] = {}
        self._bytes = 0
        self._used: set[Chunk] = set()  # since a thread looked at all
        self._lock = runtime.lock()
        self._closed = runtime.event()
        self._looks = False  # a thread looks for those to let go

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, asked: Asked, now_s: float) -> Handed | None:
        """The range, if it is mapped, has its sums, and is of the chunk's newest version just now."""
        hi, lo, offset, length, chain = asked
        chunk = (hi, lo, chain)
        kept = self._kept.get(chunk)
        if kept is None or offset + length > len(kept.view) or not length:
            return None
        blocks = blocks_mask(offset, offset + length)
        trusted = not blocks & ~self._verified.of(kept.place, kept.identity, now_s)
        if trusted and not kept.resident(offset, length):
            self._verified.forget(kept.place)
            trusted = False
        if not trusted and not _matches(kept, offset, length):
            self._verified.forget(kept.place)
            return None
        if not kept.holds():
            return None
        self._used.add(chunk)
        return Handed(kept.view[offset : offset + length], kept, 0 if trusted else blocks)

    def same(self, chunk: Chunk, place: BlockPlace, identity: Identity) -> Mapped | None:
        """The mapping of this very version in this very place, whatever its counters say."""
        kept = self._kept.get(chunk)
        return kept if kept is not None and (kept.place, kept.identity) == (place, identity) else None

    def mapped_by(self, chunk: Chunk) -> str | None:
        """The socket of the daemon whose replica of the chunk is mapped."""
        kept = self._kept.get(chunk)
        return kept.place[0] if kept is not None else None

    def keep(self, chunk: Chunk, mapped: Mapped) -> None:
        """Hand `mapped` out from now on, as long as it holds."""
        size = len(mapped.view)
        with self._lock:
            self._drop(chunk)
            if not self._most or size > MOST_BYTES // 4 or self._closed.is_set():
                return
            while self._kept and (len(self._kept) >= self._most or self._bytes + size > MOST_BYTES):
                self._drop(next(iter(self._kept)))
            self._kept[chunk] = mapped
            self._bytes += size
            self._used.add(chunk)
            if not self._looks:
                self._looks = True
                self._runtime.spawn(self._let_go, name="fs3-mappings")

    def close(self) -> None:
        """Let all go, and keep none from now on."""
        self._closed.set()
        self.clear()

    def clear(self) -> None:
        """Let all go; whoever has a view of one keeps it."""
        with self._lock:
            self._kept, self._bytes = {}, 0

    def leave(self) -> None:
        """As `clear`, in a forked child, where nobody else is and nobody gives the lock back."""
        self._kept, self._bytes = {}, 0

    def _drop(self, chunk: Chunk) -> None:
        gone = self._kept.pop(chunk, None)
        if gone is not None:
            self._bytes -= len(gone.view)

    def _let_go(self) -> None:
        while not self._closed.wait(self._idle_s):
            with self._lock:
                used, self._used = self._used, set()
                for chunk in [chunk for chunk, one in self._kept.items() if chunk not in used or not one.holds()]:
                    self._drop(chunk)
                self._looks = bool(self._kept)
                if not self._looks:
                    return


def verify(
    memory: mmap.mmap, view: memoryview, first: int, blocks: tuple[int, int], size: int, sums: NDArray[np.uint32]
) -> None:
    """Compare whole blocks, [begin, end), of a chunk of `size` bytes with their sums; `view`, the end of `memory`, has
    the chunk's bytes from `first` on.

    Raises: Corrupt; OSError: this kernel cannot tell what the disk can read.
    """
    begin, end = blocks
    skip = len(memory) - len(view) - first
    try:
        populate(memory, skip + begin, skip + end)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise Corrupt("the disk cannot read it") from None
    cuts = pieces(begin, end - begin, size)
    if len(cuts) != len(sums) or any(
        crc(view[a - first : b - first]) != wanted for (a, b), wanted in zip(cuts, sums.tolist(), strict=True)
    ):
        raise Corrupt("the bytes do not match their sums")


def _matches(kept: Mapped, offset: int, length: int) -> bool:
    size = len(kept.view)
    blocks = whole_blocks(offset, length, size)
    try:
        sums = kept.file.sums(kept.place[3], *blocks, size)
        verify(kept.memory, kept.view, 0, blocks, size, sums)
    except (OSError, Corrupt):
        return False  # whoever asks the daemon hears why
    return True
