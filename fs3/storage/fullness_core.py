"""How full a disk is, and what that stops: first a warning, then new chunks, then every write but removals.

    NEARLY      a warning: it is time to remove something, or to add a disk
    NO_NEW      what would make a chunk is refused; what is there can be overwritten, which takes a block and frees one
    NO_WRITES   the disk itself is as good as full, whoever filled it: only removals, so that it can become better

A level is left only when there is a little more room than it takes to enter it, so that a disk at its edge does not
change its mind with every write. 3FS warns at 96% and refuses new chunks at 98%.
"""

from __future__ import annotations

from enum import IntEnum

_HYSTERESIS = 0.01  # of the room for chunks
_MORE_RESERVE = 1.25


class Fullness(IntEnum):
    """In rising order; what holds for one holds for those above it."""

    NORMAL = 0
    NEARLY = 1
    NO_NEW = 2
    NO_WRITES = 3


def fullness(
    before: Fullness,
    *,
    used: int,
    total: int,
    disk_free: int,
    warn_used: float,
    refuse_used: float,
    hard_reserve: int,
) -> Fullness:
    """The level now: `used` of `total` bytes for chunks, `disk_free` bytes of the disk; a threshold of 1 is none."""
    share = used / total if total else 0.0
    level = Fullness.NORMAL
    for threshold, above in ((warn_used, Fullness.NEARLY), (refuse_used, Fullness.NO_NEW)):
        slack = _HYSTERESIS if before >= above else 0.0
        if threshold < 1 and share >= threshold - slack:
            level = above
    if disk_free < hard_reserve * (_MORE_RESERVE if before is Fullness.NO_WRITES else 1.0):
        level = Fullness.NO_WRITES
    return level
