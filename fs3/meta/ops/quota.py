"""Setting quotas, and telling what they count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fs3.errors import Invalid, NotADirectory
from fs3.ids import ROOT_INODE
from fs3.inode import Inode, InodeType
from fs3.kv import keys
from fs3.kv.api import Transaction
from fs3.meta import dentry, inode, quota, trashed
from fs3.meta.access import SUPERUSER, Caller
from fs3.meta.call import Call
from fs3.meta.idempotency import record, recorded
from fs3.meta.path import Walker
from fs3.meta.quota import MAX_COUNT, Charges
from fs3.meta.recount import counting
from fs3.pb import meta_pb2

MAX_PAGE = 1_000
MAX_LIMIT = MAX_COUNT
MOST_NESTED = 8  # each is read and written by every change below


async def set_quota(txn: Transaction, request: meta_pb2.SetQuotaRequest, call: Call) -> meta_pb2.SetQuotaReply:
    """Set the limits of what may be below a directory, raise or lower them, or do away with the quota.

    A limit may be lower than what is used; then nothing is added until it is not. A directory that is not empty is
    counted in the background.

    Raises:
        NotFound: there is nothing.
        NotADirectory: it is no directory.
        NotPermitted: the caller is not the superuser.
        Invalid: the root, the trash or what is in it; a limit that is too large; no limit, and there was none.
    """
    answer = await recorded(txn, request.id, meta_pb2.SetQuotaReply)
    if answer is not None:
        return answer
    call.caller.require_superuser("quotas limit everybody")
    for limit in (request.max_bytes, request.max_inodes):
        if limit > MAX_LIMIT:
            raise Invalid(f"a quota of {limit} is too large; at most {MAX_LIMIT}")
    walker = Walker(txn, call.caller)
    place, entry = await walker.existing(request.path, follow=True)
    if entry.type is not InodeType.DIRECTORY:
        raise NotADirectory(f"{request.path}: is a file; a quota is of a directory")
    if entry.inode_id == ROOT_INODE or place.entry is None:
        raise Invalid(f"{request.path}: the root has no quota: its limit are the disks; set it on directories in it")
    if place.above[:1] == (trashed.NAME,) or place.path == trashed.PATH:
        raise Invalid(f"{request.path}: what is in the trash has no quota of its own; restore it first")
    found = await inode.load(txn, entry.inode_id)
    number = found.quota
    known = await quota.load(txn, number) if number else None
    limits = _limits(known, request)
    if limits is None:
        if known is None:
            raise Invalid(f"{request.path}: has no quota; give it a limit of bytes, or of inodes")
        quota.forget(txn, number)
        _mark(txn, place.entry, found._replace(quota=0))
        return await record(txn, request.id, meta_pb2.SetQuotaReply())
    limits.directory, limits.path = entry.inode_id, place.path
    if known is None:
        if sum(one.has_quota for one in walker.above(place)) >= MOST_NESTED:
            raise Invalid(f"{request.path}: {MOST_NESTED} directories above it have quotas; that is as deep as they go")
        number = call.new_id()
        limits.counting = not await dentry.is_empty(txn, entry.inode_id)
        _mark(txn, place.entry, found._replace(quota=number))
    quota.store(txn, number, limits)
    return await record(txn, request.id, meta_pb2.SetQuotaReply(quota=await _shown(txn, number, limits)))


async def quotas(txn: Transaction, request: meta_pb2.QuotasRequest, caller: Caller = SUPERUSER) -> meta_pb2.QuotasReply:
    """Those that count what is put to a path, or into it if it is a directory; or a page of all.

    Others than the superuser are told of those on the way that they have come, by the names there.

    Raises: NotFound, NotADirectory, PermissionDenied; NotPermitted: all are the superuser's to see.
    """
    if request.path:
        walker, charges = Walker(txn, caller, snapshot=True), Charges(txn)
        place, entry = await walker.existing(request.path, follow=True)
        numbers = await counting(walker, place, charges)
        if place.name and entry.has_quota:
            own = (await walker.load(entry.inode_id)).quota
            charges.names[own] = place.path
            numbers = (*numbers, own)
        told = [number for number in numbers if caller.superuser or number in charges.names]
        return await _told(txn, told, charges.names)
    caller.require_superuser("it tells of everybody's directories")
    begin, end = keys.whole(keys.QUOTA)
    if request.after:
        begin = keys.quota(request.after) + b"\0"
    limit = min(request.limit or MAX_PAGE, MAX_PAGE)
    page = await txn.range(begin, end, limit=limit + 1, snapshot=True)
    reply = await _told(txn, [keys.inode_of(key) for key, _ in page[:limit]], {})
    reply.more = len(page) > limit
    return reply


async def _told(txn: Transaction, numbers: Sequence[int], names: Mapping[int, str]) -> meta_pb2.QuotasReply:
    reply = meta_pb2.QuotasReply()
    values = await txn.get_many([keys.quota(number) for number in numbers], snapshot=True)
    for number, value in zip(numbers, values, strict=True):
        if value is not None:
            known = quota.decode(value)
            known.path = names.get(number, known.path)
            reply.quotas.append(await _shown(txn, number, known))
    return reply


async def _shown(txn: Transaction, number: int, known: meta_pb2.QuotaRecord) -> meta_pb2.Quota:
    used = await quota.load_used(txn, number, snapshot=True)
    return meta_pb2.Quota(number=number, record=known, bytes=max(used.bytes, 0), inodes=max(used.inodes, 0))


def _limits(known: meta_pb2.QuotaRecord | None, request: meta_pb2.SetQuotaRequest) -> meta_pb2.QuotaRecord | None:
    """The record with the limits as they are from now on; None if there are none."""
    after = meta_pb2.QuotaRecord()
    if known is not None:
        after.CopyFrom(known)
    for name in ("max_bytes", "max_inodes"):
        if not request.HasField(name):
            continue
        if getattr(request, name):
            setattr(after, name, getattr(request, name))
        else:
            after.ClearField(name)
    return after if after.HasField("max_bytes") or after.HasField("max_inodes") else None


def _mark(txn: Transaction, at: tuple[int, bytes], directory: Inode) -> None:
    """Store a directory and its entry, which tells whoever walks through that quotas count what is in it."""
    inode.store(txn, directory)
    dentry.store(txn, *at, directory)
