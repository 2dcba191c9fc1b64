"""One round's hedges: what is overdue at one replica is asked of another, and whoever begins to answer first is read.

Only replies of which no byte has been taken in are raced. From then on one connection alone is received from, into the
caller's memory; the other one is let go of first (hedges.py), so no late byte can follow.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fs3.client.peers import Peers
from fs3.client.select_core import NONE, ReplicaTable
from fs3.errors import Fs3Error, Unavailable
from fs3.transport.frame_core import Kind

if TYPE_CHECKING:
    from fs3.client.exchange import Batch, Lane

SILENCE_S = 1.0
_LONG = 10  # times the wait after which it would have been hedged


class Race:
    """Of one exchange; each lane is its own thread's."""

    def __init__(self, peers: Peers, table: ReplicaTable, batch: Batch) -> None:
        self._peers = peers
        self._table = table
        self._batch = batch
        self._hedges = peers.hedges
        self._runs = self._hedges.enabled and batch.kind == Kind.READ and table.endpoint.shape[1] > 1
        self._loads: list[tuple[str, int]] = []

    def begun(self, lane: Lane) -> None:
        """A lane's frames were sent."""
        if self._runs:
            lane.since_s = self._peers.runtime.now_s()
            self._hedges.asked()

    def taken_in(self, lane: Lane) -> None:
        """A reply of a lane was taken in."""
        if self._runs and lane.sent:
            lane.since_s = self._peers.runtime.now_s()

    def ended(self) -> None:
        """The round is over."""
        loads, self._loads = self._loads, []
        for name, bytes_ in loads:
            self._peers.add_load(name, -bytes_)

    def wait(self, lane: Lane, begin: Callable[[Lane], None]) -> bool:
        """Wait for the next reply of a lane; True: another replica was faster, and the lane is that one's now.

        `begin` sends a lane's first frames.

        Raises: Unavailable: nothing came for as long as a daemon may be silent.
        """
        if not self._runs or lane.hedged:
            return False
        connection, now_s = lane.connection, self._peers.runtime.now_s
        name = connection.endpoint
        end_s = min(self._batch.deadline_s, lane.since_s + self._peers.stall_s)
        due_s = lane.since_s + self._hedges.after_s(name, lane.bytes)
        while connection.wait(min(due_s, end_s)) is None:
            if now_s() >= end_s:
                connection.close()
                raise Unavailable(f"{name} did not answer in time")
            other = self._ask_another(lane, begin)
            if other is not None:
                lane.hedged = True
                return self._first(lane, other, end_s)
            due_s = now_s() + self._hedges.after_s(name, lane.bytes)  # there may be means later
        self._hedges.replied(name, lane.bytes, now_s() - lane.since_s)
        return False

    def silence_s(self, lane: Lane) -> float:
        """For how long a daemon may be silent within a reply: not as long as before one, where others can be asked."""
        if not self._runs or self._batch.patient:
            return self._peers.stall_s
        return silence_s(self._peers, lane.connection.endpoint, lane.bytes)

    def _first(self, lane: Lane, other: Lane, end_s: float) -> bool:
        """Whether `other` begins to answer before the lane does; it is the lane then, else it is let go of."""
        try:
            first = first_of(lane, other, end_s)
        except BaseException:
            other.connection.close()
            self._peers.give_back(other.connection)
            raise
        if first is other:
            self._let_go(lane)
            lane.endpoint, lane.places, lane.bytes = other.endpoint, other.places, other.bytes
            lane.connection, lane.waiting, lane.sent = other.connection, other.waiting, other.sent
            lane.since_s = other.since_s
            self._loads.append((other.connection.endpoint, other.bytes))
            rows = self._table.rows(self._batch.ranges["chain"][other.places])
            columns = (self._table.endpoint[rows] == other.endpoint).argmax(axis=1)
            self._batch.targets[other.places] = self._table.target[rows, columns]
            return True
        self._peers.add_load(other.connection.endpoint, -other.bytes)
        self._let_go(other)
        if first is None:
            lane.connection.close()
            raise Unavailable(f"{lane.connection.endpoint} did not answer in time")
        self._hedges.replied(lane.connection.endpoint, lane.bytes, self._peers.runtime.now_s() - lane.since_s)
        return False

    def _let_go(self, lane: Lane) -> None:
        peers, table, endpoint = self._peers, self._table, lane.endpoint  # and not this, which has the caller's memory
        self._hedges.let_go(lane.connection, lane.bytes, lane.since_s, lost=lambda: peers.failed(table, endpoint))

    def _ask_another(self, lane: Lane, begin: Callable[[Lane], None]) -> Lane | None:
        """A lane that asks one other endpoint for what this one owes, as much of it as that has; None: not now."""
        batch, table = self._batch, self._table
        places = np.concatenate([*lane.sent.values(), *lane.waiting])
        candidates = table.endpoint[table.rows(batch.ranges["chain"][places])]
        usable = (candidates != NONE) & (candidates != lane.endpoint)
        avoided = self._peers.avoided(table)
        if avoided is not None:
            usable &= ~avoided[candidates]
        if not usable.any() or not self._hedges.spend():
            return None
        endpoint = int(np.bincount(candidates[usable]).argmax())
        places = places[((candidates == endpoint) & usable).any(axis=1)]
        size = int(batch.lengths[places].sum())
        try:
            # Nobody listens to the first replica while the second one is connected to.
            connection = self._peers.borrow(table, endpoint, deadline_s=batch.deadline_s, wait=False, patient=False)
        except Fs3Error:
            return None
        other = dataclasses.replace(
            lane, endpoint=endpoint, places=places, bytes=size, connection=connection, waiting=deque(), sent={}
        )
        try:
            begin(other)
        except Fs3Error:
            connection.close()
            self._peers.give_back(connection)
            return None
        other.since_s = self._peers.runtime.now_s()
        self._peers.add_load(connection.endpoint, size)
        return other


def first_of(lane: Lane, other: Lane, end_s: float) -> Lane | None:
    """Which begins to answer first; None: neither until `end_s`."""
    first = lane.connection.wait(end_s, other.connection)
    return None if first is None else lane if first is lane.connection else other


def silence_s(peers: Peers, endpoint: str, bytes_: int) -> float:
    """For how long one of several that can be asked may be silent within its reply."""
    return min(max(SILENCE_S, _LONG * peers.hedges.after_s(endpoint, bytes_)), peers.stall_s)
