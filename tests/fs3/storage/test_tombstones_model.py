"""Every history of one chunk on a chain of three that creations, removals and FORGETs, lost and late frames, deaths and
chain changes allow, within small bounds: driven by the pure decisions of craq_core.py, as replication.py obeys them.

Checked in every state: whenever nothing is pending, the replicas have the same content under the same version; and
whatever is pending can be settled by whoever is alive, if no more frames are lost. And that the model would see the
faults that tombstones.py guards against: without doubts, or with the head erasing first, it finds a violation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest

from fs3.storage.craq_core import Decision, Say, forget_decides, head_decides, replica_decides
from fs3.storage.doubts_core import Doubts
from fs3.storage.engine_api import ChunkInfo
from fs3.transport.messages import Op

LOSSES, CREATIONS, REMOVALS, FORGETS, CHANGES = 3, 3, 2, 2, 1


class Replica(NamedTuple):
    content: int = 0  # 0: none; below 0 while it is pending: a removal
    version: int = 0
    pending: int = 0
    to_be: int = 0

    def info(self) -> ChunkInfo:
        return ChunkInfo(self.content > 0, self.version, self.pending, 1, 1)

    def committed(self) -> Replica:
        return Replica(max(self.to_be, 0), self.pending)


class Frame(NamedTuple):
    to: int
    forget: bool
    version: int
    content: int = 0
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class State:
    replicas: tuple[Replica, ...] = (Replica(), Replica(), Replica())
    alive: tuple[int, ...] = (0, 1, 2)
    doubts: frozenset[int] = frozenset()
    late: frozenset[Frame] = frozenset()
    lost: int = 0
    created: int = 0
    removed: int = 0
    forgotten: int = 0
    changed: int = 0

    def put(self, place: int, replica: Replica) -> State:
        return replace(self, replicas=(*self.replicas[:place], replica, *self.replicas[place + 1 :]))

    def behind(self, place: int) -> int | None:
        return next((other for other in self.alive if other > place), None)


class Model:
    def __init__(self, *, doubts: bool = True, tail_first: bool = True) -> None:
        self.with_doubts = doubts
        self.tail_first = tail_first

    def moves(self, state: State) -> Iterator[State]:
        head = state.alive[0]
        info = state.replicas[head].info()
        if not info.pending and state.created < CREATIONS:
            decision = head_decides(Op.REPLACE, (1, 1, state.created + 1), info, None, None)
            started = replace(state, created=state.created + 1)
            yield from self._outcomes(self._staged(started, head, decision, state.created + 1))
        if not info.pending and info.found and state.removed < REMOVALS:
            decision = head_decides(Op.REMOVE, (2, 1, 1), info, None, None)
            started = replace(state, removed=state.removed + 1)
            yield from self._outcomes(self._staged(started, head, decision, -started.removed))
        if not info.found and info.version and not info.pending and state.forgotten < FORGETS:
            started = replace(state, forgotten=state.forgotten + 1)
            yield from self._outcomes(self._receive(started, Frame(head, True, info.version)))
        for place in state.alive:
            if state.replicas[place].pending:
                yield from self._outcomes(self._forward(state, place))
        for frame in state.late:
            yield from self._outcomes(self._receive(replace(state, late=state.late - {frame}), frame))
        if state.changed < CHANGES:
            fresh = replace(state, doubts=frozenset(), late=frozenset(), changed=state.changed + 1)
            yield fresh
            for place in state.alive:
                yield replace(fresh, alive=tuple(other for other in state.alive if other != place))

    @staticmethod
    def _outcomes(pairs: Iterator[tuple[State, bool]]) -> Iterator[State]:
        for state, _ in pairs:
            yield state

    def _staged(self, state: State, place: int, decision: Decision, content: int) -> Iterator[tuple[State, bool]]:
        assert decision.say is Say.STAGE
        one = state.replicas[place]._replace(pending=decision.version, to_be=content)
        yield from self._forward(state.put(place, one), place)

    def _receive(self, state: State, frame: Frame) -> Iterator[tuple[State, bool]]:
        """(what the chain has become, whether the replica acknowledged)."""
        one = state.replicas[frame.to]
        if frame.forget:
            if forget_decides(1, 1, frame.version, one.info()).say is Say.PASS:
                yield from self._pass(state, frame)
            else:
                yield state, False
            return
        who, asked = (frame.content, 0, 0), (one.to_be, 0, 0) if one.pending else None
        decision = replica_decides(1, 1, frame.version, one.info(), fresh=frame.fresh, identity=who, pending=asked)
        if decision.say is Say.STAGE:
            yield from self._staged(state, frame.to, decision, frame.content)
        elif decision.say is Say.RESUME:
            yield from self._forward(state, frame.to)
        else:
            yield state, decision.error is None

    def _pass(self, state: State, frame: Frame) -> Iterator[tuple[State, bool]]:
        place, behind = frame.to, state.behind(frame.to)
        if behind is None:
            yield self._erased(state, frame), True
        elif not (self.with_doubts and place in state.doubts):
            if not self.tail_first:
                state = self._erased(state, frame)
            for after, acked in self._send(state, place, frame._replace(to=behind)):
                yield (self._erased(after, frame) if acked else after), acked

    @staticmethod
    def _erased(state: State, frame: Frame) -> State:
        one = state.replicas[frame.to]
        is_it = not one.content and not one.pending and one.version == frame.version
        return state.put(frame.to, Replica()) if is_it else state

    def _forward(self, state: State, place: int) -> Iterator[tuple[State, bool]]:
        """A pending version goes on, or is committed."""
        one, behind = state.replicas[place], state.behind(place)
        if behind is None:
            yield state.put(place, one.committed()), True
            return
        frame = Frame(behind, False, one.pending, one.to_be, not one.content)
        for after, acked in self._send(state, place, frame):
            yield (after.put(place, one.committed()) if acked else after), acked

    def _send(self, state: State, place: int, frame: Frame) -> Iterator[tuple[State, bool]]:
        yield from self._receive(state, frame)
        if state.lost < LOSSES:
            doubtful = replace(state, lost=state.lost + 1, doubts=state.doubts | {place})
            yield replace(doubtful, late=state.late | {frame}), False  # it may still arrive
            for after, _ in self._receive(doubtful, frame):  # only its answer is lost
                yield after, False


def settled(model: Model, state: State) -> State:
    """Without more losses, the pending versions are finished by those who hold them, the last in the chain first."""
    state = replace(state, lost=LOSSES)
    for _ in range(4):
        for place in reversed(state.alive):
            if state.replicas[place].pending:
                ((state, _),) = model._forward(state, place)
    return state


def violation(model: Model, state: State) -> str:
    end = settled(model, state)
    replicas = [end.replicas[place] for place in end.alive]
    if any(one.pending for one in replicas):
        return "never settled"
    if len({one.content for one in replicas}) > 1:
        return "replicas differ"
    if replicas[0].content and len({one.version for one in replicas}) > 1:
        return "versions differ"
    versions = [one.version for one in replicas]
    if not replicas[0].content and versions != sorted(versions, reverse=True):
        return "a tombstone behind a replica that has forgotten it"
    return ""


def explore(model: Model) -> tuple[int, str]:
    """(states seen, the first violation)"""
    seen = {State()}
    todo = [State()]
    while todo:
        state = todo.pop()
        for after in model.moves(state):
            if after not in seen:
                seen.add(after)
                if found := violation(model, after):
                    return len(seen), f"{found}: {after}"
                todo.append(after)
    return len(seen), ""


def test_no_history_brings_a_removed_chunk_back_or_sets_replicas_apart() -> None:
    states, found = explore(Model())
    assert not found
    assert states > 10_000


@pytest.mark.parametrize("broken", [{"doubts": False}, {"tail_first": False}])
def test_the_model_sees_what_goes_wrong_without_the_rules(broken: dict[str, bool]) -> None:
    _, found = explore(Model(**broken))
    assert found


def test_doubts_last_as_long_as_the_version_of_the_chain() -> None:
    doubts = Doubts(most=3)
    assert not doubts.has(1, 5, (1, 1))
    doubts.add(1, 5, [(1, 1), (1, 2)])
    assert doubts.has(1, 5, (1, 1)) and not doubts.has(1, 5, (1, 3)) and not doubts.has(2, 5, (1, 1))
    assert not doubts.has(1, 6, (1, 1))
    doubts.add(1, 4, [(1, 3)])
    assert not doubts.has(1, 5, (1, 3)), "frames of an older version are refused"
    doubts.add(1, 5, [(1, 4), (1, 5)])
    assert doubts.has(1, 5, (9, 9)), "more than can be told apart"
    doubts.add(1, 6, [(1, 1)])
    assert doubts.has(1, 6, (1, 1)) and not doubts.has(1, 6, (9, 9))
