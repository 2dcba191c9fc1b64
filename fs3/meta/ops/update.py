"""Files that have names are written in place, each by one client at a time, under a write session.

Bytes go to the storage daemons; meta is told of a file's length: at a sync or close exactly, with renewals as a hint,
after the bytes up to there are durable. A file that loses its last name meanwhile lives until its session ends; one
whose writer dies keeps the length that was told last.
"""

from __future__ import annotations

from fs3.errors import Fs3Error, InUse, Invalid, IsADirectory, NotFound
from fs3.ids import InodeId
from fs3.inode import Inode, InodeType, inode_to_pb
from fs3.kv.api import Transaction
from fs3.layout import MAX_FILE_BYTES
from fs3.meta import inode, listing, session
from fs3.meta.access import WRITE
from fs3.meta.call import Call
from fs3.meta.checks import may_write
from fs3.meta.idempotency import record, recorded
from fs3.meta.ops.file import check_batch
from fs3.meta.path import Walker
from fs3.meta.quota import Charges
from fs3.meta.session import Session
from fs3.pb import meta_pb2


async def open_for_writing(
    txn: Transaction, request: meta_pb2.OpenForWritingRequest, call: Call
) -> meta_pb2.OpenForWritingReply:
    """Begin a session on each file; symlinks are followed.

    From now on the collector asks the storage daemons what chunks the file has, as its length says no longer.

    Raises:
        NotFound, IsADirectory, NotADirectory, PermissionDenied, Invalid.
        InUse: it is being written, be it by the same client.
    """
    check_batch(len(request.paths))
    answer = await recorded(txn, request.id, meta_pb2.OpenForWritingReply)
    if answer is not None:
        return answer
    reply = meta_pb2.OpenForWritingReply()
    walker = Walker(txn, call.caller)
    for path, place in zip(request.paths, await walker.find_many(request.paths, follow=True), strict=True):
        if isinstance(place, Fs3Error):
            raise place
        entry = place.dentry
        if entry is None:
            raise NotFound(f"{path}: no such file or directory")
        if entry.type is not InodeType.FILE:
            raise IsADirectory(f"{path}: is a directory")
        found = await inode.load(txn, entry.inode_id)
        mode = may_write(call.caller, found, WRITE | request.access, path)
        if await session.load(txn, entry.inode_id) is not None:
            raise InUse(
                f"{path}: is being written; try again when its writer has closed it, or has been gone for a minute"
            )
        if not found.rewritten or mode != found.mode:
            found = found._replace(rewritten=True, mode=mode)
            inode.store(txn, found)
            listing.changed(txn, place.parent, request.id)
        session.store(txn, found.inode_id, Session(request.id.client_id, 0))
        reply.inodes.append(inode_to_pb(found))
    return await record(txn, request.id, reply)


async def sync_files(txn: Transaction, request: meta_pb2.SyncFilesRequest, call: Call) -> meta_pb2.SyncFilesReply:
    """Note lengths, and end the sessions that are to be closed.

    Raises:
        NotFound: a session is over: what was written since the last sync may be visible or not.
        PermissionDenied: it is another client's.
        QuotaExceeded: a quota has no room for what has been added to them; to make them as long as before is no matter.
        Invalid: the file was never published, or is named twice in one call.
    """
    check_batch(len(request.files))
    answer = await recorded(txn, request.id, meta_pb2.SyncFilesReply)
    if answer is not None:
        return answer
    numbers = [InodeId(file.inode_id) for file in request.files]
    if len(set(numbers)) < len(numbers):
        raise Invalid("a file is named twice in one call")
    sessions = await session.require(txn, [(number, f"inode {number}") for number in numbers], request.id.client_id)
    reply, charges = meta_pb2.SyncFilesReply(), Charges(txn)
    for file, number, ours in zip(request.files, numbers, sessions, strict=True):
        found = await inode.load(txn, number)
        if not found.rewritten:
            raise Invalid(f"inode {number} was never published; publish it")
        synced = _synced(found, file, call.now_ns)
        charges.add(found.quotas, 0, synced.length - found.length)
        if synced != found:
            inode.store(txn, synced)
        if file.close:
            inode.end_session(txn, synced)
        elif file.epoch > ours.epoch:
            session.store(txn, number, ours.at_epoch(file.epoch))
        reply.inodes.append(inode_to_pb(synced))
    await charges.settle()
    return await record(txn, request.id, reply)


async def renew_sessions(
    txn: Transaction, request: meta_pb2.RenewSessionsRequest, call: Call
) -> meta_pb2.RenewSessionsReply:
    """Raise the beat of the client's sessions, and the lengths of files that have grown; which sessions are lost.

    Where a quota has no room for that, lengths stay as they are: whoever syncs or closes the file is told.

    Raises: Invalid: neither as many lengths and epochs as files, nor none.
    """
    numbers = [InodeId(number) for number in request.inode_ids]
    if len(request.lengths) not in (0, len(numbers)) or len(request.epochs) != len(request.lengths):
        raise Invalid(
            f"{len(numbers)} files, {len(request.lengths)} lengths and {len(request.epochs)} epochs: the numbers must"
            " agree"
        )
    renewed = await session.renew(txn, request.client_id, numbers)
    charges = Charges(txn)
    for number, length, epoch in zip(numbers, request.lengths, request.epochs, strict=False):
        if length and number in renewed and renewed[number].epoch == epoch:
            found = await inode.load(txn, number)
            longer = found.rewritten and length > found.length
            if longer and await charges.fit(found.quotas, length - found.length):
                grown = meta_pb2.FileSync(inode_id=number, length=length, written=True)
                inode.store(txn, _synced(found, grown, call.now_ns))
    await charges.settle(check=False)
    return meta_pb2.RenewSessionsReply(lost=[number for number in numbers if number not in renewed])


def _synced(found: Inode, file: meta_pb2.FileSync, now_ns: int) -> Inode:
    """Raises: Invalid: longer than a file can be."""
    length = file.length if file.HasField("length") else found.length
    if length > MAX_FILE_BYTES:
        raise Invalid(f"inode {found.inode_id}: {length} bytes are more than a file can have ({MAX_FILE_BYTES})")
    if not file.written and length == found.length:
        return found
    return inode.changed(found, now_ns)._replace(length=length, mtime_ns=now_ns)
