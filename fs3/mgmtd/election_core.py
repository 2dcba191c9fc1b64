"""Which mgmtd decides: a claim in the key-value store, renewed by its holder and watched by the others.

    holder                                          standby
    beat 41 at t0, committed: answers until t0+E    sees beat 41 at t1 >= t0
    beat 42 at t2, committed: answers until t2+E    sees beat 42 at t3 >= t2
    (dies)                                          sees beat 42 still at t3+E >= t2+E: takes over, epoch + 1

Each counts on its own clock and from its own observation, so no clocks are compared: if they run at one rate, the
holder has stopped answering before anybody takes over. If they do not (a clock that jumps, a process that was stopped
between a look and an act) nothing is lost either: every commit compares the epoch, daemons believe no lower epoch than
they have seen, and a new primary counts every lease from its own start. E is T/4, so that a daemon's lease (it stops
serving at T/2) outlives a change of the primary. Whoever loses the claim, to a jump of its clock or to a slow store,
stands by and takes part again; only a twin, another mgmtd with the same node id that was started later, ends it.
Sources: 3FS, mgmtd's lease in FoundationDB; Gray and Cheriton, "Leases" (1989).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

_BEATS_PER_E = 4
_LOOKS_PER_E = 8


@dataclass(frozen=True, slots=True)
class Claim:
    """Who decides, or did last: `epoch` rises with every primary, `beat` with every renewal."""

    node_id: int
    generation: int
    address: str
    epoch: int
    beat: int


class Verdict(Enum):
    """What a standby makes of the claim."""

    WAIT = "another mgmtd decides"
    TAKE = "nobody decides"
    TWIN = "another mgmtd has this one's node id, and was started later"


class Candidate:
    """A mgmtd's view of the claim for as long as its process lives."""

    def __init__(self, node_id: int, generation: int, election_s: float) -> None:
        self._node_id = node_id
        self._generation = generation
        self._election_s = election_s
        self._seen: Claim | None = None
        self._since_s = float("-inf")

    def look(self, claim: Claim | None, now_s: float) -> Verdict:
        """Judge what the store said; `now_s` is when its answer had come."""
        if claim is None:
            return Verdict.TAKE
        own_id = claim.node_id == self._node_id
        if own_id and claim.generation <= self._generation:
            return Verdict.TAKE  # from an earlier run, or from before this run stood by
        before, self._seen = self._seen, claim
        if claim != before:
            self._since_s = now_s
            alive = own_id and before is not None and before.generation == claim.generation
            return Verdict.TWIN if alive else Verdict.WAIT
        return Verdict.TAKE if now_s >= self._since_s + self._election_s else Verdict.WAIT

    def next_look_s(self, now_s: float) -> float:
        """When to look again after WAIT."""
        next_s = now_s + self._election_s / _LOOKS_PER_E
        takes_over_s = self._since_s + self._election_s
        return min(next_s, takes_over_s) if takes_over_s > now_s else next_s


class Tenure:
    """The holder's side of the claim: until when it may answer."""

    def __init__(self, election_s: float) -> None:
        self._election_s = election_s
        self._renewed_s = float("-inf")

    def renewed(self, started_s: float) -> None:
        """A renewal, or the taking over, that began at `started_s` was committed."""
        self._renewed_s = max(self._renewed_s, started_s)

    def valid(self, now_s: float) -> bool:
        """Whether nobody can have taken over yet."""
        return now_s < self._renewed_s + self._election_s

    @property
    def next_renewal_s(self) -> float:
        """When to begin the next renewal."""
        return self._renewed_s + self._election_s / _BEATS_PER_E
