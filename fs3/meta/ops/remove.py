"""Remove: a file, an empty directory, or a whole subtree as one operation that takes the same time at any size."""

from __future__ import annotations

from fs3.errors import Invalid, IsADirectory, NotADirectory, NotEmpty
from fs3.inode import InodeType
from fs3.kv.api import Transaction
from fs3.meta import dentry, inode, trashed
from fs3.meta.call import Call
from fs3.meta.checks import may_empty, may_take
from fs3.meta.dentry import Dentry
from fs3.meta.idempotency import record, recorded
from fs3.meta.moving import take
from fs3.meta.path import Walker
from fs3.meta.quota import Charges
from fs3.pb import common_pb2, meta_pb2


async def remove(txn: Transaction, request: meta_pb2.RemoveRequest, call: Call) -> common_pb2.Empty:
    """Remove what is at `path` (a symlink, not what it points to).

    A subtree is detached: its top loses its name, the collector takes it apart. Whoever is changing something inside
    walked through that name, and so conflicts.

    Raises:
        NotFound: there is nothing.
        NotEmpty: a directory with entries, and `recursive` was not asked for.
        IsADirectory, NotADirectory: it is not what it `must_be`.
        PermissionDenied, NotPermitted: the caller may not take it away, or not empty the top of a subtree.
        Invalid: the root.
        NotPermitted: the trash itself.
    """
    answer = await recorded(txn, request.id, common_pb2.Empty)
    if answer is not None:
        return answer
    walker = Walker(txn, call.caller)
    place, entry = await walker.existing(request.path, follow=False)
    if not place.name:
        raise Invalid(f"{request.path}: the root directory cannot be removed")
    trashed.check_stays(place, request.path)
    await may_take(walker, place, entry, request.path)
    _check_type(request, entry)
    charges = Charges(txn)
    if entry.type is not InodeType.DIRECTORY:
        await inode.drop_name(txn, await inode.load(txn, entry.inode_id), call.now_ns, charges)
    elif request.recursive:
        top = await inode.load(txn, entry.inode_id)
        if not call.caller.superuser and not await dentry.is_empty(txn, entry.inode_id):
            may_empty(call.caller, top, request.path)
        await inode.drop_tree(txn, top, call.now_ns, charges)
    elif await dentry.is_empty(txn, entry.inode_id):
        await inode.drop_empty_directory(txn, entry.inode_id, charges)
    else:
        raise NotEmpty(f"{request.path}: the directory is not empty; remove it recursively")
    await take(txn, place, call.now_ns)
    await charges.settle()
    return await record(txn, request.id, common_pb2.Empty())


def _check_type(request: meta_pb2.RemoveRequest, entry: Dentry) -> None:
    if not request.must_be or int(request.must_be) == entry.type:
        return
    if int(request.must_be) == InodeType.FILE and entry.type is InodeType.SYMLINK:
        return
    if entry.type is InodeType.DIRECTORY:
        raise IsADirectory(f"{request.path}: is a directory")
    if int(request.must_be) == InodeType.DIRECTORY:
        raise NotADirectory(f"{request.path}: is not a directory")
    raise Invalid(f"{request.path}: is a {entry.type.name.lower()}")
