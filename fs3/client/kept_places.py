"""Places of chunks in block files of this host's daemons that a client has been told and goes on using, without asking.

Whether one still holds is in the daemon's change counters, which are memory of this process too (change_counters.py).
They are looked at after the bytes were read: if the place holds then, it held while they were read, so they are the
chunk's newest version, and the daemon might have answered with them at that moment. Blocks that have not been verified
are compared with their sums, which lie in the block file too (block_file.py). What cannot be read, or does not match,
is asked for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3.block_file import HEADER_BYTES, PACKED_BYTES, BlockLayout, sums_of_pieces
from fs3.checksum import FINE_BYTES, pieces, whole_blocks
from fs3.client.block_read import BlockRead
from fs3.client.plan_core import Asked
from fs3.client.verified_core import MOST_CHUNKS, Identity, Place, Verified, blocks_mask
from fs3.runtime import Lock
from fs3.transport.change_counters import NOT_KEPT, CounterView, word_of
from fs3.transport.messages import COUNTERS, SUM

FEW = 16  # ranges of a call that are looked for here
MOST_FILES = 256  # each a descriptor of this process
MOST_ENGINES = 256

Run = tuple[str, int]  # a daemon's endpoint and generation
Chunk = tuple[int, int, int]  # hi, lo, chain


class BlockFile:
    """A description of a block file of this client's own: locks on the daemon's must not last as long."""

    __slots__ = ("fd", "layout")

    def __init__(self, fd: int) -> None:
        """Of the file that `fd`, which stays the caller's, is open for. Raises: OSError, ValueError: no block file."""
        self.fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        self.layout = BlockLayout.unpack(os.pread(self.fd, PACKED_BYTES, 0))

    def sums(self, position: int, begin: int, end: int, chunk_length: int) -> NDArray[np.uint32]:
        """Of the pieces of [begin, end), whole blocks of the chunk in the block at `position`. Raises: OSError."""
        layout = self.layout
        at = HEADER_BYTES + layout.fine_at(position) * SUM.itemsize
        raw = os.pread(self.fd, layout.stride * SUM.itemsize, at)
        if len(raw) != layout.stride * SUM.itemsize:
            raise OSError(errno.EIO, "the block file is too short")
        cuts = pieces(begin, end - begin, chunk_length)
        return sums_of_pieces(np.frombuffer(raw, dtype=SUM), layout.fine_sums, cuts, chunk_length)

    def __del__(self) -> None:
        fd = getattr(self, "fd", -1)
        if fd >= 0:
            os.close(fd)


class Kept(NamedTuple):
    """A chunk's block begins at `position` of `file`, as long as `counters` hold `state`."""

    counters: CounterView
    word: int
    state: int
    file: BlockFile
    position: int
    chunk_length: int
    place: Place
    identity: Identity


class Read(NamedTuple):
    """A range that was read where `kept` says, and the blocks of it, as bits, that have matched their sums just now."""

    kept: Kept
    matched: int


