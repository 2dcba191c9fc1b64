"""How a name leaves its place, and an inode comes to another one: what renames, removals and the trash share."""

from __future__ import annotations

from fs3.ids import InodeId
from fs3.inode import Inode
from fs3.kv.api import Transaction
from fs3.meta import dentry, inode, trashed
from fs3.meta.path import Place


async def take(txn: Transaction, place: Place, now_ns: int) -> None:
    """The name at `place` goes, and with it what the trash knows of it; the inode is the caller's business."""
    dentry.remove(txn, place.parent, place.name)
    inode.stamp_directory(txn, place.parent, now_ns)
    await trashed.forget(txn, place)


async def move(txn: Transaction, moving: Inode, source: Place, directory: InodeId, name: bytes, now_ns: int) -> Inode:
    """What is at `source` is called `name` in `directory` from now on; returns the inode as it is then."""
    moved = inode.changed(moving, now_ns)._replace(parent=directory if moving.is_directory else 0)
    inode.store(txn, moved)
    await take(txn, source, now_ns)
    dentry.store(txn, directory, name, moved)
    inode.stamp_directory(txn, directory, now_ns)
    return moved
