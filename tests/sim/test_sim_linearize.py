"""The checker itself: histories made by hand, good and bad, and random small ones against trying everything.

The random ones come from a register that is right, with answers changed here and there; what is right and what is
wrong is decided by `by_trying_all`, which knows nothing of versions as hints, of memory or of order of search.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from sim_history import History, Kind, Operation, Outcome, content, describe, sources
from sim_linearize import check

CHUNK = (1 << 56, 7)


class Script:
    """A history of one chunk, told event by event."""

    def __init__(self) -> None:
        self.history = History()

    def begin(self, kind: Kind, **what: object) -> Operation:
        return self.history.begin("a", CHUNK, kind, **what)

    def ok(self, operation: Operation, version: int = 0, length: int = 0, **what: object) -> Operation:
        operation.version, operation.chunk_length = version, length
        for name, value in what.items():
            setattr(operation, name, value)
        self.history.end(operation, Outcome.OK)
        return operation

    def unknown(self, kind: Kind, **what: object) -> Operation:
        operation = self.begin(kind, **what)
        self.history.end(operation, Outcome.UNKNOWN, "MaybeApplied")
        return operation

    def put(self, data: bytes, version: int, kind: Kind = Kind.REPLACE, **what: object) -> Operation:
        length = what.pop("length", len(data))
        assert isinstance(length, int)
        return self.ok(self.begin(kind, data=data, **what), version, length)

    def remove(self, version: int) -> Operation:
        return self.ok(self.begin(Kind.REMOVE), version)

    def read(self, held: bytes | None, version: int, offset: int = 0, length: int = 1 << 20) -> Operation:
        operation = self.begin(Kind.READ, offset=offset, length=length)
        seen = b"" if held is None else held[offset : offset + length]
        return self.ok(operation, version, len(held or b""), seen=seen, found=held is not None)

    def verdict(self, **how: bool) -> bool:
        return check(self.history.operations, **how).ok


A, B, C = b"a" * 20, b"b" * 24, b"c" * 16


def test_one_client_after_the_other() -> None:
    script = Script()
    script.read(None, 0)
    script.put(A, 1)
    script.read(A, 1)
    script.put(b"xy", 2, Kind.WRITE, offset=30, length=32)
    script.read(A + bytes(10) + b"xy", 2)
    script.read(A + bytes(10) + b"xy", 2, offset=18, length=6)
    script.ok(script.begin(Kind.TRUNCATE, offset=4), 3, 4)
    script.read(b"aaaa", 3)
    script.ok(script.begin(Kind.TRUNCATE, offset=6), 4, 6)
    script.read(b"aaaa\0\0", 4)
    script.put(B, 0, Kind.PUT_IF_ABSENT, length=6)
    script.remove(5)
    script.read(None, 0)
    script.remove(5)
    script.put(B, 6, Kind.PUT_IF_ABSENT)
    script.read(B, 6)
    assert script.verdict() and script.verdict(versions=False)


def test_a_lost_write() -> None:
    script = Script()
    script.put(A, 1)
    script.put(B, 2)
    script.read(A, 1)
    assert not script.verdict() and not script.verdict(versions=False)


def test_a_stale_read_after_a_fresh_one() -> None:
    script = Script()
    script.put(A, 1)
    write = script.begin(Kind.REPLACE, data=B)
    script.read(B, 2)
    script.read(A, 1)  # another client has seen B already
    script.ok(write, 2, len(B))
    assert not script.verdict() and not script.verdict(versions=False)


def test_reads_beside_a_write_may_see_either_in_order() -> None:
    script = Script()
    script.put(A, 1)
    write = script.begin(Kind.REPLACE, data=B)
    script.read(A, 1)
    script.read(B, 2)
    script.ok(write, 2, len(B))
    assert script.verdict()


def test_a_removed_chunk_that_comes_back() -> None:
    script = Script()
    script.put(A, 1)
    script.remove(2)
    script.read(None, 0)
    script.read(A, 1)
    assert not script.verdict() and not script.verdict(versions=False)


def test_an_update_applied_twice() -> None:
    script = Script()
    script.put(A, 1)
    once = script.begin(Kind.WRITE, offset=0, data=b"x")
    script.ok(once, 2, len(A))
    script.put(B, 3)
    script.read(b"x" + B[1:], 4)
    assert not script.verdict() and not script.verdict(versions=False)


def test_an_update_applied_twice_without_a_difference() -> None:
    script = Script()
    script.put(A, 1)
    script.ok(script.begin(Kind.WRITE, offset=0, data=b"x"), 2, len(A))
    script.read(b"x" + A[1:], 3)
    assert script.verdict(versions=False), "the bytes alone do not tell"
    assert not script.verdict()


def test_a_torn_read() -> None:
    script = Script()
    script.put(A, 1)
    write = script.begin(Kind.REPLACE, data=b"b" * 20)
    script.ok(script.begin(Kind.READ, length=20), 2, 20, seen=b"b" * 10 + b"a" * 10)
    script.ok(write, 2, 20)
    assert not script.verdict() and not script.verdict(versions=False)


def test_bytes_of_nobody_and_a_wrong_length() -> None:
    script = Script()
    script.put(A, 1)
    script.ok(script.begin(Kind.READ, length=4), 1, len(A), seen=b"aaqa")
    assert not script.verdict()
    script = Script()
    script.put(A, 1)
    script.ok(script.begin(Kind.QUERY), 1, len(A) + 1)
    assert not script.verdict()
    script = Script()
    script.put(A, 1, length=len(A) - 1)
    assert not script.verdict()


@pytest.mark.parametrize("seen", ["never", "at once", "later", "after another"])
def test_an_unknown_outcome_may_be_any(seen: str) -> None:
    script = Script()
    script.put(A, 1)
    script.unknown(Kind.REPLACE, data=B)
    if seen == "at once":
        script.read(B, 2)
    elif seen == "later":
        script.read(A, 1)
        script.read(A, 1)
        script.read(B, 2)
    elif seen == "after another":
        script.put(C, 2)
        script.read(B, 3)
    else:
        script.read(A, 1)
        script.put(C, 2)
        script.read(C, 2)
    assert script.verdict() and script.verdict(versions=False)


def test_an_unknown_outcome_happens_only_once() -> None:
    script = Script()
    script.put(A, 1)
    script.unknown(Kind.REPLACE, data=B)
    script.read(B, 2)
    script.put(C, 3)
    script.read(B, 4)
    assert not script.verdict() and not script.verdict(versions=False)


def test_an_unknown_outcome_does_not_happen_before_its_beginning() -> None:
    script = Script()
    script.put(A, 1)
    script.read(B, 2)
    script.unknown(Kind.REPLACE, data=B)
    assert not script.verdict() and not script.verdict(versions=False)


def test_a_failed_update_has_no_effect() -> None:
    script = Script()
    script.put(A, 1)
    failed = script.begin(Kind.REPLACE, data=B)
    script.history.end(failed, Outcome.FAILED, "NoSpace")
    script.read(A, 1)
    assert script.verdict()
    script.read(B, 2)
    assert not script.verdict() and not script.verdict(versions=False)


def test_put_if_absent_decides_once() -> None:
    script = Script()
    first, second = (script.begin(Kind.PUT_IF_ABSENT, data=data) for data in (A, B))
    script.ok(first, 1, len(A))
    script.ok(second, 0, len(A))
    script.read(A, 1)
    assert script.verdict()
    script = Script()
    first, second = (script.begin(Kind.PUT_IF_ABSENT, data=data) for data in (A, B))
    script.ok(first, 1, len(A))
    script.ok(second, 1, len(B))
    assert not script.verdict() and not script.verdict(versions=False)


def test_a_forgotten_tombstone_starts_over_and_nothing_else_does() -> None:
    script = Script()
    script.put(A, 1)
    script.put(B, 2)
    script.remove(3)
    script.put(C, 1)
    assert script.verdict()
    script = Script()
    script.put(A, 1)
    script.put(B, 2)
    script.put(C, 1)
    assert not script.verdict() and script.verdict(versions=False)


def test_after_a_loss_the_chunk_is_what_it_once_was() -> None:
    for held, version, right in ((A, 1, True), (None, 0, True), (B, 2, True), (A[:4] + B[4:], 1, False), (C, 1, False)):
        script = Script()
        script.put(A, 1)
        script.put(B, 2)
        script.begin(Kind.LOSS)
        script.read(held, version)
        script.read(held, version)
        assert script.verdict() is right, (held, version)
        assert script.verdict(versions=False) is right
    script.begin(Kind.REPLACE, data=C)
    assert not script.verdict()


@pytest.mark.parametrize("loss", [True, False])
def test_after_a_loss_put_if_absent_may_write_over_a_record_without_its_bytes(loss: bool) -> None:
    script = Script()
    script.put(A, 1)
    if loss:
        script.begin(Kind.LOSS)
    script.ok(script.begin(Kind.QUERY), 1, len(A), found=True)
    script.put(B, 2, Kind.PUT_IF_ABSENT)
    script.read(B, 2)
    assert script.verdict() is loss


def test_a_loss_happens_once_and_after_it_all_is_strict_again() -> None:
    script = Script()
    script.put(A, 1)
    script.put(B, 2)
    script.begin(Kind.LOSS)
    script.read(A, 1)
    script.put(C, 2)
    script.read(C, 2)
    assert script.verdict()
    script.read(B, 2)
    assert not script.verdict() and not script.verdict(versions=False)


def test_an_update_in_progress_at_a_loss_may_be_applied_again() -> None:
    for during in (True, False):
        script = Script()
        script.put(A, 1)
        write = script.begin(Kind.REPLACE, data=B)
        script.read(B, 2)
        if not during:
            script.ok(write, 2, len(B))
        script.begin(Kind.LOSS)
        script.read(A, 1)
        if during:
            script.ok(write, 2, len(B))
        script.read(B, 2)
        assert script.verdict() is during


def test_many_unknown_outcomes_do_not_take_for_ever() -> None:
    script = Script()
    script.put(A, 1)
    for number in range(14):
        script.unknown(Kind.WRITE, offset=number, data=bytes([number]))
    script.put(B, 2)
    script.read(B, 2)
    verdict = check(script.history.operations)
    assert verdict.ok and verdict.nodes < 2_000
    script.read(A, 1)
    verdict = check(script.history.operations)
    assert not verdict.ok and "does not fit" in verdict.why


def test_a_report_names_whose_bytes_were_seen() -> None:
    whole = content(5, 0, 64)
    mixed = whole[:16] + bytes(8) + content(6, 24, 16) + content(5, 16, 8) + whole[48:]
    assert list(sources(mixed, 0)) == [(0, 16, 5), (16, 24, 0), (24, 40, 6), (40, 48, -1), (48, 64, 5)]
    assert list(sources(content(9, 12, 24), 12)) == [(12, 32, 9), (32, 36, -2)]
    assert content(9, 13, 24) == content(9, 0, 64)[13:37]
    assert describe(b"", 0) == "nothing"


# Small histories at random


def by_trying_all(operations: Sequence[Operation]) -> bool:
    """Any subset of the unknown ones, in any order that keeps to the times."""
    required = [one for one in operations if one.outcome is Outcome.OK]
    unknown = [one for one in operations if one.outcome is Outcome.UNKNOWN]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            if any(_explains(order) for order in itertools.permutations([*required, *some]) if _in_time(order)):
                return True
    return False


def _in_time(order: Sequence[Operation]) -> bool:
    for at, one in enumerate(order):
        for later in order[at + 1 :]:
            if later.outcome is Outcome.OK and later.returned is not None and later.returned < one.invoked:
                return False
    return True


def _explains(order: Sequence[Operation]) -> bool:
    held: bytes | None = None
    for one in order:
        if one.kind in (Kind.READ, Kind.QUERY):
            right = one.found == (held is not None)
            if right and held is not None:
                right = one.chunk_length == len(held)
                right = right and (one.kind is Kind.QUERY or one.seen == held[one.offset :][: one.length])
        elif one.kind is Kind.PUT_IF_ABSENT and held is not None:
            right = one.outcome is Outcome.UNKNOWN or (not one.version and one.chunk_length == len(held))
        else:
            held = _after(one, held if held is not None else b"")
            put_nothing = one.kind is Kind.PUT_IF_ABSENT and not one.version
            right = one.outcome is Outcome.UNKNOWN or (one.chunk_length == len(held or b"") and not put_nothing)
        if not right:
            return False
    return True


def _after(one: Operation, old: bytes) -> bytes | None:
    if one.kind is Kind.REMOVE:
        return None
    if one.kind is Kind.TRUNCATE:
        return (old + bytes(64))[: one.offset] if len(old) < one.offset else old[: one.offset]
    if one.kind is Kind.WRITE:
        grown = bytearray(old.ljust(one.offset + len(one.data), b"\0"))
        grown[one.offset : one.offset + len(one.data)] = one.data
        return bytes(grown)
    return one.data


def random_history(draw: random.Random, *, wrong: float) -> list[Operation]:
    """Three clients and a register that is right, but for answers that are changed with a probability."""
    script = Script()
    held: bytes | None = None
    version = 0
    busy: list[Operation] = []
    for _ in range(draw.randint(4, 14)):
        if busy and draw.random() < 0.5:
            one = busy.pop(draw.randrange(len(busy)))
            old = held if held is not None else b""
            if one.kind in (Kind.READ, Kind.QUERY):
                shown = (
                    bytes(draw.choice(b"abc\0") for _ in range(draw.randint(0, 3))) if draw.random() < wrong else old
                )
                found = held is not None if draw.random() >= wrong / 2 else held is None
                script.ok(one, version, len(shown), found=found, seen=shown[one.offset :][: one.length])
                continue
            fate = draw.random()
            if fate < 0.1:
                script.history.end(one, Outcome.UNKNOWN)
                continue
            changed = (
                held is None if one.kind is Kind.PUT_IF_ABSENT else held is not None or one.kind is not Kind.REMOVE
            )
            held = _after(one, old) if changed else held
            version += changed
            if fate < 0.2:
                script.history.end(one, Outcome.UNKNOWN)
            else:
                told = 0 if one.kind is Kind.PUT_IF_ABSENT and not changed else version
                script.ok(one, told, len(held or b""))
        elif len(script.history.operations) < 6 and len(busy) < 3:
            kind = draw.choice([kind for kind in Kind if kind is not Kind.LOSS])
            data = bytes([draw.choice(b"abc")] * draw.randint(1, 3)) if kind in DATA else b""
            offset = draw.randint(0, 3) if kind in (Kind.WRITE, Kind.TRUNCATE, Kind.READ) else 0
            busy.append(script.begin(kind, data=data, offset=offset, length=3 if kind is Kind.READ else 0))
    return script.history.operations


DATA = (Kind.WRITE, Kind.REPLACE, Kind.PUT_IF_ABSENT)


def test_small_histories_against_trying_all() -> None:
    draw = random.Random(20)
    verdicts = []
    for _ in range(3_000):
        operations = random_history(draw, wrong=0.5)
        right = by_trying_all(operations)
        verdicts.append(right)
        found = check(operations, versions=False)
        assert found.ok is right, "\n".join(f"{one} {one.invoked}-{one.returned}: {one.answer()}" for one in operations)
    assert 600 < sum(verdicts) < 2_400, "both kinds must be among them"


def test_what_a_right_register_answers_is_right_by_its_versions_too() -> None:
    draw = random.Random(21)
    for _ in range(1_000):
        operations = random_history(draw, wrong=0.0)
        found = check(operations)
        assert found.ok, "\n".join(f"{one} {one.invoked}-{one.returned}: {one.answer()}" for one in operations)
