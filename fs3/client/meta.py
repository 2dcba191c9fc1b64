"""The blocking client of meta: one call per method, with a deadline, retried within it (fs3/client/meta_calls.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fs3.client.meta_files import FileCalls, Publish, Sync, Written
from fs3.client.meta_reads import Page
from fs3.client.room import Quota, Room, RoomCalls, Space
from fs3.client.trash import TrashCalls
from fs3.errors import Fs3Error, Invalid, TooLarge
from fs3.inode import Entry, Inode, InodeType, inode_from_pb
from fs3.layout import LayoutChoice, choice_to_pb
from fs3.pb import meta_pb2

__all__ = [
    "Entry",
    "Found",
    "Health",
    "Inode",
    "InodeType",
    "MetaClient",
    "Page",
    "Publish",
    "Quota",
    "Room",
    "Space",
    "Sync",
    "Usage",
    "Written",
]

FINDS_AT_ONCE = 1_024

Entries: TypeAlias = list[Entry]
Names: TypeAlias = list[str]


@dataclass(frozen=True, slots=True)
class Health:
    """How many inodes there are, how many wait to be collected, how much is wrong, and the first of that in words."""

    inodes: int
    dead: int
    wrong: int
    findings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a subtree holds; a directory counts itself."""

    files: int
    directories: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """An inode that exists, or whether it is `dead`: removed, and its chunks still wait to be."""

    inode: Inode | None
    dead: bool


