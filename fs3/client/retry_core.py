"""What a client does about each error of a storage daemon, and how long it waits before it asks again.

Reads can go to another replica at once. A write has one way in, the head of its chain, so it waits for mgmtd to name
another one; it is repeated under its old (channel, seq), which the daemons apply once.
"""

from __future__ import annotations

from enum import Enum

from fs3 import errors

FIRST_PAUSE_S = 0.005
LONGEST_PAUSE_S = 0.5
CORRUPT_WRITE_TRIES = 3


class Step(Enum):
    """What to do about a failed range or update."""

    OTHER = "ask another replica, now"
    TAIL = "ask the tail, which has no pending versions"
    REFRESH = "fetch a newer routing, then ask again"
    PAUSE = "ask again after a pause"
    FAIL = "give up, the answer will not change"


_READ = {
    errors.Unavailable.code: Step.OTHER,
    errors.Corrupt.code: Step.OTHER,
    errors.Busy.code: Step.OTHER,
    errors.Fs3Error.code: Step.OTHER,
    errors.Committing.code: Step.TAIL,
    errors.StaleRouting.code: Step.REFRESH,
    errors.Conflict.code: Step.PAUSE,
}

_WRITE = {
    errors.Unavailable.code: Step.REFRESH,
    errors.StaleRouting.code: Step.REFRESH,
    errors.MaybeApplied.code: Step.REFRESH,
    errors.Busy.code: Step.PAUSE,
    errors.Committing.code: Step.PAUSE,
    errors.Conflict.code: Step.PAUSE,
    errors.Corrupt.code: Step.PAUSE,
}

# An update that failed so may yet have been applied, or be applied by a replica that still holds it. The plain error is
# a defect in the daemon, met who knows where.
UNCERTAIN = frozenset({errors.Unavailable.code, errors.MaybeApplied.code, errors.Fs3Error.code})


def after_read(code: int) -> Step:
    """What to do about a range that failed with `code`."""
    return _READ.get(code, Step.FAIL)


def after_write(code: int, tries: int) -> Step:
    """What to do about an update that has failed `tries` times, last with `code`."""
    if code == errors.Corrupt.code and tries >= CORRUPT_WRITE_TRIES:
        return Step.FAIL  # bytes that change on every way across are changed before they leave
    return _WRITE.get(code, Step.FAIL)


def pause_s(attempt: int, jitter: float) -> float:
    """How long to wait after `attempt` (from 0) failures in a row; `jitter` in [0, 1) spreads clients out."""
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * (1 << min(attempt, 16)))
    return longest * (0.5 + 0.5 * jitter)
