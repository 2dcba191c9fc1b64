"""Pages of an engine's chunks in chunk-id order, for recovery and for listing files; read from RocksDB, which sorts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3 import ids
from fs3.storage import metadata as md
from fs3.storage.chunk_locks import Key
from fs3.storage.metadata import CHUNK, CHUNK_KEY, MetadataStore, Version
from fs3.transport.messages import CHUNK_META, LISTED, MAX_LISTED, META_DAMAGED, META_REMOVED, Records

_PAGE = 4096
_FIRST_FIELDS = ("version", "chain_version", "length", "crc")


def metas(
    metadata: MetadataStore, pending: dict[Key, Version], target: int, after: bytes, limit: int, *, removals: bool
) -> Records:
    """CHUNK_META of at most `limit` chunks after id `after`, with what is only pending; tombstones if `removals`."""
    found, complete = _page(metadata, target, after, limit, chunks=True, tombstones=removals)
    low = ids.chunk_from_bytes(after) if after else (-1, -1)
    high = (int(found["hi"][-1]), int(found["lo"][-1])) if len(found) and not complete else (1 << 64, 0)
    waiting = {key[1:]: version for key, version in list(pending.items()) if key[0] == target and low < key[1:] <= high}
    if not waiting:
        return found
    for row, chunk in enumerate(found[["hi", "lo"]].tolist()):
        version = waiting.pop(chunk, None)
        if version is not None:
            found["pending"][row] = version.version
    extra = np.zeros(len(waiting), dtype=CHUNK_META)
    for row, (chunk, version) in enumerate(sorted(waiting.items())):
        extra["hi"][row], extra["lo"][row] = chunk
        extra["pending"][row], extra["chain_version"][row] = version.version, version.chain_version
    merged = np.concatenate([found, extra])
    return merged[np.lexsort((merged["lo"], merged["hi"]))][:limit]


def with_marks(page: Records, damaged: Mapping[Key, int], target: int) -> Records:
    """A page of `metas` with META_DAMAGED where the bytes are known to fail their sums."""
    if damaged:
        bad = {key[1:] for key in damaged if key[0] == target}
        for row in np.flatnonzero(np.isin(page["lo"], [lo for _, lo in bad])).tolist():
            if (int(page["hi"][row]), int(page["lo"][row])) in bad:
                page["flags"][row] |= META_DAMAGED
    return page


def tombstones(metadata: MetadataStore, target: int, after: bytes, limit: int) -> Records:
    """CHUNK_META of at most `limit` removals after chunk id `after`."""
    return _page(metadata, target, after, limit, chunks=False, tombstones=True)[0]


def list_chunks(
    metadata: MetadataStore, target: int, hi: int, lo_from: int, limit: int, *, whole_kind: bool
) -> Records:
    """LISTED of at most `limit` (and MAX_LISTED) chunks from (hi, lo_from) on, of `hi` or of its whole kind."""
    chunk = ids.chunk_bytes(hi, lo_from)
    same = 1 if whole_kind else 8  # bytes of the id that all of them share
    prefix = md.target_prefix(md.COMMITTED, target) + chunk[:same]
    pages: list[Records] = []
    start, left = chunk[same:], min(limit, MAX_LISTED)
    while left > 0:
        pairs = metadata.scan(prefix, start, _PAGE)
        keys, chunks = _arrays(pairs)
        alive = (chunks["flags"] & md.FLAG_REMOVED) == 0
        page = np.zeros(int(alive.sum()), dtype=LISTED)
        page["hi"], page["lo"], page["version"] = keys["hi"][alive], keys["lo"][alive], chunks["version"][alive]
        page["chunk_length"] = chunks["length"][alive]
        pages.append(page[:left])
        left -= len(pages[-1])
        if len(pairs) < _PAGE:
            break
        start = pairs[-1][0][len(prefix) :] + b"\0"
    return np.concatenate(pages) if pages else np.zeros(0, dtype=LISTED)


def _page(
    metadata: MetadataStore, target: int, after: bytes, limit: int, *, chunks: bool, tombstones: bool
) -> tuple[Records, bool]:
    """Up to `limit` records, and whether there are no more."""
    prefix = md.target_prefix(md.COMMITTED, target)
    start = after + b"\0" if after else b""
    pages: list[Records] = []
    count = 0
    while count < limit:
        pairs = metadata.scan(prefix, start, min(_PAGE, limit - count))
        keys, found = _arrays(pairs)
        removed = (found["flags"] & md.FLAG_REMOVED) != 0
        chosen = np.where(removed, tombstones, chunks)
        page = np.zeros(int(chosen.sum()), dtype=CHUNK_META)
        page["hi"], page["lo"] = keys["hi"][chosen], keys["lo"][chosen]
        for name in _FIRST_FIELDS:
            page[name] = found[name][chosen]
        page["flags"][removed[chosen]] = META_REMOVED
        pages.append(page)
        count += len(page)
        if len(pairs) < min(_PAGE, limit - count + len(page)):
            return np.concatenate(pages), True
        start = pairs[-1][0][len(prefix) :] + b"\0"
    return (np.concatenate(pages) if pages else np.zeros(0, dtype=CHUNK_META)), False


def _arrays(pairs: list[tuple[bytes, bytes]]) -> tuple[NDArray[Any], NDArray[Any]]:
    keys = np.frombuffer(b"".join([key for key, _ in pairs]), dtype=CHUNK_KEY)
    return keys, np.frombuffer(b"".join([value for _, value in pairs]), dtype=CHUNK)
