"""fs3 as a share of what stands beside it, as a picture: a bar to the median, a dot for each round, the target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import Beside, Row, Target

_COLOURS = {None: "#4c78a8", True: "#54a24b", False: "#e45756"}
_LOW, _HIGH = 0.01, 100.0  # of the axis; bars go on beyond, and their figure stands beside them
_LEGEND = {None: "no target", True: "its target is met", False: "short of its target"}


def plot(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes ratios.png and ratios.svg into `folder`: fs3 over each limit, and over all else that has a target."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    entries = [(row, one, target) for row in rows for one, target in _shown(row)]
    figure, axes = plt.subplots(figsize=(12, 1.4 + 0.26 * max(len(entries), 1)), layout="constrained")
    names = []
    for place, (row, one, target) in enumerate(entries):
        verdict = None if target is None else target.met
        axes.barh(place, one.ratio.median - 1, left=1, color=_COLOURS[verdict], height=0.6)
        axes.plot(one.ratio.values, [place] * len(one.ratio.values), "o", color="#222222", markersize=2.5)
        if target is not None:
            axes.plot(target.wanted, place, "|", color="#222222", markersize=12, markeredgewidth=1.8)
        axes.text(
            1.01, place, f"{one.ratio.median:.3g} x", transform=axes.get_yaxis_transform(), fontsize=7.5, va="center"
        )
        names.append(f"{row.name}  /  {one.name}")
    axes.axvline(1.0, color="#888888", linewidth=0.8)
    axes.set_xscale("log")
    shown = [min(max(value, _LOW), _HIGH) for _, one, _ in entries for value in (one.ratio.median, 1.0)]
    axes.set_xlim(min(shown, default=1) / 2, max(shown, default=1) * 2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.set_xlabel("fs3 over what stands beside it (1: equal); | its target")
    axes.spines[["top", "right"]].set_visible(False)
    patches = [Patch(color=_COLOURS[verdict], label=name) for verdict, name in _LEGEND.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    paths = [folder / "ratios.png", folder / "ratios.svg"]
    for path in paths:
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return paths


def _shown(row: Row) -> list[tuple[Beside, Target | None]]:
    targets = {target.over: target for target in row.targets}
    return [(one, targets.get(one.name)) for one in row.beside if one.kind == "limit" or one.name in targets]
