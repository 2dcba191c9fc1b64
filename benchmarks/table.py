"""Rows as a table: for the terminal, and as Markdown for docs/benchmarks.md. One line for each thing beside fs3."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from benchmarks.rounds import Spread
from benchmarks.rows import Row, Target

SCALES = {"GB/s": 1e9, "MiB": 2**20}
COLOURS = {"met": "green", "short": "red", "no verdict": "yellow"}
HEADS = ("", "median", "min - max", "fs3 / it", "min - max", "target")

COST_HEADS = ("CPU seconds per GB", "", "client", "servers", "target")


@dataclass(frozen=True, slots=True)
class Line:
    """One line: a row itself, or, indented, something beside it with fs3's ratio to it."""

    name: str
    is_row: bool
    rate: str
    rate_span: str
    ratio: str = ""
    ratio_span: str = ""
    wanted: str = ""
    verdict: str = ""
    """met, short, or no verdict; "" where nothing is wanted"""


def lines(rows: Sequence[Row]) -> Iterator[Line]:
    """A line for each row, and under it one for each thing beside it; a target stands where it is measured."""
    for row in rows:
        own = next((target for target in row.targets if not target.over), None)
        yield Line(
            row.name, True, figure(row.rate.median, row.unit), span(row.rate, row.unit), "", "", *_target(own, row.unit)
        )
        for one in row.beside:
            target = next((target for target in row.targets if target.over == one.name), None)
            yield Line(
                f"{one.kind}: {one.name}",
                False,
                figure(one.rate.median, row.unit),
                span(one.rate, row.unit),
                f"{one.ratio.median:.3g} x",
                f"{one.ratio.low:.3g} - {one.ratio.high:.3g}",
                *_target(target, row.unit),
            )
        for missing in row.absent:
            wanted = "" if missing.wanted is None else f">= {missing.wanted:g} x"
            verdict = "no verdict" if wanted else ""
            yield Line(f"other: {missing.name}: {missing.why}", False, "", "", "", "", wanted, verdict)


def _target(target: Target | None, unit: str) -> tuple[str, str]:
    if target is None:
        return "", ""
    sign = "<=" if target.at_most else ">="
    wanted = f"{sign} {target.wanted:g} x" if target.over else f"{sign} {figure(target.wanted, unit)}"
    return wanted, "met" if target.met else "short"


def figure(value: float, unit: str) -> str:
    """A rate in its unit."""
    scaled = value / SCALES.get(unit, 1)
    return f"{scaled:,.0f} {unit}" if scaled >= 100 else f"{scaled:.3g} {unit}"


def span(spread: Spread, unit: str) -> str:
    """The least and the most, without the unit."""
    low, high = (figure(value, unit).removesuffix(f" {unit}") for value in (spread.low, spread.high))
    return f"{low} - {high}"


def rich_table(rows: Sequence[Row], title: str) -> Table:
    """For the terminal."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    for number, head in enumerate(HEADS):
        table.add_column(head, justify="right" if number else "left", no_wrap=number > 0)
    for line in lines(rows):
        colour = COLOURS.get(line.verdict, "")
        target = f"{line.wanted} [{colour}]{line.verdict}[/]" if line.wanted else ""
        name = f"[bold]{line.name}[/]" if line.is_row else f"  [dim]{line.name}[/]"
        table.add_row(name, line.rate, line.rate_span, line.ratio, line.ratio_span, target)
    return table


def markdown(rows: Sequence[Row]) -> str:
    """For the documentation."""
    out = [f"| {' | '.join(HEADS)} |", "|---|" + "--:|" * (len(HEADS) - 1)]
    for line in lines(rows):
        name = f"**{line.name}**" if line.is_row else f"&nbsp;&nbsp;{line.name}"
        verdict = "**short**" if line.verdict == "short" else line.verdict
        target = f"{line.wanted}, {verdict}" if line.wanted else ""
        out.append(f"| {name} | {line.rate} | {line.rate_span} | {line.ratio} | {line.ratio_span} | {target} |")
    return "\n".join(out) + "\n"


def rich_costs(rows: Sequence[Row]) -> Table:
    """CPU seconds, for the terminal."""
    table = Table(title="CPU seconds", box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    for number, head in enumerate(COST_HEADS):
        table.add_column(head, justify="right" if number else "left")
    for cells in _costs(rows):
        table.add_row(*cells)
    return table


def markdown_costs(rows: Sequence[Row]) -> str:
    """CPU seconds, for the documentation."""
    out = [f"| {' | '.join(COST_HEADS)} |", "|---|" + "--:|" * (len(COST_HEADS) - 1)]
    return "\n".join([*out, *(f"| {' | '.join(cells)} |" for cells in _costs(rows))]) + "\n"


def _costs(rows: Sequence[Row]) -> Iterator[tuple[str, str, str, str, str]]:
    for row in rows:
        for number, cost in enumerate(row.costs):
            verdict = "met" if cost.met else "**short**"
            wanted = "" if cost.wanted is None else f"<= {cost.wanted:g} together, {verdict}"
            yield row.name if not number else "", cost.name, f"{cost.client:.2f}", f"{cost.servers:.2f}", wanted
