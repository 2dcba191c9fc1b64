"""Which of several daemons, any of which can answer, to ask next.

Each client begins at another one, so that their load spreads, and stays with it: what is asked there again is in its
caches. One that failed is asked after all others, for a while; then it counts like any other, and clients come back to
it. Of those that failed of late, the one whose failure is longest ago comes first.
"""

from __future__ import annotations

from collections.abc import Collection

SHUN_S = 10.0


class Turns:
    """What one client knows about the daemons it asks."""

    __slots__ = ("_failed_s", "_start")

    def __init__(self, start: int) -> None:
        """`start` tells clients apart."""
        self._start = start
        self._failed_s: dict[str, float] = {}

    def order(self, addresses: Collection[str], now_s: float) -> list[str]:
        """Whom to ask first, second, and so on."""
        if len(addresses) == 1:
            return list(addresses)
        ordered = sorted(addresses)
        first = self._start % len(ordered) if ordered else 0
        ordered = ordered[first:] + ordered[:first]
        failed_s = {address: self._failed_s.get(address, float("-inf")) for address in ordered}
        shunned = {address: at_s for address, at_s in failed_s.items() if at_s + SHUN_S > now_s}
        return [address for address in ordered if address not in shunned] + sorted(shunned, key=shunned.__getitem__)

    def failed(self, address: str, now_s: float) -> None:
        """`address` did not answer, or said that it cannot."""
        self._failed_s[address] = now_s
        if len(self._failed_s) > 64:
            self._failed_s = {known: at_s for known, at_s in self._failed_s.items() if at_s + SHUN_S > now_s}

    def answered(self, address: str) -> None:
        """`address` is fine."""
        self._failed_s.pop(address, None)