class MetaClient(FileCalls, RoomCalls, TrashCalls):
    """Metadata calls of one process; beside what a method names, each raises Unavailable at its deadline."""

    def stat_one(self, path: str, *, follow: bool = True, timeout_s: float | None = None) -> Inode:
        """The inode of `path`. Raises: NotFound, NotADirectory, Invalid."""
        (found,) = self.stat([path], follow=follow, timeout_s=timeout_s)
        if isinstance(found, Fs3Error):
            raise found
        return found

    def mkdir(
        self,
        path: str,
        *,
        parents: bool = False,
        mode: int = 0o755,
        layout: LayoutChoice | None = None,
        timeout_s: float | None = None,
    ) -> Inode:
        """Make a directory; with `parents` also those above, and an existing one is no error.

        Where the metadata store does not take all of them at once, the upper ones are made first.

        Raises: Exists, NotFound (a parent is missing), NotADirectory, PermissionDenied, QuotaExceeded, Invalid.
        """
        choice = choice_to_pb(layout or LayoutChoice())
        fields = {"path": path, "parents": parents, "mode": mode, "layout": choice}
        try:
            reply = self._change("Mkdir", meta_pb2.MkdirRequest, timeout_s, **fields)
        except TooLarge:
            names = path.strip("/").split("/")
            if not parents or len(names) < 2:
                raise
            self.mkdir("/" + "/".join(names[: len(names) // 2]), parents=True, timeout_s=timeout_s)
            reply = self._change("Mkdir", meta_pb2.MkdirRequest, timeout_s, **fields)
        return inode_from_pb(reply.inode)

    def symlink(self, path: str, target: str, *, timeout_s: float | None = None) -> Inode:
        """Make `path` a symlink to `target`, relative to its directory or absolute, which may not exist yet."""
        reply = self._change("Symlink", meta_pb2.SymlinkRequest, timeout_s, path=path, target=target)
        return inode_from_pb(reply.inode)

    def readlink(self, path: str, *, timeout_s: float | None = None) -> str:
        """The target of a symlink, as it was written. Raises: NotFound, NotADirectory; Invalid if it is none."""
        found = self.stat_one(path, follow=False, timeout_s=timeout_s)
        if found.type is not InodeType.SYMLINK:
            raise Invalid(f"{path}: is a {found.type.name.lower()}, not a symlink")
        return found.symlink

    def realpath(self, path: str, *, timeout_s: float | None = None) -> str:
        """Where `path` leads, without symlinks; its last name may be missing. Raises: NotFound, ..."""
        return str(self._call("Realpath", meta_pb2.RealpathRequest, timeout_s, path=path).path)

    def link(self, source: str, target: str, *, timeout_s: float | None = None) -> Inode:
        """Give the file at `source` a further name, `target`. Raises: Exists, NotPermitted (a directory), NotFound."""
        reply = self._change("Link", meta_pb2.LinkRequest, timeout_s, source=source, target=target)
        return inode_from_pb(reply.inode)

    def set_attributes(
        self,
        path: str,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        follow: bool = True,
        timeout_s: float | None = None,
    ) -> Inode:
        """chmod and chown in one step; what is None stays. Raises: NotFound, NotADirectory; Invalid for bad numbers."""
        owner = {name: number for name, number in (("mode", mode), ("uid", uid), ("gid", gid)) if number is not None}
        if any(not 0 <= number < 1 << 32 for number in owner.values()):
            raise Invalid(f"{path}: mode, uid and gid are numbers from 0 to {(1 << 32) - 1}")
        reply = self._change("SetAttr", meta_pb2.SetAttrRequest, timeout_s, path=path, nofollow=not follow, **owner)
        return inode_from_pb(reply.inode)

    def set_times(
        self,
        path: str,
        times_ns: tuple[int | None, int | None] | None = None,
        *,
        follow: bool = True,
        timeout_s: float | None = None,
    ) -> Inode:
        """utimes: (atime, mtime) in nanoseconds since 1970, of which None stays; both are now without `times_ns`."""
        now = times_ns is None
        atime_ns, mtime_ns = times_ns or (None, None)
        reply = self._change(
            "SetAttr",
            meta_pb2.SetAttrRequest,
            timeout_s,
            path=path,
            nofollow=not follow,
            atime_ns=atime_ns,
            mtime_ns=mtime_ns,
            atime_now=now,
            mtime_now=now,
        )
        return inode_from_pb(reply.inode)

    def get_xattr(self, path: str, name: str, *, follow: bool = True, timeout_s: float | None = None) -> bytes:
        """The value of an extended attribute. Raises: NoAttribute, NotFound, NotADirectory, Invalid."""
        reply = self._call("GetXattr", meta_pb2.GetXattrRequest, timeout_s, path=path, nofollow=not follow, name=name)
        return bytes(reply.value)

    def list_xattrs(self, path: str, *, follow: bool = True, timeout_s: float | None = None) -> Names:
        """The names of all extended attributes, sorted."""
        reply = self._call("ListXattrs", meta_pb2.ListXattrsRequest, timeout_s, path=path, nofollow=not follow)
        return Names(reply.names)

    def set_xattr(
        self,
        path: str,
        name: str,
        value: bytes,
        *,
        create: bool = False,
        replace: bool = False,
        follow: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        """Set an extended attribute; all names of a file share it, and it goes with the last of them.

        Raises:
            Exists: `create` was asked for, and it is there.
            NoAttribute: `replace` was asked for, and it is not.
            NoSpace: the inode's attributes would have more than 64 KiB together.
            NotFound, NotADirectory, Invalid.
        """
        self._change(
            "SetXattr",
            meta_pb2.SetXattrRequest,
            timeout_s,
            path=path,
            nofollow=not follow,
            name=name,
            value=value,
            create=create,
            replace=replace,
        )

    def remove_xattr(self, path: str, name: str, *, follow: bool = True, timeout_s: float | None = None) -> None:
        """Raises: NoAttribute, NotFound, NotADirectory, Invalid."""
        self._change("RemoveXattr", meta_pb2.RemoveXattrRequest, timeout_s, path=path, nofollow=not follow, name=name)

    def rename(self, source: str, target: str, *, replace: bool = True, timeout_s: float | None = None) -> Inode:
        """Move `source` to `target` in one step, over a file or an empty directory if `replace`."""
        reply = self._change(
            "Rename", meta_pb2.RenameRequest, timeout_s, source=source, target=target, no_replace=not replace
        )
        return inode_from_pb(reply.inode)

    def remove(
        self,
        path: str,
        *,
        recursive: bool = False,
        must_be: InodeType | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Remove a file, an empty directory, or with `recursive` a subtree in one step.

        `must_be` FILE takes anything but a directory (a symlink too), as `unlink` does.
        """
        kind = meta_pb2.InodeType.ValueType(must_be or 0)
        self._change("Remove", meta_pb2.RemoveRequest, timeout_s, path=path, recursive=recursive, must_be=kind)

    def usage(self, path: str, *, timeout_s: float | None = None) -> Usage:
        """What lies under `path`; takes time in proportion, so give it a deadline that fits."""
        reply = self._call("Usage", meta_pb2.UsageRequest, timeout_s, patient=True, path=path)
        return Usage(reply.files, reply.directories, reply.bytes)

    def fsck(self, *, timeout_s: float | None = None) -> Health:
        """Whether the metadata hangs together; meta reads all of it, so give it a deadline that fits."""
        reply = self._call("Fsck", meta_pb2.FsckRequest, timeout_s, patient=True)
        return Health(reply.inodes, reply.dead, reply.wrong, tuple(reply.findings))

    def backup(self, *, timeout_s: float | None = None) -> tuple[int, Iterator[bytes]]:
        """All of the metadata as it is now: how many bytes, and the pieces (fs3/meta/backup_format.py reads them).

        The deadline is that of the first call, in which meta reads all of it. Raises: Busy: another one is being made;
        NotFound, while the pieces are fetched: the daemon that made it has gone; begin again.
        """
        begun = self._call("Backup", meta_pb2.BackupRequest, timeout_s, patient=True)

        def pieces() -> Iterator[bytes]:
            offset = 0
            while True:
                reply = self._call("Backup", meta_pb2.BackupRequest, None, token=begun.token, offset=offset)
                if not reply.data:
                    return
                yield reply.data
                offset += len(reply.data)

        return begun.total_bytes, pieces()

    def find(self, inode_ids: Sequence[int], *, timeout_s: float | None = None) -> list[Found]:
        """What has become of each inode; those found together are from one moment."""
        found: list[Found] = []
        for begin in range(0, len(inode_ids), FINDS_AT_ONCE):
            batch = inode_ids[begin : begin + FINDS_AT_ONCE]
            reply = self._call("Find", meta_pb2.FindRequest, timeout_s, inode_ids=batch)
            found += [
                Found(inode_from_pb(one.inode) if one.HasField("inode") else None, one.dead) for one in reply.found
            ]
        return found
