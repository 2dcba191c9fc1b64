"""The keys of the metadata store: a frozen format, with golden vectors in tests/golden.

Four ASCII letters name the kind, as in 3FS; numbers follow as 8 bytes big-endian, so that they sort by value:

    INOD <inode>                      an inode that has a name, or a write session
    DENT <directory> <name>           an entry of a directory; names sort as bytes
    DSTM <directory>                  when the directory last changed; put blindly by every change in it
    LVER <directory>                  which change made its listing other without a change in it (fs3/meta/listing.py)
    SESS <inode>                      the write session of a file that is not published yet
    IDEM <period> <client> <request>  the answer a changing request got
    GCQU <inode>                      an inode that is dead: its chunks, or its entries, wait for collection
    XATR <inode> <name>               an extended attribute; its value is the user's bytes as they are
    TRSH <expires> <number>           what stands behind an entry of the trash; sorted by when it is due, in seconds
    QUOT <number>                     a quota: of which directory, and its limits
    QUSE <number> b, QUSE <number> i  counters of the bytes and inodes that it counts
    COUN <name>                       a counter
    META cluster                      the id of the cluster whose names these are
    META collector                    which meta daemon collects, and its beat
    META restoring                    a backup is being put in, or was when somebody interrupted it
"""

from __future__ import annotations

import struct

_ONE = struct.Struct(">4sQ")
_TWO = struct.Struct(">4sQQ")
_THREE = struct.Struct(">4sQQQ")
_U64_MAX = (1 << 64) - 1

INODE = b"INOD"
DENTRY = b"DENT"
STAMP = b"DSTM"
LISTING = b"LVER"
SESSION = b"SESS"
IDEMPOTENCY = b"IDEM"
GC_QUEUE = b"GCQU"
XATTR = b"XATR"
TRASH = b"TRSH"
QUOTA = b"QUOT"
QUOTA_USE = b"QUSE"
COUNTER = b"COUN"

NEXT_INODE = COUNTER + b"next-inode"
IDEMPOTENCY_PERIOD = COUNTER + b"idempotency-period"
CLUSTER = b"METAcluster"
COLLECTOR = b"METAcollector"
RESTORING = b"METArestoring"


def inode(inode_id: int) -> bytes:
    return _ONE.pack(INODE, inode_id)


def dentry(parent: int, name: bytes) -> bytes:
    return _ONE.pack(DENTRY, parent) + name


def dentries(parent: int) -> tuple[bytes, bytes]:
    """The half-open range of all entries of a directory."""
    return _ONE.pack(DENTRY, parent), _ONE.pack(DENTRY, parent + 1)


def dentry_name(key: bytes) -> bytes:
    return key[_ONE.size :]


def stamp(directory: int) -> bytes:
    return _ONE.pack(STAMP, directory)


def listing(directory: int) -> bytes:
    return _ONE.pack(LISTING, directory)


def session(inode_id: int) -> bytes:
    return _ONE.pack(SESSION, inode_id)


def gc_queue(inode_id: int) -> bytes:
    return _ONE.pack(GC_QUEUE, inode_id)


def xattr(inode_id: int, name: bytes) -> bytes:
    return _ONE.pack(XATTR, inode_id) + name


def xattrs(inode_id: int) -> tuple[bytes, bytes]:
    """The half-open range of all attributes of an inode."""
    return _ONE.pack(XATTR, inode_id), _ONE.pack(XATTR, inode_id + 1)


def xattr_name(key: bytes) -> bytes:
    return key[_ONE.size :]


def inode_of(key: bytes) -> int:
    """The inode in a key of INOD, SESS or GCQU; the number in one of QUOT."""
    return int(_ONE.unpack(key)[1])


def trash(expires_s: int, number: int) -> bytes:
    return _TWO.pack(TRASH, expires_s, number)


def trash_of(key: bytes) -> tuple[int, int]:
    """When an entry of the trash is due, and its number."""
    _, expires_s, number = _TWO.unpack(key)
    return expires_s, number


def trash_due(now_s: int) -> tuple[bytes, bytes]:
    """The half-open range of all that is due at `now_s`."""
    return TRASH, _ONE.pack(TRASH, max(now_s + 1, 0))


def quota(number: int) -> bytes:
    return _ONE.pack(QUOTA, number)


def quota_use(number: int) -> tuple[bytes, bytes]:
    """The counters of bytes and of inodes."""
    begin = _ONE.pack(QUOTA_USE, number)
    return begin + b"b", begin + b"i"


def idempotency(period: int, client_id: int, request_id: int) -> bytes:
    return _THREE.pack(IDEMPOTENCY, period, client_id, request_id)


def idempotency_before(period: int) -> tuple[bytes, bytes]:
    """The half-open range of all answers recorded before `period`."""
    return IDEMPOTENCY, _ONE.pack(IDEMPOTENCY, max(period, 0))


def group(key: bytes) -> bytes:
    """The keys that an engine may lump together when it looks for conflicts in ranges (fs3/kv/etcd_layout.py).

    A directory's entries, an inode's attributes, and a period's answers are a group each; of other kinds all keys are
    one.
    """
    return key[: _ONE.size if key.startswith((DENTRY, XATTR, IDEMPOTENCY)) else len(DENTRY)]


def whole(kind: bytes) -> tuple[bytes, bytes]:
    """The half-open range of all keys of a kind that is followed by numbers."""
    return kind, _ONE.pack(kind, _U64_MAX) + b"\xff"
