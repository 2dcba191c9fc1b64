"""The counters by which kept places hold: every order of what a daemon and a client do, and what ends them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fs3.clock import lease_now_s
from fs3.transport import change_counters
from fs3.transport.change_counters import NOT_KEPT, ChangeCounters, CounterView, word_of

CHUNK = (7, 3)
WORD = word_of(*CHUNK)


def view_of(counters: ChangeCounters) -> CounterView:
    fd = counters.share()
    try:
        return CounterView(fd)
    finally:
        os.close(fd)


@pytest.fixture
def counters(tmp_path: Path) -> Iterator[ChangeCounters]:
    made = ChangeCounters(tmp_path / "CHANGES")
    made.rely_until(lease_now_s() + 100)
    yield made
    made.close()


class Daemon:
    """A chunk whose version is in block `index`; what it lets go of has other bytes at once."""

    def __init__(self, counters: ChangeCounters, *, serving: bool) -> None:
        self.counters = counters
        self.serving = serving
        self.index = 0
        self.blocks = {0: "version 0"}

    def steps(self) -> list[str]:
        return ["begin", "put", "end", "reuse"] * 2

    def do(self, step: str) -> None:
        if step == "begin":
            self.counters.begin_serving() if self.serving else self.counters.begin(*CHUNK)
        elif step == "put":
            self.index += 1
            self.blocks[self.index] = f"version {self.index}"
        elif step == "end":
            self.counters.end_serving() if self.serving else self.counters.end(*CHUNK)
        else:
            self.blocks[self.index - 1] = "bytes of another chunk"


@pytest.mark.parametrize("serving", [False, True])
def test_in_whatever_order_what_holds_is_the_newest_version(counters: ChangeCounters, serving: bool) -> None:
    """A client asks for the state, looks up, reads and looks at the counters, between any of the daemon's steps."""
    view, held = view_of(counters), 0
    steps = 8
    for at in itertools.combinations_with_replacement(range(steps + 1), 4):
        daemon = Daemon(counters, serving=serving)
        client = dict(zip(("state", "look up", "read", "hold"), at, strict=True))
        state, place, found = NOT_KEPT, -1, ""
        for number, step in enumerate([*daemon.steps(), "done"]):
            if client["state"] == number:
                state = counters.state(*CHUNK)
            if client["look up"] == number:
                place = daemon.index
            if client["read"] == number:
                found = daemon.blocks[place]
            if client["hold"] == number and state != NOT_KEPT and view.hold(WORD, state):
                held += 1
                assert found == f"version {daemon.index}", client
            if step != "done":
                daemon.do(step)
    assert held == 11  # those with nothing of a change between them


def test_changes_of_other_chunks_are_none_of_its_business(counters: ChangeCounters) -> None:
    view, state = view_of(counters), counters.state(*CHUNK)
    others = [(7, lo) for lo in range(200) if word_of(7, lo) != WORD]
    for other in others:
        counters.begin(*other)
        counters.end(*other)
    assert len(others) > 190 and view.hold(WORD, state)


def test_nothing_holds_once_the_time_has_come(counters: ChangeCounters) -> None:
    view, state = view_of(counters), counters.state(*CHUNK)
    assert view.hold(WORD, state)
    for until_s in (lease_now_s(), 0.0, -5.0, float("-inf")):
        counters.rely_until(until_s)
        assert not view.hold(WORD, state)
    counters.rely_until(lease_now_s() + 1)
    assert view.hold(WORD, state)


def test_nothing_is_relied_on_that_the_next_run_would_not_find(counters: ChangeCounters, tmp_path: Path) -> None:
    view, state = view_of(counters), counters.state(*CHUNK)
    (tmp_path / "CHANGES").unlink()
    counters.rely_until(lease_now_s() + 100)
    assert not view.hold(WORD, state)
    (tmp_path / "CHANGES").write_bytes(bytes(40_000))
    counters.rely_until(lease_now_s() + 100)
    assert not view.hold(WORD, state)


@pytest.mark.parametrize("how", ["closed", "the next run"])
def test_nothing_holds_once_the_run_is_over(counters: ChangeCounters, tmp_path: Path, how: str) -> None:
    view, state = view_of(counters), counters.state(*CHUNK)
    if how == "closed":
        counters.close()
    else:
        again = ChangeCounters(tmp_path / "CHANGES")
        again.rely_until(lease_now_s() + 100)
        assert view_of(again).hold(WORD, again.state(*CHUNK))
    counters.rely_until(lease_now_s() + 100)  # a thread of the run before that did not hear of it
    assert view.over() and not view.hold(WORD, state)


def test_a_client_with_another_clock_uses_none(counters: ChangeCounters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_counters, "time_namespace", lambda: 1)
    with pytest.raises(ValueError, match="clock"):
        view_of(counters)


def test_what_is_no_counters_is_ended_or_said(tmp_path: Path) -> None:
    path = tmp_path / "CHANGES"
    change_counters.end(path)
    path.write_bytes(b"short")
    change_counters.end(path)
    assert not path.exists()
    path.mkdir()
    with pytest.raises(OSError, match="CHANGES"):
        ChangeCounters(path)


def test_golden() -> None:
    assert change_counters.MAGIC.to_bytes(8, "little") == b"f3CHAN01"
    assert [word_of(0, 0), word_of(1, 0), word_of(1 << 56 | 12, 5), word_of((1 << 64) - 1, (1 << 64) - 1)] == [
        8,
        1729,
        3515,
        1424,
    ]
