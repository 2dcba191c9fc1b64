"""New files are born without a name, written, and then published under one, in one transaction for a whole batch.

Readers see the old file or the whole new one. A writer that dies leaves an inode whose session runs out. Of an empty
file nothing is written, so it may be made in the transaction that names it.
"""

from __future__ import annotations

from collections.abc import Sequence

from fs3.errors import Exists, Invalid, IsADirectory
from fs3.ids import InodeId
from fs3.inode import Inode, InodeType, inode_to_pb
from fs3.kv.api import Transaction
from fs3.layout import MAX_FILE_BYTES, Layout
from fs3.meta import dentry, inode, session, trashed
from fs3.meta.access import Permissions, permissions_of
from fs3.meta.call import Call, choose_layout
from fs3.meta.checks import may_add, may_replace
from fs3.meta.dentry import Dentry
from fs3.meta.idempotency import record, recorded
from fs3.meta.path import Place, Walker
from fs3.meta.quota import Charges, Numbers
from fs3.meta.recount import counting
from fs3.meta.session import Session
from fs3.pb import common_pb2, meta_pb2

PUBLISHED_KEYS = 3  # of each file that is published: inode, session, name
REPLACED_KEYS = PUBLISHED_KEYS + 2  # the old inode, its place in the queue
MAX_FILES = 512  # so that the answer to a batch fits into one value of the store
DEFAULT_MODE = 0o644


def ids_needed(request: meta_pb2.PublishFilesRequest) -> int:
    return sum(not wanted.inode_id for wanted in request.files)


def check_batch(count: int) -> None:
    """Raises: Invalid."""
    if count > MAX_FILES:
        raise Invalid(f"{count} files in one call: at most {MAX_FILES} at once")


async def create_files(txn: Transaction, request: meta_pb2.CreateFilesRequest, call: Call) -> meta_pb2.CreateFilesReply:
    """An inode and a write session for each path; nothing is visible yet, so this conflicts with nobody.

    Whether the caller may publish there, and a quota has room, is asked already, lest they write for nothing; it counts
    when they publish.

    Raises:
        NotFound: a directory is missing, or no chain table has the chosen replicas.
        QuotaExceeded: a quota has no room for a single one.
        IsADirectory, NotADirectory, PermissionDenied, Invalid.
    """
    check_batch(len(request.paths))
    answer = await recorded(txn, request.id, meta_pb2.CreateFilesReply)
    if answer is not None:
        return answer
    walker = Walker(txn, call.caller, snapshot=True)
    places = await walker.holder_many(request.paths, follow=True)
    reply = meta_pb2.CreateFilesReply()
    for path, place in zip(request.paths, places, strict=True):
        _refuse_directory(place, path)
        await _may_publish(walker, place, path)
    charges = Charges(txn)
    for place in {place.parent: place for place in places if place.dentry is None}.values():
        await charges.require_room(await counting(walker, place, charges))
    for place, file in zip(places, await _made(txn, places, request, call), strict=True):
        reply.inodes.append(file)
        reply.keys.append(PUBLISHED_KEYS if place.dentry is None else REPLACED_KEYS)
        inode.store_message(txn, file)
        session.store(txn, InodeId(file.inode_id), Session(request.id.client_id, 0))
    return await record(txn, request.id, reply)


async def publish_files(
    txn: Transaction, request: meta_pb2.PublishFilesRequest, call: Call
) -> meta_pb2.PublishFilesReply:
    """Give every file its name and length, or none. A replaced file's chunks go to the collector.

    Files without a number are empty, and made now; the directories' layouts are read as by `create_files`.

    Raises:
        NotFound: a directory is missing, or a write session is over.
        Exists: a name is taken and not to be replaced.
        PermissionDenied: the caller may not, or a write session is another client's.
        QuotaExceeded: a quota has no room for all of them.
        IsADirectory, NotADirectory, Invalid.
    """
    check_batch(len(request.files))
    answer = await recorded(txn, request.id, meta_pb2.PublishFilesReply)
    if answer is not None:
        return answer
    walker = Walker(txn, call.caller)
    places = await walker.holder_many([wanted.path for wanted in request.files], follow=True)
    names: set[tuple[InodeId, bytes]] = set()
    for wanted, place in zip(request.files, places, strict=True):
        _refuse_directory(place, wanted.path)
        if (place.parent, place.name) in names:
            raise Invalid(f"{wanted.path}: named twice in one call")
        names.add((place.parent, place.name))
        if place.dentry is not None and not wanted.replace:
            raise Exists(f"{wanted.path}: exists already")
        if wanted.length and not wanted.inode_id:
            raise Invalid(f"{wanted.path}: {wanted.length} bytes in a file that is only made now; write it first")
        if wanted.length > MAX_FILE_BYTES:
            raise Invalid(f"{wanted.path}: {wanted.length} bytes are more than a file can have ({MAX_FILE_BYTES})")
        await _may_publish(walker, place, wanted.path)
    written = [(InodeId(wanted.inode_id), wanted.path) for wanted in request.files if wanted.inode_id]
    await session.require(txn, written, request.id.client_id)
    reply = meta_pb2.PublishFilesReply()
    values = await _values(txn, request, places, call)
    charges = Charges(txn)
    counted: dict[InodeId, Numbers] = {}
    for wanted, place, value in zip(request.files, places, values, strict=True):
        if place.parent not in counted:
            counted[place.parent] = await counting(walker, place, charges)
        file = reply.inodes.add()
        file.quotas.extend(counted[place.parent])
        await _publish(txn, wanted, place, value, file, call, charges)
        charges.add(counted[place.parent], 1, wanted.length)
    await charges.settle()
    for directory in {place.parent for place in places}:
        inode.stamp_directory(txn, directory, call.now_ns)
    return await record(txn, request.id, reply)


