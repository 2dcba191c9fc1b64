"""Node leases: who counts as alive, decided from heartbeats, goodbyes and refused connections.

A node is alive until T has passed since its last heartbeat arrived; the daemon itself stops answering T/2 after it sent
one that was answered, so that whoever mgmtd calls offline has been silent for at least T/2. A goodbye ends the lease at
once and for good; so does a refusal at the daemon's own sockets, until it is heard again. A mgmtd that has just started
counts every lease from its own start: it cannot know what its predecessor heard last. Source: 3FS, mgmtd design notes.

Of two generations the higher was started later, unless the clock of the node's machine went back. So a lower one that
is not known to have been replaced waits until the lease of the higher has ended: it may be the late heartbeat of a
daemon that is gone, which must not end its successor. So does one that is known to have been replaced and is the
higher: its clock had not gone back yet, and the one after it lives; or that was the late heartbeat, and will be silent.
And so does one that was told to wait before the current one came: it was there first, and a late heartbeat of it may be
all that is left, however its clock was set.

A daemon that is started again listens where it did before, so the one before it is gone. One that listens elsewhere may
be a second one by mistake, with a copy of the configuration: it waits until the lease of the first has ended.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from fs3.ids import NodeId

_RETIRED_KEPT = 16


class Heard(Enum):
    """What a heartbeat meant for its node's lease."""

    RENEWED = "renewed"
    REVIVED = "revived"
    STARTED = "started"
    RETIRED = "retired"
    EARLY = "early"


@dataclass(slots=True)
class _Lease:
    generation: int
    since_s: float
    alive: bool
    heard: bool
    retired: deque[int] = field(default_factory=lambda: deque(maxlen=_RETIRED_KEPT))
    parted: deque[int] = field(default_factory=lambda: deque(maxlen=_RETIRED_KEPT))
    early: deque[int] = field(default_factory=lambda: deque(maxlen=_RETIRED_KEPT))  # were told to wait


class LeaseTable:
    """The leases of all nodes. Times are seconds on one monotone clock."""

    def __init__(self, lease_s: float) -> None:
        assert lease_s > 0, lease_s
        self.lease_s = lease_s
        self._leases: dict[NodeId, _Lease] = {}

    def restore(self, node_id: NodeId, generation: int, *, alive: bool, started_s: float) -> None:
        """Take over a node that an earlier mgmtd knew; if it was alive, its lease counts from `started_s`."""
        self._leases[node_id] = _Lease(generation, started_s, alive, heard=False)

    def heard(self, node_id: NodeId, generation: int, now_s: float, *, elsewhere: bool = False) -> Heard:
        """Count a heartbeat that arrived at `now_s`; `elsewhere`: it listens where the one that is known does not.

        RETIRED changes nothing: this daemon was stopped, or a later one has taken the id. Neither does EARLY: one with
        a higher generation, one elsewhere, or one that has replaced it or come after it, still has its lease.
        """
        lease = self._leases.get(node_id)
        if lease is None:
            self._leases[node_id] = _Lease(generation, now_s, True, heard=True)
            return Heard.STARTED
        if generation in lease.parted or (generation < lease.generation and generation in lease.retired):
            return Heard.RETIRED
        other = generation != lease.generation
        before = generation < lease.generation or generation in lease.retired or generation in lease.early
        if lease.alive and other and (before or elsewhere):
            if generation not in lease.early:
                lease.early.append(generation)
            return Heard.EARLY
        if generation != lease.generation:
            lease.retired.append(lease.generation)
            lease.generation, lease.since_s, lease.alive, lease.heard = generation, now_s, True, True
            return Heard.STARTED
        verdict = Heard.RENEWED if lease.alive else Heard.REVIVED
        lease.since_s, lease.alive, lease.heard = now_s, True, True
        return verdict

    def goodbye(self, node_id: NodeId, generation: int) -> bool:
        """End the lease of this generation for good; whether it was the current one."""
        lease = self._leases.get(node_id)
        if lease is None or lease.generation != generation:
            return False
        lease.alive = False
        lease.parted.append(generation)
        return True

    def refused(self, node_id: NodeId, generation: int) -> bool:
        """End the lease because nobody listens at the node's endpoints; whether it was alive in this generation."""
        lease = self._leases.get(node_id)
        if lease is None or lease.generation != generation or not lease.alive:
            return False
        lease.alive = False
        return True

    def forget(self, node_id: NodeId) -> None:
        """A node that was removed: if it is heard again, it starts."""
        self._leases.pop(node_id, None)

    def expire(self, now_s: float) -> list[NodeId]:
        """End the leases that have run out; the nodes that were alive until now."""
        gone = [
            node_id for node_id, lease in self._leases.items() if lease.alive and now_s >= lease.since_s + self.lease_s
        ]
        for node_id in gone:
            self._leases[node_id].alive = False
        return gone

    def next_expiry_s(self) -> float | None:
        """When the first lease runs out if nobody is heard."""
        return min((lease.since_s + self.lease_s for lease in self._leases.values() if lease.alive), default=None)

    def alive(self, node_id: NodeId) -> bool:
        """Whether the node counts as alive."""
        lease = self._leases.get(node_id)
        return lease is not None and lease.alive

    def was_heard(self, node_id: NodeId) -> bool:
        """Whether this mgmtd has heard the node itself."""
        lease = self._leases.get(node_id)
        return lease is not None and lease.heard

    def generation(self, node_id: NodeId) -> int | None:
        """The generation that holds, or last held, the lease."""
        lease = self._leases.get(node_id)
        return None if lease is None else lease.generation

    def age_s(self, node_id: NodeId, now_s: float) -> float:
        """Seconds since the last heartbeat, or since this mgmtd's start if there was none."""
        lease = self._leases.get(node_id)
        return 0.0 if lease is None else max(now_s - lease.since_s, 0.0)
