"""An engine's state, read in bulk from its records when it is opened.

After a power loss a chunk written without syncs may have a durable record and lost bytes, even bytes and sums of the
block's earlier owner, which agree with each other. So the record keeps a sum of the sums, and when the machine has
booted since the last opening, or a sync has failed since, records marked FLAG_OS are checked against it and dropped
where they differ.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3 import checksum
from fs3.errors import Corrupt
from fs3.storage import metadata as md
from fs3.storage.blocks import BlockFile, BlockFiles
from fs3.storage.engine_api import DedupEntry, TargetRecord
from fs3.storage.index import EMPTY, LINE
from fs3.storage.metadata import CHUNK, CHUNK_KEY, MetadataStore, Version

_LOG = logging.getLogger("fs3.storage")


@dataclass(slots=True, kw_only=True)
class Loaded:
    """What an engine knows after opening; `lines` is for `Index.load`, pending versions included."""

    targets: dict[int, TargetRecord]
    lines: NDArray[Any]
    pending: dict[tuple[int, int, int], Version]
    results: dict[tuple[int, int, int], DedupEntry]
    used: dict[int, NDArray[np.int64]]
    usage: dict[int, tuple[int, int]]
    tombstones: int
    damaged: dict[tuple[int, int, int], int]
    to_delete: list[bytes] = field(default_factory=list)


def give_back_memory() -> None:
    """Return to the system what opening took and the allocator kept: of a million chunks a third of all memory."""
    with contextlib.suppress(AttributeError, OSError):  # a C library that is not glibc
        ctypes.CDLL(None).malloc_trim(0)


def load(metadata: MetadataStore, files: BlockFiles, *, suspect_os: bool) -> Loaded:
    """Read all records. Raises: Corrupt."""
    targets = {}
    for key, value in metadata.scan(md.TARGET):
        target = int.from_bytes(key[1:], "big")
        targets[target] = TargetRecord(target, md.unpack_target(value))
    delete: list[bytes] = []
    keys, chunks = _chunks(metadata, md.COMMITTED, CHUNK, targets, delete)
    pending_keys, pending_chunks = _chunks(metadata, md.PENDING, md.PENDING_CHUNK, targets, delete)
    if suspect_os:
        for file in files:
            file.drop_cached()
        keys, chunks = _drop_lost(files, keys, chunks, delete)
        pending_keys, pending_chunks = _drop_lost(files, pending_keys, pending_chunks, delete)
    pending = {
        (target, hi, lo): md.unpack_pending(raw.tobytes())
        for (_, target, hi, lo), raw in zip(pending_keys.tolist(), pending_chunks, strict=True)
    }
    lines = _lines(files, keys, chunks)
    lines = _with_pending(lines, pending)
    removed = (chunks["flags"] & md.FLAG_REMOVED) != 0
    used = _used(np.concatenate([chunks[["file", "slot"]], pending_chunks[["file", "slot"]]]))
    results = {}
    for key, value in metadata.scan(md.RESULT_OF):
        owner = md.unpack_result_key(key)
        if owner[0] in targets:
            results[owner] = DedupEntry(*md.unpack_result(value))
        else:
            delete.append(key)
    delete += [key for key, _ in metadata.scan(md.STATE) if int.from_bytes(key[1:5], "big") not in targets]
    damaged = _marks(metadata, keys, chunks, delete)
    return Loaded(
        targets=targets,
        lines=lines,
        pending=pending,
        results=results,
        used=used,
        usage=_usage(files, keys[~removed], chunks[~removed]),
        tombstones=int(removed.sum()),
        damaged=damaged,
        to_delete=delete,
    )


def _chunks(
    metadata: MetadataStore, kind: bytes, record: np.dtype[Any], targets: dict[int, TargetRecord], delete: list[bytes]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Keys and values [n] of one kind; those of dropped targets go to `delete`."""
    pairs = metadata.scan(kind)
    keys = np.frombuffer(b"".join([key for key, _ in pairs]), dtype=CHUNK_KEY)
    raw = b"".join([value for _, value in pairs])
    whole = len(raw) == len(pairs) * record.itemsize and len(keys) == len(pairs)
    values = np.frombuffer(raw, dtype=record) if whole else np.zeros(1, dtype=record)
    if (values["format"] != 1).any():
        raise Corrupt("a chunk record in the metadata is not of a format that this fs3 reads")
    known = np.isin(keys["target"], np.fromiter(targets, dtype=np.uint32, count=len(targets)))
    if known.all():
        return keys, values
    delete += [pairs[row][0] for row in np.flatnonzero(~known).tolist()]
    return keys[known], values[known]


