"""How long background work waits, so that it takes no more than its share of a disk or a network.

A leaky bucket on bytes: work is paid for after it was done, and an idle time is worth at most `slack_s` of it.
"""

from __future__ import annotations


class Pace:
    """At most `bytes_s` bytes a second over any longer time; 0: as fast as it goes."""

    def __init__(self, bytes_s: float, *, slack_s: float = 0.25) -> None:
        self.bytes_s = bytes_s
        self._slack_s = slack_s
        self._paid_until_s = float("-inf")

    def spent(self, bytes_: int, now_s: float) -> float:
        """`bytes_` were just moved; how many seconds to wait before the next ones."""
        if self.bytes_s <= 0:
            return 0.0
        self._paid_until_s = max(self._paid_until_s, now_s - self._slack_s) + bytes_ / self.bytes_s
        return max(self._paid_until_s - now_s, 0.0)
