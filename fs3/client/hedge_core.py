"""When to ask a second replica because the first is late, and how often that may be done.

A daemon that does not answer within its own 95th percentile is probably in trouble (stopped, swapping, behind a disk
that retries), while another has the same bytes. Dean and Barroso, "The Tail at Scale" (CACM 2013): a request that is
repeated elsewhere once it is later than most costs a few per cent more requests, and the tail goes.

    latency     a histogram for each endpoint and size class; what is old counts half, again and again
    due         past the percentile, and never before `floor_s`: shorter waits are the scheduler's, not the daemon's
    budget      each request earns `share` of a hedge. When everybody is slow everything is due, and a second request
                for each would double what they are slow with

Pure: no clock; whoever calls says what was measured.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

ENOUGH = 20  # measurements
WINDOW = 256  # measurements, after which what was before counts half
ENDPOINTS = 1_024
PERCENTILE = 0.95
_STEP = 1.2
_BOUNDS = [0.0005 * _STEP**place for place in range(60)]  # 0.5 ms to 23 s
_SIZES = [16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20]


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgePolicy:
    """How soon, and how often."""

    floor_s: float = 0.01
    unknown_s: float = 0.1  # to wait where too little has been measured
    share: float = 0.03
    burst: float = 16.0  # hedges that may be saved up: as many as threads may wait for one daemon when it stops


class Latency:
    """A histogram of seconds, from which the percentile is read."""

    __slots__ = ("_counts", "_total", "percentile_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._total = 0
        self.percentile_s: float | None = None  # not below it by more than a step; None: too little is known

    def add(self, seconds: float) -> None:
        """Count one measurement."""
        self._counts[bisect_left(_BOUNDS, seconds)] += 1
        self._total += 1
        if self._total >= 2 * WINDOW:
            self._counts = [count // 2 for count in self._counts]
            self._total = sum(self._counts)
        if self._total >= ENOUGH and self._total % 4 == 0:
            self.percentile_s = self._read()

    def _read(self) -> float:
        above = self._total - math.ceil(PERCENTILE * self._total)
        for place in range(len(_BOUNDS), 0, -1):
            above -= self._counts[place]
            if above < 0:
                return _BOUNDS[min(place, len(_BOUNDS) - 1)]
        return _BOUNDS[0]


class HedgeCore:
    """What one client has measured, and what it may still do."""

    def __init__(self, policy: HedgePolicy) -> None:
        self._policy = policy
        self._latencies: dict[tuple[str, int], Latency] = {}
        self._tokens = policy.burst
        self.requests = 0
        self.hedges = 0

    def replied(self, endpoint: str, bytes_: int, seconds: float) -> None:
        """An endpoint began to answer a request for so many bytes after so long."""
        key = (endpoint, bisect_left(_SIZES, bytes_))
        latency = self._latencies.get(key)
        if latency is None:
            if len(self._latencies) >= ENDPOINTS * (len(_SIZES) + 1):
                del self._latencies[next(iter(self._latencies))]  # the oldest; its like is soon measured again
            latency = self._latencies[key] = Latency()
        latency.add(seconds)

    def asked(self) -> None:
        """A request was sent that may be hedged."""
        self.requests += 1
        self._tokens = min(self._tokens + self._policy.share, self._policy.burst)

    def after_s(self, endpoint: str, bytes_: int) -> float:
        """How long to wait for an endpoint's answer before it is due to be hedged."""
        latency = self._latencies.get((endpoint, bisect_left(_SIZES, bytes_)))
        known_s = latency.percentile_s if latency is not None else None
        return self._policy.unknown_s if known_s is None else max(known_s, self._policy.floor_s)

    def spend(self) -> bool:
        """Whether one more request may be hedged; if so it counts as done."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        self.hedges += 1
        return True
