"""A light reader and writer beside the training, which notes every call: what storage gives while a daemon is gone.

Both go through fsspec, as users do. The reader fetches batches of random ranges of the corpus, the writer publishes a
small file each time; every byte that was read is compared with what was written. They keep a pace, so that the trainer
is not slowed down; a call that takes longer shows as a dip, and one that raises is a failure of the demo.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

READ_EVERY_S = 0.05
READ_RANGES = 8
READ_BYTES = 64 * 1024
WRITE_EVERY_S = 0.2
WRITE_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Call:
    """One call that ended well; times are seconds since 1970."""

    began: float
    ended: float
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """All calls of a sampler, in the order in which they ended."""

    reads: tuple[Call, ...]
    writes: tuple[Call, ...]
    failures: tuple[str, ...]
    """calls that raised or returned other bytes than were written, in words"""


class Sampler:
    """Reads `files` (path -> content) and writes under `scratch`, from two threads, between `start` and `stop`."""

    def __init__(self, fs: Any, files: dict[str, bytes], scratch: str, seed: int = 0) -> None:
        self._fs = fs
        self._files = {path: content for path, content in files.items() if len(content) > READ_BYTES}
        assert self._files, f"no file larger than {READ_BYTES} bytes to read from"
        self._scratch = scratch
        self._seed = seed
        self._stop = threading.Event()
        self._reads: list[Call] = []
        self._writes: list[Call] = []
        self._failures: list[str] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin; each kind of call at its own pace."""
        self._fs.makedirs(self._scratch, exist_ok=True)
        reader = self._reader(np.random.default_rng(self._seed))
        for name, call, calls, every_s in (
            ("reader", reader, self._reads, READ_EVERY_S),
            ("writer", self._write, self._writes, WRITE_EVERY_S),
        ):
            thread = threading.Thread(target=self._loop, args=(name, call, calls, every_s), name=f"sampler-{name}")
            self._threads.append(thread)
            thread.start()

    @property
    def failures(self) -> tuple[str, ...]:
        """The failures so far."""
        return tuple(self._failures)

    @property
    def first_began(self) -> float:
        """When the first read that ended well had begun, in seconds since 1970; infinity before there is one."""
        return self._reads[0].began if self._reads else float("inf")

    @property
    def last_ended(self) -> float:
        """When both kinds of call had last ended well, in seconds since 1970; 0 before the first of each."""
        return min(calls[-1].ended if calls else 0.0 for calls in (self._reads, self._writes))

    def stop(self) -> Sampled:
        """End after the calls in flight; more than once does no harm."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        return Sampled(reads=tuple(self._reads), writes=tuple(self._writes), failures=tuple(self._failures))

    def lost_writes(self) -> list[str]:
        """Acknowledged writes that cannot be read back as they were written, in words. Call it after `stop`."""
        paths = [self._name(number) for number in range(len(self._writes))]
        lost = []
        for at in range(0, len(paths), 64):
            part = paths[at : at + 64]
            found = self._fs.cat_ranges(part, [0] * len(part), [None] * len(part), on_error="return")
            for number, (path, content) in enumerate(zip(part, found, strict=True), start=at):
                if isinstance(content, Exception):
                    lost.append(f"{path}: {content}")
                elif content != self._content(number):
                    lost.append(f"{path}: other bytes than were written")
        return lost

    def _loop(self, name: str, call: Callable[[], int], calls: list[Call], every_s: float) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            began = time.time()
            try:
                num_bytes = call()
            except (OSError, ValueError) as error:
                self._failures.append(f"{name}: {type(error).__name__}: {error}")
            else:
                calls.append(Call(began, time.time(), num_bytes))
            due = max(due + every_s, time.monotonic())
            self._stop.wait(due - time.monotonic())

    def _reader(self, random: np.random.Generator) -> Callable[[], int]:
        paths = list(self._files)

        def read() -> int:
            chosen = [paths[i] for i in random.integers(len(paths), size=READ_RANGES)]
            starts = [int(random.integers(len(self._files[path]) - READ_BYTES)) for path in chosen]
            ends = [start + READ_BYTES for start in starts]
            found = self._fs.cat_ranges(chosen, starts, ends, on_error="raise")
            for path, start, end, content in zip(chosen, starts, ends, found, strict=True):
                if content != self._files[path][start:end]:
                    raise ValueError(f"{path}: bytes {start} to {end} are not those that were written")
            return READ_RANGES * READ_BYTES

        return read

    def _write(self) -> int:
        number = len(self._writes)
        self._fs.pipe_file(self._name(number), self._content(number))
        return WRITE_BYTES

    def _name(self, number: int) -> str:
        return f"{self._scratch}/{number:06d}"

    def _content(self, number: int) -> bytes:
        return np.random.default_rng((self._seed, number)).bytes(WRITE_BYTES)


def throughput(calls: tuple[Call, ...], edges: np.ndarray) -> np.ndarray:
    """Bytes a second in each bin between `edges` [n + 1], the bytes of a call spread over the time it took: float [n].

    Cumulative bytes are linear within a call, so that their difference at the edges is exact for any overlap.
    """
    began = np.array([call.began for call in calls])
    ended = np.array([call.ended for call in calls])
    size = np.array([call.bytes for call in calls], dtype=np.float64)
    span = np.maximum(ended - began, 1e-9)
    done = np.clip((edges[:, None] - began[None, :]) / span[None, :], 0.0, 1.0) @ size
    rates: np.ndarray = np.diff(done) / np.diff(edges)
    return rates


def slowest_s(calls: tuple[Call, ...], edges: np.ndarray) -> np.ndarray:
    """The longest call that was in flight in each bin, in seconds, NaN where there was none: float [n]."""
    out = np.full(len(edges) - 1, np.nan)
    for call in calls:
        first = max(int(np.searchsorted(edges, call.began, side="right")) - 1, 0)
        last = min(int(np.searchsorted(edges, call.ended, side="left")), len(out))
        out[first:last] = np.fmax(out[first:last], call.ended - call.began)
    return out
