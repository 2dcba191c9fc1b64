"""Which 4 KiB blocks of which chunks a process has read by itself and found to match their sums, so that reading them
again needs no sum.

What is remembered is (place, chunk, version) -> blocks. A block of a chunk's version never changes in its place, and
the daemon's run is part of the place, so what matched once is what is there as long as the page cache has it. The
reader asks for no more than that (`RWF_NOWAIT`, `page_cache.resident`), before it loads anything; what has to come from
the disk is verified again, and all else that is known of its chunk forgotten, since nobody knows what comes with it.
That leaves pages which went, whose sectors then turned bad, and which came back with those of another chunk (by read-
ahead, or, of blocks below 2 MiB, with the other half of a large page that another process has loaded); so nothing is
remembered for longer than `KEEP_S`. Bounded; the oldest goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from fs3.checksum import FINE_BYTES

MOST_CHUNKS = 1 << 14  # of 4 MiB: 64 GiB, in 5 MB

KEEP_S = 60.0

Place = Hashable
Identity = tuple[int, int, int]  # hi, lo, version


def blocks_mask(begin: int, end: int) -> int:
    """The bits of the blocks that bytes [begin, end) of a chunk touch."""
    first = begin // FINE_BYTES
    return (1 << -(-end // FINE_BYTES) - first) - 1 << first


class Verified:
    """See the module. For any number of threads, as long as one at a time calls `add`."""

    def __init__(self, most: int = MOST_CHUNKS) -> None:
        self._most = most
        self._known: OrderedDict[Place, tuple[Identity, float, int]] = OrderedDict()  # ... since when, blocks

    def __len__(self) -> int:
        return len(self._known)

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()

    def of(self, place: Place, identity: Identity, now_s: float) -> int:
        """The blocks of the chunk's version at `place` that have matched, as bits."""
        known = self._known.get(place)
        if known is None or known[0] != identity or now_s >= known[1] + KEEP_S:
            return 0
        return known[2]

    def add(self, place: Place, identity: Identity, blocks: int, now_s: float) -> None:
        """These blocks have matched just now."""
        known = self._known.get(place)
        since_s, before = now_s, 0
        if known is not None and known[0] == identity and now_s < known[1] + KEEP_S:
            _, since_s, before = known
        if known is None and len(self._known) >= self._most:
            self._known.popitem(last=False)
        self._known[place] = identity, since_s, before | blocks

    def forget(self, place: Place) -> None:
        """What is in the page cache there now was not verified, or does not match."""
        self._known.pop(place, None)
