"""Quotas: how many bytes and inodes may be below a directory, counted with every change of what is there.

    Inode.quota         of a directory that has a quota: its number
    Inode.quotas        of anything: the numbers of the quotas that count it: those of the directories above it
    QUOT <number>       the limits
    QUSE <number> b, i  what is used: the lengths, and the number, of all inodes that name the quota

An inode and what counts it change in one transaction, so the counters are exact at any moment (`fs3 admin fsck` adds
them up). The counters are added to blindly, so that changes below a directory do not conflict because it has a quota;
only near a limit they are read (see `Charges`). What was below a directory when it got its quota is counted in the
background (gc_quota.py). Where no quota is nothing is read and nothing stored: directory entries tell a walk so.

An inode has the same quotas under all its names, unless it had several when a directory got its quota: a link between
directories that different quotas count is refused, as a rename is if all that moves cannot be counted anew in one
transaction (CrossQuota, EXDEV; as between the projects of XFS). What lies in the trash, or waits to be taken apart,
counts until it is gone. Numbers are never used again; those of quotas that are gone count for nothing, and are dropped
when something is counted anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from fs3.errors import Corrupt, QuotaExceeded
from fs3.inode import Inode
from fs3.kv import keys
from fs3.kv.api import Transaction
from fs3.kv.occ_core import decode_counter
from fs3.pb import meta_pb2

_FORMAT = b"\x01"
_AT_ONCE = 64  # changes as large as this one

Numbers = tuple[int, ...]


class Used(NamedTuple):
    """What a quota counts."""

    bytes: int
    inodes: int


def encode(record: meta_pb2.QuotaRecord) -> bytes:
    message: bytes = record.SerializeToString(deterministic=True)
    return _FORMAT + message


def decode(value: bytes) -> meta_pb2.QuotaRecord:
    """Raises: Corrupt."""
    record = meta_pb2.QuotaRecord()
    try:
        if value[:1] != _FORMAT:
            raise Corrupt(f"a quota's record has format {value[:1].hex() or 'none'}, this fs3 reads format 01")
        record.MergeFromString(value[1:])
    except DecodeError as error:
        raise Corrupt(f"a quota's record cannot be read: {error}") from None
    return record


async def load(txn: Transaction, number: int, *, snapshot: bool = False) -> meta_pb2.QuotaRecord | None:
    value = await txn.get(keys.quota(number), snapshot=snapshot)
    return None if value is None else decode(value)


async def load_used(txn: Transaction, number: int, *, snapshot: bool = False) -> Used:
    used = await txn.get_many(keys.quota_use(number), snapshot=snapshot)
    return Used(*map(decode_counter, used))


def store(txn: Transaction, number: int, record: meta_pb2.QuotaRecord) -> None:
    txn.put(keys.quota(number), encode(record))


def forget(txn: Transaction, number: int) -> None:
    txn.delete(keys.quota(number))
    for key in keys.quota_use(number):
        txn.delete(key)


def inside(directory: Inode) -> Numbers:
    """Which quotas, gone ones included, count what is in a directory."""
    return (*directory.quotas, directory.quota) if directory.quota else directory.quotas


class Charges:
    """What one transaction adds to quotas and takes from them; nothing is written before `settle`.

    A change that could pass a limit together with 63 others as large, all under way at the same time, reads the counter
    and so conflicts with whatever else is counted meanwhile; others do not. So a limit is passed only by what others at
    the same moment add, each less than a 64th of what was left.
    """

    __slots__ = ("_bytes", "_inodes", "_records", "_txn")

    def __init__(self, txn: Transaction) -> None:
        self._txn = txn
        self._inodes: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()
        self._records: dict[int, meta_pb2.QuotaRecord | None] = {}

    async def live(self, numbers: Sequence[int]) -> Numbers:
        """Those of them that are not gone, in order; conflicts with their removal."""
        unknown = [number for number in numbers if number not in self._records]
        if unknown:
            values = await self._txn.get_many([keys.quota(number) for number in unknown])
            for number, value in zip(unknown, values, strict=True):
                self._records[number] = None if value is None else decode(value)
        return tuple(number for number in numbers if self._records[number] is not None)

    def add(self, numbers: Iterable[int], inodes: int, bytes_: int) -> None:
        for number in numbers:
            self._inodes[number] += inodes
            self._bytes[number] += bytes_

    def release(self, gone: Inode) -> None:
        """An inode has no name any more; what is below a directory counts until it is taken apart."""
        if gone.quotas:
            self.add(gone.quotas, -1, -gone.length)
        if gone.quota:
            forget(self._txn, gone.quota)
            self._records[gone.quota] = None

    def moved(self, inode: Inode, numbers: Numbers) -> Inode:
        """The inode as it is once these quotas count it, and no others."""
        if inode.quotas == numbers:
            return inode
        self.add(inode.quotas, -1, -inode.length)
        self.add(numbers, 1, inode.length)
        return inode._replace(quotas=numbers)

    def reached(self, inode: Inode, numbers: Numbers) -> Inode:
        """What has been found by an operation before the collector, which counts what was there, has come to it.

        A directory is left to the collector, which begins again: it may move to where that has been already.
        """
        if not inode.is_directory:
            return self.moved(inode, numbers)
        for number in numbers:
            record = self._records[number]
            if record is not None and record.counting and number not in inode.quotas:
                record.again = True
                store(self._txn, number, record)
        return inode

    async def require_room(self, numbers: Sequence[int]) -> None:
        """That none of them is full now; conflicts with nobody. Raises: QuotaExceeded."""
        for number in await self.live(numbers):
            record = self._records[number]
            assert record is not None
            used = await load_used(self._txn, number, snapshot=True)
            if record.HasField("max_inodes") and used.inodes >= record.max_inodes:
                raise _full(record, "inodes", used.inodes, used.inodes + 1)
            if record.HasField("max_bytes") and used.bytes >= record.max_bytes:
                raise _full(record, "bytes", used.bytes, used.bytes + 1)

    async def fit(self) -> bool:
        """Whether `settle` would find room."""
        try:
            await self._check()
        except QuotaExceeded:
            return False
        return True

    async def settle(self, *, check: bool = True) -> None:
        """Write what has come together. Raises: QuotaExceeded, unless it is not to `check`."""
        if not self._inodes:
            return
        if check:
            await self._check()
        for number in await self.live(list(self._inodes)):
            for key, delta in zip(keys.quota_use(number), (self._bytes[number], self._inodes[number]), strict=True):
                if delta:
                    self._txn.add(key, delta)

    async def _check(self) -> None:
        """Raises: QuotaExceeded."""
        for number in await self.live(list(self._inodes)):
            record = self._records[number]
            assert record is not None
            of_bytes, of_inodes = keys.quota_use(number)
            if record.HasField("max_inodes"):
                await self._room(record, "inodes", of_inodes, self._inodes[number], record.max_inodes)
            if record.HasField("max_bytes"):
                await self._room(record, "bytes", of_bytes, self._bytes[number], record.max_bytes)

    async def _room(self, record: meta_pb2.QuotaRecord, what: str, key: bytes, delta: int, most: int) -> None:
        if delta <= 0:
            return
        if decode_counter(await self._txn.get(key, snapshot=True)) + _AT_ONCE * delta <= most:
            return
        used = decode_counter(await self._txn.get(key))
        if used + delta > most:
            raise _full(record, what, used, used + delta)


def _full(record: meta_pb2.QuotaRecord, what: str, used: int, wanted: int) -> QuotaExceeded:
    most = record.max_inodes if what == "inodes" else record.max_bytes
    return QuotaExceeded(
        f"the quota of {record.path} allows {most:,} {what}: {used:,} are used, and it would take {wanted:,}; remove"
        " something there, or have the quota raised: fs3 admin quota set"
    )
