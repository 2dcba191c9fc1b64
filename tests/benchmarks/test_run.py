"""The whole of it, small: a real cluster, every row of the store with its limits, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.peers import moosefs
from benchmarks.peers.peer import Missing
from benchmarks.peers.server import program
from benchmarks.result import Result
from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[2]
PEERS = {"nginx": "nginx", "Redis, MGET by a raw RESP client": "redis-server", "iperf3": "iperf3"}
FROM_PYPI = {"redis-py, pipeline of GETs", "redis-py with hiredis, MGET", "Mooncake over TCP"}
MOOSEFS = {"MooseFS", "MooseFS, changelog synced"}


def quick(out: Path, *names: str) -> tuple[Result, str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--quick", "--rounds", "1", "--out", str(out)]
    for name in names:
        command += ["--only", name]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "ratios.png", "ratios.svg"]
    result = Result.load(out / "bench.json")
    assert result.quick and result.machine["cores"] > 0
    names_ = [row.name for row in result.rows]
    assert len(names_) == len(set(names_))
    for row in result.rows:
        assert row.rate.low > 0, row.name
        assert all(one.rate.low > 0 and len(one.ratio.values) == 1 for one in row.beside), row.name
        assert row.name in ended.stdout, row.name
        for missing in row.absent:
            assert f"other: {missing.name}"[:30] in ended.stdout, missing
    return result, ended.stdout


def wanted(row: Row) -> set[float]:
    """Of all targets, also those without a verdict."""
    costs = [cost.wanted for cost in row.costs if cost.wanted is not None]
    return {*(one.wanted for one in row.targets), *(one.wanted for one in row.absent if one.wanted), *costs}


def test_the_data_plane(tmp_path: Path) -> None:
    """Every target of the data plane stands at its row, and every peer beside it or by name among the absent."""
    result, _ = quick(tmp_path, "read", "small", "single", "clients", "write", "index")
    rows = {row.name: row for row in result.rows}
    assert len(rows) == (2 * 5 + 3) + (2 * 3 + 2) + 3 * 2 + 2 + 2 + 2
    for size, in_flight in ((1, 4), (4, 1), (4, 4)):
        name = f"random read of {size} MiB, {in_flight} in flight"
        assert wanted(rows[f"{name}, 1 replica"]) == {0.6, 6.0, 0.45}
        assert wanted(rows[f"{name}, 1 replica, checksums off"]) == {0.85, 0.9}
        assert not wanted(rows[f"{name}, 3 replicas"])
    assert wanted(rows["4 KiB x 256 batched reads, 1 replica"]) == {400_000.0, 1.8, 4.0, 100.0, 0.9}
    for size in (16, 64):
        assert wanted(rows[f"{size} KiB x 256 batched reads, 1 replica"]) == {0.55}
        assert wanted(rows[f"{size} KiB x 256 batched reads, 1 replica, checksums off"]) == {0.75}
    assert wanted(rows["4 KiB reads, 32 in flight, asyncio tasks"]) == {60_000.0}
    assert wanted(rows["4 KiB reads, 32 in flight, asyncio tasks: p99"]) == {1.0}
    assert wanted(rows["64 callers in 4 processes, random reads of 1 MiB"]) == {0.75}
    assert wanted(rows["64 callers in 4 processes, random reads of 1 MiB: the slowest"]) == {0.5}
    assert wanted(rows["durable write, pieces of 4 MiB, 1 replica"]) == {1.0, 0.5}
    assert wanted(rows["durable write, pieces of 4 MiB, 3 replicas"]) == {0.25}
    assert wanted(rows["an engine of 20,000 chunks: memory for each"]) == {220.0}
    assert wanted(rows["an engine of 20,000 chunks: to open it"]) == {3.0}
    beside = {one.name for row in result.rows for one in row.beside}
    absent = {one.name for row in result.rows for one in row.absent}
    assert absent >= FROM_PYPI, "a quick run installs nothing"
    for name, command in PEERS.items():
        try:
            program(command, command)
        except Missing:
            assert name in absent
        else:
            assert name in beside
    assert {one for one in beside if one.startswith("grpc.aio")} == {"grpc.aio", "grpc.aio, 32 calls in flight"}
    assert result.profiles
    assert result.memory.keys() == {"this process", "mgmtd", "meta", "storage-1", "storage-2", "storage-3"}


def test_names_and_checkpoints(tmp_path: Path) -> None:
    result, said = quick(tmp_path, "names", "checkpoint")
    assert len(result.rows) == 12 + 4
    assert all(row.beside for row in result.rows)
    absent = {one.name for row in result.rows for one in row.absent}
    assert absent <= MOOSEFS
    of_names = [5_000, 1_500, 50_000, 5, 50_000, 10]
    if moosefs.missing():
        without_verdict = [one.wanted for row in result.rows for one in row.absent if one.wanted]
        assert len(absent) == 2 and without_verdict == [3, 3]
        assert moosefs.missing() in said
    elif not absent:
        of_names = [3, 3, *of_names]
    assert [target.wanted for row in result.rows for target in row.targets] == of_names


def test_a_wrong_option_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--quick", "--out", str(tmp_path / "file")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "is a file" in ended.stderr and "Traceback" not in ended.stderr
