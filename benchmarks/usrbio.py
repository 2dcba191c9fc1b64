"""Reads while a Python thread keeps the interpreter busy, through USRBIO and through the client in the process itself.

A busy thread takes a core, besides the interpreter: so the same loop in another process stands beside it, which takes
the core alone; where client and daemons have no other cores, that much cannot be had back. Rings have `DEPTH` batches
under way, as a loader that reads ahead has; the client reads one after the other.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.context import Context
from benchmarks.rounds import Case, Timed, for_seconds
from benchmarks.rows import Row, make_row
from fs3 import usrbio
from fs3.client.file import OpenFile

AT_LEAST_TIMES = 0.9
DEPTH = 16
SHAPES = (("4 KiB x 256", 4 << 10, 256), ("1 MiB", 1 << 20, 1), ("4 MiB", 4 << 20, 1))
RING_BUSY, RING_QUIET = "USRBIO, a busy thread", "USRBIO, no busy thread"
RING_OTHER = "USRBIO, a busy process beside"
CLIENT_BUSY, CLIENT_QUIET = "client, a busy thread", "client, no busy thread"
CLIENT_OTHER = "client, a busy process beside"
_TURNS = 64
_BUSY = "while True:\n    pass"


def measure(context: Context) -> list[Row]:
    """A row for each shape of batches, on 1 replica: bytes a second while a thread of this process computes."""
    file = context.remote(1)
    rows = []
    with usrbio.open(context.cluster.url, idle_s=5.0) as io:
        for name, read_bytes, count in SHAPES:
            with io.iov(DEPTH * read_bytes * count) as iov, io.ior(depth=DEPTH, ranges=count) as ring:
                rows.append(_row(context, _Reads(context, file, iov, ring, read_bytes, count), name))
    return rows


def _row(context: Context, reads: _Reads, name: str) -> Row:
    reads.check()
    cases: dict[str, Case] = {}
    for beside, ring_name, client_name in (
        (contextlib.nullcontext, RING_QUIET, CLIENT_QUIET),
        (_busy_process, RING_OTHER, CLIENT_OTHER),
        (_busy_thread, RING_BUSY, CLIENT_BUSY),
    ):
        cases[ring_name] = _beside(beside, reads.by_ring)
        cases[client_name] = _beside(beside, reads.by_client)
    runs = context.measure(f"busy interpreter, {name}", cases)
    return make_row(
        f"{name} random reads, a busy Python thread",
        "GB/s",
        runs,
        ours=RING_BUSY,
        others=[RING_QUIET, RING_OTHER, CLIENT_BUSY, CLIENT_QUIET, CLIENT_OTHER],
        at_least_times={RING_QUIET: AT_LEAST_TIMES, RING_OTHER: AT_LEAST_TIMES},
    )


@dataclass(slots=True)
class _Reads:
    """Batches of `count` random ranges of `file`, [_TURNS] of them made up beforehand."""

    context: Context
    file: OpenFile
    iov: usrbio.Iov
    ring: usrbio.Ior
    read_bytes: int
    count: int

    def offsets(self) -> NDArray[np.int64]:
        """[_TURNS, count]"""
        blocks = self.context.sizes.file_bytes // self.read_bytes
        return np.random.default_rng(17).integers(0, blocks, (_TURNS, self.count)) * self.read_bytes

    def by_ring(self) -> Timed:
        """With `DEPTH` batches under way; those begun before the end count when they have ended."""
        ring, iov, files = self.ring, self.iov, usrbio.Files([self.file])
        offsets, lengths, first = self.offsets(), self._lengths(), np.zeros(self.count, dtype=np.int64)
        size = self.read_bytes * self.count
        places = [np.arange(self.count) * self.read_bytes + place * size for place in range(DEPTH)]
        free, used = list(range(DEPTH)), {}

        def step(number: int) -> float:
            while free:
                place = free.pop()
                used[ring.read(files, first, offsets[(number + place) % _TURNS], lengths, iov, places[place])] = place
            done = ring.wait()
            free.extend(used.pop(one.check().number) for one in done)
            return len(done) * size

        timed = for_seconds(step, self.context.sizes.seconds)
        ring.wait(at_least=ring.under_way)
        return timed

    def by_client(self) -> Timed:
        """One call after the other, into all of the same memory in turn."""
        files, size = self.context.client.files, self.read_bytes * self.count
        outs = [self.iov.view[place * size : (place + 1) * size] for place in range(DEPTH)]
        offsets, lengths, first = self.offsets(), self._lengths(), np.zeros(self.count, dtype=np.int64)

        def step(number: int) -> float:
            files.read_batch([self.file], first, offsets[number % _TURNS], lengths, outs[number % DEPTH])
            return size

        return for_seconds(step, self.context.sizes.seconds)

    def check(self) -> None:
        """That a ring reads what was written."""
        offsets, lengths = self.offsets()[0], self._lengths()
        places = np.arange(self.count) * self.read_bytes
        self.ring.read(usrbio.Files([self.file]), np.zeros(self.count, np.int64), offsets, lengths, self.iov, places)
        self.ring.wait()[0].check()
        with self.context.local_path.open("rb") as local:
            for place, offset in zip(places.tolist(), offsets.tolist(), strict=True):
                local.seek(offset)
                if local.read(self.read_bytes) != self.iov.view[place : place + self.read_bytes]:
                    raise AssertionError(f"{self.file.path} differs from what was written, at byte {offset}")

    def _lengths(self) -> NDArray[np.int64]:
        return np.full(self.count, self.read_bytes, dtype=np.int64)


def _beside(busy: Callable[[], AbstractContextManager[None]], run: Callable[[], Timed]) -> Case:
    def case() -> Timed:
        with busy():
            return run()

    return case


@contextmanager
def _busy_thread() -> Iterator[None]:
    """Computes in this process."""
    stop = False

    def work() -> None:
        while not stop:
            pass

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop = True
        thread.join()


@contextmanager
def _busy_process() -> Iterator[None]:
    """Computes in another."""
    with subprocess.Popen([sys.executable, "-c", _BUSY]) as process:
        try:
            yield
        finally:
            process.kill()
