"""What fsspec tells of a file: an inode as the dictionary that its `info` and `ls` give."""

from __future__ import annotations

import datetime
from typing import Any

from fs3.inode import Inode, InodeType


def describe(path: str, inode: Inode) -> dict[str, Any]:
    """An inode as fsspec's `info` tells it; times in seconds since 1970."""
    kind = {InodeType.FILE: "file", InodeType.DIRECTORY: "directory"}.get(inode.type, "other")
    return {
        "name": path,
        "size": inode.length if kind == "file" else 0,
        "type": kind,
        "ino": inode.inode_id,
        "version": inode.version,
        "mode": inode.mode,
        "uid": inode.uid,
        "gid": inode.gid,
        "nlink": inode.nlink,
        "mtime": inode.mtime_ns / 1e9,
        "created": inode.btime_ns / 1e9,
        "layout": inode.layout,
        "islink": inode.type is InodeType.SYMLINK,
        **({"destination": inode.symlink} if inode.type is InodeType.SYMLINK else {}),
    }


def time_of(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
