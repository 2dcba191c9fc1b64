"""A transaction as one request of etcd, and what the answer means. Pure: no sockets, no clock.

etcd commits `if every comparison holds then these operations else those`, and compares keys, not ranges. A key carries
the revision of its last change (`mod_revision`; 0 if it is absent), and every request that changes something gets the
next revision, which is that of all its changes. A transaction T that read the state at revision R is sent as

    if    its commit record has the revision that the engine left it at            (once sent, it counts once)
    and   every key that T read has the revision that it had at R                  (points)
    and   no stamp between T's ranges' groups, and not the wide one, is above R    (ranges)
    and   no floor is above R                                                      (stamps may have been swept up to it)
    and   every counter that T adds to has the revision that its value was read at
    then  T's changes, a new stamp for each group in which something changes, and the commit record
    else  read the commit record, and for a transaction with counters whatever was compared

Why no conflict is missed. Let C be the revision at which T commits, and suppose that a request W, at r with R < r < C,
changed something that T read. If T read the key itself, the key's revision differs from that at R, unless the key was
absent then and is absent again at C, in which case T read what is there. If the key k lies in a range [b, e) that T
read, then W put a stamp: either that of k's group g(k), or the wide one. T compares the wide one, and all stamps from
g(b), inclusive, to e, exclusive; since g(b) <= g(k) (a greater key has no lesser group) and g(k) <= k < e (a key starts
with its group), g(k) is among them, with a revision of at least r > R, if it is there. A stamp with the revision s is
swept only after a floor of at least s was put; then s >= r > R makes the floor comparison fail. So what T read is the
same at C as at R, and since all of T happens at C, committed transactions are serializable in the order of their
revisions. Stamps are per group, so a range conflicts with any change of the groups that it reaches into.

A comparison of T that has failed fails for ever, except that of an absent key, and the counters'. Hence a request that
was sent and not answered is never given up as lost before its commit record is moved on (`fence`): a late arrival then
finds the record at another revision. A record is never used before it exists, so that one that is gone for good (swept,
its engine having been silent for minutes) refuses late arrivals too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fs3.errors import Invalid, TooLarge
from fs3.kv.etcd_layout import FORMAT, Grouping, Layout, sole_group
from fs3.kv.occ_core import WriteSet, decode_counter, encode_counter
from fs3.pb.etcd import etcd_pb2 as pb

Ranges = list[tuple[bytes, bytes]]

MAX_REQUEST_BYTES = (3 << 19) - 1_024  # etcd's own default, less what it wraps around a request

_RECORD = struct.Struct(">cQ")
_COMMITTED = b"c"
_FENCED = b"f"


@dataclass(frozen=True, slots=True)
class Record:
    """A commit record as its engine left it; `sequence` numbers what is sent with it."""

    key: bytes
    revision: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Counter:
    """What a counter was last seen to hold; a guess that turns out wrong is corrected by the answer."""

    value: bytes | None = None
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A transaction that is ready to be sent: what it read at `revision`, what it writes."""

    revision: int
    points: Mapping[bytes, int]  # key -> its mod_revision at `revision`
    ranges: Ranges
    writes: WriteSet

    def counters(self) -> list[bytes]:
        """The keys that are added to, sorted."""
        return sorted(key for key, write in self.writes.writes.items() if isinstance(write, int))


@dataclass(frozen=True, slots=True)
class Committed:
    """It is in, at `revision`."""

    revision: int


@dataclass(frozen=True, slots=True)
class Refused:
    """It is not in, and never will be: something that it read has changed."""


@dataclass(frozen=True, slots=True)
class Raced:
    """It is not in: only counters had moved on, to these."""

    counters: dict[bytes, Counter]


