"""One batch of whole-page reads, in which a damaged page or a chain that does not answer costs no other page.

The batch goes out as a whole, one request per storage node. Only when that fails it is asked again in parts, each chain
by itself, and a chain with a damaged page page by page, all before the same deadline.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fs3.clock import lease_now_s
from fs3.errors import Corrupt, Fs3Error

Places = NDArray[np.int64]


class ChunkReader(Protocol):
    """`StorageClient`, or the like of it through USRBIO."""

    def read(
        self, ranges: NDArray[Any], out: memoryview, out_offsets: NDArray[np.int64], *, deadline_s: float | None = None
    ) -> NDArray[Any]:
        """See `StorageClient.read`."""


class PageRead:
    """RANGE records [n] to be read into `out` at `offsets` [n]; `run` fills in what came of each."""

    def __init__(self, reader: ChunkReader, ranges: NDArray[Any], out: memoryview, offsets: NDArray[np.int64]) -> None:
        self._reader = reader
        self._ranges = ranges
        self._out = out
        self._offsets = offsets
        self.whole: NDArray[np.bool_] = np.zeros(len(ranges), dtype=np.bool_)
        self.corrupt: NDArray[np.bool_] = np.zeros(len(ranges), dtype=np.bool_)
        self.errors: list[Fs3Error] = []

    def run(self, asked: Places, deadline_s: float) -> None:
        """Read the pages at places `asked`: `whole` are there and verified; `corrupt` have no replica that is sound, or
        end too early."""
        if not len(asked):
            return
        chains = np.unique(self._ranges["chain"][asked])
        # What is damaged is told at once; only a chain that does not answer takes all the time that it is given.
        error = self._read(asked, deadline_s, leave_time=len(chains) > 1)
        if error is None:
            return
        self.errors.append(error)
        if len(asked) == 1:
            self.corrupt[asked] = isinstance(error, Corrupt)
            return
        if len(chains) > 1:
            parts = [asked[self._ranges["chain"][asked] == chain] for chain in chains]
        elif isinstance(error, Corrupt):
            parts = [asked[i : i + 1] for i in range(len(asked))]
        else:
            return
        for done, part in enumerate(parts):
            now_s = lease_now_s()
            if now_s >= deadline_s:
                return
            self.run(part, now_s + (deadline_s - now_s) / (len(parts) - done))

    def _read(self, asked: Places, deadline_s: float, *, leave_time: bool) -> Fs3Error | None:
        now_s = lease_now_s()
        ranges = self._ranges[asked]
        until_s = now_s + (deadline_s - now_s) / 2 if leave_time else deadline_s
        try:
            results = self._reader.read(ranges, self._out, self._offsets[asked], deadline_s=until_s)
        except Fs3Error as error:
            return error
        found, full = results["status"] == 0, results["length"] == ranges["length"]
        self.whole[asked], self.corrupt[asked] = found & full, found & ~full
        return None
