"""Saving and loading checkpoints with the trainer's own code (torch.distributed.checkpoint), on fs3 and locally.

Two states: that of the trainer's small model with AdamW's moments, a few hundred tensors of a few kilobytes to
megabytes; and a synthetic one of tensors of 4 MiB, as large models have. A save counts until the step is published, on
stable storage; on fs3 in three replicas, which here share one disk.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.context import REQUEST_BYTES, Context, buffer
from benchmarks.local_files import LocalFile, LocalWrites, Sync
from benchmarks.rounds import Case, Timed, for_seconds
from benchmarks.rows import Row, make_row
from fs3_trainer.model import DeepseekV3
from fs3_trainer.run_config import load_run_config
from fs3_trainer.train.checkpoint import Checkpoints
from fs3_trainer.train.optimizer import Optimizer
from fs3_trainer.train.state import RunState

REPLICAS = 3
FS3, LOCAL = "fs3", "DCP on a local folder"
WRITE_ONE, WRITE_ALL, READ = "local write + fdatasync", "local write + fdatasync, 3 copies", "local preadv"


def measure(context: Context) -> list[Row]:
    """Both states, saved and loaded."""
    context.client  # noqa: B018 - started here, not in the first save
    rows = []
    for name, tensors in (
        (f"{context.sizes.preset} model + AdamW", model_tensors(context.sizes.preset)),
        ("tensors of 4 MiB", synthetic_tensors(context.sizes.state_bytes)),
    ):
        rows += _measure_state(context, name, tensors)
    return rows


def model_tensors(preset: str) -> dict[str, Tensor]:
    """What `fs3-train` would save at its first step."""
    run = load_run_config(preset)
    model = DeepseekV3.fresh(run.model, run.train.seed, "cpu")
    optimizer = Optimizer(model, run.train)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return tensors | {f"optimizer.{name}": tensor for name, tensor in optimizer.tensors().items()}


def synthetic_tensors(total_bytes: int) -> dict[str, Tensor]:
    """Seeded noise in float32."""
    torch.manual_seed(3)
    return {f"layers.{index}.weight": torch.randn(1024, 1024) for index in range(max(1, total_bytes >> 22))}


def _measure_state(context: Context, name: str, tensors: dict[str, Tensor]) -> list[Row]:
    size = sum(tensor.nbytes for tensor in tensors.values())
    label = name.partition(" ")[0]
    places = {
        FS3: Checkpoints(f"{context.cluster.url}/checkpoints-{label}", keep=1),
        LOCAL: Checkpoints(str(context.folder / f"checkpoints-{label}"), keep=1),
    }
    run = load_run_config(context.sizes.preset)
    for place in places.values():
        place.prepare(run.model, None)
    state = RunState(
        step=0,
        total_steps=1,
        model=run.model.to_dict(),
        train=dataclasses.asdict(run.train),
        loader={},
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    last: dict[str, int] = {}
    saves: dict[str, Case] = {where: _save(place, where, tensors, state, last) for where, place in places.items()}
    count = max(1, round(size / REQUEST_BYTES))
    piece = buffer(min(size, REQUEST_BYTES))
    piece[:] = torch.randint(0, 256, (len(piece),), dtype=torch.uint8).numpy().data
    with LocalWrites(context.folder) as local:
        saves[WRITE_ONE] = lambda: local.write(piece, count, sync=Sync.ONCE)
        saves[WRITE_ALL] = lambda: local.write(piece, count, copies=REPLICAS, sync=Sync.ONCE)
        saved = context.measure(f"checkpoint save, {name}", saves, writes=True)

    targets = {key: torch.empty_like(tensor) for key, tensor in tensors.items()}
    with LocalFile(context.local_path) as file:
        out = buffer(REQUEST_BYTES)
        requests = context.sizes.file_bytes // REQUEST_BYTES
        loads: dict[str, Case] = {where: _load(place, last[where], targets, size) for where, place in places.items()}
        loads[READ] = lambda: for_seconds(
            lambda number: file.read(number % requests * REQUEST_BYTES, out), context.sizes.seconds / 2
        )
        loaded = context.measure(f"checkpoint load, {name}", loads)
    _check(tensors, targets)
    label = f"{name} ({size / 1e6:.0f} MB, {len(tensors)} tensors)"
    return [
        make_row(f"checkpoint save, {label}", "GB/s", saved, ours=FS3, limits=[WRITE_ALL, WRITE_ONE], others=[LOCAL]),
        make_row(f"checkpoint load, {label}", "GB/s", loaded, ours=FS3, limits=[READ], others=[LOCAL]),
    ]


def _save(
    place: Checkpoints, where: str, tensors: dict[str, Tensor], state: RunState, last: dict[str, int]
) -> Callable[[], Timed]:
    def run() -> Timed:
        last[where] = last.get(where, 0) + 1
        saved = place.save(tensors, dataclasses.replace(state, step=last[where], total_steps=last[where]))
        return Timed(amount=saved.bytes, seconds=saved.seconds)

    return run


def _load(place: Checkpoints, step: int, targets: dict[str, Tensor], size: int) -> Callable[[], Timed]:
    def run() -> Timed:
        begin_s = time.perf_counter()
        place.load(step, targets)
        return Timed(amount=size, seconds=time.perf_counter() - begin_s)

    return run


def _check(saved: dict[str, Tensor], loaded: dict[str, Tensor]) -> None:
    for name, tensor in saved.items():
        if not torch.equal(tensor, loaded[name]):
            raise AssertionError(f"{name} was loaded with other values than were saved")
