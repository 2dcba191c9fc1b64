"""Rename: atomic, over an existing file or an empty directory, by POSIX's rules; never into its own subtree."""

from __future__ import annotations

from fs3.errors import Exists, Invalid, IsADirectory, NotADirectory, NotEmpty, NotFound
from fs3.inode import Inode, InodeType, inode_to_pb
from fs3.kv.api import Transaction
from fs3.meta import dentry, inode, trashed
from fs3.meta.call import Call
from fs3.meta.checks import may_add, may_move_away, may_replace, may_take
from fs3.meta.dentry import Dentry
from fs3.meta.idempotency import record, recorded
from fs3.meta.moving import move
from fs3.meta.path import Place, Walker
from fs3.meta.quota import Charges
from fs3.meta.recount import moved_between
from fs3.pb import meta_pb2


async def rename(txn: Transaction, request: meta_pb2.RenameRequest, call: Call) -> meta_pb2.InodeReply:
    """Move `source` to `target`; symlinks at the end of either are not followed. The answer is the moved inode.

    Two names of one inode both stay as they are, as POSIX has it. Errors come in the order in which Linux finds them.
    A loop cannot arise: the directories above the target were read on the way there, so of two renames that would
    close one together the second conflicts, and then finds the source above its target.

    Raises:
        NotFound: the source, or the target's directory, does not exist.
        Exists: the target does, and `no_replace` was asked for.
        NotEmpty, IsADirectory, NotADirectory: the target cannot be replaced by this source.
        Invalid: the root, or a directory into its own subtree.
        QuotaExceeded: a quota has no room for it.
        CrossQuota: other quotas count what is at the target, and it is too much to be counted anew at once.
        PermissionDenied, NotPermitted: the caller may not take the source, put it there, or replace what is there;
            the trash.
    """
    answer = await recorded(txn, request.id, meta_pb2.InodeReply)
    if answer is not None:
        return answer
    walker = Walker(txn, call.caller)
    source = await walker.holder(request.source, follow=False)
    target = await walker.holder(request.target, follow=False)
    moving = source.dentry
    if moving is None:
        raise NotFound(f"{request.source}: no such file or directory")
    _check(request, source, moving, target)
    moved = await inode.load_stat(txn, moving.inode_id)
    if target.dentry is not None and target.dentry.inode_id == moving.inode_id:
        return await record(txn, request.id, meta_pb2.InodeReply(inode=inode_to_pb(moved)))
    if not call.caller.superuser:
        await _may_move(walker, request, source, moving, moved, target)
    charges = Charges(txn)
    if target.dentry is not None:
        await _replace(txn, request.target, moving, target.dentry, call.now_ns, charges)
        await trashed.forget(txn, target)
    moved = await moved_between(txn, walker, moved, (source, target), charges, at_once=call.at_once)
    moved = await move(txn, moved, source, target.parent, target.name, call.now_ns)
    return await record(txn, request.id, meta_pb2.InodeReply(inode=inode_to_pb(moved)))


def _check(request: meta_pb2.RenameRequest, source: Place, moving: Dentry, target: Place) -> None:
    for place, path in ((source, request.source), (target, request.target)):
        if not place.name:
            raise Invalid(f"{path}: the root directory cannot be moved or replaced")
        trashed.check_stays(place, path)
    if target.dentry is not None and request.no_replace:
        raise Exists(f"{request.target}: exists already")
    if moving.type is InodeType.DIRECTORY and moving.inode_id in target.parents:
        raise Invalid(f"{request.source}: a directory cannot be moved into its own subtree {request.target}")
    if target.dentry is not None and target.dentry.inode_id in source.parents:
        raise NotEmpty(f"{request.target}: is a directory above {request.source}")


async def _may_move(
    walker: Walker, request: meta_pb2.RenameRequest, source: Place, moving: Dentry, moved: Inode, target: Place
) -> None:
    """Raises: PermissionDenied, NotPermitted; IsADirectory, NotADirectory where that is found first."""
    await may_take(walker, source, moving, request.source)
    if target.dentry is None:
        await may_add(walker, target, request.target)
    else:
        await may_replace(walker, target, target.dentry, request.target)
        _check_types(request.target, moving, target.dentry)
    if source.parent != target.parent:
        may_move_away(walker.caller, moved, request.source)


async def _replace(txn: Transaction, path: str, moving: Dentry, there: Dentry, now_ns: int, charges: Charges) -> None:
    """Make room at the target. Raises: IsADirectory, NotADirectory, NotEmpty."""
    _check_types(path, moving, there)
    if there.type is not InodeType.DIRECTORY:
        await inode.drop_name(txn, await inode.load(txn, there.inode_id), now_ns, charges)
        return
    if not await dentry.is_empty(txn, there.inode_id):
        raise NotEmpty(f"{path}: the directory is not empty")
    await inode.drop_empty_directory(txn, there.inode_id, charges)


def _check_types(path: str, moving: Dentry, there: Dentry) -> None:
    """Raises: IsADirectory, NotADirectory: the one cannot replace the other."""
    one, other = moving.type is InodeType.DIRECTORY, there.type is InodeType.DIRECTORY
    if one and not other:
        raise NotADirectory(f"{path}: is a file, and a directory cannot replace it")
    if other and not one:
        raise IsADirectory(f"{path}: is a directory, and a file cannot replace it")
