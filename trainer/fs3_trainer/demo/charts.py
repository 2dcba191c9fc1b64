"""The report's plots, as SVG that takes its colours and its font from the page around it.

matplotlib writes fixed colours; each name here is drawn in a colour that nothing else uses, and replaced by the page's
CSS variable afterwards. So one picture suits light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from fs3_trainer.demo.sampler import slowest_s, throughput
from fs3_trainer.demo.stages.crash import Resumed
from fs3_trainer.demo.stages.generation import Generated
from fs3_trainer.demo.stages.outage import Outage
from fs3_trainer.demo.step_log import Step

INK, MUTED, GRID, BLUE, ORANGE, GREEN, RED = (f"#0d0c0{digit}" for digit in range(1, 8))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", BLUE: "blue", ORANGE: "orange", GREEN: "green", RED: "red"}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fs3-demo",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8.5,
    "axes.titlecolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}
BIN_S = 0.25
WIDTH = 8.4
CHAR_WIDTH = 0.0085
"""of a label's character, as a fraction of the width of a panel"""


def loss_chart(resumed: Resumed, outage: Outage | None) -> str:
    """Loss over steps, both attempts, with the outage, the kill and the resume marked."""
    with mpl.rc_context(_STYLE):
        figure, (axes,) = _panels(2.9)
        first, second = list(resumed.first), list(resumed.second)
        _shade_outage(axes, first, outage)
        axes.plot([s.step for s in first], [s.loss for s in first], color=BLUE, label="first process")
        axes.plot([s.step for s in second], [s.loss for s in second], color=ORANGE, label="after --resume")
        axes.axvspan(resumed.resumed_from, resumed.killed_at, color=ORANGE, alpha=0.12, lw=0)
        axes.set_title("cross entropy of the next token, nats")
        _step_axis(axes, second[-1].step)
        _label_events(axes, [(resumed.resumed_from, "resumed from here"), (resumed.killed_at, "killed here")])
        axes.legend(loc="upper right")
        return _svg(figure)


def step_time_chart(resumed: Resumed, outage: Outage | None) -> str:
    """The time of every step that counts, split into compute and the wait for data; the wait again on its own scale."""
    kept = [step for step in resumed.first if step.step <= resumed.resumed_from] + list(resumed.second)
    number = np.array([step.step for step in kept])
    wait = np.array([step.data_wait_s for step in kept]) * 1000
    compute = np.array([step.step_s for step in kept]) * 1000 - wait
    with mpl.rc_context(_STYLE):
        figure, (axes, below) = _panels(3.7, (2.2, 1))
        for panel in (axes, below):
            _shade_outage(panel, list(resumed.first), outage)
            _step_axis(panel, kept[-1].step, label=panel is below)
        axes.stackplot(number, compute, wait, colors=[BLUE, ORANGE], labels=["compute", "data wait"], lw=0)
        axes.set_ylim(0, _roof(compute + wait))
        axes.set_title("a step, ms")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0)
        below.fill_between(number, wait, color=ORANGE, lw=0)
        below.set_ylim(0, _roof(wait))
        below.set_title("data wait alone, ms")
        return _svg(figure)


def outage_chart(outage: Outage) -> str:
    """Throughput, slowest calls and serving targets around the kill and the recovery, over seconds since the kill."""
    sampled = outage.sampled
    calls = [*sampled.reads, *sampled.writes]
    begin, end = min(call.began for call in calls), max(call.ended for call in calls)
    edges = begin + BIN_S * np.arange(max(int((end - begin) / BIN_S), 2) + 1)
    middle = (edges[:-1] + edges[1:]) / 2 - outage.killed
    with mpl.rc_context(_STYLE):
        figure, (rate, slow, serving) = _panels(5.2, (1.5, 1, 0.9))
        for panel in (rate, slow, serving):
            panel.axvspan(0, outage.returned - outage.killed, color=RED, alpha=0.10, lw=0)
            panel.axvspan(
                outage.returned - outage.killed, outage.recovered - outage.killed, color=ORANGE, alpha=0.13, lw=0
            )
            panel.set_xlim(middle[0], middle[-1])
        events = [
            (moment - outage.killed, text)
            for moment, text in (
                (outage.killed, "killed"),
                (outage.noticed, "missed by mgmtd"),
                (outage.returned, "started again"),
                (outage.recovered, "whole again"),
            )
        ]
        for panel in (slow, serving):
            for moment, _ in events:
                panel.axvline(moment, color=MUTED, lw=0.7, ls=(0, (3, 2)))
        for kind, colour, name in ((sampled.reads, BLUE, "read"), (sampled.writes, GREEN, "written")):
            rate.plot(middle, throughput(kind, edges) / 2**20, color=colour, label=name)
            slow.step(middle, slowest_s(kind, edges) * 1000, color=colour, where="mid")
        rate.set_ylim(bottom=0)
        rate.set_title("throughput of the reader and the writer beside the training, MiB/s")
        _label_events(rate, events)
        figure.legend(loc="upper right", ncols=2)
        slow.set_yscale("log")
        slow.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        slow.yaxis.set_minor_formatter(NullFormatter())
        slow.set_title("slowest call in flight, ms (logarithmic)")
        _draw_serving(serving, outage, begin, end)
        for panel in (rate, slow):
            panel.tick_params(labelbottom=False)
        serving.set_xlabel("seconds since the kill")
        return _svg(figure)


