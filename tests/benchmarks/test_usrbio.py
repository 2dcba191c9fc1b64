"""The rows of USRBIO, small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.result import Result
from benchmarks.usrbio import RING_OTHER, RING_QUIET, SHAPES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.usefixtures("runtime_directory")
def test_a_quick_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--quick", "--rounds", "1", "--out", str(tmp_path)]
    ended = subprocess.run([*command, "--only", "usrbio"], capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = Result.load(tmp_path / "bench.json").rows
    assert len(rows) == len(SHAPES)
    for row in rows:
        assert row.rate.low > 0 and len(row.beside) == 5 and all(one.rate.low > 0 for one in row.beside)
        assert [target.over for target in row.targets] == [RING_QUIET, RING_OTHER]
