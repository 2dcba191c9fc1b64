"""Which quotas count what is put somewhere, and how what moves there comes to be counted by them.

The directories above a place tell. In the trash, where these are others than before, the entry of the trash does: what
counted it when it was thrown away counts what is in it.

A subtree is counted anew in the transaction that moves it to where other quotas count, as far as that can hold it;
beyond it is refused, as between file systems, and whoever moves it copies it. What moves to where the same ones count
stays as it is, and need not have been counted yet: then the collector, which may have passed the place that it moves
to, looks through all of it again.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from fs3.errors import CrossQuota
from fs3.ids import ROOT_INODE, InodeId
from fs3.inode import Inode
from fs3.kv import keys
from fs3.kv.api import Transaction
from fs3.meta import dentry, inode, trashed
from fs3.meta.path import Place, Walker
from fs3.meta.quota import Charges, Numbers


async def counting(walker: Walker, place: Place, charges: Charges) -> Numbers:
    """The quotas that count what is put at `place`, outermost first; nothing is read where there is none."""
    directories = walker.above(place)
    numbers: list[int] = []
    if place.above[:1] == (trashed.NAME,) and len(directories) > 1:
        numbers += (await walker.load(directories[1].inode_id)).quotas
    for depth, one in enumerate(directories, start=1):
        if one.has_quota:
            number = (await walker.load(one.inode_id)).quota
            charges.names[number] = f"/{b'/'.join(place.above[:depth]).decode()}"
            numbers.append(number)
    return await charges.live(numbers) if numbers else ()


async def counting_in(txn: Transaction, directory: Inode, charges: Charges) -> Numbers | None:
    """The same of what is in a directory, from the directories above it; None if it is being taken apart."""
    trash = await trashed.directory(txn)
    at, inside_out = directory, [directory.quota] if directory.quota else []
    while at.inode_id != ROOT_INODE:
        if at.parent == trash:
            inside_out += reversed(at.quotas)
            break
        value = await txn.get(keys.inode(at.parent))
        if value is None:
            return None
        at = inode.decode(value)
        if at.quota:
            inside_out.append(at.quota)
    return await charges.live(inside_out[::-1])


async def moved_between(
    txn: Transaction, walker: Walker, moving: Inode, places: tuple[Place, Place], charges: Charges, *, at_once: int
) -> Inode:
    """What moves from one place to the other, as it is once the quotas there count it; settles the charges.

    What is below it is counted anew, too: at most `at_once` things. Raises: CrossQuota, QuotaExceeded.
    """
    source, target = places
    before, after = await _counting_there(walker, moving, source, charges), await counting(walker, target, charges)
    if before == after:
        if moving.is_directory:
            charges.count_again(after, begin=False)
            moved = moving
        else:
            moved = charges.counted(moving, after)
        await charges.settle(check=False)
        return moved
    if not moving.is_directory and moving.nlink > 1:
        raise CrossQuota(
            f"{target.path}: other quotas count what is there, and it has further names, which would stay behind; copy"
            " it, and remove the original"
        )
    for one in await _below(txn, moving, target, after, at_once) if moving.is_directory else ():
        counted = charges.moved(one.inode, await charges.live(one.quotas))
        if counted is not one.inode:
            inode.store(txn, counted)
    moved = charges.moved(moving, after)
    await charges.settle()
    return moved


async def linked(walker: Walker, named: Inode, places: tuple[Place, Place], charges: Charges) -> Inode:
    """What gets a further name at the second place. Raises: CrossQuota."""
    source, target = places
    before, after = await _counting_there(walker, named, source, charges), await counting(walker, target, charges)
    if before != after:
        raise CrossQuota(f"{target.path}: other quotas count what is there than {source.path}; copy the file")
    named = charges.counted(named, after)
    await charges.settle(check=False)
    return named


async def thrown_away(walker: Walker, moving: Inode, source: Place, charges: Charges) -> tuple[Inode, bool]:
    """What goes into the trash, counted as it should be; whether what is in it may not have been counted yet."""
    numbers = await counting(walker, source, charges)
    moved = charges.counted(moving, numbers)
    await charges.settle(check=False)
    return moved, moving.is_directory and charges.is_counting(numbers)


async def brought_back(
    walker: Walker, moving: Inode, target: Place, charges: Charges, *, uncounted: bool
) -> Inode | None:
    """What comes out of the trash to where it was, with what is in it counted by the collector where that is due.

    None if it must be counted anew at once, as anything that moves to where it has not been: other quotas count there,
    and not just more of them. Raises: QuotaExceeded: they have no room for itself.
    """
    before, after = await charges.live(moving.quotas), await counting(walker, target, charges)
    if not moving.is_directory or not set(before) <= set(after) or (before == after and not uncounted):
        return None
    charges.count_again(after, begin=True)
    moved = charges.moved(moving, after)
    await charges.settle()
    return moved


async def _counting_there(walker: Walker, moving: Inode, source: Place, charges: Charges) -> Numbers:
    if source.above == (trashed.NAME,):
        return await charges.live(moving.quotas)
    return await counting(walker, source, charges)


class _Below(NamedTuple):
    inode: Inode
    quotas: Numbers


async def _below(txn: Transaction, top: Inode, target: Place, after: Numbers, at_once: int) -> list[_Below]:
    """Every inode below a directory once, and the quotas that will count it where `after` count the directory.

    Raises: CrossQuota: there are more, or some have names elsewhere.
    """
    found: dict[InodeId, _Below] = {}
    names: Counter[InodeId] = Counter()
    left = [(top, after)]
    while left:
        directory, outer = left.pop()
        inside = (*outer, directory.quota) if directory.quota else outer
        page = await dentry.load_page(txn, directory.inode_id, b"", at_once + 1 - names.total())
        names.update(entry.inode_id for _, entry in page)
        if names.total() > at_once:
            raise CrossQuota(
                f"{target.path}: other quotas count what is there, and more than {at_once} things would have to be"
                " counted anew; copy the directory, and remove the original"
            )
        for _, entry in page:
            if entry.inode_id not in found:
                child = await inode.load(txn, entry.inode_id)
                found[entry.inode_id] = _Below(child, inside)
                if child.is_directory:
                    left.append((child, inside))
    for one in found.values():
        if not one.inode.is_directory and one.inode.nlink > names[one.inode.inode_id]:
            raise CrossQuota(
                f"{target.path}: other quotas count what is there, and a file in the directory has names outside of it;"
                " copy the directory, and remove the original"
            )
    return list(found.values())
