"""One run of `fs3-train`, from its options to its last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import torch

from fs3.errors import Exists, Invalid, NoSpace
from fs3_loader import Dataset, Loader
from fs3_trainer.model import DeepseekV3, ModelConfig
from fs3_trainer.run_config import RunConfig, load_run_config
from fs3_trainer.train.allocator import keep_freed_memory
from fs3_trainer.train.checkpoint import Checkpoints, step_name
from fs3_trainer.train.loop import Trainer
from fs3_trainer.train.metrics import MetricsFile, StepRecord, log_line
from fs3_trainer.train.state import RunState

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line said; None where it was silent."""

    config: str
    data: str
    checkpoint: str | None
    steps: int
    resume: bool
    device: str
    global_batch: int | None
    seed: int | None
    threads: int | None
    checkpoint_every: int
    keep: int
    log_every: int
    metrics: Path | None


def train(options: Options, say: Say, should_stop: Callable[[], bool]) -> bool:
    """Trains until the planned steps are done or `should_stop`; whether all are done. A checkpoint is saved either way.

    Raises:
        Fs3Error: whatever the user or the world did wrong, in one line.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise Invalid("--device cuda: torch sees no CUDA device here; use --device cpu")
    wanted = _with_options(load_run_config(options.config), options)
    checkpoints = Checkpoints(options.checkpoint, keep=options.keep) if options.checkpoint is not None else None
    start = _start_state(checkpoints, options)
    with contextlib.ExitStack() as stack:
        dataset = Dataset.open(options.data)
        stack.callback(dataset.close)
        run = wanted.for_vocabulary(dataset.vocab_size)
        _check_shapes(run, dataset, start, checkpoints)
        if start is not None and start.step >= options.steps:
            say(f"nothing to do: {_at(checkpoints, start)} is at step {start.step} of {options.steps}")
            return True
        threads = options.threads or (start.threads if start else len(os.sched_getaffinity(0)))
        _be_deterministic(threads)
        keep_freed_memory()
        metrics = stack.enter_context(MetricsFile(options.metrics)) if options.metrics is not None else None
        loader = Loader(dataset, global_batch=run.train.global_batch, seed=run.train.seed)
        stack.callback(loader.close)
        if checkpoints is not None:
            checkpoints.prepare(run.model, dataset.tokenizer_json())
        torch.manual_seed(run.train.seed)
        trainer = _trainer(run, loader, options, start, checkpoints)
        say(
            f"{run.name}: {run.model.describe()}; {trainer.model.parameter_count() / 1e6:.2f} M parameters, "
            f"{options.device}, {threads} threads"
        )
        say(f"data: {options.data}, {len(dataset):,} samples of {dataset.seq_len} tokens")
        if start is not None:
            say(f"resumed from {_at(checkpoints, start)}" + _changes(start, run, options, threads))
        elif options.resume:
            say(f"no checkpoint at {options.checkpoint} yet: starting from the beginning")
        return _run(trainer, run, options, checkpoints, metrics, threads, say, should_stop)


def _run(
    trainer: Trainer,
    run: RunConfig,
    options: Options,
    checkpoints: Checkpoints | None,
    metrics: MetricsFile | None,
    threads: int,
    say: Say,
    should_stop: Callable[[], bool],
) -> bool:
    window: list[StepRecord] = []
    saved_at = trainer.step

    def report(record: StepRecord) -> None:
        if metrics is not None:
            metrics.write(record)
        window.append(record)
        if record.step % options.log_every == 0 or record.step == options.steps:
            say(log_line(window, options.steps))
            window.clear()

    def save() -> None:
        nonlocal saved_at
        if checkpoints is None or saved_at == trainer.step:
            return
        state = RunState(
            step=trainer.step,
            total_steps=options.steps,
            model=run.model.to_dict(),
            train=dataclasses.asdict(run.train),
            loader=trainer.batches.state_dict(),
            threads=threads,
            torch=torch.__version__,
        )
        try:
            saved = checkpoints.save(trainer.tensors(), state)
        except NoSpace as error:
            raise NoSpace(f"{error}; earlier checkpoints are whole: make room and continue with --resume") from None
        saved_at = trainer.step
        speed = saved.bytes / max(saved.seconds, 1e-9) / 1e9
        say(f"checkpoint {saved.name}  {saved.bytes:,} bytes  {saved.seconds:.2f} s  {speed:.2f} GB/s")

    def after_step() -> None:
        if options.checkpoint_every and trainer.step % options.checkpoint_every == 0:
            save()

    trainer.run(report, after_step, should_stop)
    if trainer.step > 0:
        save()
    done = trainer.step >= options.steps
    if not done:
        way_on = (
            "continue with --resume" if checkpoints is not None else "nothing was saved, as no --checkpoint was given"
        )
        say(f"stopped after step {trainer.step} of {options.steps}; {way_on}")
    return done


def _with_options(run: RunConfig, options: Options) -> RunConfig:
    chosen = {"global_batch": options.global_batch, "seed": options.seed}
    train_config = dataclasses.replace(run.train, **{k: v for k, v in chosen.items() if v is not None})
    return dataclasses.replace(run, train=train_config)


def _start_state(checkpoints: Checkpoints | None, options: Options) -> RunState | None:
    """The state to resume from; None begins anew."""
    if checkpoints is None:
        if options.resume:
            raise Invalid("--resume needs --checkpoint URL, the folder to resume from")
        return None
    latest = checkpoints.latest()
    if latest is None:
        return None
    if not options.resume:
        raise Exists(
            f"{checkpoints.url} already holds checkpoints up to step {latest}; "
            "add --resume to continue, or choose another --checkpoint"
        )
    return checkpoints.state(latest)


def _check_shapes(run: RunConfig, dataset: Dataset, start: RunState | None, checkpoints: Checkpoints | None) -> None:
    if len(dataset) == 0:
        raise Invalid(f"{dataset.url}: the data set has no samples")
    if dataset.seq_len > run.model.max_position_embeddings:
        raise Invalid(
            f"{dataset.url}: samples of {dataset.seq_len} tokens are longer than the model's "
            f"max_position_embeddings {run.model.max_position_embeddings}"
        )
    if dataset.seq_len <= run.model.num_nextn_predict_layers:
        raise Invalid(f"{dataset.url}: samples of {dataset.seq_len} tokens are too short for multi-token prediction")
    if start is None:
        return
    saved = ModelConfig.from_dict(start.model, _at(checkpoints, start))
    if saved.digest() != run.model.digest():
        raise Invalid(
            f"{_at(checkpoints, start)} holds another model: {saved.describe()}; config {run.name} with this data is "
            f"{run.model.describe()} (differing, theirs/yours: {saved.differences(run.model)}); "
            "resume with the config it was made with, or choose another --checkpoint"
        )


def _trainer(
    run: RunConfig, loader: Loader, options: Options, start: RunState | None, checkpoints: Checkpoints | None
) -> Trainer:
    if start is None or checkpoints is None:
        model = DeepseekV3.fresh(run.model, run.train.seed, options.device)
        return Trainer(model, run.train, loader, options.steps)
    trainer = Trainer(DeepseekV3.empty(run.model, options.device), run.train, loader, options.steps)
    tensors = trainer.tensors()
    checkpoints.load(start.step, tensors)
    trainer.restore(tensors, start.step, start.loader)
    return trainer


def _be_deterministic(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)


def _at(checkpoints: Checkpoints | None, start: RunState) -> str:
    assert checkpoints is not None
    return checkpoints.location.show(step_name(start.step))


def _changes(start: RunState, run: RunConfig, options: Options, threads: int) -> str:
    """What is not as it was when the checkpoint was written: then losses are not bit for bit what they would be."""
    before = start.train | {"steps": start.total_steps, "threads": start.threads, "torch": start.torch}
    now = dataclasses.asdict(run.train) | {"steps": options.steps, "threads": threads, "torch": torch.__version__}
    changed = [f"{key} was {before.get(key)}, is {value}" for key, value in now.items() if before.get(key) != value]
    return f"; changed: {', '.join(changed)}" if changed else ""
