"""How a transaction becomes a request to etcd, checked against a small model of how etcd carries requests out."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from fs3.errors import Invalid
from fs3.kv import keys
from fs3.kv.etcd_core import (
    Committed,
    Counter,
    Fenced,
    Raced,
    Record,
    RecordGone,
    Refused,
    Translator,
    Work,
    fence,
    judge_fence,
    opening,
    united,
    without,
)
from fs3.kv.etcd_layout import Grouping, Layout, by_kind, sole_group
from fs3.kv.occ_core import History, ReadSet, WriteSet, encode_counter
from fs3.pb.etcd import etcd_pb2 as pb

LAYOUT = Layout("test")
RECORD = LAYOUT.record(b"an engin", 0)


class Model:
    """etcd, as far as one transaction after another can tell."""

    def __init__(self) -> None:
        self.revision = 1
        self.state: dict[bytes, tuple[bytes, int]] = {}

    def keys(self, key: bytes, end: bytes) -> list[bytes]:
        return sorted(one for one in self.state if (key <= one < end if end else one == key))

    def holds(self, compare: pb.Compare) -> bool:
        assert compare.target == pb.Compare.MOD
        revisions = [self.state[key][1] for key in self.keys(compare.key, compare.range_end)] or [0]
        if compare.result == pb.Compare.LESS:
            return all(revision < compare.mod_revision for revision in revisions)
        assert compare.result == pb.Compare.EQUAL
        return all(revision == compare.mod_revision for revision in revisions)

    def read(self, request: pb.RangeRequest) -> pb.RangeResponse:
        found = [key for key in self.keys(request.key, request.range_end)]
        found = [key for key in found if self.state[key][1] >= request.min_mod_revision]
        response = pb.RangeResponse()
        for key in found[: request.limit or None]:
            held, revision = self.state[key]
            response.kvs.add(key=key, value=b"" if request.keys_only else held, mod_revision=revision)
        return response

    def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        response = pb.TxnResponse(succeeded=all(map(self.holds, request.compare)))
        operations = request.success if response.succeeded else request.failure
        puts = [op.request_put for op in operations if op.HasField("request_put")]
        deletes = [op.request_delete_range for op in operations if op.HasField("request_delete_range")]
        assert len({put.key for put in puts}) == len(puts), "etcd: duplicate key given in txn request"
        for put in puts:
            for gone in deletes:
                overlap = gone.key <= put.key < gone.range_end if gone.range_end else gone.key == put.key
                assert not overlap, "etcd: duplicate key given in txn request"
        self.revision += bool(puts or deletes)
        for gone in deletes:
            for key in self.keys(gone.key, gone.range_end):
                del self.state[key]
        for put in puts:
            self.state[put.key] = put.value, self.revision
        for op in operations:
            answer = response.responses.add()
            if op.HasField("request_range"):
                answer.response_range.CopyFrom(self.read(op.request_range))
        response.header.revision = self.revision
        return response

    def data(self) -> dict[bytes, bytes]:
        prefix = LAYOUT.data(b"")
        return {LAYOUT.key_of(key): held for key, (held, _) in self.state.items() if key.startswith(prefix)}

    def seen(self, key: bytes) -> int:
        return self.state.get(LAYOUT.data(key), (b"", 0))[1]


def work(
    model: Model, writes: WriteSet | None = None, *, points: tuple[bytes, ...] = (), ranges: tuple[bytes, ...] = ()
) -> Work:
    """A transaction that reads now; ranges are given by their first and last letter."""
    return Work(
        revision=model.revision,
        points={key: model.seen(key) for key in points},
        ranges=[(pair[:1], pair[1:]) for pair in ranges],
        writes=writes or WriteSet(),
    )


def writes(**pairs: str) -> WriteSet:
    made = WriteSet()
    for key, held in pairs.items():
        made.put(key.encode(), held.encode())
    return made


def opened(model: Model) -> Record:
    return Record(RECORD, model.txn(opening(RECORD)).header.revision, 1)


TRANSLATOR = Translator(LAYOUT, by_kind, 128)


def test_an_answered_commit_is_judged_by_what_had_changed() -> None:
    model = Model()
    record = opened(model)
    added = WriteSet()
    added.add(b"n", 5)
    both = work(model, added, points=(b"p",), ranges=(b"ad",))
    request = TRANSLATOR.request(both, record, {b"n": Counter()})
    model.state[LAYOUT.data(b"n")] = encode_counter(7), 9
    model.revision = 9
    raced = TRANSLATOR.judge(request, record, {b"n": Counter()}, model.txn(request))
    assert raced == Raced({b"n": Counter(encode_counter(7), 9)})
    request = TRANSLATOR.request(both, record, raced.counters)
    response = model.txn(request)
    assert TRANSLATOR.judge(request, record, raced.counters, response) == Committed(10)
    assert model.data() == {b"n": encode_counter(12)}
    # The record has moved on: the same request again changes nothing, and says that it is in.
    assert TRANSLATOR.judge(request, record, raced.counters, model.txn(request)) == Committed(10)
    assert model.revision == 10


@pytest.mark.parametrize(
    ("changed", "refused"),
    [(b"p", True), (b"a", True), (b"cc", True), (b"d", False), (b"q", False)],
)
def test_true_conflicts_are_told_from_lost_races(changed: bytes, refused: bool) -> None:
    model = Model()
    record = opened(model)
    mine = WriteSet()
    mine.add(b"n", 5)
    reader = work(model, mine, points=(b"p",), ranges=(b"ad",))
    other = WriteSet()
    other.put(changed, b"")
    other.add(b"n", 1)
    theirs = Record(LAYOUT.record(b"another.", 0), 0, 1)
    assert model.txn(TRANSLATOR.request(work(model, other), theirs, {b"n": Counter()})).succeeded
    request = TRANSLATOR.request(reader, record, {b"n": Counter()})
    outcome = TRANSLATOR.judge(request, record, {b"n": Counter()}, model.txn(request))
    assert outcome == (Refused() if refused else Raced({b"n": Counter(encode_counter(1), model.revision)}))


def test_after_a_fence_the_commit_is_in_or_never_will_be() -> None:
    for arrives_first in (True, False):
        model = Model()
        record = opened(model)
        request = TRANSLATOR.request(work(model, writes(k="1")), record, {})
        if arrives_first:
            model.txn(request)
        outcomes = [judge_fence(record, model.txn(fence(record))) for _ in range(2)]
        assert outcomes == [Committed(3) if arrives_first else Fenced(3)] * 2
        assert not model.txn(request).succeeded
        assert (b"k" in model.data()) is arrives_first


def test_a_record_that_is_gone_refuses_commits_and_fences() -> None:
    model = Model()
    record = opened(model)
    del model.state[RECORD]
    request = TRANSLATOR.request(work(model, writes(k="1")), record, {})
    assert TRANSLATOR.judge(request, record, {}, model.txn(request)) == RecordGone()
    assert judge_fence(record, model.txn(fence(record))) == RecordGone()
    assert model.data() == {}


def test_a_floor_refuses_ranges_that_began_before_it_and_nothing_else() -> None:
    model = Model()
    record = opened(model)
    model.revision = 50
    ranged, pointed = (work(model, writes(k="1"), **reads) for reads in ({"ranges": (b"ad",)}, {"points": (b"a",)}))
    for floor, refused in ((50, False), (51, True)):
        model.state[LAYOUT.floor(floor)] = b"", 60
        request = TRANSLATOR.request(ranged, record, {})
        assert all(map(model.holds, request.compare)) is not refused
    assert all(map(model.holds, TRANSLATOR.request(pointed, record, {}).compare))


def test_a_transaction_that_only_reads_changes_nothing() -> None:
    model = Model()
    reader = work(model, points=(b"p",), ranges=(b"ad",))
    request = TRANSLATOR.request(reader, None, {})
    assert not request.success and not request.failure
    assert isinstance(TRANSLATOR.judge(request, None, {}, model.txn(request)), Committed)
    model.txn(TRANSLATOR.request(work(model, writes(b="")), opened(model), {}))
    assert TRANSLATOR.judge(request, None, {}, model.txn(request)) == Refused()


def test_what_etcd_would_refuse_is_invalid() -> None:
    model = Model()
    with pytest.raises(Invalid, match="129 operations and stamps: at most 128"):
        TRANSLATOR.request(work(model, writes(**{f"kind{n}": "" for n in range(127)})), Record(RECORD, 1, 1), {})
    with pytest.raises(Invalid, match="129 operations and stamps: at most 128"):
        TRANSLATOR.request(
            work(model, writes(a="", b="", **{f"kind{n}": "" for n in range(123)})), Record(RECORD, 1, 1), {}
        )
    with pytest.raises(Invalid, match="bytes as etcd gets it: at most 1571840"):
        TRANSLATOR.request(work(model, writes(k="v" * 1_571_840)), Record(RECORD, 1, 1), {})


def test_ranges_are_united_and_cut_around_keys() -> None:
    assert united([(b"c", b"d"), (b"a", b"b"), (b"b", b"c"), (b"x", b"x"), (b"a", b"aa")]) == [(b"a", b"d")]
    assert united([(b"a", b"b"), (b"c", b"d")]) == [(b"a", b"b"), (b"c", b"d")]
    ranges = [(b"a", b"b"), (b"c", b"d")]
    assert without(ranges, [b"b", b"bb", b"d"]) == ranges
    assert without(ranges, [b"c", b"a", b"aa"]) == [(b"a\0", b"aa"), (b"aa\0", b"b"), (b"c\0", b"d")]
    assert without([(b"a", b"a\0")], [b"a"]) == []


def test_groups_of_the_stores_own_keys() -> None:
    begin, end = keys.dentries(7)
    entry = keys.dentry(7, b"name")
    assert keys.group(entry) == keys.group(begin) == begin
    assert sole_group(keys.group, begin, end) == begin
    assert sole_group(keys.group, entry + b"\0", end) == begin
    assert sole_group(keys.group, begin, keys.dentries(8)[1]) is None
    assert sole_group(keys.group, keys.inode(1), keys.inode(9)) == keys.INODE
    assert sole_group(keys.group, *keys.whole(keys.INODE)) == keys.INODE
    assert sole_group(keys.group, b"INO", b"INP") is None
    assert sole_group(by_kind, b"", b"\xff") is None
    assert sole_group(by_kind, b"a", b"a\0") is None, "a short key may have neighbours in groups of their own"
    assert sole_group(by_kind, b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\xff") == b"\xff\xff\xff\xff"


@pytest.mark.parametrize("name", ["", "a/b"])
def test_a_store_needs_a_name_without_slashes(name: str) -> None:
    with pytest.raises(Invalid):
        Layout(name)


GROUPINGS: list[Grouping] = [by_kind, lambda key: key[:1], lambda key: key[:2], lambda key: b"", lambda key: key]


def _random_key(rng: random.Random) -> bytes:
    return bytes(rng.choices(b"\0ab\xff", k=rng.randint(1, 3)))


def _random_range(rng: random.Random) -> tuple[bytes, bytes]:
    begin, end = sorted((_random_key(rng), _random_key(rng)))
    return (b"" if rng.random() < 0.1 else begin), end + b"\0"


def _random_writes(rng: random.Random) -> WriteSet:
    made = WriteSet()
    for _ in range(rng.randrange(4)):
        kind = rng.choice("pprdca")
        if kind == "c":
            made.delete_range(*_random_range(rng))
        elif kind == "a":
            made.add(_random_key(rng), rng.randrange(5))
        elif kind == "d":
            made.delete(_random_key(rng))
        else:
            made.put(_random_key(rng), b"%d" % rng.randrange(99))
    return made


@pytest.mark.parametrize("grouping", GROUPINGS, ids=["four", "one", "two", "all", "each"])
def test_no_conflict_is_missed_and_changes_are_those_asked_for(grouping: Grouping) -> None:
    """Random transactions, many of them begun long before they commit; the memory engine's decision is the measure."""
    refused = accepted = 0
    for seed in range(120):
        rng, model, truth = random.Random(seed), Model(), History(1_000)
        translator = Translator(LAYOUT, grouping, 128)
        record, expected = opened(model), dict[bytes, bytes]()
        waiting: list[tuple[int, dict[bytes, bytes], ReadSet, Work]] = []
        for sequence in range(20):
            reads = ReadSet({_random_key(rng) for _ in range(rng.randrange(2))})
            reads.ranges.extend(_random_range(rng) for _ in range(rng.randrange(3)))
            points = {key: model.seen(key) for key in reads.keys}
            ready = Work(revision=model.revision, points=points, ranges=reads.ranges, writes=_random_writes(rng))
            waiting.append((truth.version, model.data(), reads, ready))
            version, then, reads, ready = waiting.pop(rng.randrange(len(waiting)))
            if rng.random() < 0.3:
                waiting.append((version, then, reads, ready))
                continue
            counters = {key: Counter(expected.get(key), model.seen(key)) for key in ready.counters()}
            record = Record(RECORD, record.revision, sequence + 2)
            request = translator.request(ready, record, counters)
            outcome = translator.judge(request, record, counters, model.txn(request))
            if isinstance(outcome, Refused):
                refused += 1
                assert reads.ranges or truth.conflict(version, reads) is not None, "points never conflict in vain"
                continue
            assert isinstance(outcome, Committed)
            accepted += 1
            if truth.conflict(version, reads) is not None:
                assert _same(then, expected, reads), "what was read had changed"
            record = Record(RECORD, outcome.revision, sequence + 2)
            truth.record(ready.writes)
            expected = _after(expected, ready.writes)
            assert model.data() == expected
    assert refused > 100 and accepted > 500


def _same(then: dict[bytes, bytes], now: dict[bytes, bytes], reads: ReadSet) -> bool:
    inside: Callable[[bytes], bool] = lambda key: key in reads.keys or any(b <= key < e for b, e in reads.ranges)  # noqa: E731
    return {key: held for key, held in then.items() if inside(key)} == {
        key: held for key, held in now.items() if inside(key)
    }


def _after(before: dict[bytes, bytes], made: WriteSet) -> dict[bytes, bytes]:
    found = {key: made.resolve(key, before.get(key)) for key in before.keys() | made.writes.keys()}
    return {key: held for key, held in found.items() if held is not None}
