"""Whose turn it is to collect, among the meta daemons of one store: one at a time, so that nothing is done twice.

Collecting twice at once does no harm (fs3/meta/gc.py), so this need not be exact: the collector raises a beat in the
store, and another one takes over once it has seen the same beat for the whole lease, by its own clock.
"""

from __future__ import annotations

import struct

from fs3.kv import keys
from fs3.kv.api import KVEngine, Transaction, transact
from fs3.meta.unchanged_core import Unchanged

LEASE_S = 10.0
RENEW_S = 3.0

_VALUE = struct.Struct(">QQ")


class CollectorTurn:
    """One daemon's view; `owner` is a number that no other collector has."""

    def __init__(self, kv: KVEngine, owner: int) -> None:
        self._kv = kv
        self._owner = owner
        self._seen = Unchanged()
        self._renewed_s = float("-inf")

    async def ours(self, now_s: float) -> bool:
        """Whether this daemon may collect now. Raises: Fs3Error of the store."""
        if now_s < self._renewed_s + RENEW_S:
            return True

        async def body(txn: Transaction) -> bool:
            value = await txn.get(keys.COLLECTOR)
            owner, beat = (self._owner, 0) if value is None else _VALUE.unpack(value)
            others = value is not None and owner != self._owner
            if others and self._seen.age_s(now_s, keys.COLLECTOR, value or b"") < LEASE_S:
                return False
            txn.put(keys.COLLECTOR, _VALUE.pack(self._owner, beat + 1))
            return True

        if not await transact(self._kv, body):
            return False
        self._renewed_s = now_s
        return True

    async def end(self) -> None:
        """Let another one take over at once. Raises: Fs3Error of the store."""

        async def body(txn: Transaction) -> None:
            value = await txn.get(keys.COLLECTOR)
            if value is not None and _VALUE.unpack(value)[0] == self._owner:
                txn.delete(keys.COLLECTOR)

        if self._renewed_s > float("-inf"):
            self._renewed_s = float("-inf")
            await transact(self._kv, body)
