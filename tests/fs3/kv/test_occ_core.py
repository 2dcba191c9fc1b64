"""The conflict decision itself: against a brute-force oracle, and after the window has moved on."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fs3.kv.occ_core import History, ReadSet, WriteSet, decode_counter, encode_counter

KEYS = [bytes([letter]) for letter in b"abcdefgh"]
key = st.sampled_from(KEYS)
span = st.tuples(key, key).map(lambda pair: (min(pair), max(pair)))
change = st.one_of(st.tuples(st.just("put"), key), st.tuples(st.just("clear"), span))
commits = st.lists(st.lists(change, min_size=1, max_size=3), max_size=6)


def write_set(changes: list) -> WriteSet:
    writes = WriteSet()
    for kind, what in changes:
        if kind == "put":
            writes.put(what, b"x")
        else:
            writes.delete_range(*what)
    return writes


@given(commits, st.integers(0, 6), st.sets(key, max_size=2), st.lists(span, max_size=2))
def test_conflicts_are_those_of_brute_force(log: list, read_version: int, keys: set, ranges: list) -> None:
    history = History(max_changes=1_000)
    for changes in log:
        history.record(write_set(changes))
    read_version = min(read_version, history.version)
    changed = set()
    for changes in log[read_version:]:
        for kind, what in changes:
            changed |= {what} if kind == "put" else {one for one in map(bytes, range_bytes(*what))}
    dense = set(range_bytes(b"a", b"i"))
    read = set(keys) | {one for begin, end in ranges for one in dense if begin <= one < end}
    found = history.conflict(read_version, ReadSet(set(keys), [pair for pair in ranges if pair[0] < pair[1]]))
    assert (found is not None) == bool(read & changed)
    assert found is None or found > read_version


def range_bytes(begin: bytes, end: bytes) -> list[bytes]:
    return [bytes([letter]) for letter in range(begin[0], end[0])]


def test_a_reader_older_than_the_window_conflicts_and_newer_ones_are_still_decided() -> None:
    history = History(max_changes=10)
    rng = random.Random(5)
    for _ in range(50):
        history.record(write_set([("put", rng.choice(KEYS[:4]))]))
    assert 0 < history.floor < history.version
    nothing = ReadSet({b"h"}, [(b"f", b"h")])
    assert history.conflict(history.floor - 1, nothing) is not None
    assert history.conflict(history.floor, nothing) is None
    newest = history.record(write_set([("put", b"g")]))
    assert history.conflict(newest - 1, nothing) == newest


@given(st.lists(st.tuples(st.sampled_from(["put", "delete", "clear", "add"]), key, st.integers(-5, 5)), max_size=12))
def test_merged_write_sets_do_what_one_after_the_other_does(steps: list) -> None:
    base = {one: encode_counter(index) for index, one in enumerate(KEYS[::2])}
    merged, state = WriteSet(), dict(base)

    def after(writes: WriteSet, values: dict) -> dict:
        return {k: v for k in KEYS if (v := writes.resolve(k, values.get(k))) is not None}

    for kind, where, number in steps:
        one = WriteSet()
        if kind == "put":
            one.put(where, encode_counter(number))
        elif kind == "delete":
            one.delete(where)
        elif kind == "clear":
            one.delete_range(where, b"f")
        else:
            one.add(where, number)
        state = after(one, state)
        merged.merge(one)
    assert after(merged, base) == state


def test_counters_wrap_and_extend() -> None:
    assert decode_counter(encode_counter(-1)) == -1
    assert decode_counter(None) == 0 and decode_counter(b"\x05") == 5
    assert decode_counter(encode_counter(2**63)) == -(2**63)
