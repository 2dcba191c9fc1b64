"""What an inode says of itself: permission bits, owner, times, and who may change them (as Linux has it).

A directory's permissions lie in its entry too, for walks (fs3/meta/dentry.py), and change there at the same time.
"""

from __future__ import annotations

from fs3.errors import Invalid, NotPermitted
from fs3.inode import Inode, InodeType, inode_to_pb
from fs3.kv.api import Transaction
from fs3.meta import dentry, inode, listing
from fs3.meta.access import GROUP_RUNS, SET_GID, SET_UID, WRITE, Caller, permissions_of
from fs3.meta.call import Call
from fs3.meta.idempotency import record, recorded
from fs3.meta.path import Walker
from fs3.pb import meta_pb2


async def set_attributes(txn: Transaction, request: meta_pb2.SetAttrRequest, call: Call) -> meta_pb2.InodeReply:
    """Change what the request names, and the ctime; a symlink is followed unless `nofollow`.

    A directory's mtime lies under its own key (fs3/meta/inode.py), which is put without being read: whoever adds
    an entry meanwhile does not lose, and of the two times the later commit's stays.

    Raises:
        NotFound, NotADirectory: nothing is there.
        Invalid: the mode of a symlink, a time before 1970, or a time that is given and to be now.
        NotPermitted, PermissionDenied: the caller may not.
    """
    answer = await recorded(txn, request.id, meta_pb2.InodeReply)
    if answer is not None:
        return answer
    atime_ns = _time(request.HasField("atime_ns"), request.atime_ns, request.atime_now, call.now_ns)
    mtime_ns = _time(request.HasField("mtime_ns"), request.mtime_ns, request.mtime_now, call.now_ns)
    place, entry = await Walker(txn, call.caller).existing(request.path, follow=not request.nofollow)
    if entry.type is InodeType.SYMLINK and request.HasField("mode"):
        raise Invalid(f"{request.path}: is a symlink, whose own permission bits cannot be changed")
    before = await inode.load(txn, entry.inode_id)
    if not call.caller.superuser:
        _check(call.caller, before, request)
    found = inode.changed(before, call.now_ns)
    found = found._replace(
        mode=_mode(call.caller, found, request),
        uid=request.uid if request.HasField("uid") else found.uid,
        gid=request.gid if request.HasField("gid") else found.gid,
        atime_ns=found.atime_ns if atime_ns is None else atime_ns,
        mtime_ns=found.mtime_ns if mtime_ns is None else mtime_ns,
    )
    inode.store(txn, found)
    if found.is_directory and permissions_of(found) != permissions_of(before) and place.entry is not None:
        dentry.store(txn, *place.entry, found)
    if found.is_directory and mtime_ns is not None:
        inode.stamp_directory(txn, found.inode_id, mtime_ns)
    if not found.is_directory or mtime_ns is not None:
        listing.changed(txn, found.inode_id if found.is_directory else place.parent, request.id)
    shown = await inode.load_stat(txn, found.inode_id, snapshot=True)
    return await record(txn, request.id, meta_pb2.InodeReply(inode=inode_to_pb(shown)))


def _time(given: bool, time_ns: int, now: bool, now_ns: int) -> int | None:
    if given and now:
        raise Invalid("a time is either given or now, not both")
    if time_ns < 0:
        raise Invalid(f"a time of {time_ns} ns lies before 1970")
    return time_ns if given else now_ns if now else None


def _check(caller: Caller, found: Inode, request: meta_pb2.SetAttrRequest) -> None:
    """Raises: NotPermitted; PermissionDenied: both times to be now, by one who may not even write."""
    path = request.path
    if request.HasField("uid") and not (request.uid == found.uid == caller.user.uid):
        raise NotPermitted(f"{path}: only the superuser gives things to other users, and this is uid {caller.user.uid}")
    if request.HasField("gid"):
        caller.require_owner(found.uid, f"{path}: only the owner changes its group")
        if request.gid != found.gid and not caller.is_member(request.gid):
            raise NotPermitted(
                f"{path}: uid {caller.user.uid} is not in group {request.gid}, into which only the superuser could"
                " change it then"
            )
    if request.HasField("mode"):
        caller.require_owner(found.uid, f"{path}: only the owner changes permission bits")
    if request.atime_now and request.mtime_now:
        if not caller.owns(found.uid):
            caller.require(permissions_of(found), WRITE, path)
    elif request.atime_now or request.mtime_now or request.HasField("atime_ns") or request.HasField("mtime_ns"):
        caller.require_owner(found.uid, f"{path}: only the owner sets times, other than both to now")


def _mode(caller: Caller, found: Inode, request: meta_pb2.SetAttrRequest) -> int:
    """The mode asked for; a file that changes its owner runs as nobody else from then on, as on Linux."""
    if request.HasField("mode"):
        gid = request.gid if request.HasField("gid") else found.gid
        return request.mode & (0o7777 if caller.is_member(gid) else 0o7777 & ~SET_GID)
    if not found.is_file or not (request.HasField("uid") or request.HasField("gid")):
        return found.mode
    runs = found.mode & GROUP_RUNS or not caller.is_member(found.gid)
    return found.mode & ~(SET_UID | (SET_GID if runs else 0))
