"""The demo's report: a table on the terminal, and one HTML page that needs nothing but itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fs3_trainer.demo import charts
from fs3_trainer.demo.commands import Typed
from fs3_trainer.demo.demo import Demo
from fs3_trainer.demo.machine import machine
from fs3_trainer.demo.outcome import Figure, StageRun
from fs3_trainer.demo.stages.crash import Resumed
from fs3_trainer.demo.stages.generation import Generated
from fs3_trainer.demo.stages.outage import Outage
from fs3_trainer.demo.units import duration

REPORT_NAME = "report.html"


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture in a stage's section."""

    title: str
    svg: str
    caption: str


def print_report(console: Console, runs: list[StageRun], seconds: float, page: Path) -> None:
    """The table on the terminal."""
    table = Table(title=f"fs3 demo, {duration(seconds)}", title_justify="left", title_style="bold")
    table.add_column("stage", no_wrap=True)
    table.add_column("checked", ratio=3)
    table.add_column("seen", ratio=2)
    table.add_column("", no_wrap=True)
    for run in runs:
        colour = {"passed": "green", "not run": "yellow"}.get(run.verdict, "bold red")
        checks, figures = Text(), Text(style="dim")
        if run.outcome is not None:
            checks = Text("\n").join(
                Text.assemble(("ok   ", "green") if c.ok else ("FAIL ", "bold red"), f"{c.claim}: {c.seen}")
                for c in run.outcome.checks
            )
            figures = Text("\n", style="dim").join(Text(f"{f.label} {f.value}") for f in run.outcome.figures)
        elif run.failure:
            checks = Text(run.failure, style="red")
        name = Text.assemble((run.name, "bold"), (f"\n{duration(run.seconds)}" if run.seconds else "", "dim"))
        table.add_row(name, checks, figures, Text(run.verdict, style=colour), end_section=True)
    console.print()
    console.print(table)
    console.print(Text(f"report: {page}"), soft_wrap=True, highlight=False)


def write_page(path: Path, demo: Demo, runs: list[StageRun], seconds: float) -> None:
    """The HTML page at `path`, whole or not at all. Raises: OSError."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["duration"] = duration
    template = environment.from_string(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    text = template.render(
        runs=runs,
        passed=sum(run.ok for run in runs),
        seconds=seconds,
        date=time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(demo.began)),
        headlines=headlines(demo),
        plots=plots(demo),
        texts=_texts(demo),
        machine=machine(),
        commands=[(typed, _offset(typed, demo.began)) for typed in demo.commands.typed],
    )
    draft = path.with_suffix(".html.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def headlines(demo: Demo) -> list[Figure]:
    """The few figures on top of the page, of the stages that were reached."""
    found = []
    if (resumed := demo.find(Resumed)) is not None:
        steps = [*resumed.first, *resumed.second]
        rate = sum(step.tokens for step in steps) / sum(step.step_s for step in steps)
        found.append(Figure("tokens a second in training", f"{rate:,.0f}"))
        found.append(Figure("steps ran twice, bit-identical", f"{sum(a.bits == b.bits for a, b in resumed.twice):,}"))
    if (outage := demo.find(Outage)) is not None:
        calls = len(outage.sampled.reads) + len(outage.sampled.writes)
        found.append(Figure(f"of {calls:,} storage calls failed", f"{len(outage.sampled.failures):,}"))
        found.append(Figure("from return to full service", duration(outage.recovered - outage.returned)))
    if (generated := demo.find(Generated)) is not None:
        last = generated.runs[1]
        found.append(Figure("KV pages loaded, not computed", f"{last.pages_loaded} of {last.pages}"))
    return found


def plots(demo: Demo) -> dict[str, list[Plot]]:
    """The pictures of each stage, by its name."""
    found: dict[str, list[Plot]] = {}
    outage, resumed, generated = demo.find(Outage), demo.find(Resumed), demo.find(Generated)
    away = "; red while the storage daemon was away" if outage is not None else ""
    if resumed is not None:
        loss = Plot(
            "Loss",
            charts.loss_chart(resumed, outage),
            f"Orange where steps ran twice, with the same loss to the bit{away}.",
        )
        times = Plot(
            "Step time",
            charts.step_time_chart(resumed, outage),
            f"Every step whose result counts{away}. Checkpoints lie between steps.",
        )
        found["crash"] = [loss, times]
    if outage is not None:
        caption = (
            f"Bins of {charts.BIN_S:g} s. The reader and the writer keep a fixed pace, so a dip is a call that took "
            "longer. Red: the daemon is away. Orange: it is back and catches up."
        )
        found["outage"] = [Plot("Storage around the kill", charts.outage_chart(outage), caption)]
    if generated is not None:
        caption = "Each bar is a process of its own, in the order in which they ran."
        found["generation"] = [Plot("KV pages", charts.pages_chart(generated), caption)]
    return found


def _texts(demo: Demo) -> list[tuple[str, str, str]]:
    """(name, prompt's end, continuation) of what was generated; the same text is shown once."""
    generated = demo.find(Generated)
    if generated is None:
        return []
    shown: list[tuple[str, str, str]] = []
    for run in generated.runs:
        if shown and shown[-1][1:] == (run.prompt_end, run.text):
            shown[-1] = (f"{shown[-1][0]}, and {run.name}", run.prompt_end, run.text)
        else:
            shown.append((run.name, run.prompt_end, run.text))
    return shown


def _offset(typed: Typed, began: float) -> str:
    minutes, seconds = divmod(max(typed.began - began, 0.0), 60)
    return f"{minutes:.0f}:{seconds:04.1f}"
