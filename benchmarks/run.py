"""`make bench`: what fs3 does on this machine beside what the machine itself does, in one table.

    benchmarks/run.py [--quick] [--only NAME]... [--rounds N] [--out DIR]

Writes DIR/bench.json, DIR/ratios.{png,svg} and DIR/sweep.{png,svg}; how each row is measured, and why it is fair:
benchmarks/README.md.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import click
import psutil
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import (
    chunk_index,
    clients,
    durable_writes,
    large_reads,
    machine,
    memory,
    names,
    plots,
    profiling,
    same_host,
    single_reads,
    small_reads,
    sweep,
    sweep_report,
    table,
    usrbio,
)
from benchmarks.context import FULL, QUICK, Context, Sizes
from benchmarks.result import Result
from benchmarks.rows import Row
from fs3.errors import Fs3Error


def _loading(context: Context) -> list[Row]:
    from benchmarks import loading  # here, so that the rows of the store need no torch

    return loading.measure(context)


def _checkpoints(context: Context) -> list[Row]:
    from benchmarks import checkpoints

    return checkpoints.measure(context)


BENCHMARKS: dict[str, Callable[[Context], list[Row]]] = {
    "read": large_reads.measure,
    "small": small_reads.measure,
    "single": single_reads.measure,
    "clients": clients.measure,
    "write": durable_writes.measure,
    "index": chunk_index.measure,
    "same-host": same_host.measure,
    "usrbio": usrbio.measure,
    "loader": _loading,
    "checkpoint": _checkpoints,
    "names": names.measure,  # after all that uses the same cluster: it leaves many files to be collected
    "memory": memory.measure,
}
SWEEP = "sweep"
NAMES = (*BENCHMARKS, SWEEP)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Little data, few rounds: to see that it works, not how fast.")
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="These alone; any number of times.")
@click.option("--rounds", type=click.IntRange(min=1), help="Measured rounds of each case; 5 unless --quick.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("bench-out"), show_default=True)
def main(quick: bool, only: tuple[str, ...], rounds: int | None, out: Path) -> None:
    """Measure fs3 beside the limits of this machine."""
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a row's name stays in one piece
    sizes = QUICK if quick else FULL
    sizes = dataclasses.replace(sizes, rounds=rounds or sizes.rounds)
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # the cluster must not outlive us
    scratch = out / "scratch"
    try:
        empty(scratch)
    except OSError as error:
        raise click.ClickException(f"{out}: {error.strerror}; choose another folder with --out") from None
    try:
        result = _run(console, [name for name in NAMES if not only or name in only], scratch, sizes, quick)
    except Fs3Error as error:
        raise click.ClickException(str(error)) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    result.save(out / "bench.json")
    pictures = plots.plot(result.rows, out) if result.rows else []
    pictures += sweep_report.plot(result.sweep, out) if result.sweep else []
    _print(console, result, [out / "bench.json", *pictures])


def empty(folder: Path) -> None:
    """Make it, or make it anew. Raises: OSError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _run(console: Console, chosen: list[str], scratch: Path, sizes: Sizes, quick: bool) -> Result:
    rows: list[Row] = []
    # Told between the runs, never by a thread of its own: one that draws would take the interpreter from the measured.
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def say(line: str) -> None:
            if console.is_terminal:
                live.update(Spinner("dots", line), refresh=True)
            elif "(" not in line or "(1/" in line:
                console.print(line)

        swept = []
        facts = machine.facts(scratch)
        others = machine.OtherLoad()
        if SWEEP in chosen:
            with Context(scratch, sizes, say) as context:  # a cluster of its own: it leaves much to be collected
                swept = sweep.measure(context)
            empty(scratch)
        with Context(scratch, sizes, say, install=not quick) as context:
            for name in chosen:
                rows += BENCHMARKS[name](context) if name in BENCHMARKS else []
            memory = {"this process": machine.anonymous_bytes(psutil.Process())}
            memory |= {name: machine.anonymous_bytes(psutil.Process(pid)) for name, pid in context.cluster.pids.items()}
            profiles = {"4 KiB x 256 batched reads": profiling.profile_client(context)} if "small" in chosen else {}
        other_cores = others.cores()
    return Result(
        command=shlex.join(["benchmarks/run.py", *sys.argv[1:]]),
        quick=quick,
        rounds=sizes.rounds,
        machine=facts,
        other_cores=other_cores,
        memory=memory,
        profiles=profiles,
        rows=rows,
        sweep=swept,
    )


def _print(console: Console, result: Result, files: list[Path]) -> None:
    if result.rows:
        console.print(table.rich_table(result.rows, f"medians of {result.rounds} interleaved rounds"))
    if any(row.costs for row in result.rows):
        console.print(table.rich_costs(result.rows))
    if result.sweep:
        console.print(sweep_report.rich_table(result.sweep))
    short = [row.name for row in result.rows if not row.met]
    if short:
        console.print(f"short of its target: {'; '.join(short)}", style="red")
    busy = f"something else kept {result.other_cores:.2f} of {result.machine['cores']} cores busy meanwhile"
    console.print(busy + ("; compare ratios, not rates" if result.other_cores > 0.1 else ""))
    console.print("written: " + ", ".join(map(str, files)))


if __name__ == "__main__":
    main()
