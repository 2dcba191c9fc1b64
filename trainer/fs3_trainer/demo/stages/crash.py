"""Kill the trainer between two checkpoints and resume it: the steps that run twice compute the same bits."""

from __future__ import annotations

import signal
import statistics
import time
from dataclasses import dataclass

from fs3_trainer.demo.demo import Demo
from fs3_trainer.demo.outcome import Check, FellShort, Figure
from fs3_trainer.demo.settings import checkpoint_every
from fs3_trainer.demo.stages.training import type_train
from fs3_trainer.demo.step_log import Step, ran_twice
from fs3_trainer.demo.training_run import TrainingRun
from fs3_trainer.demo.units import count, duration
from fs3_trainer.demo.waiting import wait_until

PROGRESS_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """Two attempts at one run."""

    first: tuple[Step, ...]
    second: tuple[Step, ...]
    steps: int
    killed: float
    """seconds since 1970"""
    resumed_from: int
    resumed_how: str
    """what the trainer said has changed since the checkpoint, "" for nothing"""
    back_s: float
    """from the kill to the first step of the second attempt"""

    @property
    def killed_at(self) -> int:
        return self.first[-1].step

    @property
    def twice(self) -> list[tuple[Step, Step]]:
        return ran_twice(list(self.first), list(self.second))

    @property
    def checks(self) -> tuple[Check, ...]:
        twice = self.twice
        differ = [a for a, b in twice if a.bits != b.bits]
        tenth = max(self.steps // 10, 1)
        early = statistics.fmean(step.loss for step in self.first[:tenth])
        late = statistics.fmean(step.loss for step in self.second[-tenth:])
        done = self.second[-1].step
        return (
            Check(
                "it resumed from its newest checkpoint",
                f"step {self.resumed_from}" + (f"; {self.resumed_how}" if self.resumed_how else ""),
                self.second[0].step == self.resumed_from + 1 and not self.resumed_how,
            ),
            Check(
                "losses of the steps that ran twice are bit-identical",
                f"step {differ[0].step} differs, {len(differ)} of {len(twice)}"
                if differ
                else f"{count(len(twice), 'step')}, {twice[0][0].step} to {twice[-1][0].step}"
                if twice
                else "no step ran twice",
                bool(twice) and not differ,
            ),
            Check("the run was completed", f"step {done} of {self.steps}", done == self.steps),
            Check("the model has learned", f"mean loss {early:.2f} to {late:.2f}", late < early),
        )

    @property
    def figures(self) -> tuple[Figure, ...]:
        steps = [*self.first, *self.second]
        seconds = sum(step.step_s for step in steps)
        return (
            Figure("killed at step", f"{self.killed_at:,}"),
            Figure("training again after", duration(self.back_s)),
            Figure("tokens", f"{sum(step.tokens for step in steps):,}"),
            Figure("tokens a second", f"{sum(step.tokens for step in steps) / seconds:,.0f}"),
            Figure("waiting for data", f"{100 * sum(step.data_wait_s for step in steps) / seconds:.2f}% of the time"),
            Figure("last loss", f"{self.second[-1].loss:.3f}"),
        )


def crash_and_resume(demo: Demo) -> Resumed:
    """The stage."""
    run = demo.trainer
    assert run is not None
    _wait_between_checkpoints(demo, run)
    demo.commands.kill(run.running.pid)
    killed = time.time()
    run.running.wait(PROGRESS_S)
    run.log.look()
    if run.running.poll() != -signal.SIGKILL:
        raise FellShort(f"the trainer {run.running.typed.ended_how} before it could be killed: {run.running.excerpt()}")
    demo.narrator.event(f"the trainer was killed at step {run.step}, its newest checkpoint is {max(run.saved)}")
    attempts = len(run.log.attempts)
    demo.trainer = again = type_train(demo, run.steps, "--resume")

    def look() -> None:
        again.look()
        bar.update(again.step, again.note)

    with demo.narrator.bar("training on", run.steps) as bar:
        wait_until(
            lambda: again.running.poll() is not None, what="the end of the training", timeout_s=PROGRESS_S, on_look=look
        )
        again.look()
    if again.resumed is None or len(again.log.attempts) != attempts + 1:
        raise FellShort(f"the trainer did not resume: {again.running.excerpt()}")
    resumed_from, how = again.resumed
    second = tuple(again.log.attempts[-1])
    return Resumed(
        first=tuple(again.log.attempts[-2]),
        second=second,
        steps=run.steps,
        killed=killed,
        resumed_from=resumed_from,
        resumed_how=how.lstrip("; "),
        back_s=second[0].time - killed,
    )


def _wait_between_checkpoints(demo: Demo, run: TrainingRun) -> None:
    """Until half the way to the next checkpoint has been made, so that some steps will run twice."""
    every = checkpoint_every(run.steps)

    def look() -> None:
        run.look_and_insist()
        bar.update(run.step, run.note)

    with demo.narrator.bar("training", run.steps) as bar:
        wait_until(
            lambda: bool(run.saved) and every / 2 <= run.step - max(run.saved) < every,
            what="a step between two checkpoints",
            timeout_s=PROGRESS_S,
            on_look=look,
        )
