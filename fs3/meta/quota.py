"""Quotas: how many bytes and inodes may be below a directory, counted with every change of what is there.

    Inode.quota         of a directory that has a quota: its number; its entry says so, too, so that a walk sees it
    Inode.quotas        of anything: the numbers of the quotas that count it
    QUOT <number>       the limits
    QUSE <number> b, i  what is used: the lengths, and the number, of all inodes that name the quota

Which quotas count what is put somewhere is told by the directories above it (recount.py); what does count something is
told by its inode, which changes in one transaction with the counters: these are sums that `fs3 admin fsck` can check at
any moment. They are added to blindly, so that changes below a directory do not conflict because it has a quota; only
near a limit they are read (see `Charges`). Where no quota is on the way, nothing is read and nothing stored. What was
below a directory when it got its quota is counted in the background (gc_quota.py).

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

MAX_COUNT = 1 << 62  # of bytes, whatever the limit: counters have 63 bits

_FORMAT = b"\x01"
_AT_ONCE = 64  # changes as large as this one
_LARGE_BYTES = 1 << 40  # what grows by less takes a long time to `MAX_COUNT`

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


class Charges:
    """What one transaction adds to quotas and takes from them; nothing is written before `settle`.

    A change that could pass a limit together with 63 others as large, all under way at the same time, reads the counter
    and so conflicts with whatever else is counted meanwhile; others do not. So a limit is passed only by what others at
    the same moment add, each less than a 64th of what was left.
    """

    __slots__ = ("_bytes", "_inodes", "_records", "_txn", "names")

    def __init__(self, txn: Transaction) -> None:
        self.names: dict[int, str] = {}  # how the caller came to the directories, for messages
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

    def counted(self, inode: Inode, numbers: Numbers) -> Inode:
        """What has been where these quotas count, as it is once they do.

        What has, or had, several names keeps what counts it for the sake of the others.
        """
        if not inode.is_directory and (inode.nlink > 1 or inode.lost_name):
            numbers = (*inode.quotas, *(number for number in numbers if number not in inode.quotas))
        return self.moved(inode, numbers)

    def is_counting(self, numbers: Numbers) -> bool:
        """Whether what was there is still being counted, by any of these `live` ones."""
        return any(record.counting for record in map(self._records.get, numbers) if record is not None)

    def count_again(self, numbers: Numbers, *, begin: bool) -> None:
        """Have the collector look through what these count once more; those that it is done with only if `begin`."""
        for number in numbers:
            record = self._records[number]
            if record is not None and (record.counting or begin):
                record.counting = record.again = True
                store(self._txn, number, record)

    async def require_room(self, numbers: Sequence[int]) -> None:
        """That none of them is full now; conflicts with nobody. Raises: QuotaExceeded."""
        for number in await self.live(numbers):
            record = self._records[number]
            assert record is not None
            used = await load_used(self._txn, number, snapshot=True)
            if record.HasField("max_inodes") and used.inodes >= record.max_inodes:
                raise self._full(number, "inodes", record.max_inodes, used.inodes, used.inodes + 1)
            if record.HasField("max_bytes") and used.bytes >= record.max_bytes:
                raise self._full(number, "bytes", record.max_bytes, used.bytes, used.bytes + 1)

    async def fit(self, numbers: Numbers, bytes_: int) -> bool:
        """Add so many bytes, if there is room for them; whether there was."""
        self.add(numbers, 0, bytes_)
        try:
            await self._check(numbers)
        except QuotaExceeded:
            self.add(numbers, 0, -bytes_)
            return False
        return True

    async def settle(self, *, check: bool = True) -> None:
        """Write what has come together. Raises: QuotaExceeded, unless it is not to `check`."""
        if not self._inodes:
            return
        if check:
            await self._check(list(self._inodes))
        for number in await self.live(list(self._inodes)):
            deltas = self._bytes[number], self._inodes[number]
            for key, delta in zip(keys.quota_use(number), deltas, strict=True):
                if delta:
                    self._txn.add(key, delta)

    async def _check(self, numbers: Sequence[int]) -> None:
        """Raises: QuotaExceeded."""
        for number in await self.live(numbers):
            record = self._records[number]
            assert record is not None
            of_bytes, of_inodes = keys.quota_use(number)
            if record.HasField("max_inodes"):
                await self._room(number, "inodes", of_inodes, self._inodes[number], record.max_inodes)
            if record.HasField("max_bytes"):
                await self._room(number, "bytes", of_bytes, self._bytes[number], record.max_bytes)
            elif self._bytes[number] > _LARGE_BYTES:
                await self._room(number, "bytes", of_bytes, self._bytes[number], MAX_COUNT)

    async def _room(self, number: int, what: str, key: bytes, delta: int, most: int) -> None:
        if delta <= 0:
            return
        if decode_counter(await self._txn.get(key, snapshot=True)) + _AT_ONCE * delta <= most:
            return
        used = decode_counter(await self._txn.get(key))
        if used + delta > most:
            raise self._full(number, what, most, used, used + delta)

    def _full(self, number: int, what: str, most: int, used: int, wanted: int) -> QuotaExceeded:
        of = f"of {self.names[number]}" if number in self.names else f"number {number}"
        return QuotaExceeded(
            f"the quota {of} allows {most:,} {what}: {used:,} are used, and it would take {wanted:,}; remove something"
            " there, or have the quota raised: fs3 admin quota set"
        )
