"""Pacing on a clock that the test moves: never above the rate over a long time, and no credit for having been idle."""

from __future__ import annotations

import random

from fs3.storage.pace_core import Pace


def test_the_rate_holds_over_any_stretch() -> None:
    rng = random.Random(1)
    pace, now_s, moved = Pace(1_000.0, slack_s=0.5), 100.0, []
    for _ in range(500):
        bytes_ = rng.randrange(1, 3_000)
        moved.append((now_s, bytes_))
        now_s += pace.spent(bytes_, now_s) + rng.choice([0.0, 0.0, 0.01, 5.0])
    for first in range(0, 500, 7):
        for last in range(first, 500, 13):
            took_s = moved[last][0] - moved[first][0]
            # All but the last, which is paid for afterwards.
            assert sum(bytes_ for _, bytes_ in moved[first:last]) <= 1_000 * (took_s + 0.5) + 1e-6


def test_zero_is_no_limit() -> None:
    pace = Pace(0)
    assert [pace.spent(1 << 30, 1.0) for _ in range(3)] == [0.0, 0.0, 0.0]
