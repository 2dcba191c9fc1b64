"""How a run trains, apart from the model's shape: the table `[train]` of a config file.

Defaults follow DeepSeek-V3 (arXiv 2412.19437, section 4.2) where a small model allows: AdamW's betas, weight decay,
clipping, the speed of the routing bias, the weight of the balance loss, and lambda falling from 0.3 to 0.1.
"""

from __future__ import annotations

import dataclasses

from fs3.errors import Invalid


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Batch and optimizer settings; a fraction is of the planned steps."""

    global_batch: int = 8
    """sequences a step"""
    schedule: str = "cosine"
    """cosine, or wsd (warm up, stay, decay)"""
    peak_lr: float = 3e-3
    final_lr_fraction: float = 0.1
    """of peak_lr, reached at the last step"""
    warmup_steps: int = 20
    decay_fraction: float = 0.2
    """wsd only: the last part of the run, in which the rate falls"""
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    mtp_weight: float = 0.3
    mtp_weight_late: float = 0.1
    mtp_late_from: float = 0.67
    """the fraction of the run after which mtp_weight_late holds"""
    bias_speed: float = 1e-3
    """gamma: how far a step moves each expert's routing bias"""
    balance_weight: float = 1e-4
    """alpha of the sequence-wise balance loss"""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "wsd"):
            raise Invalid(f"train config: schedule must be 'cosine' or 'wsd', not {self.schedule!r}")
        for name in ("global_batch", "peak_lr", "adam_eps", "clip_norm"):
            if not getattr(self, name) > 0:
                raise Invalid(f"train config: {name} must be positive, not {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "mtp_weight", "mtp_weight_late", "bias_speed", "balance_weight"):
            if not getattr(self, name) >= 0:
                raise Invalid(f"train config: {name} must not be negative, but is {getattr(self, name)}")
        for name in ("final_lr_fraction", "decay_fraction", "beta1", "beta2", "mtp_late_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise Invalid(f"train config: {name} must be between 0 and 1, not {getattr(self, name)}")
