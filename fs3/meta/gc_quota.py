"""What is below a directory when it gets a quota is counted, page by page, in the background.

Whatever is made, or moves in, once the quota is there is counted by it at once. What was there is counted in the
transaction that writes the quota into its inode, so looking at something twice does no harm, and the counting may be
interrupted, and begun again, at any point. A directory that moves meanwhile may move to where this has been: then all
is looked through once more. `rounds` in the record tells a collector that goes on with an old list that it is old.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from fs3.errors import Corrupt, Fs3Error
from fs3.ids import InodeId
from fs3.inode import InodeType
from fs3.kv import keys
from fs3.kv.api import KVEngine, Transaction, transact
from fs3.meta import dentry, inode, quota
from fs3.meta.gc_pass import Pass
from fs3.meta.quota import Charges
from fs3.meta.recount import counting_in
from fs3.meta.sizes import page_of, while_too_much
from fs3.pb import meta_pb2

_log = logging.getLogger(__name__)

_PAGES = 16  # in one round
_KEYS_OF_A_CHILD = 4  # its name and record, each read, and the record written


class _Page(NamedTuple):
    """What was found in a page of a directory: the directories in it, and the name after which to go on."""

    directories: list[InodeId]
    after: bytes | None


@dataclass(slots=True)
class _Pass:
    """How far a quota's counting has come: (directory, name to go on after), last ones first."""

    rounds: int
    left: list[tuple[InodeId, bytes]]


class QuotaCounting:
    """The collector's part that counts what was there before a quota was."""

    def __init__(self, kv: KVEngine) -> None:
        self._kv = kv
        self._limit = page_of(kv.limits, _KEYS_OF_A_CHILD)
        self._quotas = Pass(keys.QUOTA)
        self._passes: dict[int, _Pass] = {}

    async def round(self, now_s: float) -> int:
        """Some pages of what is being counted; how many there were. Raises: Fs3Error: the store cannot be read."""
        for key, value in await self._quotas.page(self._kv, now_s):
            known = _readable(key, value)
            if known is not None and known.counting:
                self._passes.setdefault(keys.inode_of(key), _Pass(known.rounds, _begin(known)))
        pages = 0
        for number in list(self._passes):
            if pages >= _PAGES:
                break
            try:
                pages += await self._count(number, _PAGES - pages)
            except Fs3Error as error:
                _log.warning("quota %d: counting what is there is put off: %s", number, error)
        return pages

    async def _count(self, number: int, most: int) -> int:
        known = await quota.load(self._kv.begin(), number, snapshot=True)
        if known is None or not known.counting:
            del self._passes[number]
            return 0
        at = self._passes[number]
        if at.rounds != known.rounds:
            at.rounds, at.left = known.rounds, _begin(known)
        for done in range(most):
            if not at.left:
                if await transact(self._kv, partial(finish, number=number, rounds=at.rounds)):
                    _log.info("quota %d of %s: what was there is counted", number, known.path)
                del self._passes[number]
                return done + 1
            directory, after = at.left[-1]
            page = await while_too_much(self._kv, partial(count_page, directory=directory, after=after), self._limit)
            at.left[-1:] = [(directory, page.after)] if page.after is not None else []
            at.left += [(one, b"") for one in page.directories]
        self._passes[number] = self._passes.pop(number)  # others have their turn
        return most


def _begin(known: meta_pb2.QuotaRecord) -> list[tuple[InodeId, bytes]]:
    return [(InodeId(known.directory), b"")]


def _readable(key: bytes, value: bytes) -> meta_pb2.QuotaRecord | None:
    """The record, or None for one that keeps nobody else waiting, and that `fs3 admin fsck` names."""
    try:
        return quota.decode(value)
    except Corrupt as error:
        _log.debug("key %r: %s", key, error)
        return None


async def count_page(txn: Transaction, directory: InodeId, after: bytes, limit: int) -> _Page:
    """Have up to `limit` entries of a directory, after a name, counted by the quotas that count what is in it."""
    value = await txn.get(keys.inode(directory))
    if value is None:
        return _Page([], None)  # removed meanwhile
    charges = Charges(txn)
    numbers = await counting_in(txn, inode.decode(value), charges)
    if numbers is None:
        return _Page([], None)
    page = await dentry.load_page(txn, directory, after, limit)
    for _, entry in page:
        child = await inode.load(txn, entry.inode_id)
        counted = charges.counted(child, numbers)
        if counted is not child:
            inode.store(txn, counted)
    await charges.settle(check=False)
    below = [entry.inode_id for _, entry in page if entry.type is InodeType.DIRECTORY]
    return _Page(below, page[-1][0] if len(page) == limit else None)


async def finish(txn: Transaction, number: int, rounds: int) -> bool:
    """Note that nothing is left to be counted after this round; False if it must be looked through again."""
    known = await quota.load(txn, number)
    if known is None or not known.counting:
        return True
    if known.rounds != rounds:
        return False  # another collector has come to an end before
    again = known.again
    known.counting, known.again, known.rounds = again, False, known.rounds + again
    quota.store(txn, number, known)
    return not again
