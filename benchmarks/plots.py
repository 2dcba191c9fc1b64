"""fs3 as a share of what stands beside it, as a picture: a dot for each round, a bar at the median."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import Row


def plot(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes ratios.png and ratios.svg into `folder`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    entries = [(row, one) for row in rows for one in row.beside if one.kind == "limit"]
    figure, axes = plt.subplots(figsize=(12, 1 + 0.34 * max(len(entries), 1)), layout="constrained")
    names = []
    for place, (row, one) in enumerate(entries):
        axes.barh(place, one.ratio.median, color="#4c78a8", height=0.6)
        axes.plot(one.ratio.values, [place] * len(one.ratio.values), "o", color="#222222", markersize=3)
        names.append(f"{row.name}  /  {one.name}")
    axes.axvline(1.0, color="#888888", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("fs3 over the limit (1: equal)")
    axes.spines[["top", "right"]].set_visible(False)
    paths = [folder / "ratios.png", folder / "ratios.svg"]
    for path in paths:
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return paths
