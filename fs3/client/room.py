"""How much room there is: what the disks have, and what quotas allow; a part of `fs3.client.meta.MetaClient`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fs3.client.meta_reads import MetaReads
from fs3.errors import Fs3Error
from fs3.pb import meta_pb2

_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Space:
    """Of all disks together, in bytes; a file of r replicas takes r times its length."""

    total: int
    used: int
    free: int


@dataclass(frozen=True, slots=True)
class Quota:
    """What may be, and is, below the directory that was at `path` when the limits were set; None: no limit.

    Bytes are the lengths of files, without replicas. `counting`: what was there before is still being counted.
    """

    number: int
    path: str
    max_bytes: int | None
    max_inodes: int | None
    bytes: int
    inodes: int
    counting: bool = False


@dataclass(frozen=True, slots=True)
class Room:
    """What a directory has room for, as statvfs(3) has it: by its replicas, and by the quotas that count what is in it.

    `total`, `used` and `free` are of the quota with the least room in bytes, or else of the disks, divided by the
    replicas of new files; `max_inodes`, `inodes` and `free_inodes` are of the one with the least inodes left, or None.
    """

    total: int
    used: int
    free: int
    max_inodes: int | None = None
    inodes: int | None = None
    free_inodes: int | None = None


class RoomCalls(MetaReads):
    """Space and quotas."""

    def space(self) -> Space:
        """What the cluster's disks hold, as they last reported; asks nobody."""
        disks = self._routing().disks
        total, free = sum(disk.total_bytes for disk in disks), sum(disk.free_bytes for disk in disks)
        return Space(total, total - free, free)

    def quotas(self, path: str, *, timeout_s: float | None = None) -> list[Quota]:
        """Those that count what is at `path`, or what is put into it if it is a directory, outermost first.

        Raises: NotFound, NotADirectory, PermissionDenied, Invalid.
        """
        return [_quota(one) for one in self._call("Quotas", meta_pb2.QuotasRequest, timeout_s, path=path).quotas]

    def all_quotas(self, *, timeout_s: float | None = None) -> Iterator[list[Quota]]:
        """All there are, in pages; the deadline is a page's. Raises: NotPermitted: this is not the superuser."""
        after = 0
        while True:
            reply = self._call("Quotas", meta_pb2.QuotasRequest, timeout_s, after=after, limit=_PAGE)
            yield [_quota(one) for one in reply.quotas]
            if not reply.more:
                return
            after = reply.quotas[-1].number

    def set_quota(
        self,
        path: str,
        *,
        max_bytes: int | None = None,
        max_inodes: int | None = None,
        timeout_s: float | None = None,
    ) -> Quota | None:
        """Limit what may be below a directory; None leaves a limit as it is, 0 does away with it. What it is then.

        Raises: NotFound, NotADirectory; NotPermitted: this is not the superuser; Invalid: the root, or the trash.
        """
        limits = {"max_bytes": max_bytes, "max_inodes": max_inodes}
        reply = self._change("SetQuota", meta_pb2.SetQuotaRequest, timeout_s, path=path, **limits)
        return _quota(reply.quota) if reply.HasField("quota") else None

    def room(self, path: str = "/", *, timeout_s: float | None = None) -> Room:
        """What there is room for at or below `path`. Raises: NotFound, NotADirectory, PermissionDenied, Invalid."""
        (found,) = self.stat([path], timeout_s=timeout_s)
        if isinstance(found, Fs3Error):
            raise found
        quotas = self.quotas(path, timeout_s=timeout_s)
        layout, space = found.layout, self.space()
        copies = 1 if layout is None else self._routing().table(layout.chain_table, layout.chain_table_version).replicas
        room = Room(space.total // copies, space.used // copies, space.free // copies)
        for one in quotas:
            if one.max_bytes is not None and max(one.max_bytes - one.bytes, 0) < room.free:
                room = replace(room, total=one.max_bytes, used=one.bytes, free=max(one.max_bytes - one.bytes, 0))
            left = None if one.max_inodes is None else max(one.max_inodes - one.inodes, 0)
            if left is not None and (room.free_inodes is None or left < room.free_inodes):
                room = replace(room, max_inodes=one.max_inodes, inodes=one.inodes, free_inodes=left)
        return room


def _quota(told: meta_pb2.Quota) -> Quota:
    record = told.record
    return Quota(
        told.number,
        record.path,
        record.max_bytes if record.HasField("max_bytes") else None,
        record.max_inodes if record.HasField("max_inodes") else None,
        told.bytes,
        told.inodes,
        record.counting,
    )
