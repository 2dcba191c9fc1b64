"""What the I/O process does with a batch that writes: the ordinary client's writes, from the application's memory.

Whatever is wrong with a batch is found before any of it is written. Then every range tells what became of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fs3.client.connect import Client
from fs3.client.plan_core import I64, overlap
from fs3.client.storage import ChunkUpdate
from fs3.client.storage import Op as Change
from fs3.clock import lease_now_s
from fs3.errors import Fs3Error, Invalid, Unavailable
from fs3.layout import MAX_CHUNK_BYTES, MAX_FILE_BYTES
from fs3.usrbio.reading import Outcome
from fs3.usrbio.ring_core import Request
from fs3.usrbio.ring_format import RANGE_RESULT, Flag, Op
from fs3.usrbio.writers import Held


@dataclass(slots=True)
class Writing:
    """One batch, written from `data` for `client`; `files` is the set that its ranges name."""

    client: Client
    request: Request
    files: Sequence[Held]
    data: memoryview
    _outcome: Outcome = field(init=False)

    def run(self) -> Outcome:
        """Never raises an `Fs3Error`."""
        request = self.request
        self._outcome = Outcome(np.zeros(request.count, dtype=RANGE_RESULT))
        deadline_s = request.deadline_ns / 1e9
        try:
            if lease_now_s() >= deadline_s:
                raise Unavailable("the batch's time was over before the I/O process came to it; nothing was written")
            if request.op == Op.WRITE:
                self._write_files(deadline_s)
            else:
                self._write_chunks(deadline_s)
        except Fs3Error as error:
            self._outcome.failed(np.arange(request.count), error)
        return self._outcome

    def _write_files(self, deadline_s: float) -> None:
        """Raises: Fs3Error: nothing was written."""
        index, offsets, lengths, places = self.request.columns[:4]
        self._check_memory(lengths, places)
        used = np.unique(index)
        if used[0] < 0 or used[-1] >= len(self.files):
            raise Invalid(f"file numbers from {used[0]} to {used[-1]}: there are {len(self.files)} files, from 0 on")
        of_files = [(self.files[number], np.flatnonzero(index == number)) for number in used.tolist()]
        for file, mine in of_files:
            _check_file(file.path, offsets[mine], lengths[mine])
        self._outcome.results["length"] = lengths
        for file, mine in of_files:
            try:
                errors = file.write(offsets[mine], lengths[mine], self.data, places[mine], deadline_s)
            except Fs3Error as error:
                errors = [error] * len(mine)
            self._failed(mine, errors)

    def _write_chunks(self, deadline_s: float) -> None:
        """Raises: Fs3Error: nothing was written."""
        ranges, places, flags = self.request.ranges, self.request.places, self.request.flags
        lengths = ranges["length"].astype(np.int64)
        self._check_memory(lengths, places)
        if ranges["offset"].any() or int(lengths.max()) > MAX_CHUNK_BYTES:
            raise Invalid(f"chunks are written whole, from offset 0, up to {MAX_CHUNK_BYTES} bytes")
        if len(np.unique(ranges[["hi", "lo"]])) < len(ranges):
            raise Invalid("a chunk is named twice in one batch; which would come last is not defined")
        rows = zip(ranges[["hi", "lo", "chain"]].tolist(), places.tolist(), lengths.tolist(), strict=True)
        updates = [
            ChunkUpdate(
                hi=hi,
                lo=lo,
                chain=chain,
                op=Change.PUT_IF_ABSENT if flags & Flag.IF_ABSENT else Change.REPLACE,
                data=self.data[place : place + length],
                durable=not flags & Flag.OS_DURABILITY,
            )
            for (hi, lo, chain), place, length in rows
        ]
        results, errors = self.client.storage.try_write(updates, deadline_s=deadline_s)
        self._outcome.results["chunk_length"] = results["chunk_length"]
        self._outcome.results["length"] = np.where(results["version"] != 0, lengths, 0)
        self._failed(np.arange(len(ranges)), errors)

    def _check_memory(self, lengths: I64, places: I64) -> None:
        """Raises: Invalid."""
        size = len(self.data)
        if int(lengths.min()) < 0 or int(places.min()) < 0 or bool((places > size - lengths).any()):
            raise Invalid(
                f"{len(lengths)} ranges are not within the memory of {size} bytes where they should come from"
            )

    def _failed(self, places: I64, errors: Sequence[Fs3Error | None]) -> None:
        for place, error in zip(places.tolist(), errors, strict=True):
            if error is not None:
                self._outcome.failed(np.array([place]), error)


def _check_file(path: str, offsets: I64, lengths: I64) -> None:
    """Ranges [n] of one file. Raises: Invalid."""
    if int(offsets.min()) < 0 or bool((offsets > MAX_FILE_BYTES - lengths).any()):
        raise Invalid(
            f"{path}: bytes from {int(offsets.min())} to {int(offsets.max())} and beyond: a file has from 0 to"
            f" {MAX_FILE_BYTES}"
        )
    if overlap(offsets, lengths):
        raise Invalid(f"{path}: ranges of one batch overlap in it; which would come last is not defined")
