"""Client sessions as leases: which have not been renewed for so long that they end.

A mgmtd that has just become the primary counts every session from its own start, as it does with nodes: it cannot know
what its predecessor heard last. A session that is about to end (its end is being committed) cannot be renewed any more.
"""

from __future__ import annotations

from collections.abc import Iterable


class SessionLeases:
    """Times are seconds on one monotone clock."""

    def __init__(self, session_s: float) -> None:
        assert session_s > 0, session_s
        self._session_s = session_s
        self._since_s: dict[int, float] = {}
        self._ending: set[int] = set()

    def restore(self, live: Iterable[int], now_s: float) -> None:
        """Know exactly the sessions of `live`; those not known before count from `now_s`, and none is ending."""
        self._since_s = {session_id: self._since_s.get(session_id, now_s) for session_id in sorted(live)}
        self._ending.clear()

    def opened(self, session_id: int, now_s: float) -> None:
        self._since_s[session_id] = now_s

    def renewed(self, session_id: int, now_s: float) -> None:
        """A session that is not known, or ending, stays so."""
        if session_id in self._since_s and session_id not in self._ending:
            self._since_s[session_id] = now_s

    def ending(self, now_s: float, closed: Iterable[int] = (), *, most: int) -> list[int]:
        """At most `most` sessions to end now: of `closed` those that live, and those that have run out."""
        due = {session_id for session_id in closed if session_id in self._since_s}
        due.update(key for key, since_s in self._since_s.items() if now_s >= since_s + self._session_s)
        chosen = sorted(due - self._ending)[:most]
        self._ending.update(chosen)
        return chosen

    def ended(self, session_ids: Iterable[int]) -> None:
        """Their end was committed."""
        for session_id in session_ids:
            self._since_s.pop(session_id, None)
            self._ending.discard(session_id)

    def stay(self, session_ids: Iterable[int]) -> None:
        """Their end could not be committed."""
        self._ending.difference_update(session_ids)

    def next_expiry_s(self) -> float | None:
        """When the first session runs out if none is renewed."""
        waiting = [since_s for key, since_s in self._since_s.items() if key not in self._ending]
        return min(waiting) + self._session_s if waiting else None
