"""What a daemon makes of the public state of one of its targets: whether it serves, and what it says of it to mgmtd.

    HELD       the daemon has just started: silent until mgmtd has taken the target off duty, so that what it missed
               is recovered before it serves
    COMPLETE   has every acknowledged write, does not serve (yet): UPTODATE
    SERVING    reads and writes: UPTODATE
    ASIDE      an operator wants it out, or an update cannot be finished here, and its chain can spare it: does not
               serve; OFFLINE
    RECALLING  the last that served: commits its pending versions, then COMPLETE; OFFLINE until then
    CLEARING   others went on without it: lets what it is at come to an end, then STALE; OFFLINE until then
    STALE      to be synced, or being synced: ONLINE
    REFUSED    asked for data that it does not have: OFFLINE
    BROKEN     its disk failed: OFFLINE until the daemon is restarted

    phase \\ public   in no chain   SERVING   LASTSRV     SYNCING     WAITING, OFFLINE
    HELD             COMPLETE      -         RECALLING   -           CLEARING
    COMPLETE         -             SERVING   -           - or STALE  CLEARING
    SERVING          COMPLETE      -         RECALLING   CLEARING    CLEARING
    ASIDE            COMPLETE      -         RECALLING   CLEARING    CLEARING
    RECALLING        COMPLETE      -         -           CLEARING    CLEARING
    CLEARING         -             -         RECALLING   -           -
    STALE            -             REFUSED   RECALLING   -           -
    REFUSED          -             -         -           -           CLEARING
    BROKEN           -             -         -           -           -

Where the routing wants a serving target to step down it is ASIDE instead of SERVING; so is one whose pending version
has lost its bytes (replication.py). There is no way back from that but through mgmtd, who may have been told OFFLINE by
then, and let the others go on.

A target that was made anew on an emptied disk, and was never synced since, `holds` nothing; nor does one whose disk is
an older one than that which was complete last (`Target.complete_at`: the right one was not mounted for a while, or
another daemon had the node's id). Where the table says RECALLING it is REFUSED, for it must not serve as the last that
served, unless an operator has accepted what it holds; then whatever is not COMPLETE becomes RECALLING. Sources: 3FS,
design notes ("Failure detection"); fs3/mgmtd/chain_core.py has the other half of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fs3.routing import LocalState, TargetState


class Phase(Enum):
    """Where a target stands in its daemon's eyes."""

    HELD = "held back until seen off duty"
    COMPLETE = "complete"
    SERVING = "serving"
    ASIDE = "left to the others of its chain"
    RECALLING = "commits its pending versions"
    CLEARING = "lets what it is at come to an end"
    STALE = "waits for, or is in, recovery"
    REFUSED = "does not hold the data that it is asked to serve"
    BROKEN = "its disk failed"


@dataclass(frozen=True, slots=True)
class Place:
    """The public state of a target, in this version of its chain, and what an operator wants of it."""

    state: TargetState
    chain_version: int
    steps_down: bool = False
    accept_loss: bool = False


@dataclass(frozen=True, slots=True)
class Stand:
    """A target's phase; `synced_at` is the chain version at which its recovery was completed, for COMPLETE."""

    phase: Phase
    synced_at: int = 0


_IN_ORDER = (Phase.HELD, Phase.SERVING, Phase.ASIDE, Phase.RECALLING)
_REPORTED = {
    Phase.HELD: None,
    Phase.COMPLETE: LocalState.UPTODATE,
    Phase.SERVING: LocalState.UPTODATE,
    Phase.STALE: LocalState.ONLINE,
}


def next_stand(stand: Stand, place: Place | None, *, ours: bool, holds: bool) -> Stand:
    """The stand under a routing that puts the target at `place` (None: in no chain).

    `ours`: the routing was made knowing that this run of the daemon has started. `holds`: see the module.
    """
    phase = stand.phase
    if phase is Phase.BROKEN or (phase is Phase.HELD and not ours):
        return stand
    if place is None:
        return Stand(Phase.COMPLETE) if phase in _IN_ORDER else stand
    recall = Phase.RECALLING if holds or place.accept_loss else Phase.REFUSED
    match place.state:
        case TargetState.SERVING:
            serves = Phase.ASIDE if place.steps_down else Phase.SERVING
            after = {Phase.COMPLETE: serves, Phase.SERVING: serves, Phase.STALE: Phase.REFUSED}.get(phase, phase)
        case TargetState.LASTSRV:
            keeps = phase in (Phase.COMPLETE, Phase.RECALLING) or (phase is Phase.REFUSED and not place.accept_loss)
            after = phase if keeps else recall
        case TargetState.SYNCING:
            after = Phase.CLEARING if phase in (Phase.SERVING, Phase.ASIDE, Phase.RECALLING) else phase
            if phase is Phase.COMPLETE and stand.synced_at != place.chain_version:
                after = Phase.STALE
        case _:
            keeps = phase in (Phase.CLEARING, Phase.STALE)
            after = phase if keeps else Phase.CLEARING
    return stand if after is phase else Stand(after)


def prepared(stand: Stand) -> Stand:
    """The stand once the work of RECALLING or CLEARING is done."""
    return Stand({Phase.RECALLING: Phase.COMPLETE, Phase.CLEARING: Phase.STALE}.get(stand.phase, stand.phase))


def aside(stand: Stand) -> Stand:
    """The stand once the daemon leaves the chain to the others that serve it."""
    return Stand(Phase.ASIDE) if stand.phase is Phase.SERVING else stand


def synced(stand: Stand, chain_version: int) -> Stand:
    """The stand once a predecessor has said, under `chain_version`, that recovery is complete."""
    return Stand(Phase.COMPLETE, chain_version) if stand.phase is Phase.STALE else stand


def reported(stand: Stand) -> LocalState | None:
    """What the daemon tells mgmtd; None: nothing."""
    return _REPORTED.get(stand.phase, LocalState.OFFLINE)
