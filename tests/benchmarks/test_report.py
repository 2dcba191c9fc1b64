"""The table, the result file and the document: figures stand where they belong, and none is lost on the way."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import document, plots, table
from benchmarks.result import Result
from benchmarks.rounds import Timed
from benchmarks.rows import Absent, Row, make_row, row_from_json, row_to_json
from benchmarks.sweep import Found, Point


def rows() -> list[Row]:
    runs = {
        "fs3": [Timed(amount=4e9, seconds=2.0), Timed(amount=6e9, seconds=2.0), Timed(amount=8e9, seconds=2.0)],
        "bare": [Timed(amount=8e9, seconds=2.0)] * 3,
    }
    reads = {"batched": [Timed(amount=100_000, seconds=1.0)], "one": [Timed(amount=20_000, seconds=1.0)]}
    return [
        make_row("sequential read", "GB/s", runs, ours="fs3", limits=["bare"], cost_per=("GB", 1e9)),
        make_row(
            "small reads",
            "reads/s",
            reads,
            ours="batched",
            others=["one"],
            at_least=150_000,
            at_least_times={"one": 4.0},
        ),
    ]


@pytest.fixture
def result() -> Result:
    return Result(
        command="benchmarks/run.py",
        quick=False,
        rounds=3,
        machine={
            "date": "2026-01-01 00:00 UTC",
            "cpu": "A CPU",
            "cores": 2,
            "memory_bytes": 8 << 30,
            "kernel": "6.0",
            "filesystem": "ext4",
            "python": "3.11.0",
            "packages": {"numpy": "2.0"},
            "congestion_control": {"default": "bbr"},
            "huge_pages": "madvise",
        },
        other_cores=0.25,
        memory={"client": 1 << 20},
        profiles={"small reads": [" 50.0%      1.0  crc32c"]},
        rows=[*rows(), memory_row(20), row_without_a_peer()],
        sweep=(Found(Point("size"), 2e9, 10, {50.0: 0.001, 99.0: 0.01, 99.9: 0.25}, 0.2, 1.5, 0.0),),
    )


def test_lines_of_the_table() -> None:
    first, bare, second, one = table.lines(rows())
    assert (first.name, first.rate, first.rate_span, first.ratio) == ("sequential read", "3 GB/s", "2 - 4", "")
    assert (bare.name, bare.rate, bare.ratio, bare.ratio_span) == ("limit: bare", "4 GB/s", "0.75 x", "0.5 - 1")
    assert (second.rate, second.wanted, second.verdict) == ("100,000 reads/s", ">= 150,000 reads/s", "short")
    assert (one.name, one.ratio, one.wanted, one.verdict) == ("other: one", "5 x", ">= 4 x", "met")


def memory_row(grown: float) -> Row:
    runs = {"fs3": [Timed(amount=grown * 2**20, seconds=1.0)], "few": [Timed(amount=10 * 2**20, seconds=1.0)]}
    return make_row("memory", "MiB", runs, ours="fs3", others=["few"], at_most_times={"few": 2.0})


@pytest.mark.parametrize(("grown", "verdict"), [(20, "met"), (21, "short")])
def test_a_target_may_be_an_upper_one(grown: float, verdict: str) -> None:
    own, few = table.lines([memory_row(grown)])
    assert (own.rate, few.rate) == (f"{grown} MiB", "10 MiB")
    assert (few.wanted, few.verdict) == ("<= 2 x", verdict)


def row_without_a_peer() -> Row:
    runs = {"fs3": [Timed(amount=100, seconds=1.0)]}
    peers = [Absent("Peer", "not installed", 3.0), Absent("Other", "needs root")]
    return make_row("create", "files/s", runs, ours="fs3", absent=peers)


def test_a_missing_peer_is_named_and_its_target_has_no_verdict() -> None:
    row = row_without_a_peer()
    assert not row.targets
    _, peer, other = table.lines([row])
    assert (peer.name, peer.rate, peer.ratio) == ("other: Peer: not installed", "", "")
    assert (peer.wanted, peer.verdict) == (">= 3 x", "no verdict")
    assert (other.name, other.wanted, other.verdict) == ("other: Other: needs root", "", "")
    assert ">= 3 x, no verdict |" in table.markdown([row])


def test_costs_have_targets_for_client_and_servers_together() -> None:
    runs = {"fs3": [Timed(amount=2e9, seconds=1.0, client_cpu_s=0.4, servers_cpu_s=0.6)]}
    for at_most, verdict in ((0.5, "met"), (0.49, "**short**")):
        row = make_row("reads", "GB/s", runs, ours="fs3", cost_per=("GB", 1e9), cost_at_most=at_most)
        assert row.met == (verdict == "met")
        assert f"| 0.20 | 0.30 | <= {at_most} together, {verdict} |" in table.markdown_costs([row])
        assert row_from_json(row_to_json(row)) == row


def test_a_target_over_a_missing_peer_has_no_verdict() -> None:
    runs = {"fs3": [Timed(amount=1, seconds=1.0)]}
    row = make_row("r", "reads/s", runs, ours="fs3", at_least_times={"Peer": 9.0}, absent=[Absent("Peer", "why")])
    assert row.absent == (Absent("Peer", "why", 9.0),) and not row.targets and row.met


def test_the_terminal_shows_what_is_short() -> None:
    out = io.StringIO()
    Console(file=out, width=140).print(table.rich_table(rows(), "title"))
    shown = [line.split() for line in out.getvalue().splitlines()]
    assert any(line[:2] == ["small", "reads"] and line[-1] == "short" for line in shown)
    assert any(line[:2] == ["other:", "one"] and line[-1] == "met" for line in shown)


def test_a_result_survives_its_file(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "bench.json")
    assert Result.load(tmp_path / "bench.json") == result
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_rows_of_before_are_read(result: Result, tmp_path: Path) -> None:
    """Those had no peers that could be absent, and no upper targets."""
    path = tmp_path / "bench.json"
    dataclasses.replace(result, rows=rows()).save(path)
    held = json.loads(path.read_text())
    for row in held["rows"]:
        del row["absent"]
        for target in row["targets"]:
            del target["at_most"]
    path.write_text(json.dumps(held))
    assert Result.load(path).rows == rows()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text('{"version": 0}')
    with pytest.raises(ValueError, match="version 1"):
        Result.load(tmp_path / "bench.json")


def test_the_document_gets_the_figures_and_keeps_its_text(result: Result) -> None:
    text = f"before\n\n{document.BEGIN}\n\nold 42\n{document.END}\n\nafter\n"
    new = document.replace_figures(text, document.figures(result, "benchmarks"))
    assert new.startswith("before\n") and new.endswith("\nafter\n")
    assert "old 42" not in new
    assert "| **small reads** | 100,000 reads/s | 100,000 - 100,000 |  |  | >= 150,000 reads/s, **short** |" in new
    assert "](benchmarks/ratios.svg)" in new and "](benchmarks/sweep.svg)" in new and "250 ms" in new
    assert "0.25 cores busy" in new and "    " + result.profiles["small reads"][0] in new
    assert document.replace_figures(new, document.figures(result, "benchmarks")) == new
    changed = dataclasses.replace(result, rounds=5)
    assert "5 interleaved rounds" in document.replace_figures(new, document.figures(changed, "benchmarks"))


def test_the_plots_of_a_document_are_those_that_it_shows(result: Result, tmp_path: Path) -> None:
    document.draw(result, tmp_path / "figures")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["ratios.svg", "sweep.svg"]
    document.draw(dataclasses.replace(result, sweep=()), tmp_path / "rows")
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["ratios.svg"]


def test_a_document_without_markers_is_left_alone() -> None:
    with pytest.raises(ValueError, match="no lines"):
        document.replace_figures("text", "figures")


def test_the_plot_is_written(tmp_path: Path) -> None:
    png, svg = plots.plot(rows(), tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "sequential read" in svg.read_text() or "<path" in svg.read_text()
