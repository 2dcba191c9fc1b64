"""The sweep: what it visits, its figures on their way through files and tables; and cold reads come from the disk."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks import sweep, sweep_report
from benchmarks.result import Result
from benchmarks.sweep import Found, Point
from fs3.bench.job import Op

ROOT = Path(__file__).resolve().parents[2]


def found(point: Point, bytes_s: float = 2e9) -> Found:
    return Found(point, bytes_s, 10, {50.0: 0.001, 99.0: 0.01, 99.9: 0.25}, 0.2, 1.5, 0.98)


def test_the_star_visits_what_it_should() -> None:
    points = list(sweep.points())
    assert len(points) == len(set(points))
    sizes = [point.size for point in points if point.ray == "size"]
    assert (min(sizes), max(sizes)) == (512, 64 << 20)
    assert {point.clients for point in points} == {1, 2, 4, 8, 16, 64}
    assert {point.replicas for point in points} == {1, 2, 3}
    assert {point.op for point in points} == set(Op)
    pairs = list(sweep.cold_points())
    assert all(replace(cold, cold=False) == warm for cold, warm in zip(pairs[::2], pairs[1::2], strict=True))


def test_a_point_in_words() -> None:
    assert sweep.label(Point("size", op=Op.WRITE, size=512)) == "write, 512 B, 1 client, 1 replica"
    point = Point("clients", size=4 << 10, batch=256, clients=16, replicas=3)
    assert sweep.label(point) == "random read, 4 KiB x 256, 16 clients, 3 replicas"
    assert sweep.label(Point("cache", cold=True)) == "random read, 1 MiB, 1 client, 1 replica, cold"


def test_figures_as_a_table_and_back() -> None:
    warm, cold = found(Point("size")), found(Point("cache", cold=True), 5e6)
    assert [Found.from_json(one.to_json()) for one in (warm, cold)] == [warm, cold]
    out = io.StringIO()
    Console(file=out, width=160).print(sweep_report.rich_table([warm, cold]))
    assert "2 GB/s" in out.getvalue() and "250 ms" in out.getvalue()
    lines = sweep_report.markdown([warm, cold]).splitlines()
    assert lines[2].endswith("| 2 GB/s | 1 ms | 10 ms | 250 ms | 0.2 | 1.5 |  |")
    assert lines[3].endswith("cold | 5 MB/s | 1 ms | 10 ms | 250 ms | 0.2 | 1.5 | 98% |")


def test_plots_of_all_and_of_few_points(tmp_path: Path) -> None:
    everything = [found(point) for point in (*sweep.points(), *sweep.cold_points())]
    for some in (everything, everything[:1], [replace(everything[0], calls=0, bytes_s=0.0)], everything[-1:]):
        png, svg = sweep_report.plot(some, tmp_path)
        assert png.read_bytes().startswith(b"\x89PNG") and "<svg" in svg.read_text()


def test_a_quick_sweep(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "run.py"),
        "--quick",
        "--only",
        "sweep",
        "--out",
        str(tmp_path),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "sweep.png", "sweep.svg"]
    result = Result.load(tmp_path / "bench.json")
    assert not result.rows and len(result.sweep) >= 6 + 8
    assert {one.point.ray for one in result.sweep} == {"size", "clients", "replicas", "cache"}
    for one in result.sweep:
        assert sweep.label(one.point) in ended.stdout
        if one.point.cold:
            assert one.from_disk > 0.9, one.point
        elif one.point.ray == "cache":
            assert one.from_disk < 0.5, one.point