def _marks(
    metadata: MetadataStore, keys: NDArray[Any], chunks: NDArray[Any], delete: list[bytes]
) -> dict[tuple[int, int, int], int]:
    """The chunks known to be damaged; a mark of another version than the committed one is out of date."""
    pairs = metadata.scan(md.DAMAGED)
    if not pairs:
        return {}
    committed = {keys[row].tobytes()[1:]: int(chunks["version"][row]) for row in range(len(keys))}
    marks = {}
    for key, value in pairs:
        if committed.get(key[1:]) == md.unpack_mark(value):
            _, target, hi, lo = np.frombuffer(key, dtype=CHUNK_KEY)[0].tolist()
            marks[target, hi, lo] = md.unpack_mark(value)
        else:
            delete.append(key)
    return marks


def _drop_lost(
    files: BlockFiles, keys: NDArray[Any], chunks: NDArray[Any], delete: list[bytes]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Without the chunks written without syncs whose sums a power loss has taken."""
    keep = np.ones(len(chunks), dtype=np.bool_)
    for row in np.flatnonzero((chunks["flags"] & md.FLAG_OS != 0) & (chunks["file"] >= 0)).tolist():
        chunk = chunks[row]
        file = _file(files, int(chunk["file"]))
        try:
            coarse = file.coarse(file.position(int(chunk["slot"])), int(chunk["length"]))
            keep[row] = checksum.crc(coarse.tobytes()) == chunk["crc"]
        except Corrupt as error:  # one bad sector is no reason to do without all other chunks
            _LOG.warning("%s, where the sums of a chunk are", error)
            keep[row] = False
    delete += [keys[row].tobytes() for row in np.flatnonzero(~keep).tolist()]
    if not keep.all():
        _LOG.warning("%d chunks written without syncs were lost when the machine stopped", int((~keep).sum()))
    return keys[keep], chunks[keep]


def _file(files: BlockFiles, number: int) -> BlockFile:
    """Raises: Corrupt."""
    if number not in files:
        raise Corrupt(f"block file {number} is missing, and chunk records name it; restore it or empty the disk")
    return files[number]


def _lines(files: BlockFiles, keys: NDArray[Any], chunks: NDArray[Any]) -> NDArray[Any]:
    lines = np.zeros(len(keys), dtype=LINE)
    lines["hi"], lines["lo"], lines["target"] = keys["hi"], keys["lo"], keys["target"]
    for name in ("version", "length", "chain_version"):
        lines[name] = chunks[name]
    lines["file"] = np.where(chunks["file"] >= 0, chunks["file"] + 1, EMPTY)
    lines["file"][(chunks["flags"] & md.FLAG_REMOVED) != 0] = 0
    for number in np.unique(chunks["file"]).tolist():
        if number < 0:
            continue
        rows = chunks["file"] == number
        file = _file(files, number)
        lines["position"][rows] = file.position(0) + chunks["slot"][rows].astype(np.int64) * file.pitch
    return lines


def _with_pending(lines: NDArray[Any], pending: dict[tuple[int, int, int], Version]) -> NDArray[Any]:
    """The lines with the pending versions put in, and lines for the chunks that have nothing else."""
    if not pending:
        return lines
    rows = {
        (target, hi, lo): row
        for row, (hi, lo, target) in enumerate(lines[["hi", "lo", "target"]].tolist())
        if (target, hi, lo) in pending
    }
    extra = np.zeros(len(pending) - len(rows), dtype=LINE)
    at = 0
    for key, version in pending.items():
        row = rows.get(key)
        if row is not None:
            lines["pending"][row] = version.version
        else:
            extra["target"][at], extra["hi"][at], extra["lo"][at] = key
            extra["pending"][at] = version.version
            at += 1
    return np.concatenate([lines, extra])


def _used(chunks: NDArray[Any]) -> dict[int, NDArray[np.int64]]:
    return {
        number: chunks["slot"][chunks["file"] == number].astype(np.int64)
        for number in np.unique(chunks["file"]).tolist()
        if number >= 0
    }


def _usage(files: BlockFiles, keys: NDArray[Any], chunks: NDArray[Any]) -> dict[int, tuple[int, int]]:
    block_bytes = np.zeros(len(chunks), dtype=np.int64)
    for number in np.unique(chunks["file"]).tolist():
        if number >= 0:
            block_bytes[chunks["file"] == number] = files[number].block_bytes
    usage = {}
    for target in np.unique(keys["target"]).tolist():
        rows = keys["target"] == target
        usage[target] = (int(block_bytes[rows].sum()), int(rows.sum()))
    return usage
