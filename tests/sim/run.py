"""`make sim SEEDS=500 [SEED=n]`: many seeds on all cores, or one; a table of what occurred; exit 1 if all is not well.

A seed that fails is printed with what was violated, the command that repeats it, and its story. With --coverage (the
default from 500 seeds on) a run also fails if something that has to occur did not (sim_coverage.py). Ctrl-C or
SIGTERM ends it with what there is so far.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sim_coverage import EXPECTED, GROUPS, IMPOSSIBLE, Coverage, Key, Spies, expect_faults, missing
from sim_faults import IMPOSSIBLE_PAIRS, KINDS
from sim_linearize import MOST_NODES
from sim_pairs import ROUND
from sim_seed import OPERATIONS, Result, run_seed, tell_seed

ENOUGH = ROUND  # seeds after which everything must have occurred
_MOST_TOLD = 3
_MOST_LISTED = 30

Outcome = tuple[Result, Counter[Key]]


def main() -> int:
    """See the module."""
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 150)
    if options.seed is not None:
        return _one(console, options.seed, options.operations)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seeds = range(options.first, options.first + options.seeds)
    begun = time.monotonic()
    results: list[Result] = []
    counts: Counter[Key] = Counter()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("seeds", total=len(seeds), rate="")
        with contextlib.suppress(KeyboardInterrupt):
            for result, more in _outcomes(seeds, options.jobs, options.operations):
                results.append(result)
                counts.update(more)
                rate = f"{len(results) / (time.monotonic() - begun) * 60:.0f} seeds/min"
                progress.update(task, advance=1, rate=rate)
                if result.violation and sum(bool(one.violation) for one in results) <= _MOST_LISTED:
                    progress.console.print(f"seed {result.seed}: {result.kind}: {result.violation.splitlines()[0]}")
                    sys.stdout.flush()
                if options.stop and result.violation:
                    break
    took_s = time.monotonic() - begun
    failed = sorted((result for result in results if result.violation), key=lambda one: one.seed)
    _summary(console, results, took_s)
    for result in failed[:_MOST_TOLD]:
        _tell(console, result, options.operations)
    absent = _coverage(console, counts, strict=options.coverage or len(results) >= ENOUGH)
    if failed:
        console.print(f"[bold red]{len(failed)} of {len(results)} seeds failed:[/] {[one.seed for one in failed]}")
    return 1 if failed or absent else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=ENOUGH, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="only this one, with its story if it fails")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--operations", type=int, default=OPERATIONS, help="of all clients, in each seed")
    parser.add_argument("--coverage", action="store_true", help="fail if something did not occur, however few seeds")
    parser.add_argument("--stop", action="store_true", help="at the first seed that fails")
    parser.add_argument("--search-nodes", type=int, help="how long to look for an order of a chunk's operations")
    options = parser.parse_args()
    if options.search_nodes:
        os.environ[MOST_NODES] = str(options.search_nodes)
    return options


_coverage_here: Coverage | None = None


def _begin() -> None:
    """In each process: count what the cores decide. Who started it ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    global _coverage_here
    _coverage_here = Coverage()
    Spies(_coverage_here).__enter__()


def _seed(job: tuple[int, int]) -> Outcome:
    assert _coverage_here is not None
    _coverage_here.counts.clear()
    result = run_seed(job[0], operations=job[1], coverage=_coverage_here)
    return result, Counter(_coverage_here.counts)


def _outcomes(seeds: range, jobs: int, operations: int) -> Iterator[Outcome]:
    work = [(seed, operations) for seed in seeds]
    if jobs <= 1:
        _begin()
        yield from map(_seed, work)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, _begin) as pool:
        yield from pool.imap_unordered(_seed, work, chunksize=4)


def _one(console: Console, seed: int, operations: int) -> int:
    result = run_seed(seed, operations=operations)
    print(
        f"seed {seed}: trace {result.trace & (1 << 64) - 1:016x}, {result.operations} operations {result.outcomes},"
        f" {result.steps} steps, {result.virtual_s:.1f} virtual s, {result.cpu_s:.2f} CPU s"
    )
    if not result.violation:
        return 0
    _tell(console, result, operations)
    return 1


def _tell(console: Console, result: Result, operations: int) -> None:
    console.rule(f"seed {result.seed}")
    print(tell_seed(result, operations=operations))
    print(f"\n{result.kind}: {result.violation}")
    more = f" SIM_ARGS='--operations {operations}'" if operations != OPERATIONS else ""
    print(f"\nrepeat it with: make sim SEED={result.seed}{more}\n")


def _summary(console: Console, results: list[Result], took_s: float) -> None:
    count = max(len(results), 1)
    told = Counter[str]()
    phases = Counter[str]()
    for result in results:
        told.update(result.outcomes)
        phases.update(result.phases)
    table = Table(title=f"{len(results)} seeds in {took_s:.0f} s: {count / took_s * 60:.0f} a minute")
    for name in ("operations", *told, "steps", "virtual s", "CPU s a seed", *(f"CPU s, {name}" for name in phases)):
        table.add_column(name, justify="right")
    table.add_row(
        str(sum(result.operations for result in results)),
        *(str(number) for number in told.values()),
        str(sum(result.steps for result in results)),
        f"{sum(result.virtual_s for result in results):.0f}",
        f"{sum(result.cpu_s for result in results) / count:.3f}",
        *(f"{seconds / count:.3f}" for seconds in phases.values()),
    )
    console.print(table)


def _coverage(console: Console, counts: Counter[Key], *, strict: bool) -> bool:
    """Print what occurred; whether something is missing that must not be."""
    expect_faults(KINDS, IMPOSSIBLE_PAIRS)
    absent = missing(counts)
    table = Table("", "occurred", "how often", title="what occurred")
    for group in GROUPS:
        known = [key for key in EXPECTED.get(group, ()) if (group, key) not in IMPOSSIBLE]
        seen = sum(1 for key in known if counts[group, key])
        table.add_row(f"[bold]{group}", f"{seen} of {len(known)}", "", style="on grey15")
        if group.startswith("pair"):
            rare = sorted((counts[group, key], key) for key in known)
            for number, key in rare[:10]:
                table.add_row(f"  rarest: {key}", "", str(number), style="red" if not number else "")
            continue
        for key in [*known, *sorted(key for where, key in counts if where == group and key not in known)]:
            number = counts[group, key]
            table.add_row(
                f"  {key}", "" if key in known else "(not required)", str(number), style="" if number else "red"
            )
    console.print(table)
    for group, key in absent if strict else ():
        console.print(f"[red]never occurred:[/] {group}: {key}")
    return strict and bool(absent)


if __name__ == "__main__":
    sys.exit(main())
