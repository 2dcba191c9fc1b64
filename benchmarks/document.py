"""Puts the figures of a bench.json into docs/benchmarks.md, so that no figure there was typed.

    benchmarks/document.py bench-out/bench.json docs/benchmarks.md

What stands between the two marker lines is replaced; the text around them is the author's. The plots are drawn from the
same figures, into a folder beside the document that has its name.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import plots, sweep_report
from benchmarks.result import Result
from benchmarks.table import markdown, markdown_costs

BEGIN = "<!-- figures: written by benchmarks/document.py -->"
END = "<!-- end of figures -->"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("document", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(result: Path, document: Path) -> None:
    """Replace the figures in DOCUMENT by those of RESULT."""
    try:
        found = Result.load(result)
        text = replace_figures(document.read_text(encoding="utf-8"), figures(found, document.stem))
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    draw(found, document.with_suffix(""))
    document.write_text(text, encoding="utf-8")


def replace_figures(text: str, new: str) -> str:
    """`text` with `new` between its markers. Raises: ValueError, if it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{new}\n{END}{after}"


def draw(result: Result, folder: Path) -> None:
    """The plots, in `folder`; only those that the document shows."""
    folder.mkdir(exist_ok=True)
    drawn = plots.plot(result.rows, folder) + (sweep_report.plot(result.sweep, folder) if result.sweep else [])
    for path in drawn:
        if path.suffix != ".svg":
            path.unlink()


def figures(result: Result, folder: str) -> str:
    """The machine, the table, the costs, the sweep and the profiles, in Markdown; plots lie in `folder`."""
    facts = result.machine
    short = [row.name for row in result.rows if not row.met]
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    congestion = "; ".join(f"{name}: {value}" for name, value in facts["congestion_control"].items())
    parts = [
        f"- Command: `{result.command}`, {facts['date']}, {result.rounds} interleaved rounds, medians",
        f"- Machine: {facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB,"
        f" Linux {facts['kernel']}, {facts['filesystem']}",
        f"- Python {facts['python']}, {packages}",
        f"- TCP congestion control: {congestion}; transparent huge pages: {facts['huge_pages']}",
        f"- Something else kept {result.other_cores:.2f} cores busy on average while this ran",
        "",
        markdown(result.rows),
        f"Short of its target: {'; '.join(short) or 'nothing'}.",
        "",
        markdown_costs(result.rows),
        "Anonymous memory at the end: "
        + ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in result.memory.items()),
    ]
    parts += ["", "fs3 as a share of the limits; a dot for each round, a bar at the median:", ""]
    parts += [f"![fs3 over each limit]({folder}/ratios.svg)"]
    if result.sweep:
        parts += ["", "A star of points around one way to use it, each measured once (`benchmarks/sweep.py`):", ""]
        parts += [f"![rate and latency over size, clients, replicas and cache]({folder}/sweep.svg)", ""]
        parts += [sweep_report.markdown(result.sweep)]
    for name, lines in result.profiles.items():
        parts += ["", f"Where the calling thread is, {name} (share of its time, calls a batch, function):", ""]
        parts += [f"    {line}" for line in lines]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
