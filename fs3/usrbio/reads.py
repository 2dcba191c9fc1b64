"""Reads and writes of whole chunks that are waited for, as those of `FileClient` and `StorageClient`, through rings:
what the loader and the KV cache use instead of them.

Each call has a ring of its own, which later ones use again. What is to be read into memory of an `Iov` made here goes
straight there, and what lies in one is written from there; for any other memory it is done beside, with a copy.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import flat
from fs3.client.file import OpenFile
from fs3.client.plan_core import I64, column, out_runs, packed_offsets
from fs3.client.storage import LONGEST_S, RANGE, ChunkUpdate, Op
from fs3.clock import deadline_after, lease_now_s
from fs3.errors import Fs3Error, Invalid, Unavailable, from_code
from fs3.usrbio.application import UsrBio
from fs3.usrbio.ior import Done, Ior
from fs3.usrbio.iov import Files, Iov
from fs3.usrbio.ring_format import RANGE_RESULT

BESIDE_BYTES = 32 << 20  # read or written beside, with a copy, at once
PART_BYTES = 2 << 20  # a call for more is cut into several batches, to be read by several workers
MOST_PARTS = 4
MOST_KEPT = 8  # rings without a call
_TIMEOUT_S = 30.0

# Through this ring submits some of a call's ranges into this memory at these places, to end within so many seconds; the
# batch's number.
Submit = Callable[[Ior, slice, Iov, I64, float], int]


@dataclass(slots=True)
class _Kept:
    ring: Ior
    beside: Iov | None = None

    def close(self) -> None:
        self.ring.close()
        if self.beside is not None:
            self.beside.close()


class RingReads:
    """Thread-safe; in a forked child make another. It closes `io` with itself."""

    def __init__(self, io: UsrBio) -> None:
        self._io = io
        self._lock = threading.Lock()
        self._kept: list[_Kept] = []
        self._lent = 0
        self._closed = False
        self._iovs: weakref.WeakSet[Iov] = weakref.WeakSet()

    def iov(self, nbytes: int) -> Iov:
        """Memory that is read into without a copy. Raises: NoSpace."""
        made = self._io.iov(nbytes)
        with self._lock:
            self._iovs.add(made)
        return made

    def open_many(self, paths: Sequence[str]) -> list[OpenFile]:
        """See `FileClient.open_many`."""
        return self._io.open_many(paths)

    def read_batch(
        self,
        files: Files,
        file_index: NDArray[np.integer],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        out: memoryview,
        out_offsets: NDArray[np.int64],
        *,
        deadline_s: float | None = None,
    ) -> None:
        """See `FileClient.read_batch`."""
        count = len(lengths)
        index, offsets = column(file_index, count, "file numbers"), column(offsets, count, "offsets")
        sizes = column(lengths, count, "lengths")

        def submit(ring: Ior, part: slice, iov: Iov, places: I64, timeout_s: float) -> int:
            return ring.read(files, index[part], offsets[part], sizes[part], iov, places, timeout_s=timeout_s)

        self._read(submit, sizes, out, column(out_offsets, count, "places in the buffer"), deadline_s)

    def read(
        self, ranges: NDArray[Any], out: memoryview, out_offsets: NDArray[np.int64], *, deadline_s: float | None = None
    ) -> NDArray[Any]:
        """See `StorageClient.read`; RANGE_RESULT records [n]."""

        def submit(ring: Ior, part: slice, iov: Iov, places: I64, timeout_s: float) -> int:
            return ring.read_chunks(ranges[part], iov, places, timeout_s=timeout_s)

        sizes = ranges["length"].astype(np.int64)
        return self._read(submit, sizes, out, column(out_offsets, len(ranges), "places in the buffer"), deadline_s)

    def try_write(self, updates: Sequence[ChunkUpdate], *, deadline_s: float | None = None) -> list[Fs3Error | None]:
        """As `StorageClient.try_write`, for whole chunks (REPLACE and PUT_IF_ABSENT); what befell each: [n].

        Raises: Fs3Error: there is no I/O process, and nothing was written.
        """
        until_s = deadline_after(_TIMEOUT_S) if deadline_s is None else deadline_s
        errors: list[Fs3Error | None] = [None] * len(updates)
        kinds = [(update.op, update.durable) for update in updates]
        for kind in dict.fromkeys(kinds):
            mine = [place for place, one in enumerate(kinds) if one == kind]
            befell = self._write([updates[place] for place in mine], kind, until_s)
            for place, error in zip(mine, befell, strict=True):
                errors[place] = error
        return errors

    def close(self) -> None:
        """Close every ring, and let go of the I/O process; calls under way go on, and the last does that at its end."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, []
            last = not self._lent
        for one in kept:
            one.close()
        if last:
            self._io.close()

    def _read(self, submit: Submit, sizes: I64, out: memoryview, places: I64, deadline_s: float | None) -> NDArray[Any]:
        until_s = deadline_after(_TIMEOUT_S) if deadline_s is None else deadline_s
        results = np.zeros(len(sizes), dtype=RANGE_RESULT)
        if not len(sizes):
            return results
        _check(sizes, out, places)
        kept = self._borrow()
        try:
            found = self._place(out)
            if found is not None:
                iov, at = found
                self._run(kept.ring, submit, iov, slice(0, len(sizes)), sizes, places + at, until_s, results)
                return results
            for part in _cuts(sizes):
                beside = self._beside(kept, int(sizes[part].sum()))
                starts = packed_offsets(sizes[part])
                self._run(kept.ring, submit, beside, part, sizes, starts, until_s, results)
                _copy(beside.view, out, places[part], sizes[part])
        finally:
            self._give_back(kept)
        return results

    def _write(self, updates: Sequence[ChunkUpdate], kind: tuple[Op, bool], until_s: float) -> list[Fs3Error | None]:
        op, durable = kind
        assert op in (Op.REPLACE, Op.PUT_IF_ABSENT), op
        datas = [flat(update.data) for update in updates]
        ranges = np.zeros(len(updates), dtype=RANGE)
        for name in ("hi", "lo", "chain"):
            ranges[name] = [getattr(update, name) for update in updates]
        sizes = np.array([len(data) for data in datas], dtype=np.int64)
        ranges["length"] = sizes

        def submit(ring: Ior, part: slice, iov: Iov, places: I64, timeout_s: float) -> int:
            absent = op == Op.PUT_IF_ABSENT
            return ring.write_chunks(ranges[part], iov, places, if_absent=absent, durable=durable, timeout_s=timeout_s)

        results = np.zeros(len(updates), dtype=RANGE_RESULT)
        results["status"] = Unavailable.code  # of those that are never submitted
        why: Fs3Error | None = None
        kept = self._borrow()
        try:
            self._write_from(kept, submit, sizes, datas, until_s, results)
        except Fs3Error as error:
            why = error
        finally:
            self._give_back(kept)
        return [from_code(code, str(why)) if code else None for code in results["status"].tolist()]

    def _write_from(
        self,
        kept: _Kept,
        submit: Submit,
        sizes: I64,
        datas: Sequence[memoryview],
        until_s: float,
        results: NDArray[Any],
    ) -> None:
        """Raises: Fs3Error: the first that befell any, when all that were submitted have ended."""
        found = [self._place(data) for data in datas]
        iovs = {one[0] for one in found if one is not None}
        if len(iovs) == 1 and None not in found:
            places = np.array([one[1] for one in found if one is not None], dtype=np.int64)
            self._run(kept.ring, submit, iovs.pop(), slice(0, len(datas)), sizes, places, until_s, results)
            return
        for part in _cuts(sizes):
            beside, starts = self._beside(kept, int(sizes[part].sum())), packed_offsets(sizes[part])
            for start, data in zip(starts.tolist(), datas[part], strict=True):
                beside.view[start : start + len(data)] = data
            self._run(kept.ring, submit, beside, part, sizes, starts, until_s, results)

    def _run(
        self,
        ring: Ior,
        submit: Submit,
        iov: Iov,
        part: slice,
        sizes: I64,
        places: I64,
        until_s: float,
        results: NDArray[Any],
    ) -> None:
        """Read or write ranges `part`, in several batches so that workers share them.

        Raises: Fs3Error, when all have ended.
        """
        count = part.stop - part.start
        parts = min(max(int(sizes[part].sum()) // PART_BYTES, 1), MOST_PARTS)
        step = min(-(-count // parts), ring.ranges)
        begun: dict[int, slice] = {}
        ended: list[Done] = []
        for first in range(0, count, step):
            some = slice(part.start + first, part.start + min(first + step, count))
            if ring.under_way == ring.depth:
                ended += ring.wait()
            left_s = min(until_s - lease_now_s(), LONGEST_S)
            if left_s <= 0:
                break
            number = submit(ring, some, iov, places[first : first + step], left_s)
            begun[number] = some
        ended += ring.wait(at_least=ring.under_way)
        for done in ended:
            results[begun[done.number]] = done.results
        for done in sorted(ended, key=lambda one: one.number):
            done.check()
        if sum(some.stop - some.start for some in begun.values()) < count:
            raise Unavailable("the call's time was over before all of it was submitted")

    def _place(self, out: memoryview) -> tuple[Iov, int] | None:
        with self._lock:
            iovs = list(self._iovs)
        for iov in iovs:
            at = iov.place_of(out)
            if at is not None:
                return iov, at
        return None

    def _beside(self, kept: _Kept, size: int) -> Iov:
        if kept.beside is None or kept.beside.nbytes < size:
            if kept.beside is not None:
                kept.beside.close()
                kept.beside = None
            kept.beside = self._io.iov(1 << max(size - 1, 1).bit_length())
        return kept.beside

    def _borrow(self) -> _Kept:
        """Raises: Fs3Error."""
        with self._lock:
            if self._closed:
                raise Invalid("this USRBIO is closed; open it again")
            self._lent += 1
            if self._kept:
                return self._kept.pop()
        try:
            return _Kept(self._io.ior(depth=16, ranges=4_096))
        except BaseException:
            self._give_back(None)
            raise

    def _give_back(self, kept: _Kept | None) -> None:
        """End a loan; None: of what could not be made."""
        with self._lock:
            if kept is not None and not (self._closed or kept.ring.under_way or len(self._kept) == MOST_KEPT):
                self._kept.append(kept)
                kept = None
        if kept is not None:
            kept.close()  # if interrupted: what it reads ends before its memory is anybody else's
        with self._lock:
            self._lent -= 1
            last = self._closed and not self._lent
        if last:
            self._io.close()


def _check(sizes: I64, out: memoryview, places: I64) -> None:
    """Raises: Invalid."""
    if out.readonly:
        raise Invalid("the buffer is read-only; read into a bytearray, or a writable array")
    if int(sizes.min()) < 0 or int(places.min()) < 0 or bool((places > len(out) - sizes).any()):
        raise Invalid(f"{len(sizes)} ranges do not fit into a buffer of {len(out)} bytes where they should go")


def _cuts(sizes: I64) -> Iterator[slice]:
    """Neighbouring ranges that are read beside together: `BESIDE_BYTES` of them, or one that has more."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, before + BESIDE_BYTES, side="right")), first + 1)
        yield slice(first, last)
        first = last


def _copy(packed: memoryview, out: memoryview, places: I64, sizes: I64) -> None:
    """Ranges that lie one after the other to where they belong; a run of neighbours in one copy."""
    at = 0
    for begin, end in out_runs(places, sizes):
        out[begin:end] = packed[at : at + end - begin]
        at += end - begin
