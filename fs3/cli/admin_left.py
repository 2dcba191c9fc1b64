"""How much is left of a change that goes on by itself, as `fs3 admin ... --wait` shows it, from the routing of now.

Pure; each raises where nobody is at it any more, because another operator has cancelled it: it would never be done.
"""

from __future__ import annotations

from collections.abc import Collection

from fs3.errors import Conflict, NotFound
from fs3.ids import ChainId, NodeId, TargetId
from fs3.mgmtd.named_core import some
from fs3.routing import Routing, TargetState


def to_move(routing: Routing, leaving: Collection[TargetId]) -> int:
    """How many of the drained targets `leaving` have not left yet. Raises: Conflict: some are not drained any more."""
    there = [routing.targets[one] for one in leaving if one in routing.targets]
    staying = [one.target_id for one in there if not routing.is_draining(one)]
    if staying:
        raise Conflict(f"targets {some(staying)} are not drained any more: somebody has cancelled it, and they stay")
    return len(there)


def to_refill(routing: Routing, slots: Collection[tuple[ChainId, NodeId]]) -> int:
    """How many targets at `slots` do not serve yet, of chains that somebody served when the refill was asked for.

    Also while nobody serves them: they are refilled once somebody does again.
    """
    return sum(
        target.state != TargetState.SERVING
        for target in routing.targets.values()
        if (target.chain_id, target.node_id) in slots
    )


def to_stop(routing: Routing, target: int) -> int:
    """Whether a target that is put out of service still takes part in its chain; one that has left it does not.

    Raises: Conflict: it may serve again.
    """
    known = routing.targets.get(TargetId(target))
    if known is None or known.state == TargetState.OFFLINE:
        return 0
    if not known.disabled:
        raise Conflict(f"target {target} may serve again: somebody has put it back into service")
    return 1


def to_serve(routing: Routing, target: int) -> int:
    """Whether a target that is put back into service does not serve yet.

    Raises: NotFound: it has left its chain; Conflict: it is to stay out of service.
    """
    known = routing.targets.get(TargetId(target))
    if known is None:
        raise NotFound(f"target {target} has left its chain, and will not serve again")
    if known.disabled:
        raise Conflict(f"target {target} is to stay out of service: somebody has put it offline again")
    return int(known.state != TargetState.SERVING)
