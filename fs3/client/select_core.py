"""Which replica of a chain answers each range of a batch.

Any SERVING target may. Ranges are spread so that every endpoint gets its share of the bytes, given what it still owes
this client (`load`), and endpoints that have failed lately are left alone as long as another one can answer. Ties go
round from `rotation`, a number the caller draws, so that many clients do not march in step.

    few bytes           as few endpoints as a random start finds: a request costs as much as a hundred 4 KiB ranges, and
                        256 of those from one node instead of three cost the client and the daemons 37% less
    few large ranges    each in turn to the endpoint with the fewest bytes outstanding
    many                each chain's ranges go round its replicas, those left out that are over `slack` bytes behind
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fs3.errors import StaleRouting
from fs3.ids import ChainId, node_name
from fs3.routing import Chain, Node, Routing, Target, TargetState

I64 = NDArray[np.int64]

FEW = 48
SMALL_BYTES = 1 << 20
NONE = -1


@dataclass(frozen=True, slots=True)
class ReplicaTable:
    """A routing as arrays: chains [c] rising, each with up to r serving targets, head first; `NONE` fills up.

    `endpoint[c, r]` indexes `endpoints`, whose nodes are `nodes`. `by_chain` says the same of a chain in plain Python:
    its version, and its serving endpoints.
    """

    version: int
    chains: I64
    chain_version: NDArray[np.uint32]
    serving: I64
    endpoint: I64
    target: I64
    endpoints: tuple[str, ...]
    nodes: tuple[Node, ...]
    by_chain: dict[int, tuple[int, tuple[int, ...]]]

    def rows(self, chains: NDArray[np.uint32]) -> I64:
        """The rows of chains [m]. Raises: StaleRouting if the routing does not know one."""
        if not len(self.chains):
            raise StaleRouting("the routing has no chains yet")
        wanted = chains.astype(np.int64)
        rows: I64 = np.searchsorted(self.chains, wanted)
        rows[rows == len(self.chains)] = 0
        unknown = self.chains[rows] != wanted
        if unknown.any():
            raise StaleRouting(f"chain {int(wanted[np.argmax(unknown)])} is not in routing version {self.version}")
        return rows


def replica_table(routing: Routing) -> ReplicaTable:
    """The table of `routing`."""
    chains = sorted(routing.chains.values(), key=lambda chain: chain.chain_id)
    serving = [_serving(routing, chain) for chain in chains]
    width = max((len(targets) for targets in serving), default=0) or 1
    node_of = {routing.endpoint(one): one.node_id for targets in serving for one in targets}
    names = sorted(node_of)  # in an order that all calls agree on, since they take connections in it
    index = {name: place for place, name in enumerate(names)}
    endpoint = np.full((len(chains), width), NONE, dtype=np.int64)
    target_ids = np.full((len(chains), width), NONE, dtype=np.int64)
    for row, targets in enumerate(serving):
        for column, target in enumerate(targets):
            endpoint[row, column] = index[routing.endpoint(target)]
            target_ids[row, column] = target.target_id
    return ReplicaTable(
        routing.version,
        np.array([chain.chain_id for chain in chains], dtype=np.int64),
        np.array([chain.version for chain in chains], dtype=np.uint32),
        np.array([len(targets) for targets in serving], dtype=np.int64),
        endpoint,
        target_ids,
        tuple(names),
        tuple(routing.nodes[node_of[name]] for name in names),
        {
            int(chain.chain_id): (chain.version, tuple(index[routing.endpoint(one)] for one in targets))
            for chain, targets in zip(chains, serving, strict=True)
        },
    )


def unserved(routing: Routing, chain_id: int) -> str:
    """That nobody serves a chain, and what has to come back, in words."""
    chain = routing.chains.get(ChainId(chain_id))
    members = [routing.targets[target] for target in chain.targets] if chain is not None else []
    for target in members:
        if target.state is TargetState.LASTSRV:
            return (
                f"chain {chain_id} has no serving target; target {target.target_id} on node {node_name(target.node_id)}"
                " was the last that served, and must come back with its disk"
            )
    return f"chain {chain_id} has no serving target that answers"


def _serving(routing: Routing, chain: Chain) -> list[Target]:
    targets = [routing.targets[target_id] for target_id in chain.targets]
    return [target for target in targets if target.state == TargetState.SERVING]


def choose(
    candidates: I64, usable: NDArray[np.bool_], lengths: I64, load: I64, *, slack: int, rotation: int, groups: I64
) -> I64:
    """The column of `candidates` [m, r] (endpoint indexes) that each range goes to, `NONE` where none is usable.

    `load` [endpoints] is in bytes, `groups` [m] the row of each range's chain.
    """
    if int(lengths.sum()) <= SMALL_BYTES:
        return _choose_together(candidates, _near(candidates, usable, load, slack), rotation)
    if len(candidates) <= FEW:
        return _choose_by_load(candidates, usable, lengths, load, rotation)
    turn: I64 = _rank_within(groups) + groups + rotation
    eligible = _near(candidates, usable, load, slack)
    if eligible.all():
        turn %= candidates.shape[1]
        return turn
    count = eligible.sum(axis=1)
    turn %= np.maximum(count, 1)
    picked = eligible & (np.cumsum(eligible, axis=1) - 1 == turn[:, None])
    column: I64 = np.argmax(picked, axis=1)
    column[count == 0] = NONE
    return column


def choose_one(endpoints: Sequence[int], length: int, owed: Sequence[int], *, slack: int, rotation: int) -> int:
    """What `choose` does for a single range, in plain Python: the one of `endpoints`, which owe so many bytes each."""
    count = len(endpoints)
    least = min(owed)
    if length <= SMALL_BYTES:
        near = [endpoint for endpoint, bytes_ in zip(endpoints, owed, strict=True) if bytes_ - least <= slack]
        return near[rotation % len(near)]
    return next(endpoints[at % count] for at in range(rotation, rotation + count) if owed[at % count] == least)


def _near(candidates: I64, usable: NDArray[np.bool_], load: I64, slack: int) -> NDArray[np.bool_]:
    """`usable` without those that owe over `slack` bytes more than the range's best."""
    if int(load.max() - load.min()) <= slack:
        return usable
    cost = np.where(usable, load[candidates], np.iinfo(np.int64).max)
    best = cost.min(axis=1, keepdims=True)
    near: NDArray[np.bool_] = usable & (cost - best <= slack)
    return near


