"""What a step reports: one record, one JSON line in a file, and now and then a line for people.

The file is appended to, also by a run that resumes: a step that ran again after a crash is there twice, and the later
line counts. Each line is written whole, before the next step begins.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import TracebackType
from typing import Self

from fs3.errors import Fs3Error
from fs3_loader.location import as_fs3_error


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step. `step` counts from 1: it is the number of steps done."""

    step: int
    loss: float
    """cross entropy of the next token, in nats"""
    mtp_loss: float | None
    lr: float
    grad_norm: float
    tokens: int
    step_s: float
    """the whole step, the wait for data included"""
    data_wait_s: float
    expert_load_max_over_mean: float | None
    """the most loaded expert's tokens over the mean, averaged over the MoE layers; 1 is level"""
    time: float
    """seconds since 1970, when the step ended"""


def log_line(window: list[StepRecord], total_steps: int) -> str:
    """One line on the steps since the last one: the latest loss, and rates over all of them."""
    last = window[-1]
    seconds = max(sum(r.step_s for r in window), 1e-9)
    parts = [f"step {last.step}/{total_steps}", f"loss {last.loss:.4f}"]
    if last.mtp_loss is not None:
        parts.append(f"mtp {last.mtp_loss:.4f}")
    parts += [
        f"lr {last.lr:.2e}",
        f"{sum(r.tokens for r in window) / seconds:,.0f} tokens/s",
        f"data wait {100 * sum(r.data_wait_s for r in window) / seconds:.1f}%",
    ]
    if last.expert_load_max_over_mean is not None:
        parts.append(f"expert load max/mean {last.expert_load_max_over_mean:.2f}")
    return "  ".join(parts)


class MetricsFile:
    """The JSON lines of `--metrics FILE`; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Raises: Fs3Error, naming the path, when it cannot be appended to."""
        self._path = path
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise as_fs3_error(error, str(path)) from None

    def write(self, record: StepRecord) -> None:
        """Raises: Fs3Error, naming the path, when the disk refuses."""
        line = (json.dumps(dataclasses.asdict(record)) + "\n").encode()
        try:
            written = self._file.write(line)
        except OSError as error:
            raise as_fs3_error(error, str(self._path)) from None
        if written != len(line):
            raise Fs3Error(f"{self._path}: wrote only a part of a line; is the disk full?")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
