"""Which quotas count what is put somewhere, and how what moves there comes to be counted by them.

A subtree is counted anew in the transaction that moves it, as far as that can hold it; beyond it is refused, as between
file systems, and whoever moves it copies it. What is inside a quota of its own stays counted by that.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from fs3.errors import CrossQuota
from fs3.ids import InodeId
from fs3.inode import Inode
from fs3.kv.api import Transaction
from fs3.meta import dentry, inode
from fs3.meta.path import Place, Walker
from fs3.meta.quota import Charges, Numbers, inside


async def counting(walker: Walker, place: Place) -> Numbers:
    """The quotas, gone ones included, that count what is put at `place`; nothing is read where there is none."""
    holder = walker.holding(place)
    return inside(await walker.load(holder.inode_id)) if holder.counts else ()


async def moved_between(
    txn: Transaction, walker: Walker, moving: Inode, places: tuple[Place, Place], charges: Charges, *, at_once: int
) -> Inode:
    """What moves from one place to the other, as it is once the quotas there count it; settles the charges.

    What is below it is counted anew, too: at most `at_once` things. Raises: CrossQuota, QuotaExceeded.
    """
    source, target = places
    before, after = await charges.live(moving.quotas), await charges.live(await counting(walker, target))
    if before != after:
        after = await _by_path(walker, target, charges)
    if before == after:
        await charges.settle()
        return moving
    if set(before) < set(after) and after == await _by_path(walker, source, charges):  # it was not reached yet
        moved = charges.reached(moving, after)
        await charges.settle(check=False)
        return moved
    moved = await _counted_there(txn, moving, target, (before, after), charges, at_once)
    await charges.settle()
    return moved


async def linked(walker: Walker, named: Inode, places: tuple[Place, Place], charges: Charges) -> Inode:
    """What gets a further name at the second place. Raises: CrossQuota."""
    source, target = places
    before = await charges.live(named.quotas)
    if before == await charges.live(await counting(walker, target)):
        return named
    after = await _by_path(walker, target, charges)
    if not set(before) <= set(after) or after != await _by_path(walker, source, charges):
        raise CrossQuota(f"{target.path}: other quotas count what is there than {source.path}; copy the file")
    named = charges.reached(named, after)
    await charges.settle(check=False)
    return named


async def _by_path(walker: Walker, place: Place, charges: Charges) -> Numbers:
    """The quotas of the directories above a place: those that count what is there, or will once all is counted."""
    own = [(await walker.load(one.inode_id)).quota for one in walker.above(place) if one.counts]
    return await charges.live([number for number in own if number])


async def _counted_there(
    txn: Transaction, moving: Inode, target: Place, quotas: tuple[Numbers, Numbers], charges: Charges, at_once: int
) -> Inode:
    before, after = quotas
    if not moving.is_directory and moving.nlink > 1:
        raise CrossQuota(
            f"{target.path}: other quotas count what is there, and it has further names, which would stay behind; copy"
            " it, and remove the original"
        )
    for one in await _below(txn, moving, target, at_once) if moving.is_directory else ():
        inner = [number for number in await charges.live(one.inode.quotas) if number not in before]
        counted = charges.moved(one.inode, (*after, *inner))
        inode.store(txn, counted)
        if counted.is_directory:
            dentry.store(txn, one.parent, one.name, counted)
    return charges.moved(moving, after)


class _Below(NamedTuple):
    parent: InodeId
    name: bytes
    inode: Inode


async def _below(txn: Transaction, top: Inode, target: Place, at_once: int) -> list[_Below]:
    """Every inode below a directory, under one of its names. Raises: CrossQuota: more, or with names elsewhere."""
    found: dict[InodeId, _Below] = {}
    names: Counter[InodeId] = Counter()
    left = [top.inode_id]
    while left:
        parent = left.pop()
        page = await dentry.load_page(txn, parent, b"", at_once + 1 - names.total())
        names.update(entry.inode_id for _, entry in page)
        if names.total() > at_once:
            raise CrossQuota(
                f"{target.path}: other quotas count what is there, and more than {at_once} things would have to be"
                " counted anew; copy the directory, and remove the original"
            )
        for name, entry in page:
            if entry.inode_id not in found:
                found[entry.inode_id] = _Below(parent, name, await inode.load(txn, entry.inode_id))
                if found[entry.inode_id].inode.is_directory:
                    left.append(entry.inode_id)
    for one in found.values():
        if not one.inode.is_directory and one.inode.nlink > names[one.inode.inode_id]:
            raise CrossQuota(
                f"{target.path}: other quotas count what is there, and {one.name.decode()} in the directory has names"
                " outside of it; copy the directory, and remove the original"
            )
    return list(found.values())
