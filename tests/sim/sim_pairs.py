"""Two faults that a seed must have at the same time: ROUND seeds in a row go through all pairs.

There are more pairs than that, so some seeds have two of them.
What else happens is drawn; so a pair meets other company, and another moment, every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sim_cluster import Shape
from sim_coverage import pair
from sim_faults import IMPOSSIBLE_PAIRS, KINDS, NEED_WIPES, Nemesis
from sim_kernel import Simulation
from sim_workload import Mix

_PAIRS: list[tuple[str, str]] = [
    (one, other) for at, one in enumerate(KINDS) for other in KINDS[at:] if pair(one, other) not in IMPOSSIBLE_PAIRS
]
_TRIES = 12
_SLOW_BYTES_S = 20_000
_IMPATIENT_S = (0.3, 0.3, 2.0, 30.0)
_PATIENT_S = 30.0
_SHORT_SESSION_S = 1.5
_SHORT_TOMBSTONE_S = 0.5
ROUND = 500


def pairs_of(seed: int) -> list[tuple[str, str]]:
    """The pairs of faults of a seed, the one of each that begins first in front."""
    rounds, first = divmod(seed, ROUND)
    pairs = _PAIRS[first::ROUND]
    return pairs if rounds % 2 == 0 else [(other, one) for one, other in pairs]


def faults_of(seed: int) -> list[str]:
    """All faults in the pairs of a seed."""
    return [kind for pair in pairs_of(seed) for kind in pair]


def shaped(shape: Shape, faults: Sequence[str]) -> Shape:
    """A cluster in which they can happen."""
    metas = max(shape.metas, 1 if any(kind.startswith("meta ") for kind in faults) else 0)
    # What hangs on its way to a replica that is filled should find it being filled when it arrives.
    bytes_s = min(shape.recovery_bytes_s, _SLOW_BYTES_S) if "connections hang" in faults else shape.recovery_bytes_s
    wipes = shape.wipes or not NEED_WIPES.isdisjoint(faults)
    # Who cannot reach a mgmtd should find his session over, and what it did forgotten, while the faults go on.
    session_s = min(shape.session_s, _SHORT_SESSION_S) if "no way to the mgmtds" in faults else shape.session_s
    # What hangs is too late where a removal has been forgotten meanwhile.
    tombstone_s = min(shape.tombstone_s, _SHORT_TOMBSTONE_S) if "connections hang" in faults else shape.tombstone_s
    return replace(
        shape, metas=metas, wipes=wipes, recovery_bytes_s=bytes_s, session_s=session_s, tombstone_s=tombstone_s
    )


def mixed(mix: Mix, faults: Sequence[str]) -> Mix:
    """Work of which they can make something: a power loss of all undoes what nobody had synced; what hangs is late
    where others have changed the same chunk meanwhile, and whoever sent it has given up soon; who cannot reach a mgmtd
    has not given up when his session is over."""
    if "connections hang" in faults:
        mix = replace(mix, hot=2, cold=min(mix.cold, 2), pause_s=min(mix.pause_s, 0.1), deadlines_s=_IMPATIENT_S)
    if "no way to the mgmtds" in faults:
        mix = replace(mix, deadlines_s=(*mix.deadlines_s, _PATIENT_S))
    return replace(mix, os_share=max(mix.os_share, 0.7)) if "all storages lose power" in faults else mix


def overlap(sim: Simulation, nemesis: Nemesis, faults: tuple[str, str], within_s: float) -> None:
    """Have the first begin some time within so many virtual seconds, and the second while it is in effect.

    A fault that cannot begin (nothing there to crash) is tried again a little later; the operator does one thing at a
    time.
    """
    chance = sim.stream("pair")
    step_s, end_s = within_s / 100, sim.now + within_s
    first, second = (getattr(nemesis, "_" + kind.replace(" ", "_").replace("-", "_")) for kind in faults)

    def begin(tries: int) -> None:
        if first(faults[0]):
            follow(_TRIES, tries)
        elif tries:
            sim.after(step_s, lambda: begin(tries - 1))

    def follow(left: int, tries: int) -> None:
        if sim.now >= end_s or second(faults[1]):
            return
        if left:
            sim.after(step_s / 4, lambda: follow(left if nemesis.operator.busy else left - 1, tries))
        elif tries:
            begin(tries - 1)

    sim.after(chance.uniform(0.05, 0.6) * within_s, lambda: begin(_TRIES))
