"""Samples become shares, and a profiler that cannot watch says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.hot_spots import Profile, PySpy, Threads, own_time, parsed, total_time
from benchmarks.peers.peer import Missing

RAW = """process 7:"python x.py";thread (8);run (fs3/a.py:1);send (fs3/b.py:20) 6
thread (8);run (fs3/a.py:1);send (fs3/b.py:21) 1
thread (9);run (fs3/a.py:3);wait (threading.py:5) 3
"""


def test_samples_are_shares_by_line_and_by_function() -> None:
    stacks = parsed(RAW)
    assert stacks[("run (fs3/a.py:1)", "send (fs3/b.py:20)")] == 6 and sum(stacks.values()) == 10
    assert own_time(stacks) == {"send (fs3/b.py:20)": 0.6, "wait (threading.py:5)": 0.3, "send (fs3/b.py:21)": 0.1}
    assert total_time(stacks) == {"run (fs3/a.py)": 1.0, "send (fs3/b.py)": 0.7}


def test_a_function_that_calls_itself_counts_once() -> None:
    assert total_time({("f (fs3/a.py:1)", "f (fs3/a.py:1)"): 4}) == {"f (fs3/a.py)": 1.0}


def test_a_profile_as_text() -> None:
    threads = [Threads("io", 1.0, 3.0), Threads("main", 0.5, 0.0)]
    text = list(Profile("4k", "storage", 10.0, 2e9, threads, parsed(RAW)).lines())
    assert text[0] == "4k, storage: 2.00 GB/s while it was watched"
    assert "0.45 cores,  67% of it in the kernel: all threads" in text[1]
    assert "0.40 cores,  75% of it in the kernel: io" in text[2]
    assert any(line.split() == ["60.0%", "send", "(fs3/b.py:20)"] for line in text)


def test_a_profiler_that_may_not_watch_says_why(tmp_path: Path) -> None:
    program = tmp_path / "py-spy"
    program.write_text("#!/bin/sh\necho first\necho Permission denied\nexit 1\n")
    program.chmod(0o755)
    watching = PySpy(program).watching(1, tmp_path / "out", "raw", 1.0)
    with pytest.raises(Missing, match="cannot watch process 1: Permission denied"), watching:
        pass
