"""What a file or directory is: the value that meta stores and clients hold, and its wire form."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from fs3.ids import InodeId
from fs3.layout import Layout, layout_from_pb, layout_to_pb
from fs3.pb import meta_pb2


class InodeType(IntEnum):
    """The numbers are those of the wire and of the store."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3


_TYPES: dict[int, InodeType] = {int(kind): kind for kind in InodeType}


class Inode(NamedTuple):
    """An inode. Times are nanoseconds since 1970; `mode` holds permission bits only. A tuple: batches make thousands.

    `layout` says where a file lies, or what new files in a directory get. A file with `nlink` 0 was never published, or
    lost its last name while it was being written. `parent` is the directory that holds a directory (the root's is
    itself), 0 for others. `length` of a symlink is that of its target. A directory's `nlink` is 2, however many
    directories it holds. `xattr_bytes` are those of the names and values of its extended attributes. `rewritten`: it
    was opened for writing once it had a name, so that its chunks may reach beyond its length. `quota` is the number of
    a directory's own quota, 0 if it has none; `quotas` are those that count the inode (fs3/meta/quota.py),
    maybe for the sake of a name that it has lost (`lost_name`).
    """

    inode_id: InodeId
    type: InodeType
    mode: int
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    length: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0
    layout: Layout | None = None
    parent: int = 0
    symlink: str = ""
    version: int = 0
    xattr_bytes: int = 0
    rewritten: bool = False
    quota: int = 0
    quotas: tuple[int, ...] = ()
    lost_name: bool = False

    @property
    def is_file(self) -> bool:
        return self.type is InodeType.FILE

    @property
    def is_directory(self) -> bool:
        return self.type is InodeType.DIRECTORY


class Entry(NamedTuple):
    """A name in a directory and the inode behind it."""

    name: str
    inode: Inode


def inode_to_pb(inode: Inode) -> meta_pb2.Inode:
    return meta_pb2.Inode(
        inode_id=inode.inode_id,
        type=meta_pb2.InodeType.ValueType(inode.type),
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        nlink=inode.nlink,
        length=inode.length,
        atime_ns=inode.atime_ns,
        mtime_ns=inode.mtime_ns,
        ctime_ns=inode.ctime_ns,
        btime_ns=inode.btime_ns,
        layout=None if inode.layout is None else layout_to_pb(inode.layout),
        parent=inode.parent,
        symlink=inode.symlink,
        version=inode.version,
        xattr_bytes=inode.xattr_bytes,
        rewritten=inode.rewritten,
        quota=inode.quota,
        quotas=inode.quotas,
        lost_name=inode.lost_name,
    )


def inode_from_pb(message: meta_pb2.Inode) -> Inode:
    """Raises: ValueError if it is of no type that there is."""
    kind = _TYPES.get(message.type)
    if kind is None:
        raise ValueError(f"an inode of type {message.type}")
    return Inode(
        InodeId(message.inode_id),
        kind,
        message.mode,
        message.uid,
        message.gid,
        message.nlink,
        message.length,
        message.atime_ns,
        message.mtime_ns,
        message.ctime_ns,
        message.btime_ns,
        layout_from_pb(message.layout) if message.HasField("layout") else None,
        message.parent,
        message.symlink,
        message.version,
        message.xattr_bytes,
        message.rewritten,
        message.quota,
        tuple(message.quotas),
        message.lost_name,
    )
