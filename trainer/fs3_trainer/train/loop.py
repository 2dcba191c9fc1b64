"""The step loop: take a batch, differentiate the loss, update weights and routing bias, report, save now and then.

A run is a function of its configs, its seed and the data set, to the last bit, on the same machine and number of
threads: deterministic algorithms only, and everything that a step reads is in the checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from fs3.errors import Invalid
from fs3_trainer.model import DeepseekV3, Losses, training_loss
from fs3_trainer.train.config import TrainConfig
from fs3_trainer.train.metrics import StepRecord
from fs3_trainer.train.optimizer import Optimizer
from fs3_trainer.train.schedule import learning_rate, mtp_weight


class Batch(Protocol):
    """Two int64 tensors [batch, seq]; labels are the tokens after."""

    tokens: Tensor
    labels: Tensor


class BatchSource(Protocol):
    """What the loop needs of a loader (fs3_loader.Loader)."""

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Trainer:
    """Model, optimizer and data of one run; `step` is the number of steps done."""

    def __init__(
        self, model: DeepseekV3, config: TrainConfig, batches: BatchSource, total_steps: int, step: int = 0
    ) -> None:
        self.model = model
        self.config = config
        self.batches = batches
        self.total_steps = total_steps
        self.step = step
        self.optimizer = Optimizer(model, config)
        self._device = next(model.parameters()).device

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that a checkpoint keeps, by name; loading into them restores all but `step` and the loader.

        The random state is a copy, to be handed to `restore` after it was loaded into.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.tensors().items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self._device)
        return tensors

    def restore(self, tensors: dict[str, Tensor], step: int, loader_state: dict[str, Any]) -> None:
        """Continues from a checkpoint whose contents were loaded into `tensors`, which `tensors()` gave.

        Raises:
            Fs3Error: the loader refuses its state, because the data set is another one.
        """
        self.batches.load_state_dict(loader_state)
        self.optimizer.set_steps_done(step)
        torch.set_rng_state(tensors["rng.cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.cuda"], self._device)
        self.step = step

    def run(
        self,
        report: Callable[[StepRecord], None],
        after_step: Callable[[], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Steps until all are done or `should_stop` says so; `report` then `after_step` are called after each."""
        batches = iter(self.batches)
        while self.step < self.total_steps and not should_stop():
            report(self._one_step(batches))
            after_step()

    def _one_step(self, batches: Iterator[Batch]) -> StepRecord:
        begin_s = time.perf_counter()
        batch = next(batches)
        data_wait_s = time.perf_counter() - begin_s
        tokens, labels = batch.tokens.to(self._device), batch.labels.to(self._device)
        lr = learning_rate(self.config, self.step, self.total_steps)
        losses = training_loss(
            self.model,
            tokens,
            labels,
            mtp_weight=mtp_weight(self.config, self.step, self.total_steps),
            balance_weight=self.config.balance_weight,
        )
        loss = losses.main.item()
        if not math.isfinite(loss):
            raise Invalid(f"the loss of step {self.step + 1} is {loss}: lower peak_lr or raise warmup_steps")
        losses.total.backward()
        grad_norm = self.optimizer.update(lr)
        self.model.level_experts(losses.load_LE, self.config.bias_speed)
        self.step += 1
        return StepRecord(
            step=self.step,
            loss=loss,
            mtp_loss=None if losses.mtp is None else losses.mtp.item(),
            lr=lr,
            grad_norm=grad_norm,
            tokens=tokens.numel(),
            step_s=time.perf_counter() - begin_s,
            data_wait_s=data_wait_s,
            expert_load_max_over_mean=_imbalance(losses),
            time=time.time(),
        )


def _imbalance(losses: Losses) -> float | None:
    """Largest over mean load, averaged over the layers that routed."""
    load_LE = losses.load_LE.float()
    routed_LE = load_LE[load_LE.sum(dim=-1) > 0]
    if not len(routed_LE):
        return None
    return float((routed_LE.max(dim=-1).values / routed_LE.mean(dim=-1)).mean())
