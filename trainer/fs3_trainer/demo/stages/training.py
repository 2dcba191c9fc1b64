"""Start a training run whose data and checkpoints lie on fs3, and wait for its first checkpoint.

A few steps before it tell how fast this machine is, and so how many steps the time allows: on any machine the run must
be long enough that a storage daemon and the trainer can die in its middle.
"""

from __future__ import annotations

from dataclasses import dataclass

from fs3_trainer.demo.demo import Demo
from fs3_trainer.demo.outcome import Check, FellShort, Figure
from fs3_trainer.demo.settings import checkpoint_every, steps_for, thread_options
from fs3_trainer.demo.step_log import StepLog
from fs3_trainer.demo.training_run import TrainingRun
from fs3_trainer.demo.units import duration
from fs3_trainer.demo.waiting import wait_until

PROBE_S = 180.0
FIRST_CHECKPOINT_S = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStarted:
    """How the run began."""

    steps: int
    checkpoint_every: int
    probe_step_s: float
    first_loss: float
    loss: float
    saved_step: int

    @property
    def checks(self) -> tuple[Check, ...]:
        return (
            Check(
                "the first checkpoint is on fs3",
                f"of step {self.saved_step}",
                self.saved_step == self.checkpoint_every,
            ),
            Check("the loss falls", f"{self.first_loss:.2f} to {self.loss:.2f}", self.loss < self.first_loss),
        )

    @property
    def figures(self) -> tuple[Figure, ...]:
        return (
            Figure("steps planned", f"{self.steps:,}, a checkpoint every {self.checkpoint_every:,}"),
            Figure("a step takes", duration(self.probe_step_s)),
        )


def start_training(demo: Demo) -> TrainingStarted:
    """The stage; the run goes on behind it."""
    settings = demo.settings
    step_s = _probe(demo)
    steps = settings.steps or steps_for(step_s, settings.train_s)
    every = checkpoint_every(steps)
    demo.narrator.say(f"{duration(step_s)} a step here: {steps:,} steps, a checkpoint every {every:,}")
    demo.trainer = run = type_train(demo, steps)

    def look() -> None:
        run.look()
        bar.update(run.step, run.note)

    with demo.narrator.bar("training", steps) as bar:
        wait_until(lambda: bool(run.saved), what="the first checkpoint", timeout_s=FIRST_CHECKPOINT_S, on_look=look)
    records = run.log.all_steps
    return TrainingStarted(
        steps=steps,
        checkpoint_every=every,
        probe_step_s=step_s,
        first_loss=records[0].loss,
        loss=records[-1].loss,
        saved_step=run.saved[0],
    )


def type_train(demo: Demo, steps: int, *more: str) -> TrainingRun:
    """Start `fs3-train` over the demo's corpus, checkpoints and metrics file; `more` options go at the end."""
    running = demo.commands.start(
        "fs3-train",
        *("--config", demo.settings.config),
        *("--data", demo.place("corpus")),
        *("--checkpoint", demo.place("run")),
        *("--steps", str(steps)),
        *("--checkpoint-every", str(checkpoint_every(steps))),
        *("--metrics", str(demo.metrics_file)),
        *thread_options(demo.settings),
        *more,
    )
    log = demo.trainer.log if demo.trainer is not None else StepLog(demo.metrics_file)
    return TrainingRun(running, log, steps)


def _probe(demo: Demo) -> float:
    """Seconds that a step takes here, the slow first ones left out."""
    settings, metrics = demo.settings, demo.folder / "probe.jsonl"
    demo.commands.run(
        "fs3-train",
        *("--config", settings.config, "--data", demo.place("corpus")),
        *("--steps", str(settings.probe_steps), "--metrics", str(metrics)),
        *thread_options(settings),
        timeout_s=PROBE_S,
        busy="a few steps, to see how fast this machine is",
    )
    log = StepLog(metrics)
    log.look()
    if len(log.all_steps) < settings.probe_steps:
        raise FellShort(f"{metrics} has {len(log.all_steps)} steps, not {settings.probe_steps}")
    # The fastest: what slows the machine down now may end soon, and the run must not be over before its stages are.
    return min(step.step_s for step in log.all_steps[settings.probe_steps // 2 :])
