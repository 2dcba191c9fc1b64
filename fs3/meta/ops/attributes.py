"""What an inode says of itself: permission bits, owner, times. Nothing here is enforced; clients and mounts read it."""

from __future__ import annotations

from fs3.errors import Invalid
from fs3.inode import Inode, InodeType, inode_to_pb
from fs3.kv.api import Transaction
from fs3.meta import inode, listing
from fs3.meta.call import Call
from fs3.meta.idempotency import record, recorded
from fs3.meta.path import Walker
from fs3.pb import meta_pb2

_SET_UID, _SET_GID, _GROUP_RUNS = 0o4000, 0o2000, 0o010


async def set_attributes(txn: Transaction, request: meta_pb2.SetAttrRequest, call: Call) -> meta_pb2.InodeReply:
    """Change what the request names, and the ctime; a symlink is followed unless `nofollow`.

    A directory's mtime lies under its own key (fs3/meta/inode.py), which is put without being read: whoever adds
    an entry meanwhile does not lose, and of the two times the later commit's stays.

    Raises:
        NotFound, NotADirectory: nothing is there.
        Invalid: the mode of a symlink, a time before 1970, or a time that is given and to be now.
    """
    answer = await recorded(txn, request.id, meta_pb2.InodeReply)
    if answer is not None:
        return answer
    atime_ns = _time(request.HasField("atime_ns"), request.atime_ns, request.atime_now, call.now_ns)
    mtime_ns = _time(request.HasField("mtime_ns"), request.mtime_ns, request.mtime_now, call.now_ns)
    place, entry = await Walker(txn).existing(request.path, follow=not request.nofollow)
    if entry.type is InodeType.SYMLINK and request.HasField("mode"):
        raise Invalid(f"{request.path}: is a symlink, whose own permission bits cannot be changed")
    found = inode.changed(await inode.load(txn, entry.inode_id), call.now_ns)
    found = found._replace(
        mode=_mode(found, request),
        uid=request.uid if request.HasField("uid") else found.uid,
        gid=request.gid if request.HasField("gid") else found.gid,
        atime_ns=found.atime_ns if atime_ns is None else atime_ns,
        mtime_ns=found.mtime_ns if mtime_ns is None else mtime_ns,
    )
    inode.store(txn, found)
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


def _mode(found: Inode, request: meta_pb2.SetAttrRequest) -> int:
    """The mode asked for; a file that changes its owner runs as nobody else from then on, as on Linux."""
    if request.HasField("mode"):
        return request.mode & 0o7777
    if not found.is_file or not (request.HasField("uid") or request.HasField("gid")):
        return found.mode
    return found.mode & ~(_SET_UID | (_SET_GID if found.mode & _GROUP_RUNS else 0))
