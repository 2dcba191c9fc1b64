"""Fresh inode ids: taken from the store's counter in blocks, so that most operations need no transaction for theirs."""

from __future__ import annotations

import asyncio

from fs3.errors import NoSpace
from fs3.ids import MAX_INODE, ROOT_INODE, InodeId
from fs3.kv import keys
from fs3.kv.api import KVEngine, Transaction, transact
from fs3.kv.occ_core import decode_counter, encode_counter

_BLOCK = 1_024


class InodeIds:
    """An id is given out once, ever; ids of a block that a stopped daemon had left over are lost."""

    def __init__(self, kv: KVEngine) -> None:
        self._kv = kv
        self._next = 0
        self._end = 0
        self._lock = asyncio.Lock()

    async def take(self, count: int) -> list[InodeId]:
        """`count` new ids, in rising order. Raises: NoSpace when 2^56 are used up; the store's errors."""
        async with self._lock:
            if self._end - self._next < count:
                size = max(count, _BLOCK)
                self._next = await transact(self._kv, lambda txn: _reserve(txn, size))
                self._end = self._next + size
            taken = range(self._next, self._next + count)
            self._next += count
            return [InodeId(number) for number in taken]


async def _reserve(txn: Transaction, size: int) -> int:
    first = max(decode_counter(await txn.get(keys.NEXT_INODE)), ROOT_INODE + 1)
    if first + size > MAX_INODE:
        raise NoSpace("all inode ids are used up")
    txn.put(keys.NEXT_INODE, encode_counter(first + size))
    return first
