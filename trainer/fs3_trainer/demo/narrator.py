"""What the demo says while it runs: coloured, with live bars, on a terminal; plain lines anywhere else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from fs3_trainer.demo.outcome import Check
from fs3_trainer.demo.units import duration

PLAIN_EVERY_S = 10.0


class Bar(Protocol):
    """Shows how far something is."""

    def update(self, done: int, note: str) -> None:
        """`done` of the total, and a few words on how it goes."""


class Narrator:
    """Prints to one console, from the main thread."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = console.is_terminal

    def stage(self, number: int, total: int, title: str) -> None:
        """A new stage begins."""
        self.console.print()
        self._print(Text.assemble((f"{number}/{total}  {title}", "bold cyan")))

    def command(self, line: str) -> None:
        """A command that is about to run, as a user would type it."""
        self._print(Text.assemble(("  $ ", "dim"), line))

    def say(self, line: str) -> None:
        """Something that happened."""
        self._print(Text.assemble("    ", (line, "dim" if self._live else "")))

    def event(self, line: str) -> None:
        """Something that happened and deserves a look."""
        self._print(Text.assemble(("  ! ", "bold yellow"), (line, "yellow")))

    def check(self, check: Check) -> None:
        """The result of a check."""
        mark = ("  ok   ", "green") if check.ok else ("  FAIL ", "bold red")
        self._print(Text.assemble(mark, check.claim, (f" ({check.seen})", "dim" if check.ok else "red")))

    def failure(self, line: str) -> None:
        """Why a stage ended early."""
        self._print(Text.assemble(("  FAIL ", "bold red"), (line, "red")))

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """A sign of life while something without a bar of its own runs."""
        if not self._live:
            yield
            return
        columns = (TextColumn("   "), SpinnerColumn(), TextColumn("{task.description}", style="dim"))
        with Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True) as progress:
            progress.add_task(what, total=None)
            yield

    @contextlib.contextmanager
    def bar(self, what: str, total: int) -> Iterator[Bar]:
        """A bar of `total` units."""
        if not self._live:
            yield _PlainBar(self, what, total)
            return
        columns = (
            TextColumn("    {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=total, note="")
            yield _LiveBar(progress, task)

    def _print(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)
        self.console.file.flush()


class _LiveBar:
    def __init__(self, progress: Progress, task: int) -> None:
        self._progress = progress
        self._task = task

    def update(self, done: int, note: str) -> None:
        self._progress.update(self._task, completed=done, note=note)  # type: ignore[arg-type]


class _PlainBar:
    """A line now and then."""

    def __init__(self, narrator: Narrator, what: str, total: int) -> None:
        self._narrator = narrator
        self._what = what
        self._total = total
        self._began_s = self._said_s = time.monotonic()

    def update(self, done: int, note: str) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s >= PLAIN_EVERY_S:
            self._said_s = now_s
            self._narrator.say(f"{self._what}: {done} of {self._total} after {duration(now_s - self._began_s)}, {note}")
