"""`python -m fs3_trainer.demo`: run the stages, report, clean up.

Exit status: 0 every stage passed, 1 one fell short (it is named), 2 wrong usage, 130 or 143 ended by a signal.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from fs3_trainer.demo.narrator import Narrator
from fs3_trainer.demo.outcome import StageRun
from fs3_trainer.demo.report import REPORT_NAME, print_report, write_page
from fs3_trainer.demo.runner import Interrupted, execute, room, save_logs, signals_interrupt
from fs3_trainer.demo.settings import CHECKPOINTS, QUICK, Settings
from fs3_trainer.demo.stages import STAGES

PLAIN_WIDTH = 120


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="demo-out", show_default=True,
              help="Folder for the report, and for logs if a stage falls short.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=5 * CHECKPOINTS),
              help="Training steps. [default: what this machine does in about two minutes]")  # fmt: skip
@click.option("--keep", is_flag=True, help="Keep the temporary folder with the cluster's data.")
@click.option("--quick", is_flag=True, help="Everything at tiny sizes, in about a minute.")
def main(out: Path, steps: int | None, keep: bool, quick: bool) -> None:
    """Show fs3 at work: a replicated cluster, a data set, training with two kills in its middle, generation."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    settings = dataclasses.replace(QUICK if quick else Settings(), steps=steps)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with signals_interrupt():
            status = run_demo(settings, out.absolute(), console, keep=keep)
    except Interrupted as interrupted:
        console.print(f"\n{interrupted}: the demo was stopped, and everything it started with it")
        status = 128 + interrupted.number
    except OSError as error:
        click.echo(f"demo: {error.filename}: {error.strerror}; choose another folder with --out", err=True)
        status = 1
    sys.exit(status)


def run_demo(settings: Settings, out: Path, console: Console, *, keep: bool) -> int:
    """Run all stages and write the report into `out`; the exit status. Raises: Interrupted, OSError."""
    began_s = time.monotonic()
    runs: list[StageRun] = []
    logs = out / "log"
    shutil.rmtree(logs, ignore_errors=True)  # of an earlier demo
    with room(settings, Narrator(console), keep=keep) as demo:
        try:
            runs = execute(demo, STAGES)
        finally:
            if len(runs) < len(STAGES) or not all(run.ok for run in runs):
                save_logs(demo, logs)
    seconds = time.monotonic() - began_s
    page = out / REPORT_NAME
    write_page(page, demo, runs, seconds)
    print_report(console, runs, seconds, page)
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    for problem in problems:
        click.echo(f"demo: {problem}", err=True)
    if problems:
        click.echo(f"demo: the logs are in {logs}", err=True)
    return 0 if all(run.ok for run in runs) else 1


if __name__ == "__main__":
    main()