@dataclass(frozen=True, slots=True)
class RecordGone:
    """It is not in: its commit record has been swept."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """It is not in, and a late arrival will be refused: the record is at `revision` now."""

    revision: int


class Translator:
    """Makes requests for one store and reads their answers."""

    __slots__ = ("_grouping", "_layout", "_max_operations")

    def __init__(self, layout: Layout, grouping: Grouping, max_operations: int) -> None:
        self._layout = layout
        self._grouping = grouping
        self._max_operations = max_operations

    def request(self, work: Work, record: Record | None, counters: Mapping[bytes, Counter]) -> pb.TxnRequest:
        """`record` is None for a transaction that writes nothing.

        Raises: TooLarge if etcd would refuse it.
        """
        compares = [*self._read_compares(work), *(self._same(key, seen.revision) for key, seen in counters.items())]
        request = pb.TxnRequest()
        if record is not None:
            compares.insert(0, _equal(record.key, record.revision))
            request.success.append(_put(record.key, _value(_COMMITTED, record)))
            request.success.extend(self._changes(work.writes, counters))
            request.failure.extend(_read_back(compare) for compare in (compares if counters else compares[:1]))
        request.compare.extend(compares)
        self._check_size(request)
        return request

    def judge(
        self, request: pb.TxnRequest, record: Record | None, counters: Mapping[bytes, Counter], response: pb.TxnResponse
    ) -> Committed | Refused | Raced | RecordGone:
        """What became of `request`, made from `record` and `counters`, by the answer to it."""
        if response.succeeded:
            return Committed(response.header.revision)
        if record is None:
            return Refused()
        found = [list(answer.response_range.kvs) for answer in response.responses]
        if not found[0]:
            return RecordGone()
        if found[0][0].mod_revision != record.revision:
            assert found[0][0].value == _value(_COMMITTED, record), "a commit record has two writers"
            return Committed(found[0][0].mod_revision)
        reads = len(request.compare) - len(counters)
        if not counters or any(map(_fails, request.compare[1:reads], found[1:reads])):
            return Refused()
        return Raced(
            {
                key: Counter(kvs[0].value, kvs[0].mod_revision) if kvs else Counter()
                for key, kvs in zip(counters, found[reads:], strict=True)
            }
        )

    def _read_compares(self, work: Work) -> list[pb.Compare]:
        compares = [self._same(key, revision) for key, revision in work.points.items()]
        if work.ranges:
            compares.append(_below(self._layout.wide, work.revision + 1))
            begin, end = self._layout.floors(work.revision)
            compares.append(pb.Compare(key=begin, range_end=end, target=pb.Compare.MOD, mod_revision=0))
            for low, high in united((self._grouping(begin), end) for begin, end in work.ranges):
                compare = _below(self._layout.stamp(low), work.revision + 1)
                compare.range_end = self._layout.stamp(high)
                compares.append(compare)
        return compares

    def _same(self, key: bytes, revision: int) -> pb.Compare:
        return _equal(self._layout.data(key), revision)

    def _changes(self, writes: WriteSet, counters: Mapping[bytes, Counter]) -> list[pb.RequestOp]:
        """What `writes` does to the keys, and the stamps for it."""
        puts: dict[bytes, bytes] = {}
        removed: list[bytes] = []
        cleared = united(writes.cleared)
        for key, write in writes.writes.items():
            if isinstance(write, int):
                puts[key] = encode_counter(decode_counter(counters[key].value) + write)
            elif write is not None:
                puts[key] = write
            elif not writes.is_cleared(key):
                removed.append(key)
        groups = {sole_group(self._grouping, begin, end) for begin, end in cleared}
        groups.update(map(self._grouping, writes.writes))
        stamps = sorted(self._layout.wide if group is None else self._layout.stamp(group) for group in groups)
        return [
            *(_delete(self._layout.data(begin), self._layout.data(end)) for begin, end in without(cleared, puts)),
            *(_delete(self._layout.data(key)) for key in removed),
            *(_put(self._layout.data(key), value) for key, value in puts.items()),
            *(_put(stamp, b"") for stamp in stamps),
        ]

    def _check_size(self, request: pb.TxnRequest) -> None:
        operations = max(len(request.compare), len(request.success), len(request.failure))
        if operations > self._max_operations:
            raise TooLarge(f"transaction of {operations} operations and stamps: at most {self._max_operations} fit")
        if request.ByteSize() > MAX_REQUEST_BYTES:
            raise TooLarge(
                f"transaction of {request.ByteSize()} bytes as etcd gets it: at most {MAX_REQUEST_BYTES} fit"
            )


def fence(record: Record) -> pb.TxnRequest:
    """The request that moves on the record of a commit whose answer is missing, unless that commit is in."""
    return pb.TxnRequest(
        compare=[_equal(record.key, record.revision)],
        success=[_put(record.key, _value(_FENCED, record))],
        failure=[pb.RequestOp(request_range=pb.RangeRequest(key=record.key))],
    )


def judge_fence(record: Record, response: pb.TxnResponse) -> Committed | Fenced | RecordGone:
    """What became of the commit. The fence may have been sent several times."""
    if response.succeeded:
        return Fenced(response.header.revision)
    found = response.responses[0].response_range.kvs
    if not found:
        return RecordGone()
    if found[0].value == _value(_FENCED, record):
        return Fenced(found[0].mod_revision)
    assert found[0].value == _value(_COMMITTED, record), "a commit record has two writers"
    return Committed(found[0].mod_revision)


def opening(key: bytes) -> pb.TxnRequest:
    """The request that makes a commit record, if there is none; its revision is the answer's."""
    return pb.TxnRequest(compare=[_equal(key, 0)], success=[_put(key, b"")])