def pages_chart(generated: Generated) -> str:
    """Where each process got the KV pages of its prompt from."""
    runs = generated.runs
    names = [run.name for run in runs]
    with mpl.rc_context(_STYLE):
        figure, (axes,) = _panels(0.75 + 0.42 * len(runs))
        loaded, computed = [run.pages_loaded for run in runs], [run.pages_computed for run in runs]
        axes.barh(names, loaded, color=GREEN, height=0.6, label="loaded from fs3")
        axes.barh(names, computed, left=loaded, color=BLUE, height=0.6, label="computed")
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(axis="y", labelcolor=INK)
        most = max(a + b for a, b in zip(loaded, computed, strict=True))
        for row, run in enumerate(runs):
            total = run.pages_loaded + run.pages_computed
            axes.text(
                total + most * 0.012,
                row,
                f"first token after {run.first_token_s * 1000:.0f} ms",
                va="center",
                color=MUTED,
            )
        axes.set_xlim(0, most * 1.32)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title("pages of the prompt")
        figure.legend(loc="upper right", ncols=2)
        return _svg(figure)


def _panels(height: float, ratios: Sequence[float] = (1,)) -> tuple[Figure, tuple[Axes, ...]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    grid = figure.subplots(len(ratios), 1, height_ratios=list(ratios), squeeze=False)
    panels = tuple(grid[:, 0])
    for panel in panels:
        panel.patch.set_alpha(0)
    return figure, panels


def _shade_outage(axes: Axes, steps: list[Step], outage: Outage | None) -> None:
    away = [s.step for s in steps if outage is not None and outage.killed < s.time < outage.returned]
    if away:
        axes.axvspan(away[0] - 1, away[-1], color=RED, alpha=0.10, lw=0, label="storage daemon away")


def _label_events(axes: Axes, events: Sequence[tuple[float, str]]) -> None:
    """Dashed lines with words above the axes, in as many rows as they need; the limits of x must be set already."""
    begin, end = axes.get_xlim()
    taken: list[float] = []  # where each row ends, as a fraction of the width
    for x, text in sorted(events):
        axes.axvline(x, color=MUTED, lw=0.7, ls=(0, (3, 2)))
        width = len(text) * CHAR_WIDTH
        place = min((x - begin) / (end - begin), 1 - width)
        row = next((row for row, until in enumerate(taken) if until <= place), len(taken))
        taken[row:] = [place + width + CHAR_WIDTH, *taken[row + 1 :]]
        axes.annotate(
            text, (place, 1), (2, 3 + 11 * row), xycoords="axes fraction", textcoords="offset points", va="bottom",
            color=MUTED, fontsize=8,
        )  # fmt: skip
    axes.set_title(axes.get_title(loc="left"), pad=6 + 11 * len(taken))


def _step_axis(axes: Axes, last: int, *, label: bool = True) -> None:
    axes.set_xlim(1, last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if label:
        axes.set_xlabel("step")
    else:
        axes.tick_params(labelbottom=False)


def _draw_serving(axes: Axes, outage: Outage, begin: float, end: float) -> None:
    times = [begin, *(seen.time for seen in outage.seen if begin < seen.time < end), end]
    before = [seen for seen in outage.seen if seen.time <= begin]
    counts = [seen.serving for seen in outage.seen if begin < seen.time < end]
    counts = [before[-1].serving if before else outage.status_targets, *counts]
    axes.step(np.array(times) - outage.killed, [*counts, counts[-1]], color=INK, where="post")
    axes.set_ylim(0, outage.status_targets * 1.15)
    axes.set_yticks(sorted({0, min(counts), outage.status_targets}))
    axes.set_title(f"targets that serve, of {outage.status_targets}")


def _roof(values: np.ndarray) -> float:
    """Just above nearly all values: one slow first step must not flatten the rest."""
    return max(float(np.percentile(values, 98)) * 1.35, 1e-3)


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r'^<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1, flags=re.DOTALL
    )
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    return _with_variables(text)


def _with_variables(text: str) -> str:
    def variable(match: re.Match[str]) -> Any:
        return f"var(--{_VARIABLES[match[0]]})"

    return re.sub("|".join(_VARIABLES), variable, text)
