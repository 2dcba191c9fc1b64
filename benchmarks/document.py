"""Puts the figures of a bench.json into docs/benchmarks.md, so that no figure there was typed.

    benchmarks/document.py bench-out/bench.json docs/benchmarks.md

What stands between the two marker lines is replaced; the text around them is the author's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
        text = replace_figures(document.read_text(encoding="utf-8"), figures(found))
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    document.write_text(text, encoding="utf-8")


def replace_figures(text: str, new: str) -> str:
    """`text` with `new` between its markers. Raises: ValueError, if it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{new}\n{END}{after}"


def figures(result: Result) -> str:
    """The machine, the table, the costs and the profiles, in Markdown."""
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
    for name, lines in result.profiles.items():
        parts += ["", f"Where the calling thread is, {name} (share of its time, calls a batch, function):", ""]
        parts += [f"    {line}" for line in lines]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
