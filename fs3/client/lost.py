"""Files whose chunks are gone: after metadata came back from a backup, or the loss of a replica was accepted.

No daemon knows that there was a chunk which it does not have, so the names are walked, and the daemons are asked for
the chunks that each file's length says must be there. The other way round, chunks without a file, is `orphans.py`.

A file may be replaced, removed or written while it is looked at. Its chunks are there before it has its name and its
length, and are removed after it is dead: so what is missing is looked for again, between two looks at the inode, and is
lost only if the inode is there and has not changed from the one to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3.client.meta import Entries, MetaClient
from fs3.client.storage import StorageClient
from fs3.clock import deadline_after
from fs3.errors import Fs3Error, NotADirectory, NotFound
from fs3.ids import file_chunk
from fs3.inode import Inode
from fs3.layout import stripe_chains
from fs3.routing import Routing

AT_ONCE = 8_192  # chunks that are asked for together
_LOOKS = 4  # at a file that is changing all the time
_CHAIN_S = 5.0
_UNKNOWN = -2  # its chain does not answer
_MISSING = -1

I64 = NDArray[np.int64]


class LostChunk(NamedTuple):
    """By its number; `has` bytes of it are there, or None if it is missing; `expected` must be."""

    chunk: int
    chain: int
    has: int | None
    expected: int


@dataclass(frozen=True, slots=True)
class LostFile:
    """A file that cannot be read whole."""

    path: str
    inode_id: int
    length: int
    of_chunks: int
    chunks: tuple[LostChunk, ...]


@dataclass(slots=True)
class Search:
    """How much was looked at; `silent` are the chains that did not answer, whose chunks were left out."""

    files: int = 0
    chunks: int = 0
    left_out: int = 0
    silent: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Part:
    """Some chunks of a file: their numbers, chains, and the bytes that each must have."""

    path: str
    inode: Inode
    index: I64
    chain: I64
    expected: I64


class Losses:
    """Iterating gives the files below `top` that have lost chunks, as they are found; `search` tells how far it is.

    Needs memory for a batch of chunks and a page of names a level. A file that is moved meanwhile may be missed.
    Iterating raises: Unavailable: meta does not answer; NotFound: there is no `top`.
    """

    def __init__(
        self,
        routing: Callable[[], Routing],
        storage: StorageClient,
        meta: MetaClient,
        top: str = "/",
        *,
        at_once: int = AT_ONCE,
        on_files: Callable[[int], None] = lambda count: None,
    ) -> None:
        """`routing` gives the newest known one; `on_files` is called with how many files have been looked at more."""
        self._routing = routing
        self._storage = storage
        self._meta = meta
        self._top = top
        self._at_once = at_once
        self._on_files = on_files
        self._silent: set[int] = set()
        self.search = Search()

    def __iter__(self) -> Iterator[LostFile]:
        last: LostFile | None = None
        for one in self._found():
            if last is not None and (last.path, last.inode_id) == (one.path, one.inode_id):
                last = replace(one, chunks=last.chunks + one.chunks)
                continue
            if last is not None:
                yield last
            last = one
        if last is not None:
            yield last

    def _found(self) -> Iterator[LostFile]:
        """Batch by batch; a file of many chunks more than once, one time after the other."""
        waiting: list[_Part] = []
        chunks = files = 0
        for path, inode in files_below(self._meta, self._top):
            files += 1
            for part in self._parts(path, inode):
                waiting.append(part)
                chunks += len(part.index)
                if chunks >= self._at_once:
                    yield from self._look(waiting)
                    self._told(files)
                    waiting, chunks, files = [], 0, 0
        yield from self._look(waiting)
        self._told(files)

    def _told(self, files: int) -> None:
        self.search.files += files
        self._on_files(files)

    def _parts(self, path: str, inode: Inode) -> Iterator[_Part]:
        """The chunks of a file, at most `at_once` at a time."""
        layout = inode.layout
        if layout is None or not inode.length:
            return
        chains = stripe_chains(layout, self._routing().table(layout.chain_table, layout.chain_table_version))
        count = -(-inode.length // layout.chunk_bytes)
        for begin in range(0, count, self._at_once):
            index = np.arange(begin, min(begin + self._at_once, count), dtype=np.int64)
            expected = np.minimum(inode.length - index * layout.chunk_bytes, layout.chunk_bytes)
            yield _Part(path, inode, index, chains[index % len(chains)], expected)

    def _look(self, parts: Sequence[_Part]) -> Iterator[LostFile]:
        """Those of these files that have lost chunks, each with its lost ones among `parts`."""
        has = self._ask(parts)
        self.search.chunks += len(has)
        self.search.left_out += int((has == _UNKNOWN).sum())
        self.search.silent = tuple(sorted(self._silent))
        suspects = [part for part, own in _cut(parts, has) if len(_lost(part, own))]
        if suspects:
            yield from self._confirmed(suspects)

    def _confirmed(self, suspects: Sequence[_Part]) -> Iterator[LostFile]:
        """The files in which chunks are missing still, and that have not changed around that look."""
        found = self._meta.find([part.inode.inode_id for part in suspects])
        for _ in range(_LOOKS):
            pairs = zip(suspects, found, strict=True)
            alive = [_again(part, one.inode) for part, one in pairs if one.inode is not None]
            if not alive:
                return
            has = self._ask(alive)
            found = self._meta.find([part.inode.inode_id for part in alive])
            changed = []
            for (part, own), one in zip(_cut(alive, has), found, strict=True):
                lost = _lost(part, own)
                if one.inode != part.inode:
                    changed.append((part, one))
                elif len(lost):
                    yield _lost_file(part, own, lost)
            suspects, found = [part for part, _ in changed], [one for _, one in changed]

    def _ask(self, parts: Sequence[_Part]) -> I64:
        """How many bytes of each chunk are there."""
        if not parts:
            return np.zeros(0, dtype=np.int64)
        hi = np.concatenate(
            [np.full(len(part.index), file_chunk(part.inode.inode_id, 0)[0], dtype=np.uint64) for part in parts]
        )
        lo = np.concatenate([part.index for part in parts]).astype(np.uint64)
        chain = np.concatenate([part.chain for part in parts]).astype(np.uint32)
        has: I64 = np.full(len(hi), _UNKNOWN, dtype=np.int64)
        asked = np.flatnonzero(~np.isin(chain, sorted(self._silent)))
        if len(asked):
            try:
                has[asked] = self._query(hi[asked], lo[asked], chain[asked], None)
            except Fs3Error:
                for one in np.unique(chain[asked]).tolist():
                    own = asked[chain[asked] == one]
                    has[own] = self._ask_chain(hi[own], lo[own], chain[own], one)
        return has

    def _ask_chain(self, hi: NDArray[np.uint64], lo: NDArray[np.uint64], chain: NDArray[np.uint32], one: int) -> I64:
        """The same for chunks of one chain, which is left out from then on if it does not answer."""
        if self._routing().serving(one):
            try:
                return self._query(hi, lo, chain, deadline_after(_CHAIN_S))
            except Fs3Error:
                pass
        self._silent.add(one)
        return np.full(len(hi), _UNKNOWN, dtype=np.int64)

    def _query(
        self, hi: NDArray[np.uint64], lo: NDArray[np.uint64], chain: NDArray[np.uint32], deadline_s: float | None
    ) -> I64:
        """Raises: Fs3Error: a chain does not answer."""
        found = self._storage.query(hi, lo, chain, deadline_s=deadline_s)
        return np.where(found["status"] == NotFound.code, _MISSING, found["chunk_length"].astype(np.int64))


def files_below(meta: MetaClient, top: str) -> Iterator[tuple[str, Inode]]:
    """Every file at or below `top` and its path, directory by directory; what goes meanwhile is left out.

    Symlinks are not followed. Raises: NotFound: there is no `top`.
    """
    first = meta.stat_one(top)
    if not first.is_directory:
        if first.is_file:
            yield top, first
        return
    pending = [(top.rstrip("/"), _entries(meta, top))]
    while pending:
        above, entries = pending[-1]
        for name, inode in entries:
            path = f"{above}/{name}"
            if inode.is_file:
                yield path, inode
            elif inode.is_directory:
                pending.append((path, _entries(meta, path)))
                break
        else:
            pending.pop()


def _entries(meta: MetaClient, path: str) -> Iterator[tuple[str, Inode]]:
    pages: Iterable[Entries] = meta.list(path)
    try:
        for page in pages:
            yield from page
    except (NotFound, NotADirectory):
        return


def _again(suspect: _Part, inode: Inode) -> _Part:
    """The same chunks, as far as the file has them now."""
    layout = inode.layout
    assert layout is not None, inode
    left = inode.length - suspect.index * layout.chunk_bytes
    kept = left > 0
    expected = np.minimum(left, layout.chunk_bytes)[kept]
    return _Part(suspect.path, inode, suspect.index[kept], suspect.chain[kept], expected)


def _cut(parts: Sequence[_Part], has: I64) -> Iterator[tuple[_Part, I64]]:
    """Each part, and what is there of its chunks."""
    at = 0
    for part in parts:
        yield part, has[at : at + len(part.index)]
        at += len(part.index)


def _lost(part: _Part, has: I64) -> I64:
    """Which of its chunks are missing or too short."""
    return np.flatnonzero((has < part.expected) & (has != _UNKNOWN))


def _lost_file(part: _Part, has: I64, lost: I64) -> LostFile:
    assert part.inode.layout is not None, part
    chunks = tuple(
        LostChunk(
            int(part.index[one]),
            int(part.chain[one]),
            None if has[one] == _MISSING else int(has[one]),
            int(part.expected[one]),
        )
        for one in lost.tolist()
    )
    of_chunks = -(-part.inode.length // part.inode.layout.chunk_bytes)
    return LostFile(part.path, part.inode.inode_id, part.inode.length, of_chunks, chunks)
