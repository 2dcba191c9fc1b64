"""Stop the cluster as a user would, and see that nothing of it is left running."""

from __future__ import annotations

from dataclasses import dataclass

from fs3_trainer.demo.daemons import processes_below
from fs3_trainer.demo.demo import Demo
from fs3_trainer.demo.outcome import Check, Figure
from fs3_trainer.demo.units import duration

DOWN_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """What was left."""

    down_s: float
    left: tuple[str, ...]

    @property
    def checks(self) -> tuple[Check, ...]:
        return (Check("no process is left", ", ".join(self.left) or "none", not self.left),)

    @property
    def figures(self) -> tuple[Figure, ...]:
        return (Figure("stopped after", duration(self.down_s)),)


def stop_cluster(demo: Demo) -> Stopped:
    """The stage."""
    demo.commands.end_all()
    down = demo.commands.run("fs3", "down", str(demo.cluster_dir), timeout_s=DOWN_S, busy="stopping the daemons")
    return Stopped(down_s=down.seconds, left=tuple(processes_below(demo.folder)))
