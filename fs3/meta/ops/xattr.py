"""Extended attributes: small values under names, beside an inode, each under a key of its own (fs3/kv/keys.py).

The inode counts their bytes and is written by every change of one. So a change conflicts with whoever drops the inode,
who then knows that there are attributes to drop, and the limit holds without reading them all.
"""

from __future__ import annotations

from fs3.errors import Exists, Invalid, NoAttribute, NoSpace
from fs3.inode import Inode
from fs3.kv import keys
from fs3.kv.api import Transaction
from fs3.meta import inode, listing
from fs3.meta.access import READ, SUPERUSER, Caller, permissions_of
from fs3.meta.call import Call
from fs3.meta.checks import may_annotate
from fs3.meta.idempotency import record, recorded
from fs3.meta.path import Place, Walker
from fs3.pb import common_pb2, meta_pb2

MAX_NAME_BYTES = 255
MAX_VALUE_BYTES = 64 << 10
MAX_BYTES = 64 << 10  # of an inode, names and values


def check_name(name: str) -> bytes:
    """The bytes of an attribute's name. Raises: Invalid."""
    raw = name.encode()
    if not raw or len(raw) > MAX_NAME_BYTES or b"\0" in raw:
        raise Invalid(f"attribute {name[:40]!r}: {len(raw)} bytes long, must be 1 to {MAX_NAME_BYTES}, without NUL")
    return raw


async def get_attribute(
    txn: Transaction, request: meta_pb2.GetXattrRequest, caller: Caller = SUPERUSER
) -> meta_pb2.GetXattrReply:
    """Raises: NoAttribute, NotFound, NotADirectory, PermissionDenied, Invalid."""
    name = check_name(request.name)
    walker = Walker(txn, caller, snapshot=True)
    _, entry = await walker.existing(request.path, follow=not request.nofollow)
    if not caller.superuser:
        caller.require(permissions_of(await walker.load(entry.inode_id)), READ, request.path)
    value = await txn.get(keys.xattr(entry.inode_id, name), snapshot=True)
    if value is None:
        raise _missing(request.path, request.name)
    return meta_pb2.GetXattrReply(value=value)


async def list_attributes(
    txn: Transaction, request: meta_pb2.ListXattrsRequest, caller: Caller = SUPERUSER
) -> meta_pb2.ListXattrsReply:
    """All names, sorted. Raises: NotFound, NotADirectory, PermissionDenied, Invalid."""
    _, entry = await Walker(txn, caller, snapshot=True).existing(request.path, follow=not request.nofollow)
    found = await txn.range(*keys.xattrs(entry.inode_id), limit=MAX_BYTES, snapshot=True)
    return meta_pb2.ListXattrsReply(names=[keys.xattr_name(key).decode() for key, _ in found])


async def set_attribute(txn: Transaction, request: meta_pb2.SetXattrRequest, call: Call) -> common_pb2.Empty:
    """Set one attribute.

    Raises:
        Exists: `create` was asked for, and it is there.
        NoAttribute: `replace` was asked for, and it is not.
        NoSpace: the inode would have more than `MAX_BYTES` of attributes.
        NotFound, NotADirectory, PermissionDenied, NotPermitted, Invalid.
    """
    answer = await recorded(txn, request.id, common_pb2.Empty)
    if answer is not None:
        return answer
    name = check_name(request.name)
    if len(request.value) > MAX_VALUE_BYTES:
        raise Invalid(f"attribute {request.name!r}: {len(request.value)} bytes of value, at most {MAX_VALUE_BYTES}")
    place, entry = await Walker(txn, call.caller).existing(request.path, follow=not request.nofollow)
    named = await inode.load(txn, entry.inode_id)
    may_annotate(call.caller, named, request.path)
    key = keys.xattr(entry.inode_id, name)
    before = await txn.get(key)
    if before is not None and request.create:
        raise Exists(f"{request.path}: the attribute {request.name!r} exists already")
    if before is None and request.replace:
        raise _missing(request.path, request.name)
    grown = len(request.value) + len(name) - (0 if before is None else len(before) + len(name))
    if grown > 0 and named.xattr_bytes + grown > MAX_BYTES:
        raise NoSpace(
            f"{request.path}: its attributes would have {named.xattr_bytes + grown} bytes, names included; "
            f"at most {MAX_BYTES} are allowed"
        )
    txn.put(key, request.value)
    _count(txn, named, grown, call)
    _show(txn, place, named, request.id)
    return await record(txn, request.id, common_pb2.Empty())


async def remove_attribute(txn: Transaction, request: meta_pb2.RemoveXattrRequest, call: Call) -> common_pb2.Empty:
    """Raises: NoAttribute, NotFound, NotADirectory, PermissionDenied, NotPermitted, Invalid."""
    answer = await recorded(txn, request.id, common_pb2.Empty)
    if answer is not None:
        return answer
    name = check_name(request.name)
    place, entry = await Walker(txn, call.caller).existing(request.path, follow=not request.nofollow)
    named = await inode.load(txn, entry.inode_id)
    may_annotate(call.caller, named, request.path)
    key = keys.xattr(entry.inode_id, name)
    before = await txn.get(key)
    if before is None:
        raise _missing(request.path, request.name)
    txn.delete(key)
    _count(txn, named, -len(before) - len(name), call)
    _show(txn, place, named, request.id)
    return await record(txn, request.id, common_pb2.Empty())


def _count(txn: Transaction, named: Inode, grown: int, call: Call) -> None:
    counted = inode.changed(named, call.now_ns)._replace(xattr_bytes=named.xattr_bytes + grown)
    inode.store(txn, counted)


def _show(txn: Transaction, place: Place, named: Inode, request: meta_pb2.RequestId) -> None:
    """The listing that shows the inode is another now."""
    if not named.is_directory:
        listing.changed(txn, place.parent, request)


def _missing(path: str, name: str) -> NoAttribute:
    return NoAttribute(f"{path}: has no attribute {name!r}")