def format_of(layout: Layout) -> pb.TxnRequest:
    """The request that marks a store with the format of this engine, unless it has a mark, and reads that."""
    read = pb.RequestOp(request_range=pb.RangeRequest(key=layout.format))
    return pb.TxnRequest(compare=[_equal(layout.format, 0)], success=[_put(layout.format, FORMAT)], failure=[read])


def check_format(response: pb.TxnResponse) -> None:
    """Raises: Invalid if the answer to `format_of` shows another format."""
    if not response.succeeded:
        found = response.responses[0].response_range.kvs[0].value
        if found != FORMAT:
            raise Invalid(
                f"the store in etcd has format {found.decode()!r}, this fs3 uses {FORMAT.decode()!r}; use the fs3 that"
                " made it"
            )


def united(ranges: Iterable[tuple[bytes, bytes]]) -> Ranges:
    """The same keys in ascending ranges that do not touch."""
    result: Ranges = []
    for begin, end in sorted(ranges):
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        elif begin < end:
            result.append((begin, end))
    return result


def without(ranges: Ranges, keys: Iterable[bytes]) -> Ranges:
    """`ranges`, as `united` makes them, less single keys: etcd refuses to put a key and to delete a range with it."""
    result: Ranges = []
    holes = sorted(keys)
    for begin, end in ranges:
        for key in holes:
            if begin <= key < end:
                result.append((begin, key))
                begin = key + b"\0"
        result.append((begin, end))
    return [(begin, end) for begin, end in result if begin < end]


def _value(kind: bytes, record: Record) -> bytes:
    return _RECORD.pack(kind, record.sequence)


def _equal(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(key=key, result=pb.Compare.EQUAL, target=pb.Compare.MOD, mod_revision=revision)


def _below(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(key=key, result=pb.Compare.LESS, target=pb.Compare.MOD, mod_revision=revision)


def _put(key: bytes, value: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))


def _delete(key: bytes, end: bytes = b"") -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end))


def _read_back(compare: pb.Compare) -> pb.RequestOp:
    """Reads what tells whether `compare` failed: of a range one of the keys that break it."""
    read = pb.RangeRequest(key=compare.key, range_end=compare.range_end)
    if compare.range_end:
        read.limit, read.keys_only = 1, True
        read.min_mod_revision = compare.mod_revision
    return pb.RequestOp(request_range=read)


def _fails(compare: pb.Compare, found: list[pb.KeyValue]) -> bool:
    """Whether `compare` failed, by what `_read_back` found."""
    if compare.range_end:
        return bool(found)
    revision = found[0].mod_revision if found else 0
    return revision >= compare.mod_revision if compare.result == pb.Compare.LESS else revision != compare.mod_revision
