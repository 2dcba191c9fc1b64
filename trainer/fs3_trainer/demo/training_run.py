"""A training run as seen from outside: its process, its metrics, the checkpoints it says it has written."""

from __future__ import annotations

import re

from fs3_trainer.demo.commands import Running
from fs3_trainer.demo.outcome import FellShort
from fs3_trainer.demo.step_log import Step, StepLog

_SAVED = re.compile(r"^checkpoint step-(\d+)", re.MULTILINE)
_RESUMED = re.compile(r"^resumed from \S*step-(\d+)(.*)$", re.MULTILINE)


class TrainingRun:
    """One process of `fs3-train` and the step log that it appends to."""

    def __init__(self, running: Running, log: StepLog, steps: int) -> None:
        self.running = running
        self.log = log
        self.steps = steps
        self._attempt = len(log.attempts)

    @property
    def step(self) -> int:
        """The last step that was done."""
        return self._last.step if self._last is not None else 0

    @property
    def note(self) -> str:
        """A few words on how it goes."""
        return f"loss {self._last.loss:.3f}" if self._last is not None else "starting"

    @property
    def saved(self) -> list[int]:
        """The steps whose checkpoints this process has completed."""
        return [int(step) for step in _SAVED.findall(self._output())]

    @property
    def resumed(self) -> tuple[int, str] | None:
        """The step it resumed from, and what it says has changed since."""
        match = _RESUMED.search(self._output())
        return (int(match[1]), match[2].strip()) if match else None

    def look(self) -> None:
        """Read on. Raises: FellShort if the process failed."""
        status = self.running.poll()
        self.log.look()
        if status not in (None, 0):
            raise FellShort(
                f"the trainer {self.running.typed.ended_how} after step {self.step}: {self.running.excerpt()}"
            )

    def look_and_insist(self) -> None:
        """As `look`, for those who need it to go on running. Raises: FellShort if it has ended, also if well."""
        self.look()
        if self.running.poll() is not None:
            raise FellShort(
                f"the trainer had done its {self.steps} steps before this stage was through;"
                f" give it more to do with --steps {4 * self.steps}"
            )

    @property
    def _last(self) -> Step | None:
        """The newest step of this process."""
        return self.log.last if len(self.log.attempts) > self._attempt else None

    def _output(self) -> str:
        return self.running.log.read_text(encoding="utf-8", errors="replace")
