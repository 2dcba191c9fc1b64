"""Tells what has stayed the same for a while, by the observer's own clock.

A lease that is judged so needs no common clock: whoever holds it changes a record from time to time, and it is over
once an observer has looked at the same record for the whole lease. A new observer starts counting from nothing, which
only ever errs on the side of waiting longer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Seen:
    value: bytes
    since_s: float
    last_s: float


class Unchanged:
    """Observations of keyed values; at most `max_keys` are remembered, others are not ripe until there is room."""

    __slots__ = ("_max_keys", "_seen")

    def __init__(self, max_keys: int = 100_000) -> None:
        self._max_keys = max_keys
        self._seen: dict[bytes, _Seen] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def age_s(self, now_s: float, key: bytes, value: bytes) -> float:
        """Note that `key` has `value` now; for how long it has been seen to have it."""
        seen = self._seen.get(key)
        if seen is not None and seen.value == value:
            seen.last_s = now_s
            return now_s - seen.since_s
        if seen is not None or len(self._seen) < self._max_keys:
            self._seen[key] = _Seen(value, now_s, now_s)
        return 0.0

    def forget(self, key: bytes) -> None:
        self._seen.pop(key, None)

    def forget_unseen(self, since_s: float) -> None:
        """Drop what was last seen before `since_s`, at the end of a pass over everything that began then."""
        self._seen = {key: seen for key, seen in self._seen.items() if seen.last_s >= since_s}
