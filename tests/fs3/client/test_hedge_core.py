"""When a second replica is asked: past the percentile of what was measured, and within the budget."""

from __future__ import annotations

import random

import pytest

from fs3.client.hedge_core import ENDPOINTS, HedgeCore, HedgePolicy, Latency

POLICY = HedgePolicy(floor_s=0.01, unknown_s=0.1, share=0.05, burst=4.0)


@pytest.mark.parametrize("scale_s", [0.002, 0.05, 0.6])
def test_the_percentile_is_that_of_what_was_measured(scale_s: float) -> None:
    rng = random.Random(5)
    latency = Latency()
    seen = [rng.lognormvariate(0.0, 0.7) * scale_s for _ in range(400)]
    for seconds in seen:
        latency.add(seconds)
    true_s = sorted(seen)[int(0.95 * len(seen)) - 1]
    assert latency.percentile_s is not None
    assert true_s / 1.3 <= latency.percentile_s <= true_s * 1.3


def test_what_is_beyond_all_bounds_counts_as_the_largest() -> None:
    latency = Latency()
    for _ in range(100):
        latency.add(1e6)
    assert latency.percentile_s is not None and latency.percentile_s > 20.0


def test_a_daemon_that_has_become_slow_or_fast_is_soon_known_as_such() -> None:
    core = HedgeCore(POLICY)
    for seconds, low, high in [(0.02, 0.02, 0.025), (0.5, 0.5, 0.62), (0.02, 0.02, 0.025)]:
        for _ in range(6_000):
            core.replied("a", 4_096, seconds)
        assert low <= core.after_s("a", 4_096) <= high


def test_endpoints_and_sizes_are_told_apart_and_no_wait_is_shorter_than_the_floor() -> None:
    core = HedgeCore(POLICY)
    for _ in range(100):
        core.replied("a", 4_096, 0.0001)
        core.replied("a", 8 << 20, 0.2)
        core.replied("b", 4_096, 0.05)
    assert core.after_s("a", 4_096) == core.after_s("a", 16 << 10) == POLICY.floor_s
    assert 0.2 <= core.after_s("a", 16 << 20) <= 0.24
    assert 0.05 <= core.after_s("b", 1) <= 0.06
    assert core.after_s("b", 8 << 20) == core.after_s("c", 1) == POLICY.unknown_s


def test_hedges_are_a_share_of_the_requests_and_what_was_saved_up() -> None:
    core = HedgeCore(POLICY)
    assert [core.spend() for _ in range(6)] == [True] * 4 + [False] * 2
    for _ in range(1_000):
        core.asked()
        core.spend()
    assert core.requests == 1_000
    assert 4 + 48 <= core.hedges <= 4 + 50
    for _ in range(10_000):
        core.asked()
    assert [core.spend() for _ in range(6)] == [True] * 4 + [False] * 2


def test_endpoints_that_are_gone_are_forgotten() -> None:
    core = HedgeCore(POLICY)
    for number in range(20 * ENDPOINTS):
        core.replied(f"host:{number}", 1, 0.5)
    assert len(core._latencies) <= 7 * ENDPOINTS
