"""Runs of a daemon are numbered in the order in which they began, whatever the clocks of their machines said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fs3.storage.daemon import begin_run
from fs3.storage.engine import Engine
from fs3.storage.run_number import last_run, note_run

HOUR_NS = 3_600 * 10**9


def run(folders: list[Path], wall_ns: int) -> int:
    """The number of a run that begins and ends."""
    engines = [Engine.open(folder, cluster_id="here", node_id=1, create=True) for folder in folders]
    try:
        return begin_run(engines, wall_ns)
    finally:
        for engine in engines:
            engine.close()


def test_a_clock_that_went_back_makes_no_earlier_run(tmp_path: Path) -> None:
    disks = [tmp_path / "a", tmp_path / "b"]
    now_ns = 1_000 * HOUR_NS
    numbers = [run(disks, now_ns - boots * HOUR_NS) for boots in range(4)]
    assert numbers == [now_ns, now_ns + 1, now_ns + 2, now_ns + 3]
    assert run(disks, now_ns + HOUR_NS) == now_ns + HOUR_NS, "a clock that is right again"


def test_any_disk_that_is_left_knows_the_last_run(tmp_path: Path) -> None:
    old, gone, new = tmp_path / "old", tmp_path / "gone", tmp_path / "new"
    run([gone], 2 * HOUR_NS)
    assert run([old, gone], HOUR_NS) == 2 * HOUR_NS + 1
    assert run([old, new], HOUR_NS) == 2 * HOUR_NS + 2
    assert run([new], HOUR_NS) == 2 * HOUR_NS + 3


@pytest.mark.parametrize("there", [b"", b"x" * 12, b"x" * 20])
def test_a_note_that_is_damaged_is_none(tmp_path: Path, there: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "RUN").write_bytes(there)
    assert last_run(tmp_path) == 0
    assert "RUN: damaged, and begun anew" in caplog.text
    note_run(tmp_path, 7)
    assert (last_run(tmp_path), len((tmp_path / "RUN").read_bytes()[:12])) == (7, 12)


def test_a_note_that_cannot_be_written_is_told_and_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    note_run(tmp_path, 7)
    assert "RUN: No space left on device; the next run knows its number by the clock alone" in caplog.text
