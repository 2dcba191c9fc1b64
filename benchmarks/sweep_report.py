"""The sweep as a table and as plots: rate and latency over size and clients, replicas, cold and warm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from benchmarks.sweep import BATCH, KIB, MIB, PERCENTILES, Found, label, size_of
from fs3.bench.job import Op

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADS = ("", "rate", "p50", "p99", "p99.9", "client CPU s/GB", "servers", "from disk")
NAMES = ("sweep.png", "sweep.svg")
_BLUE, _GREEN, _ORANGE, _RED = "#4c78a8", "#54a24b", "#f58518", "#e45756"
_PURPLE = "#9467bd"
_DASHES = {50.0: "-", 99.0: "--", 99.9: ":"}
_FLOOR = 1e-6  # of rates in GB/s, for logarithms


def rich_table(found: Sequence[Found]) -> Table:
    """For the terminal."""
    table = Table(title="sweep", box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    for number, head in enumerate(HEADS):
        table.add_column(head, justify="right" if number else "left", no_wrap=number > 0)
    for one in found:
        table.add_row(*_cells(one))
    return table


def markdown(found: Sequence[Found]) -> str:
    """For the documentation."""
    out = [f"| {' | '.join(HEADS)} |", "|---|" + "--:|" * (len(HEADS) - 1)]
    return "\n".join([*out, *(f"| {' | '.join(_cells(one))} |" for one in found)]) + "\n"


def _cells(one: Found) -> tuple[str, ...]:
    disk = f"{one.from_disk:.0%}" if one.point.ray == "cache" else ""
    latencies = (_time(one.percentiles_s[percent]) for percent in PERCENTILES)
    return (label(one.point), _rate(one), *latencies, _short(one.client_cpu), _short(one.servers_cpu), disk)


def _rate(one: Found) -> str:
    return f"{_short(one.bytes_s / 1e9)} GB/s" if one.bytes_s >= 1e8 else f"{_short(one.bytes_s / 1e6)} MB/s"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.3g} ms"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(found: Sequence[Found], folder: Path) -> list[Path]:
    """Writes sweep.png and sweep.svg into `folder`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 2, figsize=(12, 12), layout="constrained")
    _over_size(axes[0, 0], axes[0, 1], found)
    _over_clients(axes[1, 0], axes[1, 1], found)
    _replicas(axes[2, 0], found)
    _cache(axes[2, 1], found)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#dddddd", linewidth=0.6)
        one.set_axisbelow(True)
    figure.suptitle("Otherwise: random reads of 1 MiB over TCP, 1 client, 1 replica, warm", fontsize=10)
    paths = [folder / name for name in NAMES]
    for path in paths:
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return paths


def _over_size(rates: Axes, times: Axes, found: Sequence[Found]) -> None:
    kinds: dict[str, tuple[str, Callable[[Found], bool]]] = {
        "random read": (_BLUE, lambda one: _random(one) and one.point.batch == 1),
        "random read, same host": (_PURPLE, lambda one: one.point.same_host),
        f"random read, {BATCH} a call": (_GREEN, lambda one: _random(one) and one.point.batch > 1),
        "sequential read": (_ORANGE, lambda one: one.point.op is Op.READ),
        "write": (_RED, lambda one: one.point.op is Op.WRITE),
    }
    of_size = [one for one in found if one.point.ray == "size" and one.calls]
    for name, (colour, chosen) in kinds.items():
        _line(rates, [(one.point.size, one) for one in of_size if chosen(one)], colour, name)
    for name in ("random read", "write"):
        colour, chosen = kinds[name]
        _latencies(times, [(one.point.size, one) for one in of_size if chosen(one)], colour, name)
    sizes = sorted({one.point.size for one in of_size})
    for axes in (rates, times):
        _logarithmic(axes, sizes, [size_of(size) for size in sizes])
        axes.set_xlabel("size")
    rates.set_title("Rate over size", fontsize=10)
    rates.set_ylabel("GB/s")
    times.set_title("Latency of a call over size", fontsize=10)
    times.set_ylabel("ms")


def _random(one: Found) -> bool:
    return one.point.op is Op.RANDREAD and not one.point.same_host


