"""How the collector goes through the records of a kind: a page a round, again and again."""

from __future__ import annotations

from fs3.kv import keys
from fs3.kv.api import KVEngine
from fs3.meta.unchanged_core import Unchanged

PAGE = 512


class Pass:
    """A walk over all keys of a kind, again and again; `seen` remembers what stayed the same from pass to pass."""

    def __init__(self, kind: bytes) -> None:
        self._begin, self._end = keys.whole(kind)
        self._cursor = self._begin
        self._started_s = float("-inf")
        self.seen = Unchanged()

    async def page(self, kv: KVEngine, now_s: float, end: bytes | None = None) -> list[tuple[bytes, bytes]]:
        """The next records of this pass, which ends at its last one, or before `end`."""
        if self._cursor == self._begin:
            self.seen.forget_unseen(self._started_s)
            self._started_s = now_s
        end = self._end if end is None else end
        found = await kv.begin().range(self._cursor, end, limit=PAGE, snapshot=True) if self._cursor < end else []
        self._cursor = found[-1][0] + b"\0" if len(found) == PAGE else self._begin
        return found
