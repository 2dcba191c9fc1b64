"""When a target is verified next, and that a pass survives being stored."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fs3.storage import scrub_core
from fs3.storage.scrub_core import Progress

S = 1_000_000_000
WEEK_S = 604_800.0


def test_a_pass_from_its_beginning_to_its_end() -> None:
    one = Progress()
    assert scrub_core.due_in_s(one, 5 * S, WEEK_S) == 0
    one = scrub_core.begun(one, 10 * S)
    assert scrub_core.due_in_s(one, 11 * S, WEEK_S) == 0
    one = scrub_core.advanced(one, b"a" * 16, 100, damaged=False)
    one = scrub_core.advanced(one, b"b" * 16, 50, damaged=True)
    assert scrub_core.unpack(one.pack()) == one
    one = scrub_core.ended(one, 20 * S)
    assert (one.passes, one.chunks, one.read_bytes, one.damaged, one.after, one.running) == (1, 2, 150, 1, b"", False)
    assert scrub_core.due_in_s(one, 20 * S, WEEK_S) == WEEK_S
    assert scrub_core.due_in_s(one, 20 * S + int(WEEK_S * S), WEEK_S) == 0
    again = scrub_core.begun(one, 30 * S)
    assert (again.chunks, again.passes, again.ended_ns) == (0, 1, 20 * S)


@pytest.mark.parametrize("jump_s", [-1e9, -1.0, 1e9])
def test_a_clock_that_jumps_delays_by_no_more_than_the_interval(jump_s: float) -> None:
    one = scrub_core.ended(scrub_core.begun(Progress(), 2_000_000_000 * S), 2_000_000_000 * S)
    assert 0 <= scrub_core.due_in_s(one, int((2e9 + jump_s) * S), WEEK_S) <= WEEK_S


@pytest.mark.parametrize("raw", [None, b"", b"{}", b"[]", b"nonsense", b'{"after": "zz"}', b'{"after": "", "more": 1}'])
def test_what_cannot_be_read_is_the_beginning(raw: bytes | None) -> None:
    assert scrub_core.unpack(raw) == Progress()


def test_a_pass_that_runs_goes_first_and_then_the_oldest() -> None:
    done = {target: Progress(ended_ns=target * S, passes=1) for target in (5, 3, 4)}
    now_ns = 1_000 * S
    assert scrub_core.choose(done, now_ns, 100.0) == (3, 0.0)
    assert scrub_core.choose(done, now_ns, 998.0) == (None, 1.0)
    assert scrub_core.choose({**done, 9: Progress()}, now_ns, 998.0) == (9, 0.0)
    running = {**done, 4: replace(done[4], running=True)}
    assert scrub_core.choose(running, now_ns, 100.0) == (4, 0.0)
    assert scrub_core.choose({}, now_ns, 7.0) == (None, 7.0)
