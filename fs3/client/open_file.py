"""An open file: a value, with which offset -> (chain, chunk, range) is arithmetic. Here for a few ranges, in plain
Python; for a whole batch at once in plan_core.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.client import plan_core
from fs3.client.plan_core import I64, Asked
from fs3.ids import KIND_FILE, InodeId
from fs3.layout import Layout


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file as it was when it was opened; a value, good in any thread or forked child, and nothing to close."""

    inode_id: InodeId
    length: int
    layout: Layout
    chains: I64
    version: int
    path: str

    def range_of(self, offset: int, length: int) -> Asked | None:
        """`length` bytes from `offset`, if they lie within the file and one of its chunks."""
        chunk, within = divmod(offset, self.layout.chunk_bytes)
        if not 0 < length <= self.length - offset or offset < 0 or within + length > self.layout.chunk_bytes:
            return None
        chain = int(self.chains[chunk % len(self.chains)])
        return Asked(KIND_FILE << 56 | self.inode_id, chunk, within, length, chain)


def few_ranges(
    handles: Sequence[OpenFile],
    columns: Sequence[NDArray[Any]],
    out_offsets: NDArray[np.int64] | None,
    out: memoryview,
) -> tuple[list[Asked], list[memoryview]] | None:
    """The ranges that columns (file numbers, offsets, lengths) [n] say, and the parts of `out` that they go into.

    None where that takes a closer look: anything is not as it should be, a range is of two chunks, or they are not in
    the order in which they lie in `out`.
    """
    count = len(columns[1])
    index, offsets, lengths = (plan_core.few(one, count) for one in columns)
    begins = plan_core.few(out_offsets, count) if out_offsets is not None else []
    if index is None or offsets is None or lengths is None or begins is None or out.readonly:
        return None
    asked, outs, end = [], [], 0
    for place, (number, offset, length) in enumerate(zip(index, offsets, lengths, strict=True)):
        begin = begins[place] if begins else end
        one = handles[number].range_of(offset, length) if 0 <= number < len(handles) else None
        if one is None or not end <= begin <= len(out) - length:  # in their order: so none overlaps with another
            return None
        end = begin + length
        asked.append(one)
        outs.append(out[begin:end])
    return asked, outs