async def abandon_files(txn: Transaction, request: meta_pb2.AbandonFilesRequest, call: Call) -> common_pb2.Empty:
    """End sessions, and with them files that have no name; those that are over already are left alone.

    Raises: PermissionDenied.
    """
    for number in request.inode_ids:
        inode_id = InodeId(number)
        if await session.owned(txn, inode_id, request.id.client_id) is not None:
            inode.end_session(txn, await inode.load(txn, inode_id))
    return common_pb2.Empty()


async def _values(
    txn: Transaction, request: meta_pb2.PublishFilesRequest, places: Sequence[Place], call: Call
) -> list[bytes]:
    """The record of each file, as it is before it has its name."""
    written = iter(await inode.load_values(txn, [wanted.inode_id for wanted in request.files if wanted.inode_id]))
    bare = [place for wanted, place in zip(request.files, places, strict=True) if not wanted.inode_id]
    made = iter(await _made(txn, bare, request, call))
    return [next(written) if wanted.inode_id else inode.encode_message(next(made)) for wanted in request.files]


async def _made(
    txn: Transaction,
    places: Sequence[Place],
    request: meta_pb2.CreateFilesRequest | meta_pb2.PublishFilesRequest,
    call: Call,
) -> list[meta_pb2.Inode]:
    """A new file without a name for each of these places, not stored yet. Raises: NotFound: no such chain table."""
    patterns: dict[InodeId, meta_pb2.Inode] = {}
    made = []
    for place in places:
        if place.parent not in patterns:
            directory = await inode.load(txn, place.parent, snapshot=True)
            layout = choose_layout(directory, request.layout, call.routing)
            its = call.caller.born(permissions_of(directory), request.mode & 0o7777 or DEFAULT_MODE)
            patterns[place.parent] = inode_to_pb(_file(its, layout, call.now_ns))
        file = meta_pb2.Inode()
        file.CopyFrom(patterns[place.parent])
        file.inode_id = file.layout.seed = call.new_id()
        made.append(file)
    return made


async def _publish(
    txn: Transaction,
    wanted: meta_pb2.PublishFile,
    place: Place,
    value: bytes,
    file: meta_pb2.Inode,
    call: Call,
    charges: Charges,
) -> None:
    """Make the inode stored as `value` visible, and fill `file`, which has its quotas, with what it is then."""
    inode.decode_into(file, value)
    if file.rewritten or file.nlink:
        raise Invalid(f"{wanted.path}: inode {file.inode_id} was published before")
    if place.dentry is not None:
        await inode.drop_name(txn, await inode.load(txn, place.dentry.inode_id), call.now_ns, charges)
        await trashed.forget(txn, place)
    file.nlink, file.length, file.version = 1, wanted.length, file.version + 1
    file.mtime_ns = file.ctime_ns = call.now_ns
    inode.store_message(txn, file)
    if wanted.inode_id:
        session.end(txn, InodeId(file.inode_id))
    dentry.store_entry(txn, place.parent, place.name, Dentry(InodeId(file.inode_id), InodeType.FILE))


async def _may_publish(walker: Walker, place: Place, path: str) -> None:
    """As for a rename: to replace a file, nothing is asked of the file. Raises: PermissionDenied, NotPermitted."""
    if walker.caller.superuser:
        return
    if place.dentry is None:
        await may_add(walker, place, path)
    else:
        await may_replace(walker, place, place.dentry, path)


def _refuse_directory(place: Place, path: str) -> None:
    if place.dentry is not None and place.dentry.type is InodeType.DIRECTORY:
        raise IsADirectory(f"{path}: is a directory")


def _file(its: Permissions, layout: Layout, now_ns: int) -> Inode:
    """A new file without a number."""
    return Inode(
        inode_id=InodeId(0),
        type=InodeType.FILE,
        mode=its.mode,
        uid=its.uid,
        gid=its.gid,
        nlink=0,
        layout=layout,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        btime_ns=now_ns,
        version=1,
    )
