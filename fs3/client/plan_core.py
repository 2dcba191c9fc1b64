"""From ranges of files to what is asked of each storage daemon, for a whole batch at once and without a Python object
per range.

    file ranges [n] --plan_file_ranges--> chunk ranges [m >= n] --group_by--> one run per endpoint --frames--> requests

A range that crosses a chunk's end becomes several; most do not, and the batch then stays as it is. `out_offsets` says
where in the caller's memory each piece's bytes go, so that a reply can be received straight into place (`out_runs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Invalid
from fs3.ids import KIND_FILE
from fs3.transport.messages import RANGE, Records

I64 = NDArray[np.int64]


class Asked(NamedTuple):
    """A range of a chunk."""

    hi: int
    lo: int
    offset: int
    length: int
    chain: int


@dataclass(frozen=True, slots=True)
class FileTable:
    """The layouts of the files of a batch, as parallel arrays [files]; file f's stripe is
    `chains[stripe_start[f] :][: stripe[f]]`."""

    hi: NDArray[np.uint64]
    length: I64
    chunk_bytes: I64
    stripe_start: I64
    stripe: I64
    chains: I64


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Chunk ranges [m] (RANGE records, chain_version not filled in), where their bytes go in the caller's memory, and
    which of the n ranges asked for each is a part of."""

    ranges: Records
    out_offsets: I64
    source: I64


def file_table(
    inodes: Sequence[int], lengths: Sequence[int], chunk_bytes: Sequence[int], stripes: Sequence[I64]
) -> FileTable:
    """The table of files that are given as parallel sequences; `stripes` as `layout.stripe_chains` makes them."""
    stripe = np.array([len(chains) for chains in stripes], dtype=np.int64)
    start = np.zeros(len(stripes), dtype=np.int64)
    np.cumsum(stripe[:-1], out=start[1:])
    return FileTable(
        np.array([KIND_FILE << 56 | inode for inode in inodes], dtype=np.uint64),
        np.array(lengths, dtype=np.int64),
        np.array(chunk_bytes, dtype=np.int64),
        start,
        stripe,
        np.concatenate(stripes) if len(stripes) else np.zeros(0, dtype=np.int64),
    )


def column(values: Any, count: int, what: str) -> I64:
    """Whole numbers [count], from whatever holds them. Raises: Invalid."""
    found = np.asarray(values)
    if found.shape != (count,):
        raise Invalid(f"{what} of shape {list(found.shape)}: there must be one for each of {count} ranges")
    if count and found.dtype.kind not in "iu":
        raise Invalid(f"{what} of type {found.dtype}: they must be whole numbers")
    return found.astype(np.int64, copy=False)


def few(values: Any, count: int) -> list[int] | None:
    """The whole numbers [count] in an array; None if it is anything else."""
    if type(values) is not np.ndarray or values.shape != (count,) or values.dtype.kind not in "iu":
        return None
    numbers: list[int] = values.tolist()
    return numbers


def first_outside(files: FileTable, file_index: I64, offsets: I64, lengths: I64) -> int | None:
    """The first range that is not within its file, if there is one; no sum of two numbers can overflow here."""
    of_file = files.length[file_index]
    bad = (offsets < 0) | (lengths < 0) | (lengths > of_file) | (offsets > of_file - lengths)
    return int(np.argmax(bad)) if bad.any() else None


def overlap(begin: I64, lengths: I64) -> bool:
    """Whether any two of the stretches [n] have a byte in common."""
    if (begin[1:] >= (begin + lengths)[:-1]).all():
        return False
    begin, lengths = begin[lengths > 0], lengths[lengths > 0]
    order = np.argsort(begin, kind="stable")
    return bool((begin[order][1:] < (begin + lengths)[order][:-1]).any())


def packed_offsets(lengths: I64) -> I64:
    """Where ranges start when they are laid one after the other: [n] -> [n]."""
    out = np.zeros(len(lengths), dtype=np.int64)
    np.cumsum(lengths[:-1], out=out[1:])
    return out


def plan_file_ranges(files: FileTable, file_index: I64, offsets: I64, lengths: I64, out_offsets: I64) -> ChunkPlan:
    """The chunk ranges of file ranges [n], in their order; ranges must lie within their files."""
    size = files.chunk_bytes[file_index]
    chunk = offsets // size
    within = offsets - chunk * size
    source = np.arange(len(offsets), dtype=np.int64)
    if not ((within + lengths <= size) & (lengths > 0)).all():
        ends = offsets + lengths
        parts = np.where(lengths > 0, (ends - 1) // size - chunk + 1, 0)
        source = np.repeat(source, parts)
        first = np.repeat(packed_offsets(parts), parts)
        file_index, size = file_index[source], size[source]
        chunk = chunk[source] + np.arange(len(source)) - first
        begin = np.maximum(chunk * size, offsets[source])
        within = begin - chunk * size
        out_offsets = out_offsets[source] + begin - offsets[source]
        lengths = np.minimum((chunk + 1) * size, ends[source]) - begin
    return ChunkPlan(chunk_ranges(files, file_index, chunk, within, lengths), out_offsets, source)


def chunk_ranges(files: FileTable, file_index: I64, chunk: I64, within: I64, lengths: I64) -> Records:
    """RANGE records of `lengths[i]` bytes at `within[i]` of chunk number `chunk[i]` of each file: [m]."""
    ranges = np.zeros(len(chunk), dtype=RANGE)
    ranges["hi"] = files.hi[file_index]
    ranges["lo"] = chunk
    ranges["offset"] = within
    ranges["length"] = lengths
    ranges["chain"] = files.chains[files.stripe_start[file_index] + chunk % files.stripe[file_index]]
    return ranges


def group_by(keys: I64) -> list[tuple[int, I64]]:
    """(key, the places that have it, in order) for every key, rising."""
    if not len(keys):
        return []
    if (keys == keys[0]).all():
        return [(int(keys[0]), np.arange(len(keys), dtype=np.int64))]
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    cuts = [0, *(np.flatnonzero(ranked[1:] != ranked[:-1]) + 1).tolist(), len(keys)]
    return [(int(ranked[begin]), order[begin:end]) for begin, end in pairwise(cuts)]


def frames(lengths: I64, total: int, *, max_count: int, max_bytes: int) -> list[tuple[int, int]]:
    """Cuts [begin, end) of records with `total` bytes that keep both limits; one that alone breaks them is alone."""
    if len(lengths) <= max_count and total <= max_bytes:
        return [(0, len(lengths))] if len(lengths) else []
    out: list[tuple[int, int]] = []
    begin = size = 0
    for index, length in enumerate(lengths.tolist()):
        if index > begin and (index - begin >= max_count or size + length > max_bytes):
            out.append((begin, index))
            begin, size = index, 0
        size += length
    out.append((begin, len(lengths)))
    return out


def out_runs(out_offsets: I64, lengths: I64) -> list[tuple[int, int]]:
    """[begin, end) of the caller's memory that a body fills one after the other, neighbours merged."""
    if not lengths.all():
        filled = lengths > 0
        out_offsets, lengths = out_offsets[filled], lengths[filled]
    if not len(lengths):
        return []
    ends = out_offsets + lengths
    breaks = np.flatnonzero(out_offsets[1:] != ends[:-1])
    begins = [int(out_offsets[0]), *out_offsets[breaks + 1].tolist()]
    return list(zip(begins, [*ends[breaks].tolist(), int(ends[-1])], strict=True))
