"""The steps of a training run, read from the file that `fs3-train --metrics` appends to while it grows.

A run that resumed appends to the same file, so a step number that goes back begins another attempt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a step reported; `step` counts from 1, times are in seconds."""

    step: int
    loss: float
    mtp_loss: float | None
    grad_norm: float
    tokens: int
    step_s: float
    data_wait_s: float
    time: float
    """when it ended, since 1970"""

    @property
    def bits(self) -> tuple[str, ...]:
        """Everything that was computed, exactly."""
        return tuple("none" if x is None else x.hex() for x in (self.loss, self.mtp_loss, self.grad_norm))


class StepLog:
    """Reads what was appended since the last look; a line that is not whole yet is left for the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attempts: list[list[Step]] = []
        self._offset = 0

    def look(self) -> None:
        """Read on."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._add(json.loads(line))

    def _add(self, record: dict[str, float]) -> None:
        step = Step(**{name: record[name] for name in Step.__dataclass_fields__})  # type: ignore[arg-type]
        if not self.attempts or step.step <= self.attempts[-1][-1].step:
            self.attempts.append([])
        self.attempts[-1].append(step)

    @property
    def last(self) -> Step | None:
        """The newest step."""
        return self.attempts[-1][-1] if self.attempts else None

    @property
    def all_steps(self) -> list[Step]:
        """The steps of every attempt, in the order in which they ran."""
        return [step for attempt in self.attempts for step in attempt]


def ran_twice(first: list[Step], second: list[Step]) -> list[tuple[Step, Step]]:
    """The steps that both attempts ran, in order."""
    again = {step.step: step for step in second}
    return [(step, again[step.step]) for step in first if step.step in again]
