"""Which pages go when the cache must shrink: the oldest first, and of one age the leaves before their prefixes.

A page is worth most while every page before it in its chain is there, so taking a chain's end costs one page, taking
its beginning makes the others wait for it. Pages of one prompt are written within moments of each other; ages are
therefore compared in whole minutes, and depth decides within one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AGE_STEP_NS = 60 * 10**9


def choose_victims(
    created_ns: NDArray[np.uint64], depth: NDArray[np.uint32], stored_bytes: NDArray[np.uint32], keep_bytes: int
) -> NDArray[np.int64]:
    """The places, among pages [n], of those to remove so that at most `keep_bytes` stay, in the order to remove them.

    Deterministic: pages alike in age and depth go in the order given.
    """
    size = stored_bytes.astype(np.int64)
    excess = int(size.sum()) - keep_bytes
    if excess <= 0:
        return np.zeros(0, dtype=np.int64)
    minute = created_ns // np.uint64(AGE_STEP_NS)
    order: NDArray[np.int64] = np.lexsort((-depth.astype(np.int64), minute)).astype(np.int64)
    enough = int(np.searchsorted(np.cumsum(size[order]), excess))
    return order[: enough + 1]
