"""Reading: stat in batches, listing by pages, and the size of a subtree. Nothing here conflicts with anybody.

To be told of what has a name, a caller needs no more than to walk there; `access` asks for what they may do with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fs3.errors import Fs3Error, Invalid, NotADirectory, PermissionDenied
from fs3.ids import InodeId
from fs3.inode import InodeType
from fs3.kv import keys
from fs3.kv.api import Transaction
from fs3.meta import dentry, inode, listing
from fs3.meta.access import READ, SEARCH, SUPERUSER, Caller, Permissions, permissions_of
from fs3.meta.checks import may_list, may_use
from fs3.meta.dentry import Dentry
from fs3.meta.path import Walker, split
from fs3.pb import meta_pb2

MAX_STATS = 4_096
MAX_PAGE = 4_096
_DEFAULT_PAGE = 1_000


async def stat(txn: Transaction, request: meta_pb2.StatRequest, caller: Caller = SUPERUSER) -> meta_pb2.StatReply:
    """The inode of each path, or its error in its place, all in one snapshot. Raises: Invalid if there are too many."""
    if len(request.paths) > MAX_STATS:
        raise Invalid(f"stat of {len(request.paths)} paths: at most {MAX_STATS} at once")
    reply = meta_pb2.StatReply()
    wanted = []
    walker = Walker(txn, caller, snapshot=True)
    for entry in await walker.existing_many(request.paths, follow=not request.nofollow):
        if isinstance(entry, Fs3Error):
            reply.results.add(code=entry.code, message=str(entry))
        else:
            wanted.append((entry, reply.results.add().inode))
    await inode.load_stats_into(txn, wanted, snapshot=True)
    if request.access:
        for path, result in zip(request.paths, reply.results, strict=True):
            if not result.code:
                _refuse_use(caller, request.access, path, result)
    return reply


def _refuse_use(caller: Caller, wanted: int, path: str, result: meta_pb2.StatResult) -> None:
    """Make an error of an inode with which the caller may not do what is wanted."""
    found = result.inode
    its = Permissions(found.mode, found.uid, found.gid)
    try:
        may_use(caller, its, wanted, path, is_file=found.type == meta_pb2.FILE)
    except PermissionDenied as error:
        result.ClearField("inode")
        result.code, result.message = error.code, str(error)


async def realpath(
    txn: Transaction, request: meta_pb2.RealpathRequest, caller: Caller = SUPERUSER
) -> meta_pb2.RealpathReply:
    """Where the path leads, without symlinks; its last name may be missing. Raises: NotFound, NotADirectory, ..."""
    place = await Walker(txn, caller, snapshot=True).holder(request.path, follow=True)
    return meta_pb2.RealpathReply(path=place.path)


async def find(txn: Transaction, request: meta_pb2.FindRequest, caller: Caller = SUPERUSER) -> meta_pb2.FindReply:
    """Which inodes exist, with a name or a write session, and which are dead.

    Raises: Invalid if there are too many; NotPermitted: it walks past all permissions, so only the superuser may.
    """
    caller.require_superuser("inodes are found by number past the directories that hold them")
    if len(request.inode_ids) > MAX_STATS:
        raise Invalid(f"{len(request.inode_ids)} inodes: at most {MAX_STATS} at once")
    reply = meta_pb2.FindReply()
    named = await txn.get_many([keys.inode(inode_id) for inode_id in request.inode_ids], snapshot=True)
    dead = await txn.get_many([keys.gc_queue(inode_id) for inode_id in request.inode_ids], snapshot=True)
    for value, queued in zip(named, dead, strict=True):
        found = reply.found.add(dead=value is None and queued is not None)
        if value is not None:
            inode.decode_into(found.inode, value)
    return reply


async def list_page(txn: Transaction, request: meta_pb2.ListRequest, caller: Caller = SUPERUSER) -> meta_pb2.ListReply:
    """One page of a directory, with attributes, as it was at one moment; none if the caller's listing is still right.

    Who may read the directory and not search it gets names, numbers and types, as from getdents(2), and all else zero.

    Raises: NotFound, NotADirectory, PermissionDenied, Invalid.
    """
    limit = min(request.limit or _DEFAULT_PAGE, MAX_PAGE)
    walker = Walker(txn, caller, snapshot=True)
    _, entry = await walker.existing(request.path, follow=True)
    if entry.type is not InodeType.DIRECTORY:
        raise NotADirectory(f"{request.path}: is a file, not a directory")
    whole = await may_list(walker, entry, request.path)
    validator = await listing.validator(txn, entry.inode_id) if whole else b""
    if whole and request.validator == validator and not request.after:
        return meta_pb2.ListReply(validator=validator, same=True)
    page = await dentry.load_page(txn, entry.inode_id, request.after.encode(), limit + 1, snapshot=True)
    reply = meta_pb2.ListReply(more=len(page) > limit, validator=validator)
    wanted = [(child, reply.entries.add(name=name.decode()).inode) for name, child in page[:limit]]
    if whole:
        await inode.load_stats_into(txn, wanted, snapshot=True)
        return reply
    for child, message in wanted:
        message.inode_id, message.type = child.inode_id, meta_pb2.InodeType.ValueType(child.type)
    return reply


@dataclass(frozen=True, slots=True)
class Usage:
    """How far the measuring of a subtree has come; `pending` are (directory, name after which to go on), a stack.

    A file with several names counts once: `linked` are those met so far, one set for all steps.
    """

    files: int = 0
    directories: int = 0
    size: int = 0
    pending: tuple[tuple[InodeId, bytes], ...] = ()
    linked: set[InodeId] = field(default_factory=set)


async def usage_start(txn: Transaction, request: meta_pb2.UsageRequest, caller: Caller = SUPERUSER) -> Usage:
    """Usage of the path itself, and what is to be walked under it. Raises: NotFound, NotADirectory, Invalid, ..."""
    split(request.path)
    walker = Walker(txn, caller, snapshot=True)
    _, entry = await walker.existing(request.path, follow=True)
    if entry.type is InodeType.DIRECTORY:
        if not caller.superuser:
            caller.require(await walker.permissions(entry), READ | SEARCH, request.path)
        return Usage(directories=1, pending=((entry.inode_id, b""),))
    found = await inode.load(txn, entry.inode_id, snapshot=True)
    return Usage(files=1, size=found.length)


async def usage_step(txn: Transaction, usage: Usage, limit: int, caller: Caller = SUPERUSER) -> Usage:
    """Count up to `limit` more entries of one directory; a subtree changes meanwhile, as it may under `du`.

    Raises: PermissionDenied: the caller may not look into one of them.
    """
    (directory, after), pending = usage.pending[-1], list(usage.pending[:-1])
    page = await dentry.load_page(txn, directory, after, limit, snapshot=True)
    if len(page) == limit:
        pending.append((directory, page[-1][0]))
    below = [entry.inode_id for _, entry in page if entry.type is InodeType.DIRECTORY]
    if not caller.superuser:
        await _look_into(txn, caller, [(name, entry) for name, entry in page if entry.type is InodeType.DIRECTORY])
    pending += [(inode_id, b"") for inode_id in below]
    directories, files, size = len(below), 0, 0
    others = [entry.inode_id for _, entry in page if entry.type is not InodeType.DIRECTORY]
    for value in await inode.load_values(txn, others, snapshot=True):
        found = meta_pb2.Inode()
        inode.decode_into(found, value)
        if found.nlink > 1:
            if found.inode_id in usage.linked:
                continue
            usage.linked.add(InodeId(found.inode_id))
        files += 1
        size += found.length
    return Usage(usage.files + files, usage.directories + directories, usage.size + size, tuple(pending), usage.linked)


async def _look_into(txn: Transaction, caller: Caller, directories: list[tuple[bytes, Dentry]]) -> None:
    """Raises: PermissionDenied unless the caller may list and search all of these."""
    for name, entry in directories:
        its = entry.permissions or permissions_of(await inode.load(txn, entry.inode_id, snapshot=True))
        caller.require(its, READ | SEARCH, f"the directory {name.decode()} in it")
