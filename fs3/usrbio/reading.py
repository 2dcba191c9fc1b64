"""What the I/O process does with a batch: the ordinary client's read, straight into the application's memory.

A batch is one call, as everywhere. Only when that fails it is asked again in parts, file by file, then by halves, all
before the same deadline, so that every range tells for itself what became of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.client.connect import Client
from fs3.client.file import OpenFile
from fs3.client.plan_core import overlap
from fs3.clock import lease_now_s
from fs3.errors import Corrupt, Fs3Error, Invalid, NotFound, Unavailable
from fs3.usrbio.ring_core import I64, Request
from fs3.usrbio.ring_format import RANGE_RESULT, Op

_OF_ONE_RANGE = (Invalid, NotFound, Corrupt)  # errors that other ranges of a batch need not share


@dataclass(slots=True)
class Outcome:
    """Of a batch: RANGE_RESULT records [n], and the first error."""

    results: NDArray[Any]
    error: Fs3Error | None = None

    def failed(self, places: I64, error: Fs3Error) -> None:
        """These ranges were not read."""
        self.results["status"][places] = error.code
        self.results["length"][places] = 0
        if self.error is None:
            self.error = error


@dataclass(slots=True)
class Reading:
    """One batch, read into `out` for `client`; `files` is the set that its ranges name."""

    client: Client
    request: Request
    files: Sequence[OpenFile]
    out: memoryview
    _outcome: Outcome = field(init=False)

    def run(self) -> Outcome:
        """Never raises an `Fs3Error`."""
        request = self.request
        self._outcome = Outcome(np.zeros(request.count, dtype=RANGE_RESULT))
        everything = np.arange(request.count, dtype=np.int64)
        read = self._read_files if request.op == Op.READ else self._read_chunks
        deadline_s = request.deadline_ns / 1e9
        lengths = request.columns[2] if request.op == Op.READ else request.ranges["length"].astype(np.int64)
        if lease_now_s() >= deadline_s:
            late = Unavailable("the batch's time was over before the I/O process came to it")
            self._outcome.failed(everything, late)
        elif overlap(request.places, lengths):
            self._outcome.failed(everything, Invalid("ranges overlap in the memory where they should go"))
        else:
            self._in_parts(read, everything, deadline_s)
        return self._outcome

    def _in_parts(self, read: Callable[[I64, float], None], places: I64, deadline_s: float) -> None:
        try:
            read(places, deadline_s)
        except Fs3Error as error:
            if len(places) == 1 or not isinstance(error, _OF_ONE_RANGE) or lease_now_s() >= deadline_s:
                self._outcome.failed(places, error)
                return
            for part in self._parts(places):
                self._in_parts(read, part, deadline_s)

    def _parts(self, places: I64) -> Sequence[I64]:
        if self.request.op == Op.READ:
            files = self.request.columns[0][places]
            apart = np.unique(files)
            if len(apart) > 1:
                middle = apart[len(apart) // 2]
                return (places[files < middle], places[files >= middle])
        return np.array_split(places, 2)

    def _read_files(self, places: I64, deadline_s: float) -> None:
        index, offsets, lengths, targets = (column[places] for column in self.request.columns[:4])
        used, of_used = np.unique(index, return_inverse=True)
        if used[0] < 0 or used[-1] >= len(self.files):
            raise Invalid(f"file numbers from {used[0]} to {used[-1]}: there are {len(self.files)} files, from 0 on")
        handles = [self.files[number] for number in used.tolist()]
        self.client.files.read_batch(
            handles, of_used.reshape(-1), offsets, lengths, self.out, targets, deadline_s=deadline_s
        )
        self._outcome.results["status"][places] = 0
        self._outcome.results["length"][places] = lengths

    def _read_chunks(self, places: I64, deadline_s: float) -> None:
        request = self.request
        found = self.client.storage.read(
            request.ranges[places], self.out, request.places[places], deadline_s=deadline_s
        )
        for name in ("status", "length", "chunk_length"):
            self._outcome.results[name][places] = found[name]
