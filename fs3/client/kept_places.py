"""Places of chunks in block files of this host's daemons that a client has been told and goes on using, without asking.

Whether one still holds is in the daemon's change counters, which are memory of this process too (change_counters.py).
They are looked at after the bytes were read: if the place holds then, it held while they were read, so they are the
chunk's newest version, and the daemon might have answered with them at that moment. Only ranges whose blocks have all
been verified are read like this, as far as the page cache has them; anything else is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fs3.checksum import FINE_BYTES
from fs3.client.block_read import BlockRead
from fs3.client.plan_core import Asked
from fs3.client.verified_core import MOST_CHUNKS, Identity, Place, Verified, blocks_mask
from fs3.transport.change_counters import NOT_KEPT, CounterView, word_of
from fs3.transport.messages import COUNTERS

FEW = 16  # ranges of a call that are looked for here
MOST_FILES = 256
_NO_SUMS = np.empty(0, dtype=np.uint32)

Run = tuple[str, int]  # a daemon's endpoint and generation
Chunk = tuple[int, int, int]  # hi, lo, chain


class BlockFile:
    """A description of a block file of this client's own: locks on the daemon's must not last as long."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        """Of the file that `fd`, which stays the caller's, is open for. Raises: OSError."""
        self.fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)

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


class KeptPlaces:
    """Of all daemons of this host. `read` from any thread, the others one at a time."""

    def __init__(self, verified: Verified, most: int = MOST_CHUNKS) -> None:
        """`verified`: which blocks need no sum."""
        self._verified = verified
        self._most = most
        self._kept: dict[Chunk, Kept] = {}
        self._files: dict[tuple[Run, int], BlockFile] = {}
        self._counters: dict[tuple[Run, int], CounterView] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def know(self, run: Run, key: int, fd: int) -> None:
        """A daemon has sent the counters of an engine; `fd` stays the caller's."""
        if len(self._counters) >= MOST_FILES:
            self.clear()
        try:
            self._counters[run, key >> 16] = CounterView(fd)
        except (OSError, ValueError):
            return  # places of this engine are not kept

    def counters_of(self, run: Run, file: int) -> CounterView | None:
        """Those of the engine that a block file is of, if the daemon has sent them."""
        return self._counters.get((run, file >> 16))

    def keep(self, run: Run, chunk: Chunk, read: BlockRead, state: int, file: int, position: int) -> None:
        """Remember where `read`, which was answered with `state`, was read from."""
        counters = self.counters_of(run, file)
        if state == NOT_KEPT or counters is None:
            return
        if len(self._files) >= MOST_FILES:
            self.clear()
            return
        ours = self._files.get((run, file))
        if ours is None:
            try:
                ours = self._files[run, file] = BlockFile(read.fd)
            except OSError:
                return
        if chunk not in self._kept and len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        word = word_of(chunk[0], chunk[1])
        self._kept[chunk] = Kept(counters, word, state, ours, position, read.chunk_length, read.place, read.identity)

    def clear(self) -> None:
        """Forget everything."""
        self._kept, self._files, self._counters = {}, {}, {}

    def clean(self) -> None:
        """Forget the daemons' runs that are over."""
        over = {run for (run, _), counters in self._counters.items() if counters.over()}
        if over:
            gone = {id(counters) for (run, _), counters in self._counters.items() if run in over}
            self._kept = {chunk: one for chunk, one in self._kept.items() if id(one.counters) not in gone}
            self._files = {key: file for key, file in self._files.items() if key[0] not in over}
            self._counters = {key: counters for key, counters in self._counters.items() if key[0] not in over}

    def read(self, asked: Sequence[Asked], outs: Sequence[memoryview], now_s: float) -> list[Kept] | None:
        """Read each of `asked` into its `outs`, and where each was; None, and no byte counts, unless all could be."""
        kept_of, of, found = self._kept, self._verified.of, []
        for one, out in zip(asked, outs, strict=True):
            hi, lo, offset, length, chain = one
            kept = kept_of.get((hi, lo, chain))
            if kept is None or offset + length > kept.chunk_length or not length:
                return None
            end = offset + length
            blocks = blocks_mask(offset // FINE_BYTES, -(-end // FINE_BYTES) - offset // FINE_BYTES)
            if of(kept.place, kept.identity, now_s) & blocks != blocks:
                return None
            whole = not (offset % FINE_BYTES or (end % FINE_BYTES and end != kept.chunk_length))
            if not (_from_cache(kept, offset, out) if whole else _cut_from_cache(kept, offset, length, out)):
                self._verified.forget(kept.place)
                return None
            found.append(kept)
        if all([one.counters.hold(one.word, one.state) for one in found]):
            return found
        for one in asked:
            kept_of.pop((one.hi, one.lo, one.chain), None)
        return None


def _from_cache(kept: Kept, offset: int, out: memoryview) -> bool:
    """Read whole blocks, if the page cache has them; as `BlockRead.from_cache`, in a fraction of the time."""
    try:
        return os.preadv(kept.file.fd, (out,), kept.position + offset, os.RWF_NOWAIT) == len(out)
    except OSError:
        return False


def _cut_from_cache(kept: Kept, offset: int, length: int, out: memoryview) -> bool:
    edges = memoryview(bytearray(FINE_BYTES)), memoryview(bytearray(FINE_BYTES))
    range_ = (offset, length, kept.chunk_length)
    file, place, identity = kept.file, kept.place, kept.identity
    return BlockRead(file.fd, kept.position, range_, out, edges, _NO_SUMS, place=place, identity=identity).from_cache()


def are_counters(key: int) -> bool:
    """Whether a descriptor's key says that it is of an engine's counters, and not of a block file."""
    return key & COUNTERS == COUNTERS
