"""The commands that the demo types: each is shown, timed and remembered, and none outlives the demo.

They are the console scripts beside the Python that runs the demo, each in a session of its own, so that Ctrl-C reaches
the demo alone, which then ends them in order.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fs3_trainer.demo.narrator import Narrator
from fs3_trainer.demo.outcome import FellShort

END_S = 20.0
EXCERPT_LINES = 4


@dataclass(slots=True)
class Typed:
    """One command as it was typed, and how it went."""

    line: str
    began: float
    """seconds since 1970"""
    seconds: float | None = None
    status: int | None = None
    """exit status, negative for the signal that ended it; None while it runs"""

    @property
    def ended_how(self) -> str:
        if self.status is None:
            return "running"
        return f"signal {-self.status}" if self.status < 0 else f"exit {self.status}"


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended well."""

    stdout: str
    stderr: str
    seconds: float


class Running:
    """A command that was started; its output goes to `log`."""

    def __init__(self, typed: Typed, process: subprocess.Popen[bytes], log: Path) -> None:
        self.typed = typed
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        status = self._process.poll()
        if status is not None and self.typed.status is None:
            self.typed.status = status
            self.typed.seconds = time.time() - self.typed.began
        return status

    def wait(self, timeout_s: float) -> int:
        """Raises: FellShort if it still runs after `timeout_s`."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise FellShort(f"`{self.typed.line}` still ran after {timeout_s:g} s; its output: {self.log}") from None
        status = self.poll()
        assert status is not None
        return status

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if it has ended."""
        if self.poll() is None:
            self._process.send_signal(number)

    def end(self) -> None:
        """Ask it to stop, insist after a while, and reap it."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(FellShort):
            self.wait(END_S)
        if self.poll() is None:
            self.signal(signal.SIGKILL)
            self.wait(END_S)

    def excerpt(self) -> str:
        """The last lines of its output, in one line."""
        return last_lines(self.log.read_text(encoding="utf-8", errors="replace"))


class Commands:
    """Types commands; `end_all` ends those that still run."""

    def __init__(self, narrator: Narrator, log_dir: Path) -> None:
        self.typed: list[Typed] = []
        self._narrator = narrator
        self._log_dir = log_dir
        self._running: list[Running] = []

    def run(self, *argv: str, timeout_s: float, busy: str, ok: Iterable[int] = (0,)) -> Done:
        """Type a command and wait for it.

        Raises:
            FellShort: it ended with another status than those in `ok`, or it took longer than `timeout_s`.
        """
        stem = f"{len(self.typed) + 1:02d}-{Path(argv[0]).name}"
        out, err = self._log_dir / f"{stem}.out", self._log_dir / f"{stem}.err"
        with self._narrator.busy(busy):
            running = self._start(argv, out, err)
            try:
                status = running.wait(timeout_s)
            finally:
                running.end()
                self._running.remove(running)
        stdout, stderr = (path.read_text(encoding="utf-8", errors="replace") for path in (out, err))
        if status not in ok:
            raise FellShort(f"`{running.typed.line}` {running.typed.ended_how}: {last_lines(stderr or stdout)}")
        assert running.typed.seconds is not None
        return Done(stdout, stderr, running.typed.seconds)

    def start(self, *argv: str, log: Path | None = None) -> Running:
        """Type a command and let it run."""
        path = log or self._log_dir / f"{len(self.typed) + 1:02d}-{Path(argv[0]).name}.log"
        return self._start(argv, path, None)

    def kill(self, pid: int) -> None:
        """Type `kill -9 PID`. Raises: FellShort if there is no such process."""
        line = f"kill -9 {pid}"
        self._narrator.command(line)
        typed = Typed(line, time.time(), 0.0, 0)
        self.typed.append(typed)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            typed.status = 1
            raise FellShort(f"`{line}`: no such process; it had already ended") from None

    def end_all(self) -> None:
        """End whatever still runs, newest first."""
        for running in reversed(self._running):
            running.end()
        self._running.clear()

    def _start(self, argv: Sequence[str], out: Path, err: Path | None) -> Running:
        line = shlex.join(argv)
        self._narrator.command(line)
        typed = Typed(line, time.time())
        with out.open("ab") as stdout, (err or out).open("ab") as stderr:
            process = subprocess.Popen(
                [str(script(argv[0])), *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        running = Running(typed, process, out)
        self.typed.append(typed)
        self._running.append(running)
        return running


def script(name: str) -> Path:
    """The console script `name` of this installation. Raises: FellShort if it is not there."""
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.is_file():
        raise FellShort(f"{path} is missing; install fs3 into this Python: pip install 'fs3-storage[trainer]'")
    return path


def last_lines(text: str, count: int = EXCERPT_LINES) -> str:
    """The last lines of `text` that say something, joined."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " | ".join(lines[-count:]) or "it printed nothing"