class KeptPlaces:
    """Of all daemons of this host. `read` from any thread; for everything else the caller holds `lock`."""

    def __init__(
        self, verified: Verified, lock: Lock, *, most: int = MOST_CHUNKS, most_files: int = MOST_FILES
    ) -> None:
        """`verified`: which blocks need no sum."""
        self._verified = verified
        self._lock = lock
        self._most = most
        self._most_files = most_files
        self._kept: dict[Chunk, Kept] = {}
        self._files: dict[tuple[Run, int], BlockFile] = {}
        self._counters: dict[tuple[Run, int], CounterView] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def know(self, run: Run, key: int, fd: int) -> None:
        """A daemon has sent the counters of an engine; `fd` stays the caller's."""
        if (run, key >> 16) in self._counters or len(self._counters) >= MOST_ENGINES:
            return  # places of this engine are not kept
        try:
            self._counters[run, key >> 16] = CounterView(fd)
        except (OSError, ValueError):
            return

    def holds_by(self, run: Run, file: int, fd: int) -> tuple[BlockFile, CounterView] | None:
        """A block file that the daemon has sent, `fd`, which stays the caller's, and its engine's counters; None if
        places in it cannot be kept."""
        counters = self._counters.get((run, file >> 16))
        if counters is None:
            return None
        ours = self._files.get((run, file))
        if ours is None:
            if len(self._files) >= self._most_files:
                self._make_room()
            try:
                ours = self._files[run, file] = BlockFile(fd)
            except (OSError, ValueError):
                return None
        return ours, counters

    def keep(self, run: Run, chunk: Chunk, read: BlockRead, state: int, file: int, position: int) -> None:
        """Remember where `read`, which was answered with `state`, was read from."""
        holds = self.holds_by(run, file, read.fd) if state != NOT_KEPT else None
        if holds is None:
            return
        if chunk not in self._kept and len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        word = word_of(chunk[0], chunk[1])
        ours, counters = holds
        self._kept[chunk] = Kept(counters, word, state, ours, position, read.chunk_length, read.place, read.identity)

    def clear(self) -> None:
        """Forget everything."""
        self._kept, self._files, self._counters = {}, {}, {}

    def _make_room(self) -> None:
        """Let go of the files that were known first, a quarter of them, and of the places in them. (Not of counters: a
        connection brings an engine's only once.)"""
        first = [self._files.pop(key) for key in list(self._files)[: -(-self._most_files // 4)]]
        gone = {id(file) for file in first}
        self._kept = {chunk: one for chunk, one in self._kept.items() if id(one.file) not in gone}

    def clean(self) -> None:
        """Forget the daemons' runs that are over."""
        over = {run for (run, _), counters in self._counters.items() if counters.over()}
        if over:
            self._kept = {chunk: one for chunk, one in self._kept.items() if not one.counters.over()}
            self._files = {key: file for key, file in self._files.items() if key[0] not in over}
            self._counters = {key: counters for key, counters in self._counters.items() if key[0] not in over}

    def read(self, asked: Sequence[Asked], outs: Sequence[memoryview], now_s: float) -> list[Read] | None:
        """Read each of `asked` into its `outs`, and where each was; None, and no byte counts, unless all could be."""
        kept_of, of, found, left = self._kept, self._verified.of, [], []
        for one, out in zip(asked, outs, strict=True):
            hi, lo, offset, length, chain = one
            kept = kept_of.get((hi, lo, chain))
            if kept is None or offset + length > kept.chunk_length or not length:
                return None
            blocks = blocks_mask(offset, offset + length)
            found.append(Read(kept, 0))
            if blocks & ~of(kept.place, kept.identity, now_s):
                left.append(len(found) - 1)
            elif not _from_cache(kept, offset, out):
                self._verified.forget(kept.place)
                left.append(len(found) - 1)
        for place in left:  # last: what is loaded for one may bring others that nobody has verified
            kept, (_, _, offset, length, _) = found[place].kept, asked[place]
            matched = _verified(kept, offset, length, outs[place])
            if not matched:
                self._verified.forget(kept.place)
                return None
            found[place] = Read(kept, matched)
        if all([one.kept.counters.hold(one.kept.word, one.kept.state) for one in found]):
            return found
        with self._lock:
            for one in asked:
                self._kept.pop((one.hi, one.lo, one.chain), None)
        return None


def _from_cache(kept: Kept, offset: int, out: memoryview) -> bool:
    """Read a range, if the page cache has it."""
    try:
        return os.preadv(kept.file.fd, (out,), kept.position + offset, os.RWF_NOWAIT) == len(out)
    except OSError:
        return False


def _verified(kept: Kept, offset: int, length: int, out: memoryview) -> int:
    """Read a range and compare it with its sums: its blocks, as bits; 0 if it could not be read, or does not match."""
    edges = memoryview(bytearray(FINE_BYTES)), memoryview(bytearray(FINE_BYTES))
    file, size = kept.file, kept.chunk_length
    try:
        sums = file.sums(kept.position, *whole_blocks(offset, length, size), size)
    except OSError:
        return 0
    range_, place, identity = (offset, length, size), kept.place, kept.identity
    read = BlockRead(file.fd, kept.position, range_, out, edges, sums, place=place, identity=identity)
    read.foresee()
    return read.blocks if read.bytes() and read.matches() else 0


def are_counters(key: int) -> bool:
    """Whether a descriptor's key says that it is of an engine's counters, and not of a block file."""
    return key & COUNTERS == COUNTERS
