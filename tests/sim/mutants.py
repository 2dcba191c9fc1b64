"""`make mutants [MUTANT=name] [SEEDS=n]`: for every known mistake the first seed that finds it; exit 1 if none does.

Each mistake (sim_mutants.py) is put into the production code of a process of its own (sim_mutation.py), which then runs
seeds until one is violated: from 0 on, those first whose faults are said to bring the mistake to light, if any are. A
mistake that no seed finds is a hole in the simulator.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sim_mutants import MUTANTS
from sim_mutation import Mutant, install

MOST_SEEDS = 2_000


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--mutant", action="append", help="only this one (repeatable)")
    parser.add_argument("--seeds", type=int, default=MOST_SEEDS, help="give up after so many")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the results there too")
    parser.add_argument("--hunt", help=argparse.SUPPRESS)  # what each child process does
    options = parser.parse_args()
    if options.hunt:
        return _hunt(_named(options.hunt), options.seeds)
    mutants = [_named(name) for name in options.mutant] if options.mutant else list(MUTANTS)
    found = _all(mutants, options.seeds, options.jobs)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0 if all(one["seed"] is not None for one in found) else 1


def _named(name: str) -> Mutant:
    for mutant in MUTANTS:
        if mutant.name == name:
            return mutant
    sys.exit(f"no mutant {name}; there are: {', '.join(mutant.name for mutant in MUTANTS)}")


def _hunt(mutant: Mutant, seeds: int) -> int:
    """In a process of its own: run seeds until one is violated; prints the outcome as JSON."""
    install(mutant)
    from sim_pairs import faults_of
    from sim_seed import run_seed

    begun = time.monotonic()
    seed, tried = -1, 0
    violation: str | None = None
    kind = ""
    ordered = sorted(range(seeds), key=lambda seed: -sum(fault in mutant.faults for fault in faults_of(seed)))
    for seed in ordered:
        tried += 1
        result = run_seed(seed)
        if result.violation:
            violation, kind = result.violation.splitlines()[0], result.kind
            break
    outcome: dict[str, Any] = {
        "name": mutant.name,
        "breaks": mutant.breaks,
        "bug": mutant.bug,
        "seed": seed if violation else None,
        "seeds": tried,
        "seconds": round(time.monotonic() - begun, 1),
        "kind": kind,
        "violation": violation,
    }
    print(json.dumps(outcome))
    return 0


def _all(mutants: list[Mutant], seeds: int, jobs: int) -> list[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    found: dict[str, dict[str, Any]] = {}
    with Progress(console=console, transient=True) as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task("mutants", total=len(mutants))
        for future in as_completed([pool.submit(_child, mutant, seeds) for mutant in mutants]):
            one = future.result()
            found[one["name"]] = one
            progress.update(task, advance=1)
            if one["seed"] is None:
                progress.console.print(f"[red]not found:[/] {one['name']}: {one['violation'] or one['breaks']}")
            else:
                progress.console.print(f"{one['name']}: seed {one['seed']}, {one['seeds']} tried in {one['seconds']} s")
    ordered = [found[mutant.name] for mutant in mutants]
    missed = [one for one in ordered if one["seed"] is None]
    table = Table(title=f"{len(ordered) - len(missed)} of {len(ordered)} mistakes found")
    table.add_column("mistake")
    for name in ("3FS bug", "found by seed", "seeds tried"):
        table.add_column(name, justify="right")
    table.add_column("violation")
    for one in ordered:
        seed = str(one["seed"]) if one["seed"] is not None else "[red]none[/]"
        violation = f"{one['kind']}: {(one['violation'] or '')[:90]}" if one["kind"] else ""
        table.add_row(one["name"], str(one["bug"] or ""), seed, str(one["seeds"]), violation)
    console.print(table)
    return ordered


def _child(mutant: Mutant, seeds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--hunt", mutant.name, "--seeds", str(seeds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        why = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        return {"name": mutant.name, "breaks": mutant.breaks, "bug": mutant.bug, "seed": None, "seeds": 0,
                "seconds": 0.0, "kind": "", "violation": f"the run itself failed: {why}"}  # fmt: skip
    return outcome


if __name__ == "__main__":
    sys.exit(main())
