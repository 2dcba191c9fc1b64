"""The trash: removing so that it can be undone for a while. One rename into /.trash, whatever the size; one back.

The quotas that counted what is removed go on counting it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from fs3.errors import Exists, Invalid, NotFound
from fs3.inode import Inode, inode_to_pb
from fs3.kv import keys
from fs3.kv.api import Transaction
from fs3.meta import dentry, inode, trashed
from fs3.meta.access import SUPERUSER, Caller
from fs3.meta.call import Call
from fs3.meta.checks import may_add, may_empty, may_list, may_move_away, may_take
from fs3.meta.idempotency import record, recorded
from fs3.meta.moving import move
from fs3.meta.ops import directory
from fs3.meta.path import Walker
from fs3.meta.quota import Charges
from fs3.meta.recount import brought_back, counting, moved_between, thrown_away
from fs3.pb import meta_pb2

KEEP_S = 3 * 86_400
MOST_KEEP_S = 366 * 86_400
IDS_NEEDED = 2  # the entry's number, and once /.trash
KEYS_OF_AN_ENTRY = 8  # that goes, read and written: its name, record, inode, session, attributes, place in the queue
MAX_PAGE = 4_096
_DEFAULT_PAGE = 1_000
_LOOKED_AT = 1_024  # records, for what is to be removed of them in one transaction
_NS = 10**9

Records: TypeAlias = Sequence[tuple[bytes, meta_pb2.TrashRecord]]
"""Records of the trash and their keys."""


async def trash(txn: Transaction, request: meta_pb2.TrashRequest, call: Call) -> meta_pb2.TrashReply:
    """Move what is at `path` (a symlink, not what it points to) into the trash, a directory with all that is in it.

    Raises:
        NotFound: there is nothing.
        Invalid: the root, what is in the trash already, or a time to keep it that is too long.
        PermissionDenied, NotPermitted: the caller may not remove it with what is in it; it is the trash itself.
        NotADirectory: a file is in the way, or /.trash is one.
    """
    answer = await recorded(txn, request.id, meta_pb2.TrashReply)
    if answer is not None:
        return answer
    if request.keep_s > MOST_KEEP_S:
        raise Invalid(f"to keep it for {request.keep_s} s is too long: at most {MOST_KEEP_S} s, a year")
    walker = Walker(txn, call.caller)
    place, entry = await walker.existing(request.path, follow=False)
    if not place.name:
        raise Invalid(f"{request.path}: the root directory cannot be removed")
    trashed.check_stays(place, request.path)
    if trashed.inside(place):
        raise Invalid(f"{request.path}: is in the trash already; remove it for good, or restore it")
    await may_take(walker, place, entry, request.path)
    moving = await inode.load_stat(txn, entry.inode_id)
    may_move_away(call.caller, moving, request.path)
    if moving.is_directory and not call.caller.superuser and not await dentry.is_empty(txn, moving.inode_id):
        may_empty(call.caller, moving, request.path)  # who put it there removes it for good, and else time does
    into = await trashed.directory(txn)
    if into is None:
        into = (await directory.make_in_root(txn, trashed.NAME, trashed.MODE, call)).inode_id
    charges = Charges(txn)
    moving, uncounted = await thrown_away(walker, moving, place, charges)
    key = keys.trash(call.now_ns // _NS + (request.keep_s or KEEP_S), call.new_id())
    known = meta_pb2.TrashRecord(
        path=place.path,
        removed_ns=call.now_ns,
        client_id=request.id.client_id,
        uid=call.caller.user.uid,
        uncounted=uncounted,
    )
    txn.put(key, trashed.encode(known))
    moved = await move(txn, moving, place, into, trashed.entry_name(key, known), call.now_ns)
    shown = meta_pb2.TrashReply(trashed=_shown(key, known))
    shown.trashed.inode.CopyFrom(inode_to_pb(moved))
    return await record(txn, request.id, shown)


async def restore(txn: Transaction, request: meta_pb2.RestoreTrashRequest, call: Call) -> meta_pb2.RestoreTrashReply:
    """Move the entry of that name back to where it was, or to `target`.

    Raises:
        NotFound: the trash has no such entry, or the directory that it goes to does not exist.
        Exists: something is there.
        NotADirectory: a file stands in the way to it.
        Invalid: the root, or somewhere in the trash.
        QuotaExceeded, CrossQuota: other quotas count what is there than what was where it came from.
        PermissionDenied, NotPermitted: it is neither the caller's nor removed by them, or may not go there.
    """
    answer = await recorded(txn, request.id, meta_pb2.RestoreTrashReply)
    if answer is not None:
        return answer
    walker = Walker(txn, call.caller)
    _, known = await _known(txn, request.name)
    source, entry = await walker.existing(f"{trashed.PATH}/{request.name}", follow=False)
    path = request.target or known.path
    target = await walker.find(path, follow=False)
    if target.rest:
        missing = target.name.decode()
        raise NotFound(
            f"{path}: the directory {missing} in its path does not exist; make it first (fs3 mkdir -p),"
            " or restore to another path"
        )
    if target.dentry is not None:
        raise Exists(f"{path}: exists already; move it away, or restore to another path")
    if trashed.inside(target):
        raise Invalid(f"{path}: is in the trash; restore to a path outside of it")
    moving = await inode.load_stat(txn, entry.inode_id)
    _may_have(call.caller, known, moving)
    may_move_away(call.caller, moving, f"{trashed.PATH}/{request.name}")
    await may_add(walker, target, path)
    charges, counted = Charges(txn), None
    if target.path == known.path:
        counted = await brought_back(walker, moving, target, charges, uncounted=known.uncounted)
    if counted is None:
        counted = await moved_between(txn, walker, moving, (source, target), charges, at_once=call.at_once)
        if known.uncounted:
            charges.count_again(await counting(walker, target, charges), begin=True)
    moving = counted
    moved = await move(txn, moving, source, target.parent, target.name, call.now_ns)
    reply = meta_pb2.RestoreTrashReply(inode=inode_to_pb(moved), path=target.path)
    return await record(txn, request.id, reply)


async def list_page(
    txn: Transaction, request: meta_pb2.ListTrashRequest, caller: Caller = SUPERUSER
) -> meta_pb2.ListTrashReply:
    """One page of the trash, what is due first comes first, and everybody's as in its directory.

    Raises: NotADirectory, PermissionDenied, Invalid.
    """
    limit = min(request.limit or _DEFAULT_PAGE, MAX_PAGE)
    page, more = await _records(txn, request.after, limit)
    into = await trashed.directory(txn, snapshot=True)
    reply = meta_pb2.ListTrashReply(more=more)
    if into is None or not page:
        return reply
    walker = Walker(txn, caller, snapshot=True)
    _, where = await walker.existing(trashed.PATH, follow=False)
    await may_list(walker, where, trashed.PATH)
    names = [trashed.entry_name(key, known) for key, known in page]
    entries = await dentry.load_many(txn, [(into, name) for name in names], snapshot=True)
    wanted = []
    for (key, known), entry in zip(page, entries, strict=True):
        if entry is not None:
            shown = reply.trashed.add()
            shown.CopyFrom(_shown(key, known))
            wanted.append((entry, shown.inode))
    await inode.load_stats_into(txn, wanted, snapshot=True)
    reply.after = names[-1].decode()
    return reply


async def empty_page(
    txn: Transaction, request: meta_pb2.EmptyTrashRequest, call: Call, *, limit: int
) -> meta_pb2.EmptyTrashReply:
    """Remove the entry of that name for good; or up to `limit` of all, or of those removed before a time.

    Of all, others than the superuser remove what is theirs, or was removed by them.

    Raises:
        NotFound: the trash has no such entry.
        NotPermitted: the entry of that name is neither the caller's nor removed by them.
        NotADirectory, Invalid.
    """
    answer = await recorded(txn, request.id, meta_pb2.EmptyTrashReply)
    if answer is not None:
        return answer
    if request.name:
        named = await _known(txn, request.name)
        for found in await _inodes(txn, [named]):
            _may_have(call.caller, named[1], found)
        removed = await purge(txn, [named], call.now_ns)
        return await record(txn, request.id, meta_pb2.EmptyTrashReply(removed=removed))
    page, more = await _records(txn, request.after, _LOOKED_AT)
    chosen = [
        pair
        for pair in page
        if not request.HasField("removed_before_ns") or pair[1].removed_ns < request.removed_before_ns
    ]
    if len(chosen) > limit:
        more, chosen = True, chosen[:limit]
        page = chosen
    if not call.caller.superuser:
        inodes = await _inodes(txn, chosen)
        chosen = [pair for pair, found in zip(chosen, inodes, strict=True) if _has(call.caller, pair[1], found)]
    reply = meta_pb2.EmptyTrashReply(removed=await purge(txn, chosen, call.now_ns), more=more)
    if page:
        reply.after = trashed.entry_name(*page[-1]).decode()
    return await record(txn, request.id, reply)


async def purge(txn: Transaction, chosen: Records, now_ns: int) -> int:
    """Remove these entries for good, as a recursive remove would; how many of them were there."""
    into = await trashed.directory(txn)
    if into is None:
        return 0
    names = [trashed.entry_name(key, known) for key, known in chosen]
    removed, charges = 0, Charges(txn)
    entries = await dentry.load_many(txn, [(into, name) for name in names])
    for (key, _), name, entry in zip(chosen, names, entries, strict=True):
        txn.delete(key)
        if entry is not None:
            await inode.drop_tree(txn, await inode.load(txn, entry.inode_id), now_ns, charges)
            dentry.remove(txn, into, name)
            removed += 1
    if removed:
        inode.stamp_directory(txn, into, now_ns)
    await charges.settle()
    return removed


async def _inodes(txn: Transaction, chosen: Records) -> list[Inode | None]:
    """What is behind each record."""
    into = await trashed.directory(txn)
    if into is None:
        return [None] * len(chosen)
    entries = await dentry.load_many(txn, [(into, trashed.entry_name(key, known)) for key, known in chosen])
    return [None if entry is None else await inode.load(txn, entry.inode_id) for entry in entries]


def _has(caller: Caller, known: meta_pb2.TrashRecord, found: Inode | None) -> bool:
    """Whether it is the caller's, or was removed by them, who could have removed it for good."""
    return found is None or caller.owns(found.uid) or (known.HasField("uid") and caller.owns(known.uid))


