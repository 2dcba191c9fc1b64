"""How large the demo is: the full one that a person watches, and a quick one that a test can afford."""

from __future__ import annotations

import math
from dataclasses import dataclass

FEWEST_STEPS = 60
MOST_STEPS = 6_000
CHECKPOINTS = 6
"""Checkpoints of a whole run. The storage daemon dies after the first, returns after the second, and the trainer dies
halfway between two later ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Sizes of one demo. Times are budgets in seconds that choose how much is done, never limits of correctness."""

    config: str = "small"
    tokenizer: str = "bpe:4096"
    seq_len: int = 256
    packages: tuple[str, ...] | None = None
    """packages of the standard library to import; None: all of it"""
    nodes: int = 3
    replicas: int = 3
    lease_s: float | None = None
    """`fs3 up --lease`; None leaves it at its default"""
    steps: int | None = None
    """steps of the training run; None: as many as this machine does in `train_s`"""
    train_s: float = 130.0
    probe_steps: int = 8
    threads: int | None = None
    """CPU threads of trainer and runner; None: all"""
    prompt_chars: int = 6_000
    new_tokens: int = 48


QUICK = Settings(
    config="tiny",
    tokenizer="bpe:512",
    seq_len=64,
    packages=("asyncio", "email", "http", "json", "logging", "urllib"),
    lease_s=1.0,
    train_s=24.0,
    probe_steps=20,
    threads=1,
    prompt_chars=1_200,
    new_tokens=16,
)


def thread_options(settings: Settings) -> tuple[str, ...]:
    """The command line option for `settings.threads`."""
    return () if settings.threads is None else ("--threads", str(settings.threads))


def steps_for(step_s: float, train_s: float) -> int:
    """How many steps fit into `train_s` at `step_s` each, as a multiple of the number of checkpoints."""
    steps = min(max(train_s / max(step_s, 1e-6), FEWEST_STEPS), MOST_STEPS)
    return checkpoint_every(math.floor(steps)) * CHECKPOINTS


def checkpoint_every(steps: int) -> int:
    """Steps between two checkpoints of a run of `steps`."""
    return max(steps // CHECKPOINTS, 1)
