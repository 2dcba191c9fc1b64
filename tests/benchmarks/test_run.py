"""The whole of it, small: a real cluster, every row of the store with its limits, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import moosefs
from benchmarks.result import Result

ROOT = Path(__file__).resolve().parents[2]


def test_a_quick_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--quick", "--rounds", "1", "--out", str(tmp_path)]
    for name in ("read", "write", "small", "names", "checkpoint"):
        command += ["--only", name]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "ratios.png", "ratios.svg"]
    result = Result.load(tmp_path / "bench.json")
    names = [row.name for row in result.rows]
    assert len(names) == len(set(names)) == 4 + 2 + 4 + 11 + 4
    for row in result.rows:
        assert row.rate.low > 0 and row.beside, row.name
        assert all(one.rate.low > 0 and len(one.ratio.values) == 1 for one in row.beside), row.name
        assert row.name in ended.stdout, row.name
    assert sum(any(one.kind == "limit" for one in row.beside) for row in result.rows) == len(names) - 3
    of_names = [5_000, 1_500, 50_000, 5, 50_000, 10]
    absent = {one.name for row in result.rows for one in row.absent}
    assert absent <= {"MooseFS", "MooseFS, changelog synced"}
    if moosefs.missing():
        without_verdict = [one.wanted for row in result.rows for one in row.absent if one.wanted]
        assert len(absent) == 2 and without_verdict == [3, 3]
        assert "MooseFS: not installed" in ended.stdout or moosefs.missing() in ended.stdout
    elif not absent:
        of_names = [3, 3, *of_names]
    of_reads = [150_000, 4] * 2 + [60_000] * 2
    assert [target.wanted for row in result.rows for target in row.targets] == of_reads + of_names
    assert result.quick and result.machine["cores"] > 0 and result.profiles
    assert result.memory.keys() == {"this process", "mgmtd", "meta", "storage-1", "storage-2", "storage-3"}


def test_a_wrong_option_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--quick", "--out", str(tmp_path / "file")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "is a file" in ended.stderr and "Traceback" not in ended.stderr
