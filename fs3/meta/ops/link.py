"""Further ways to a file: symlinks, which name a path, and hard links, which are one more name of the same inode."""

from __future__ import annotations

from fs3.errors import Exists, Invalid, NotPermitted
from fs3.inode import Inode, InodeType, inode_to_pb
from fs3.kv.api import Transaction
from fs3.meta import dentry, inode, listing
from fs3.meta.call import Call
from fs3.meta.checks import may_add, may_link
from fs3.meta.dentry import check_name
from fs3.meta.idempotency import record, recorded
from fs3.meta.path import Place, Walker
from fs3.meta.quota import Charges
from fs3.meta.recount import counting, linked
from fs3.pb import meta_pb2

MAX_TARGET_BYTES = 4_095
MODE = 0o777  # a symlink's own; nobody asks for it


def check_target(target: str) -> bytes:
    """The bytes of a symlink's target. Raises: Invalid if no walk could ever follow it."""
    try:
        raw = target.encode()
    except UnicodeEncodeError:
        raise Invalid(f"target {target!r}: not valid UTF-8") from None
    if not raw or len(raw) > MAX_TARGET_BYTES:
        raise Invalid(f"target {target[:40]!r}: {len(raw)} bytes long, must be 1 to {MAX_TARGET_BYTES}")
    for name in target.split("/"):
        if name not in ("", ".", ".."):
            check_name(name)
    return raw


async def symlink(txn: Transaction, request: meta_pb2.SymlinkRequest, call: Call) -> meta_pb2.InodeReply:
    """Make `path` a symlink to `target`, which is not looked at.

    Raises:
        Exists: the name is taken.
        NotFound, NotADirectory: the directory is missing, or is none.
        PermissionDenied: the caller may not write there.
        QuotaExceeded: a quota has no room for it.
        Invalid: a path or target that is none.
    """
    answer = await recorded(txn, request.id, meta_pb2.InodeReply)
    if answer is not None:
        return answer
    target = check_target(request.target)
    walker = Walker(txn, call.caller)
    place = await walker.holder(request.path, follow=False)
    _refuse_taken(place, request.path)
    await may_add(walker, place, request.path)
    charges = Charges(txn)
    quotas = await counting(walker, place, charges)
    charges.add(quotas, 1, len(target))
    await charges.settle()
    its = call.caller.born(await walker.permissions(walker.holding(place)), MODE)
    made = Inode(
        inode_id=call.new_id(),
        type=InodeType.SYMLINK,
        mode=its.mode,
        uid=its.uid,
        gid=its.gid,
        length=len(target),
        symlink=request.target,
        atime_ns=call.now_ns,
        mtime_ns=call.now_ns,
        ctime_ns=call.now_ns,
        btime_ns=call.now_ns,
        version=1,
        quotas=quotas,
    )
    return await _name(txn, request.id, place, made, call)


async def link(txn: Transaction, request: meta_pb2.LinkRequest, call: Call) -> meta_pb2.InodeReply:
    """Give the file (or symlink: it is not followed) at `source` a further name, `target`.

    Raises:
        Exists: the name is taken.
        NotPermitted: `source` is a directory, or a file of others that the caller may not both read and write.
        CrossQuota: other quotas count what is at the target.
        PermissionDenied, NotFound, NotADirectory, Invalid.
    """
    answer = await recorded(txn, request.id, meta_pb2.InodeReply)
    if answer is not None:
        return answer
    walker = Walker(txn, call.caller)
    source, entry = await walker.existing(request.source, follow=False)
    place = await walker.holder(request.target, follow=False)
    _refuse_taken(place, request.target)
    named = await inode.load(txn, entry.inode_id)
    may_link(call.caller, named, request.source)
    await may_add(walker, place, request.target)
    if entry.type is InodeType.DIRECTORY:
        raise NotPermitted(f"{request.source}: is a directory, and a directory has one name only")
    named = await linked(walker, named, (source, place), Charges(txn))
    named = inode.changed(named, call.now_ns)._replace(nlink=named.nlink + 1)
    listing.changed(txn, source.parent, request.id)
    return await _name(txn, request.id, place, named, call)


def _refuse_taken(place: Place, path: str) -> None:
    if place.dentry is not None:
        raise Exists(f"{path}: exists already")


async def _name(
    txn: Transaction, request: meta_pb2.RequestId, place: Place, named: Inode, call: Call
) -> meta_pb2.InodeReply:
    inode.store(txn, named)
    dentry.store(txn, place.parent, place.name, named)
    inode.stamp_directory(txn, place.parent, call.now_ns)
    return await record(txn, request, meta_pb2.InodeReply(inode=inode_to_pb(named)))
