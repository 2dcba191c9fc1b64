"""AdamW over the model, and its state under names.

Matrices decay, norms do not. The moments exist from the start, so that a checkpoint of any step has the same tensors,
and they are named after the parameter, not numbered: a checkpoint stays readable when the order of parameters changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fs3_trainer.model import DeepseekV3
from fs3_trainer.train.config import TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """One update a call: clip, set the rate, step, clear the gradients."""

    def __init__(self, model: DeepseekV3, config: TrainConfig) -> None:
        self._clip_norm = config.clip_norm
        self._named = dict(model.named_parameters())
        groups = [
            {"params": [p for p in self._named.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in self._named.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            groups, lr=config.peak_lr, betas=(config.beta1, config.beta2), eps=config.adam_eps, fused=True
        )
        for parameter in self._named.values():
            self._adamw.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def update(self, lr: float) -> float:
        """Applies the gradients at rate `lr`; the norm that they had before clipping.

        A parameter without a gradient (MTP modules at weight 0) counts as one with gradient zero.
        """
        for parameter in self._named.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(self._named.values(), self._clip_norm)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self._adamw.zero_grad()
        return float(norm)

    def tensors(self) -> dict[str, Tensor]:
        """The moments themselves, as `exp_avg.NAME` and `exp_avg_sq.NAME`: loading into them restores the state."""
        return {
            f"{moment}.{name}": self._adamw.state[parameter][moment]
            for moment in MOMENTS
            for name, parameter in self._named.items()
        }

    def set_steps_done(self, steps: int) -> None:
        """How often `update` ran before the loaded moments were saved: Adam's bias correction counts from it."""
        for parameter in self._named.values():
            self._adamw.state[parameter]["step"].fill_(steps)
