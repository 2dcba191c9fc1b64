"""Whether quotas count what is there: the part of fsck that adds up inodes by the quotas that they name.

counters    are the sums over the inodes that name the quota
a record    belongs to a directory that exists and says so; and every such directory has one
an inode    names the quotas of what is in its directory, unless it has, or had, further names, is in the trash or in
            what waits to be taken apart, or the quota is still being counted
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from fs3.inode import Inode
from fs3.kv import keys
from fs3.kv.occ_core import decode_counter
from fs3.meta import quota
from fs3.meta.quota import Numbers, Used
from fs3.pb import meta_pb2


class QuotaSums:
    """Take in records, counters and inodes in any order; then ask."""

    def __init__(self) -> None:
        self._records: dict[int, meta_pb2.QuotaRecord] = {}
        self._counters: dict[bytes, int] = {}
        self._bytes: Counter[int] = Counter()
        self._inodes: Counter[int] = Counter()
        self._quotas: dict[int, Numbers] = {}  # of inodes that name some
        self._own: dict[int, int] = {}  # of directories that have one
        self._inside: dict[int, Numbers] = {}  # of directories in which some count

    def take(self, key: bytes, value: bytes) -> None:
        """A record or a counter. Raises: Corrupt."""
        if key.startswith(keys.QUOTA):
            self._records[keys.inode_of(key)] = quota.decode(value)
        else:
            self._counters[key] = decode_counter(value)

    def take_inode(self, found: Inode) -> None:
        if found.quotas:
            self._quotas[found.inode_id] = found.quotas
            for number in found.quotas:
                self._bytes[number] += found.length
                self._inodes[number] += 1
        if found.quota:
            self._own[found.inode_id] = found.quota
        inside = (*found.quotas, found.quota) if found.quota else found.quotas
        if found.is_directory and inside:
            self._inside[found.inode_id] = inside

    def has_own(self, directory: int) -> bool:
        """Whether a directory has a quota."""
        return directory in self._own

    def differs(self, parent: int, child: int) -> bool:
        """Whether an entry of `parent` is counted otherwise than what is in there, by quotas that have been counted."""
        if parent not in self._inside and child not in self._quotas:
            return False
        return self._settled(self._inside.get(parent, ())) != self._settled(self._quotas.get(child, ()))

    def findings(self) -> Iterator[tuple[int, str]]:
        """What is wrong, with the directory that it is about."""
        for number, record in self._records.items():
            if self._own.get(record.directory) != number:
                yield record.directory, f"has quota {number}, as its record says, and does not know of it"
            counted = Used(*(self._counters.pop(key, 0) for key in keys.quota_use(number)))
            there = Used(self._bytes[number], self._inodes[number])
            if counted != there:
                yield (
                    record.directory,
                    f"its quota counts {counted.inodes} inodes of {counted.bytes} bytes, and there are {there.inodes}"
                    f" of {there.bytes}",
                )
        for directory, number in self._own.items():
            if number not in self._records:
                yield directory, f"has quota {number}, of which there is no record"
        if self._counters:
            yield 0, f"{len(self._counters)} counters are of no quota"

    def _settled(self, numbers: Iterable[int]) -> Numbers:
        return tuple(one for one in numbers if one in self._records and not self._records[one].counting)
