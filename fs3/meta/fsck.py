"""Reads a whole metadata store, as it is at one moment, and looks whether it hangs together."""

from __future__ import annotations

import asyncio

from fs3.kv.api import KVEngine
from fs3.meta.fsck_core import Fsck

_PAGE = 1_024
_END = b"\xff"  # every key begins with a letter


async def fsck(kv: KVEngine) -> Fsck:
    """All pairs of the store, taken in; others get their turn in between. Raises: Conflict: its snapshot expired."""
    txn, found, at = kv.begin(patient=True), Fsck(), b""
    while True:
        page = await txn.range(at, _END, limit=_PAGE, snapshot=True)
        for key, value in page:
            found.take(key, value)
        if len(page) < _PAGE:
            return found
        at = page[-1][0] + b"\0"
        await asyncio.sleep(0)