def _may_have(caller: Caller, known: meta_pb2.TrashRecord, found: Inode | None) -> None:
    """Raises: NotPermitted."""
    if found is not None and not _has(caller, known, found):
        caller.require_owner(found.uid, f"{known.path}: only its owner, or who removed it, takes it out of the trash")


async def _records(txn: Transaction, after: str, limit: int) -> tuple[Records, bool]:
    """Up to `limit` records behind that of the entry `after`, and whether there are more; conflicts with nobody."""
    begin, end = keys.whole(keys.TRASH)
    if after:
        key = trashed.key_of(after.encode())
        if key is None:
            raise Invalid(f"{after}: is no name of an entry of the trash, to go on after")
        begin = key + b"\0"
    found = await txn.range(begin, end, limit=limit + 1, snapshot=True)
    return [(key, trashed.decode(value)) for key, value in found[:limit]], len(found) > limit


async def _known(txn: Transaction, name: str) -> tuple[bytes, meta_pb2.TrashRecord]:
    """Raises: NotFound."""
    found = await trashed.load(txn, name.encode())
    if found is None:
        raise NotFound(f"{name}: the trash has no such entry; `fs3 trash list` shows what it has")
    return found


def _shown(key: bytes, known: meta_pb2.TrashRecord) -> meta_pb2.Trashed:
    """What is told of an entry, without its inode."""
    expires_s, _ = keys.trash_of(key)
    return meta_pb2.Trashed(name=trashed.entry_name(key, known).decode(), record=known, expires_ns=expires_s * _NS)
