"""What fsspec tells of a file: an inode as the dictionary that its `info` and `ls` give."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, Protocol

from fs3.errors import Fs3Error, to_os_error
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


class Stat(Protocol):
    """How a client asks for many inodes."""

    def __call__(self, paths: Sequence[str], *, follow: bool = True) -> list[Inode | Fs3Error]: ...


def describe_all(paths: Sequence[str], stat: Stat) -> list[dict[str, Any] | Exception]:
    """Of each path, of a symlink that which it leads to; the standard library's error in the place of what has none."""
    found = stat(paths, follow=False)
    links = [i for i, itself in enumerate(found) if isinstance(itself, Inode) and itself.type is InodeType.SYMLINK]
    ends = dict(zip(links, stat([paths[i] for i in links]) if links else [], strict=True))
    told: list[dict[str, Any] | Exception] = []
    for i, (path, itself) in enumerate(zip(paths, found, strict=True)):
        at = ends.get(i, itself)
        if isinstance(at, Fs3Error):
            told.append(to_os_error(at, path))
        elif isinstance(itself, Inode) and i in ends:
            told.append({**describe(path, at), "islink": True, "destination": itself.symlink})
        else:
            told.append(describe(path, at))
    return told


def time_of(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
