"""What is below a directory when it gets a quota is counted, page by page, in the background.

Whatever is made in a directory has the quotas that its directory has. A directory has the new one before its entries
are looked at, so what comes later has it from the beginning, and what was there is found; each is counted in the
transaction that gives it the quota. So the counting may be interrupted, and begun again, at any point; it is when a
directory has moved that was not reached yet.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import NamedTuple

from fs3.ids import InodeId
from fs3.inode import InodeType
from fs3.kv import keys
from fs3.kv.api import KVEngine, Transaction, transact
from fs3.meta import dentry, inode, quota
from fs3.meta.gc_pass import Pass
from fs3.meta.quota import Charges, inside
from fs3.meta.sizes import page_of

_log = logging.getLogger(__name__)

_PAGES = 16  # of one quota in one round
_KEYS_OF_A_CHILD = 5  # its name and record, each read, and written if it is a directory


class _Page(NamedTuple):
    """What was found in a page of a directory: the directories in it, and the name after which to go on."""

    directories: list[InodeId]
    after: bytes | None


class QuotaCounting:
    """The collector's part that counts what was there before a quota was."""

    def __init__(self, kv: KVEngine) -> None:
        self._kv = kv
        self._limit = page_of(kv.limits, _KEYS_OF_A_CHILD)
        self._quotas = Pass(keys.QUOTA)
        self._left: dict[int, list[tuple[InodeId, bytes]]] = {}  # of each quota, (directory, name to go on after)

    async def round(self, now_s: float) -> int:
        """Some pages of each quota that is being counted; how many there were. Raises: Fs3Error of the store."""
        for key, value in await self._quotas.page(self._kv, now_s):
            known = quota.decode(value)
            if known.counting:
                self._left.setdefault(keys.inode_of(key), [(InodeId(known.directory), b"")])
        return sum([await self._count(number) for number in list(self._left)])

    async def _count(self, number: int) -> int:
        known = await quota.load(self._kv.begin(), number, snapshot=True)
        if known is None or not known.counting:
            del self._left[number]
            return 0
        left = self._left[number]
        for done in range(_PAGES):
            if not left:
                if await transact(self._kv, partial(finish, number=number)):
                    _log.info("quota %d of %s: what was there is counted", number, known.path)
                else:
                    left.append((InodeId(known.directory), b""))
                return done + 1
            directory, after = left[-1]
            page = await transact(self._kv, partial(count_page, directory=directory, after=after, limit=self._limit))
            left[-1:] = [(directory, page.after)] if page.after is not None else []
            left += [(one, b"") for one in page.directories]
        return _PAGES


async def count_page(txn: Transaction, directory: InodeId, after: bytes, limit: int) -> _Page:
    """Have up to `limit` entries of a directory, after a name, counted by the quotas that count what is in it."""
    if await txn.get(keys.inode(directory)) is None:
        return _Page([], None)  # removed meanwhile
    charges = Charges(txn)
    numbers = await charges.live(inside(await inode.load(txn, directory)))
    page = await dentry.load_page(txn, directory, after, limit)
    for name, entry in page:
        child = await inode.load(txn, entry.inode_id)
        moved = charges.moved(child, numbers)
        if moved is not child:
            inode.store(txn, moved)
            if moved.is_directory:
                dentry.store(txn, directory, name, moved)
    await charges.settle(check=False)
    below = [entry.inode_id for _, entry in page if entry.type is InodeType.DIRECTORY]
    return _Page(below, page[-1][0] if len(page) == limit else None)


async def finish(txn: Transaction, number: int) -> bool:
    """Note that nothing is left to be counted; False if it must be looked through again."""
    known = await quota.load(txn, number)
    if known is None or not known.counting:
        return True
    again = known.again
    known.counting, known.again = again, False
    quota.store(txn, number, known)
    return not again
