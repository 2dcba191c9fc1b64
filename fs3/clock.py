"""The clocks of fs3's shells; cores never read one, they are handed `now_s`.

Leases are counted on CLOCK_BOOTTIME: it is monotone and goes on while the machine is suspended, so that a daemon that
wakes up late knows that its lease has run out.
"""

from __future__ import annotations

import time


def lease_now_s() -> float:
    """Seconds on a monotone clock that includes time spent suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def lease_now_ns() -> int:
    """The same clock, in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def deadline_after(seconds: float) -> float:
    """The absolute `lease_now_s` time that lies `seconds` ahead."""
    return lease_now_s() + seconds


def wall_now_ns() -> int:
    """Nanoseconds since 1970, for times that people see (mtime); decides only what is due in the trash."""
    return time.time_ns()