def _choose_together(candidates: I64, usable: NDArray[np.bool_], rotation: int) -> I64:
    """Pick a range and one of its replicas by lot, give that endpoint all it can answer, and go on with the rest.

    By lot, not by who covers most: that would be the same endpoint for every reader of a file.
    """
    if usable.all():
        # Most batches: every replica serves, and the one picked by lot has all the chains.
        first = candidates[rotation % len(candidates)]
        matches = candidates == first[rotation % len(first)]
        if matches.any(axis=1).all():
            together: I64 = matches.argmax(axis=1)
            return together
    column = np.full(len(candidates), NONE, dtype=np.int64)
    left = np.flatnonzero(usable.any(axis=1))
    while len(left):
        place = left[rotation % len(left)]
        choices = np.flatnonzero(usable[place])
        endpoint = candidates[place, choices[rotation % len(choices)]]
        matches = (candidates[left] == endpoint) & usable[left]
        covered = matches.any(axis=1)
        column[left[covered]] = np.argmax(matches[covered], axis=1)
        left = left[~covered]
        rotation = (rotation * 0x9E3779B1 + 0x7F4A7C15) >> 7 & 0xFFFFFFFF
    return column


def _choose_by_load(candidates: I64, usable: NDArray[np.bool_], lengths: I64, load: I64, rotation: int) -> I64:
    owed = load.tolist()
    out = np.full(len(candidates), NONE, dtype=np.int64)
    rows = zip(candidates.tolist(), usable.tolist(), lengths.tolist(), strict=True)
    for index, (endpoints, allowed, length) in enumerate(rows):
        width = len(endpoints)
        best, least = NONE, 0
        for step in range(width):
            column = (index + rotation + step) % width
            if allowed[column] and (best == NONE or owed[endpoints[column]] < least):
                best, least = column, owed[endpoints[column]]
        if best != NONE:
            out[index] = best
            owed[endpoints[best]] += max(length, 1)
    return out


def _rank_within(groups: I64) -> I64:
    """How many earlier elements have the same value: [m] -> [m]."""
    order = np.argsort(groups, kind="stable")
    ranked = groups[order]
    places = np.arange(len(groups), dtype=np.int64)
    starts = places.copy()
    starts[1:][ranked[1:] == ranked[:-1]] = 0  # within a run of equals, only its first place counts
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = places - np.maximum.accumulate(starts)
    return rank
