"""A batch of a ring's: what the application is told when it has ended, and what is kept of it until then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.client.storage import RANGE
from fs3.errors import Fs3Error, Invalid
from fs3.usrbio.iov import FileSet, Iov
from fs3.usrbio.ring_core import Ticket
from fs3.usrbio.ring_format import WRITES, Op

Part = tuple[int, memoryview]  # bytes, and the column at which they begin


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A batch that has ended. `error` is None, or the first that befell one of its ranges.

    `results` [n] has fields `status` (0, or the code of what befell this range), `length` (bytes read or written) and,
    of chunks, `chunk_length`. The bytes of ranges that failed to be read are undefined.
    """

    number: int
    error: Fs3Error | None
    results: NDArray[Any]

    def check(self) -> Done:
        """Itself. Raises: `error`, if there is one."""
        if self.error is not None:
            raise self.error
        return self


@dataclass(slots=True)
class Flight:
    """A batch under way; its memory and files stay as long as it does."""

    ticket: Ticket
    op: Op
    count: int
    iov: Iov
    files: FileSet
    deadline_s: float
    tries: int = 1

    @property
    def writes(self) -> bool:
        return self.op in WRITES

    @property
    def did(self) -> str:
        """What an I/O process did, in a message."""
        return "held writes that it had not begun with" if self.writes else "read"


def file_columns(count: int, index: Any, offsets: Any, lengths: Any, places: Any) -> Sequence[Part]:
    """The columns of ranges of files. Raises: Invalid."""
    columns = ((index, "file numbers"), (offsets, "offsets"), (lengths, "lengths"), (places, "places in the memory"))
    return [(place, column(values, count, what)) for place, (values, what) in enumerate(columns)]


def chunk_columns(ranges: NDArray[Any], places: Any) -> Sequence[Part]:
    """The columns of RANGE records. Raises: Invalid."""
    count = len(ranges)
    if ranges.dtype != RANGE or ranges.ndim != 1:
        raise Invalid(f"ranges of type {ranges.dtype}: they must be RANGE records")
    raw = np.ascontiguousarray(ranges).view(np.uint8).data if count else memoryview(b"")
    return [(0, raw), (4, column(places, count, "places in the memory"))]


def column(values: Any, count: int, what: str) -> memoryview:
    """Whole numbers [count] as the bytes of int64. Raises: Invalid.

    Of the usual arrays no copy is made here; nor is anything computed, as numpy lets other threads run while it does.
    """
    found = np.asarray(values)
    if found.shape != (count,):
        raise Invalid(f"{what} of shape {list(found.shape)}: there must be one for each of {count} ranges")
    if count and found.dtype.kind not in "iu":
        raise Invalid(f"{what} of type {found.dtype}: they must be whole numbers")
    return np.ascontiguousarray(found, dtype=np.int64).data.cast("B") if count else memoryview(b"")
