"""Two faults that a seed must have at the same time: some hundred seeds in a row go through all pairs.

What else happens is drawn; so a pair meets other company, and another moment, every time.
"""

from __future__ import annotations

from dataclasses import replace

from sim_cluster import Shape
from sim_coverage import pair
from sim_faults import IMPOSSIBLE_PAIRS, KINDS, NEED_WIPES, Nemesis
from sim_kernel import Simulation

_PAIRS = [
    (one, other) for at, one in enumerate(KINDS) for other in KINDS[at:] if pair(one, other) not in IMPOSSIBLE_PAIRS
]
_TRIES = 12


def pair_of(seed: int) -> tuple[str, str]:
    """The faults of a seed, the one that begins first in front."""
    rounds, number = divmod(seed, len(_PAIRS))
    one, other = _PAIRS[number]
    return (one, other) if rounds % 2 == 0 else (other, one)


def shaped(shape: Shape, faults: tuple[str, str]) -> Shape:
    """A cluster in which they can happen."""
    metas = max(shape.metas, 1 if any(kind.startswith("meta ") for kind in faults) else 0)
    return replace(shape, metas=metas, wipes=shape.wipes or not NEED_WIPES.isdisjoint(faults))


def overlap(sim: Simulation, nemesis: Nemesis, faults: tuple[str, str], within_s: float) -> None:
    """Have the first begin some time within so many virtual seconds, and the second while it is in effect.

    A fault that cannot begin (nothing there to crash) is tried again a little later.
    """
    chance = sim.stream("pair")
    step_s = within_s / 100
    first, second = (getattr(nemesis, "_" + kind.replace(" ", "_").replace("-", "_")) for kind in faults)

    def begin(tries: int) -> None:
        if first(faults[0]):
            follow(_TRIES, tries)
        elif tries:
            sim.after(step_s, lambda: begin(tries - 1))

    def follow(left: int, tries: int) -> None:
        if second(faults[1]):
            return
        if left:
            sim.after(step_s / 4, lambda: follow(left - 1, tries))
        elif tries:
            begin(tries - 1)

    sim.after(chance.uniform(0.05, 0.6) * within_s, lambda: begin(_TRIES))
