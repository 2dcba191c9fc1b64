"""What the I/O process does with a batch that writes: the ordinary client's writes, from the application's memory.

Whatever is wrong with a batch is found before any of it is written. Then every range tells what became of it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence

import numpy as np

from fs3.client.connect import Client
from fs3.client.plan_core import I64, overlap
from fs3.client.storage import ChunkUpdate
from fs3.client.storage import Op as Change
from fs3.clock import lease_now_s
from fs3.errors import Fs3Error, Invalid, Unavailable
from fs3.layout import MAX_CHUNK_BYTES, MAX_FILE_BYTES
from fs3.usrbio.held import Errors, Held, Share
from fs3.usrbio.reading import Outcome
from fs3.usrbio.ring_core import Request
from fs3.usrbio.ring_format import RANGE_RESULT, Flag, Op


class Writing:
    """One batch, written from `data` for `client`; `files` is the set that its ranges name. `ended` is called once."""

    def __init__(
        self,
        client: Client,
        request: Request,
        files: Sequence[Held],
        data: memoryview,
        ended: Callable[[Outcome], None],
    ) -> None:
        self._client = client
        self._request = request
        self._files = files
        self._data = data
        self._ended = ended
        self._outcome = Outcome(np.zeros(request.count, dtype=RANGE_RESULT))
        self._lock = threading.Lock()
        self._left = 0  # files whose share has not ended

    def begin(self) -> None:
        """Write it, or leave it to whoever writes its files already."""
        request = self._request
        deadline_s = request.deadline_ns / 1e9
        shares: list[tuple[Held, Share]] = []
        try:
            if lease_now_s() >= deadline_s:
                raise Unavailable("the batch's time was over before the I/O process came to it; nothing was written")
            if request.op == Op.WRITE:
                shares = self._shares(deadline_s)
            else:
                self._write_chunks(deadline_s)
        except Fs3Error as error:
            self._outcome.failed(np.arange(request.count), error)
        self._left = len(shares)
        for file, share in shares:
            file.write(share)
        if not shares:
            self._ended(self._outcome)

    def _shares(self, deadline_s: float) -> list[tuple[Held, Share]]:
        """What the batch has for each of its files. Raises: Invalid."""
        index, offsets, lengths, places = self._request.columns[:4]
        self._check_memory(lengths, places)
        used = np.unique(index)
        if used[0] < 0 or used[-1] >= len(self._files):
            raise Invalid(f"file numbers from {used[0]} to {used[-1]}: there are {len(self._files)} files, from 0 on")
        of_files = [(self._files[number], np.flatnonzero(index == number)) for number in used.tolist()]
        for file, mine in of_files:
            _check_file(file.path, offsets[mine], lengths[mine])
        self._outcome.results["length"] = lengths
        shares = []
        for file, mine in of_files:
            rows = zip(places[mine].tolist(), lengths[mine].tolist(), strict=True)
            datas = [self._data[place : place + length] for place, length in rows]
            shares.append((file, Share(offsets[mine], datas, deadline_s, functools.partial(self._share_ended, mine))))
        return shares

    def _share_ended(self, mine: I64, errors: Errors) -> None:
        with self._lock:
            self._failed(mine, errors)
            self._left -= 1
            if self._left:
                return
        self._ended(self._outcome)

    def _write_chunks(self, deadline_s: float) -> None:
        """Raises: Fs3Error: nothing was written."""
        ranges, places, flags = self._request.ranges, self._request.places, self._request.flags
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
                data=self._data[place : place + length],
                durable=not flags & Flag.OS_DURABILITY,
            )
            for (hi, lo, chain), place, length in rows
        ]
        results, errors = self._client.storage.try_write(updates, deadline_s=deadline_s)
        self._outcome.results["chunk_length"] = results["chunk_length"]
        self._outcome.results["length"] = np.where(results["version"] != 0, lengths, 0)
        self._failed(np.arange(len(ranges)), errors)

    def _check_memory(self, lengths: I64, places: I64) -> None:
        """Raises: Invalid."""
        size = len(self._data)
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
