"""Latencies of any number of calls in little room: a histogram whose buckets are 2.2% wide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PER_OCTAVE = 32
_OCTAVES = 42  # up to 73 minutes
BUCKETS = _PER_OCTAVE * _OCTAVES

Counts = NDArray[np.int64]


class Latencies:
    """Counts by nanoseconds; add up with `+=` those of others."""

    __slots__ = ("counts", "longest_ns")

    def __init__(self, counts: Counts | None = None, longest_ns: int = 0) -> None:
        self.counts: Counts = np.zeros(BUCKETS, dtype=np.int64) if counts is None else counts
        self.longest_ns = longest_ns

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __iadd__(self, other: Latencies) -> Latencies:
        self.counts += other.counts
        self.longest_ns = max(self.longest_ns, other.longest_ns)
        return self

    def note(self, ns: int) -> None:
        bucket = int(np.log2(max(ns, 1)) * _PER_OCTAVE)
        self.counts[min(bucket, BUCKETS - 1)] += 1
        self.longest_ns = max(self.longest_ns, ns)

    def percentile_ns(self, percent: float) -> float:
        """What so many of the calls did not exceed, within 2.2%; 0 if there were none."""
        total = len(self)
        if not total:
            return 0.0
        below = np.searchsorted(np.cumsum(self.counts), total * percent / 100, side="left")
        return float(min(2.0 ** ((int(below) + 1) / _PER_OCTAVE), self.longest_ns))
