"""Directory entries: which names are allowed, and what an entry holds.

That is inode id and type, and of a directory its permissions and whether it has a quota, so that a walk reads no inode.
Entries of directories that were made before permissions were enforced lack these, until the directory is moved or they
are changed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from fs3.errors import Corrupt, Invalid
from fs3.ids import InodeId
from fs3.inode import Inode, InodeType
from fs3.kv import keys
from fs3.kv.api import Transaction
from fs3.meta.access import Permissions, permissions_of

MAX_NAME_BYTES = 255

_VALUE = struct.Struct(">QB")
_PERMISSIONS = struct.Struct(">HII")
_DIRECTORY_VALUE = struct.Struct(f">QB{_PERMISSIONS.size}s")
_DIRECTORY_BYTES = _DIRECTORY_VALUE.size
_TYPES = {int(kind): kind for kind in InodeType}
_HAS_QUOTA = 0x80  # beside the type


class Dentry(NamedTuple):
    """What a name stands for; `packed` are the permissions of a directory, or nothing if its entry lacks them."""

    inode_id: InodeId
    type: InodeType
    packed: bytes = b""  # which a walk of the superuser need not look at
    has_quota: bool = False  # of its own

    @property
    def permissions(self) -> Permissions | None:
        return Permissions._make(_PERMISSIONS.unpack(self.packed)) if self.packed else None


def check_name(name: str) -> bytes:
    """The bytes of a name. Raises: Invalid, saying why it is none."""
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise Invalid(f"name {name!r}: not valid UTF-8") from None
    if not raw or raw in (b".", b".."):
        raise Invalid(f"name {name!r}: not a name; write the path out")
    if b"\0" in raw or b"/" in raw:
        raise Invalid(f"name {name!r}: NUL and '/' are not allowed in a name")
    if len(raw) > MAX_NAME_BYTES:
        raise Invalid(f"name {name[:40]!r}...: {len(raw)} bytes long, at most {MAX_NAME_BYTES} are allowed")
    return raw


def encode(entry: Dentry) -> bytes:
    return _VALUE.pack(entry.inode_id, entry.type | _HAS_QUOTA * entry.has_quota) + entry.packed


def of_inode(inode: Inode) -> Dentry:
    packed = _PERMISSIONS.pack(*permissions_of(inode)) if inode.is_directory else b""
    return Dentry(inode.inode_id, inode.type, packed, bool(inode.quota))


def decode(value: bytes) -> Dentry:
    """Raises: Corrupt."""
    try:
        if len(value) == _DIRECTORY_BYTES:
            inode_id, kind, packed = _DIRECTORY_VALUE.unpack(value)
            return Dentry(inode_id, _TYPES[kind & ~_HAS_QUOTA], packed, bool(kind & _HAS_QUOTA))
        inode_id, kind = _VALUE.unpack(value)
        return Dentry(inode_id, _TYPES[kind])
    except (struct.error, KeyError):
        raise Corrupt(f"a directory entry cannot be read: {value.hex()}") from None


async def load(txn: Transaction, parent: int, name: bytes, *, snapshot: bool = False) -> Dentry | None:
    value = await txn.get(keys.dentry(parent, name), snapshot=snapshot)
    return None if value is None else decode(value)


async def load_many(
    txn: Transaction, names: Sequence[tuple[InodeId, bytes]], *, snapshot: bool = False
) -> list[Dentry | None]:
    """What each (directory, name) stands for, in order."""
    found = await txn.get_many([keys.dentry(parent, name) for parent, name in names], snapshot=snapshot)
    return [None if value is None else decode(value) for value in found]


async def load_page(
    txn: Transaction, parent: int, after: bytes, limit: int, *, snapshot: bool = False
) -> list[tuple[bytes, Dentry]]:
    """Up to `limit` entries whose names are greater than `after` (b"": all), in byte order."""
    begin, end = keys.dentries(parent)
    if after:
        begin = keys.dentry(parent, after) + b"\0"
    return [
        (keys.dentry_name(key), decode(value))
        for key, value in await txn.range(begin, end, limit=limit, snapshot=snapshot)
    ]


def store(txn: Transaction, parent: int, name: bytes, inode: Inode) -> None:
    store_entry(txn, parent, name, of_inode(inode))


def store_entry(txn: Transaction, parent: int, name: bytes, entry: Dentry) -> None:
    txn.put(keys.dentry(parent, name), encode(entry))


def remove(txn: Transaction, parent: int, name: bytes) -> None:
    txn.delete(keys.dentry(parent, name))


async def is_empty(txn: Transaction, directory: int) -> bool:
    """Whether nothing is in `directory`; conflicts with a concurrent create in it."""
    return not await txn.range(*keys.dentries(directory), limit=1)
