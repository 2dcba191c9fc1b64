"""What the stages share: sizes, the folder, the way to type commands, and the results of the stages before."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fs3_trainer.demo.commands import Commands
from fs3_trainer.demo.narrator import Narrator
from fs3_trainer.demo.outcome import Outcome
from fs3_trainer.demo.settings import Settings
from fs3_trainer.demo.training_run import TrainingRun

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Demo:
    """One demo on its way through the stages."""

    settings: Settings
    narrator: Narrator
    commands: Commands
    folder: Path
    """temporary: the cluster, the text to import, logs"""
    url: str = ""
    """of the cluster, once it runs"""
    trainer: TrainingRun | None = None
    """the run that is under way, handed from stage to stage"""
    results: list[Outcome] = field(default_factory=list)
    began: float = field(default_factory=time.time)
    """seconds since 1970"""

    @property
    def cluster_dir(self) -> Path:
        return self.folder / "cluster"

    @property
    def text_dir(self) -> Path:
        return self.folder / "stdlib"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    def place(self, name: str) -> str:
        """The URL of `name` in the demo's directory on the cluster."""
        return f"{self.url}/demo/{name}"

    def result(self, kind: type[T]) -> T:
        """The result of an earlier stage."""
        return next(result for result in self.results if isinstance(result, kind))

    def find(self, kind: type[T]) -> T | None:
        """As `result`; None if that stage has none."""
        return next((result for result in self.results if isinstance(result, kind)), None)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: `run` does it and hands back what it found; it raises FellShort or Fs3Error if it cannot go on."""

    name: str
    title: str
    about: str
    run: Callable[[Demo], Outcome]
