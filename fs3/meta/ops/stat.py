"""Reading: stat in batches, listing by pages, and the size of a subtree. Nothing here conflicts with anybody."""

from __future__ import annotations

from dataclasses import dataclass, field

from fs3.errors import Fs3Error, Invalid, NotADirectory
from fs3.ids import InodeId
from fs3.inode import InodeType, inode_to_pb
from fs3.kv import keys
from fs3.kv.api import Transaction
from fs3.meta import dentry, inode
from fs3.meta.path import Walker, split
from fs3.pb import meta_pb2

MAX_STATS = 4_096
MAX_PAGE = 4_096
_DEFAULT_PAGE = 1_000


async def stat(txn: Transaction, request: meta_pb2.StatRequest) -> meta_pb2.StatReply:
    """The inode of each path, or its error in its place, all in one snapshot. Raises: Invalid if there are too many."""
    if len(request.paths) > MAX_STATS:
        raise Invalid(f"stat of {len(request.paths)} paths: at most {MAX_STATS} at once")
    walker = Walker(txn, snapshot=True)
    results = []
    for path in request.paths:
        try:
            _, entry = await walker.existing(path, follow=not request.nofollow)
            found = await inode.load_stat(txn, entry.inode_id, snapshot=True)
            results.append(meta_pb2.StatResult(inode=inode_to_pb(found)))
        except Fs3Error as error:
            if error.retryable:
                raise
            results.append(meta_pb2.StatResult(code=error.code, message=str(error)))
    return meta_pb2.StatReply(results=results)


async def realpath(txn: Transaction, request: meta_pb2.RealpathRequest) -> meta_pb2.RealpathReply:
    """Where the path leads, without symlinks; its last name may be missing. Raises: NotFound, NotADirectory, ..."""
    place = await Walker(txn, snapshot=True).holder(request.path, follow=True)
    return meta_pb2.RealpathReply(path=place.path)


async def find(txn: Transaction, request: meta_pb2.FindRequest) -> meta_pb2.FindReply:
    """Which inodes exist, with a name or a write session, and which are dead. Raises: Invalid if there are too many."""
    if len(request.inode_ids) > MAX_STATS:
        raise Invalid(f"{len(request.inode_ids)} inodes: at most {MAX_STATS} at once")
    reply = meta_pb2.FindReply()
    for inode_id in request.inode_ids:
        value = await txn.get(keys.inode(inode_id), snapshot=True)
        if value is not None:
            reply.found.add(inode=inode_to_pb(inode.decode(value)))
        else:
            reply.found.add(dead=await txn.get(keys.gc_queue(inode_id), snapshot=True) is not None)
    return reply


async def list_page(txn: Transaction, request: meta_pb2.ListRequest) -> meta_pb2.ListReply:
    """One page of a directory, with attributes, as it was at one moment. Raises: NotFound, NotADirectory, Invalid."""
    limit = min(request.limit or _DEFAULT_PAGE, MAX_PAGE)
    _, entry = await Walker(txn, snapshot=True).existing(request.path, follow=True)
    if entry.type is not InodeType.DIRECTORY:
        raise NotADirectory(f"{request.path}: is a file, not a directory")
    page = await dentry.load_page(txn, entry.inode_id, request.after.encode(), limit + 1, snapshot=True)
    entries = [
        meta_pb2.Entry(name=name.decode(), inode=inode_to_pb(await inode.load_stat(txn, child.inode_id, snapshot=True)))
        for name, child in page[:limit]
    ]
    return meta_pb2.ListReply(entries=entries, more=len(page) > limit)


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


async def usage_start(txn: Transaction, request: meta_pb2.UsageRequest) -> Usage:
    """Usage of the path itself, and what is to be walked under it. Raises: NotFound, NotADirectory, Invalid."""
    split(request.path)
    _, entry = await Walker(txn, snapshot=True).existing(request.path, follow=True)
    if entry.type is InodeType.DIRECTORY:
        return Usage(directories=1, pending=((entry.inode_id, b""),))
    found = await inode.load(txn, entry.inode_id, snapshot=True)
    return Usage(files=1, size=found.length)


async def usage_step(txn: Transaction, usage: Usage, limit: int) -> Usage:
    """Count up to `limit` more entries of one directory; a subtree changes meanwhile, as it may under `du`."""
    (directory, after), pending = usage.pending[-1], list(usage.pending[:-1])
    page = await dentry.load_page(txn, directory, after, limit, snapshot=True)
    if len(page) == limit:
        pending.append((directory, page[-1][0]))
    files = directories = size = 0
    for _, entry in page:
        if entry.type is InodeType.DIRECTORY:
            directories += 1
            pending.append((entry.inode_id, b""))
            continue
        found = await inode.load(txn, entry.inode_id, snapshot=True)
        if found.nlink > 1:
            if found.inode_id in usage.linked:
                continue
            usage.linked.add(found.inode_id)
        files += 1
        size += found.length
    return Usage(usage.files + files, usage.directories + directories, usage.size + size, tuple(pending), usage.linked)