def _over_clients(rates: Axes, times: Axes, found: Sequence[Found]) -> None:
    of_clients = [one for one in found if one.point.ray == "clients" and one.calls]
    kinds = {
        "random read, 1 MiB": (_BLUE, Op.RANDREAD, MIB),
        "random read, 4 KiB": (_GREEN, Op.RANDREAD, 4 * KIB),
        "write, 1 MiB": (_RED, Op.WRITE, MIB),
    }
    for name, (colour, op, size) in kinds.items():
        line = [(one.point.clients, one) for one in of_clients if (one.point.op, one.point.size) == (op, size)]
        _line(rates, line, colour, name)
        if op is Op.RANDREAD:
            _latencies(times, line, colour, name)
    counts = sorted({one.point.clients for one in of_clients})
    for axes in (rates, times):
        _logarithmic(axes, counts, [str(count) for count in counts])
        axes.set_xlabel("clients")
    rates.set_title("Rate over clients", fontsize=10)
    rates.set_ylabel("GB/s")
    times.set_title("Latency of a call over clients", fontsize=10)
    times.set_ylabel("ms")


def _replicas(axes: Axes, found: Sequence[Found]) -> None:
    of_replicas = [one for one in found if one.point.ray == "replicas"]
    counts = sorted({one.point.replicas for one in of_replicas})
    kinds = {"read": Op.RANDREAD, "70% read, 30% write": Op.RANDRW, "write": Op.WRITE}
    colours = dict(zip(counts, (_BLUE, _GREEN, _ORANGE), strict=False))
    by_kind = {(one.point.op, one.point.replicas): one for one in of_replicas}
    groups = [[by_kind.get((op, n)) for op in kinds.values()] for n in counts]
    _bars(axes, list(kinds), [(f"{n} replica{'s' if n > 1 else ''}", colours[n]) for n in counts], groups)
    axes.set_title("Replicas (4 clients)", fontsize=10)


def _cache(axes: Axes, found: Sequence[Found]) -> None:
    of_cache = [one for one in found if one.point.ray == "cache"]
    kinds: dict[str, tuple[Op, int]] = {}
    for one in of_cache:
        name = f"{'random' if one.point.op is Op.RANDREAD else 'sequential'}, {size_of(one.point.size)}"
        kinds[name] = one.point.op, one.point.size
    by_kind = {(one.point.op, one.point.size, one.point.cold): one for one in of_cache}
    groups = [[by_kind.get((*kind, cold)) for kind in kinds.values()] for cold in (True, False)]
    _bars(axes, list(kinds), [("cold: from the disk", _BLUE), ("warm: from the page cache", _ORANGE)], groups)
    if of_cache:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.margins(y=0.15)
    axes.set_title("Cold and warm", fontsize=10)


def _bars(
    axes: Axes, names: list[str], series: list[tuple[str, str]], groups: Sequence[Sequence[Found | None]]
) -> None:
    width = 0.8 / max(len(series), 1)
    for place, ((name, colour), group) in enumerate(zip(series, groups, strict=True)):
        heights = [0.0 if one is None else one.bytes_s / 1e9 for one in group]
        at = [number + (place - (len(series) - 1) / 2) * width for number in range(len(names))]
        bars = axes.bar(at, heights, width * 0.92, color=colour, label=name)
        axes.bar_label(bars, [_short(height) if height else "" for height in heights], fontsize=7, padding=1)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("GB/s")
    if series:
        axes.legend(frameon=False, fontsize=8)


def _line(axes: Axes, line: Sequence[tuple[int, Found]], colour: str, name: str) -> None:
    if line:
        rates = [max(one.bytes_s / 1e9, _FLOOR) for _, one in line]
        axes.plot([at for at, _ in line], rates, "o-", color=colour, markersize=4, linewidth=1.5, label=name)


def _latencies(axes: Axes, line: Sequence[tuple[int, Found]], colour: str, name: str) -> None:
    for percent in PERCENTILES if line else ():
        took: list[Any] = [one.percentiles_s[percent] * 1e3 for _, one in line]
        at = [at for at, _ in line]
        axes.plot(at, took, _DASHES[percent], color=colour, linewidth=1.5, label=f"{name}, p{percent:g}")


def _logarithmic(axes: Axes, ticks: list[int], labels: list[str]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(ticks, labels, fontsize=8)
    axes.minorticks_off()
    if axes.has_data():
        axes.legend(frameon=False, fontsize=7)
