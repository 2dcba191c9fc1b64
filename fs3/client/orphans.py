"""Chunks whose file does not exist any more: left by clients that died in the middle, or by a restored metadata store.

The chunks are listed first and meta is asked afterwards, and an inode exists before its first chunk does: so a file
that is made meanwhile is never taken for an orphan. Files that are dead but whose chunks are still to be removed are
not orphans either; meta's collector has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from fs3.client.meta import FINDS_AT_ONCE, MetaClient
from fs3.client.storage import StorageClient
from fs3.errors import Fs3Error
from fs3.ids import KIND_FILE, MAX_INODE
from fs3.routing import Routing
from fs3.transport.messages import Records

_REMOVED_AT_ONCE = 1_024


@dataclass(slots=True)
class Orphan:
    """The chunks of one inode that is gone: (hi, lo, chain) of each, and their bytes."""

    inode_id: int
    bytes: int = 0
    chunks: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def chains(self) -> list[int]:
        return sorted({chain for _, _, chain in self.chunks})


@dataclass(frozen=True, slots=True)
class Search:
    """What was looked at: `silent` are the chains that did not answer."""

    orphans: tuple[Orphan, ...]
    chunks: int
    silent: tuple[int, ...]


def find_orphans(
    routing: Routing, storage: StorageClient, meta: MetaClient, on_chain: Callable[[int], None] = lambda chain: None
) -> Search:
    """Look through all chains; `on_chain` is called after each.

    Raises: Unavailable: meta does not answer; PermissionDenied: it tells only the superuser.
    """
    orphans: dict[int, Orphan] = {}
    alive: set[int] = set()
    silent: list[int] = []
    chunks = 0
    for chain in sorted(routing.chains):
        for page in _pages(storage, chain, silent):
            chunks += len(page)
            inode_ids = np.unique(page["hi"] & np.uint64(MAX_INODE)).tolist()
            alive |= _alive(meta, [one for one in inode_ids if one not in alive and one not in orphans])
            _collect(orphans, page, chain, [one for one in inode_ids if one not in alive])
        on_chain(chain)
    return Search(tuple(orphan for _, orphan in sorted(orphans.items())), chunks, tuple(silent))


def remove_orphans(storage: StorageClient, orphans: Iterable[Orphan]) -> int:
    """Remove their chunks; how many. Raises: Fs3Error."""
    chunks = [chunk for orphan in orphans for chunk in orphan.chunks]
    for begin in range(0, len(chunks), _REMOVED_AT_ONCE):
        hi, lo, chain = zip(*chunks[begin : begin + _REMOVED_AT_ONCE], strict=True)
        storage.remove(np.array(hi, dtype=np.uint64), np.array(lo, dtype=np.uint64), np.array(chain, dtype=np.uint32))
    return len(chunks)


def _pages(storage: StorageClient, chain: int, silent: list[int]) -> Iterator[Records]:
    """What a chain lists; one that does not answer to the end is put to the `silent` ones."""
    try:
        yield from storage.list_kind(KIND_FILE, chain)
    except Fs3Error:
        silent.append(chain)


def _alive(meta: MetaClient, inode_ids: list[int]) -> set[int]:
    alive = set()
    for begin in range(0, len(inode_ids), FINDS_AT_ONCE):
        some = inode_ids[begin : begin + FINDS_AT_ONCE]
        alive |= {
            inode_id for inode_id, one in zip(some, meta.find(some), strict=True) if one.inode is not None or one.dead
        }
    return alive


def _collect(orphans: dict[int, Orphan], page: Records, chain: int, inode_ids: list[int]) -> None:
    for inode_id in inode_ids:
        orphan = orphans.setdefault(inode_id, Orphan(inode_id))
        own = page[(page["hi"] & np.uint64(MAX_INODE)) == inode_id]
        orphan.bytes += int(own["chunk_length"].sum(dtype=np.uint64))
        orphan.chunks += [(int(one["hi"]), int(one["lo"]), chain) for one in own]
