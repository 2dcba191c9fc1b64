"""What changes with the step: the learning rate and the weight of multi-token prediction.

Both are functions of the step and the planned number of steps, so a checkpoint needs to keep no scheduler but those two
numbers. Cosine: warm-up, then half a cosine to the final rate. WSD (MiniCPM, arXiv 2404.06395): warm-up, a plateau,
and a linear fall in the last part, so that a run can be prolonged from its plateau.
"""

from __future__ import annotations

import math

from fs3_trainer.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of step `step`, counted from 0."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    final = config.peak_lr * config.final_lr_fraction
    if config.schedule == "cosine":
        length = max(total_steps - config.warmup_steps - 1, 1)
        done = min((step - config.warmup_steps) / length, 1.0)
        return final + (config.peak_lr - final) * 0.5 * (1.0 + math.cos(math.pi * done))
    fall = max(round(total_steps * config.decay_fraction), 1)
    left = min(max(total_steps - 1 - step, 0) / fall, 1.0)
    return final + (config.peak_lr - final) * left


def mtp_weight(config: TrainConfig, step: int, total_steps: int) -> float:
    """Lambda of step `step`, counted from 0."""
    return config.mtp_weight if step < config.mtp_late_from * total_steps else config.mtp_weight_late
