"""Making directories, the root included."""

from __future__ import annotations

from fs3.errors import Exists, Invalid, NotFound
from fs3.ids import ROOT_INODE, InodeId
from fs3.inode import Inode, InodeType, inode_to_pb
from fs3.kv import keys
from fs3.kv.api import Transaction
from fs3.layout import Layout
from fs3.meta import dentry, inode
from fs3.meta.access import Permissions, permissions_of
from fs3.meta.call import Call, choose_layout, default_layout
from fs3.meta.checks import may_add
from fs3.meta.idempotency import record, recorded
from fs3.meta.path import MAX_DEPTH, Place, Walker
from fs3.meta.quota import Charges
from fs3.meta.recount import counting
from fs3.pb import meta_pb2

DEFAULT_MODE = 0o755


async def make_root(txn: Transaction, call: Call) -> None:
    """The root directory, if it is not there yet. Raises: Unavailable while there are no chain tables."""
    if await txn.get(keys.inode(ROOT_INODE)) is None:
        its = Permissions(DEFAULT_MODE, 0, 0)
        root = _directory(ROOT_INODE, ROOT_INODE, its, default_layout(call.routing), call.now_ns)
        inode.store(txn, root)


def ids_needed(request: meta_pb2.MkdirRequest) -> int:
    return MAX_DEPTH if request.parents else 1  # a symlink on the way can lead to more names than the path has


async def mkdir(txn: Transaction, request: meta_pb2.MkdirRequest, call: Call) -> meta_pb2.InodeReply:
    """Make a directory, with `parents` also the missing ones above it (which inherit; the choice is for the last).

    A symlink at the end of the path is a taken name, as in POSIX; with `parents` it is followed.

    Raises:
        Exists: the name is taken; with `parents`, by something else than a directory with the chosen layout.
        NotFound: a parent is missing, or no chain table has the chosen replicas.
        QuotaExceeded, PermissionDenied, NotADirectory, Invalid.
    """
    answer = await recorded(txn, request.id, meta_pb2.InodeReply)
    if answer is not None:
        return answer
    walker = Walker(txn, call.caller)
    place = await walker.find(request.path, follow=request.parents)
    if place.dentry is not None:
        made = await _existing(txn, request, place.dentry.inode_id, call)
    elif place.rest and not request.parents:
        raise NotFound(f"{request.path}: the directory {place.name.decode()} in its path does not exist")
    else:
        await may_add(walker, place, request.path)
        made = await _make(txn, request, walker, place, call)
    return await record(txn, request.id, meta_pb2.InodeReply(inode=inode_to_pb(made)))


async def make_in_root(txn: Transaction, name: bytes, mode: int, call: Call) -> Inode:
    """A directory of this name, which is free, with the root's layout; nobody's but the superuser's."""
    root = await inode.load(txn, ROOT_INODE)
    layout = choose_layout(root, meta_pb2.LayoutChoice(), call.routing)
    made = _directory(call.new_id(), ROOT_INODE, Permissions(mode, 0, 0), layout, call.now_ns)
    inode.store(txn, made)
    dentry.store(txn, ROOT_INODE, name, made)
    inode.stamp_directory(txn, ROOT_INODE, call.now_ns)
    return made


async def _existing(txn: Transaction, request: meta_pb2.MkdirRequest, inode_id: InodeId, call: Call) -> Inode:
    found = await inode.load_stat(txn, inode_id)
    if not found.is_directory or not request.parents:
        what = "" if found.is_directory else f", and is a {found.type.name.lower()}"
        raise Exists(f"{request.path}: exists already{what}")
    if choose_layout(found, request.layout, call.routing) != choose_layout(
        found, meta_pb2.LayoutChoice(), call.routing
    ):
        raise Exists(f"{request.path}: exists already, with another layout; choose another path or remove it")
    return found


async def _make(txn: Transaction, request: meta_pb2.MkdirRequest, walker: Walker, place: Place, call: Call) -> Inode:
    names = (place.name, *place.rest)
    if b"." in names or b".." in names:
        raise NotFound(f"{request.path}: leads through a symlink to a directory that does not exist")
    if len(place.parents) + len(names) > MAX_DEPTH + 1:
        raise Invalid(f"{request.path}: leads more than {MAX_DEPTH} levels deep")
    above = await inode.load(txn, place.parent)
    inode.stamp_directory(txn, place.parent, call.now_ns)
    charges = Charges(txn)
    quotas = await counting(walker, place, charges)
    charges.add(quotas, len(names), 0)
    await charges.settle()
    for name in names:
        last = name is names[-1]
        layout = choose_layout(above, request.layout if last else meta_pb2.LayoutChoice(), call.routing)
        mode = request.mode & 0o7777 if last and request.mode else DEFAULT_MODE
        its = call.caller.born(permissions_of(above), mode, directory=True)
        made = _directory(call.new_id(), above.inode_id, its, layout, call.now_ns)._replace(quotas=quotas)
        inode.store(txn, made)
        dentry.store(txn, above.inode_id, name, made)
        above = made
    return above


def _directory(inode_id: InodeId, parent: InodeId, its: Permissions, layout: Layout, now_ns: int) -> Inode:
    return Inode(
        inode_id=inode_id,
        type=InodeType.DIRECTORY,
        mode=its.mode,
        uid=its.uid,
        gid=its.gid,
        nlink=2,
        parent=parent,
        layout=layout,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        btime_ns=now_ns,
        version=1,
    )
