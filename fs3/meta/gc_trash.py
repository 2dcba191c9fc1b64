"""What in the trash is due goes for good.

When something is due is told by dates, as people think of days; so here, and nowhere else, a wall clock decides. One
that jumps forward must not cost anybody anything: an entry goes only once the collector has found it due in every pass
for a grace period by its monotonic clock. A clock that is put right within that time has removed nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from fs3.errors import Corrupt
from fs3.kv import keys
from fs3.kv.api import KVEngine, Transaction
from fs3.meta import trashed
from fs3.meta.gc_pass import Pass
from fs3.meta.ops import trash
from fs3.meta.sizes import page_of, while_too_much
from fs3.pb import meta_pb2

_log = logging.getLogger(__name__)

TRASH_GRACE_S = 600.0  # longer than time services take to put a clock right that came up wrong
_NS = 10**9


class TrashExpiry:
    """The collector's part that empties the trash of what is due."""

    def __init__(self, kv: KVEngine, grace_s: float, wall_ns: Callable[[], int]) -> None:
        self._kv = kv
        self._grace_s = grace_s
        self._wall_ns = wall_ns
        self._at_once = page_of(kv.limits, trash.KEYS_OF_AN_ENTRY)
        self._due = Pass(keys.TRASH)

    async def round(self, now_s: float) -> int:
        """Look at a page of what is due, remove what has been due for the grace period; how many entries went.

        Raises: Fs3Error of the store.
        """
        wall_ns = self._wall_ns()
        _, end = keys.trash_due(wall_ns // _NS)
        ripe = [
            (key, value)
            for key, value in await self._due.page(self._kv, now_s, end)
            if self._due.seen.age_s(now_s, key, value) >= self._grace_s
        ]
        chosen = [(key, known) for key, value in ripe if (known := _readable(key, value)) is not None]
        removed = 0
        while chosen:
            gone, count = await while_too_much(self._kv, partial(_purge, chosen=chosen, now_ns=wall_ns), self._at_once)
            removed += gone
            some, chosen = chosen[:count], chosen[count:]
            for _, known in some:
                _log.info("trash: %r, removed at %d s, is due and goes for good", known.path, known.removed_ns // _NS)
        return removed


async def _purge(txn: Transaction, chosen: trash.Records, now_ns: int, *, limit: int) -> tuple[int, int]:
    """How many were there, and how many were looked at."""
    some = chosen[:limit]
    return await trash.purge(txn, some, now_ns), len(some)


def _readable(key: bytes, value: bytes) -> meta_pb2.TrashRecord | None:
    """The record, or None for one that keeps nobody else waiting, and that `fs3 admin fsck` names."""
    try:
        return trashed.decode(value)
    except Corrupt as error:
        _log.debug("key %r: %s", key, error)
        return None
