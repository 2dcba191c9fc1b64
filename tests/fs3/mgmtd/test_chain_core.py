"""The state table of a chain: every row by itself, then every state that 2 and 3 replicas can reach.

The walk over reachable states plays an adversary who picks each target's report at each step, late ones included, under
the one rule that daemons keep: only a target that has every acknowledged write says UPTODATE of the current version. It
tracks who has all the data, and checks that nobody serves without it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from fs3.ids import ChainId, TargetId
from fs3.mgmtd.chain_core import ChainView, Member, Report, next_chain, presumed
from fs3.routing import LocalState, TargetState

UPTODATE, ONLINE, AWAY = LocalState.UPTODATE, LocalState.ONLINE, LocalState.OFFLINE
SERVING, LASTSRV, SYNCING, WAITING, OFFLINE = (
    TargetState.SERVING,
    TargetState.LASTSRV,
    TargetState.SYNCING,
    TargetState.WAITING,
    TargetState.OFFLINE,
)

ROWS = [
    # local, public now, does another target serve, public next
    (UPTODATE, SERVING, True, SERVING),
    (UPTODATE, SERVING, False, SERVING),
    (UPTODATE, SYNCING, True, SERVING),
    (UPTODATE, LASTSRV, False, SERVING),
    (UPTODATE, WAITING, True, WAITING),
    (UPTODATE, WAITING, False, WAITING),
    (UPTODATE, OFFLINE, True, WAITING),
    (UPTODATE, OFFLINE, False, WAITING),
    (ONLINE, SERVING, True, SERVING),
    (ONLINE, SERVING, False, SERVING),
    (ONLINE, LASTSRV, False, SERVING),
    (ONLINE, SYNCING, True, SYNCING),
    (ONLINE, WAITING, True, SYNCING),
    (ONLINE, SYNCING, False, WAITING),
    (ONLINE, WAITING, False, WAITING),
    (ONLINE, OFFLINE, True, WAITING),
    (ONLINE, OFFLINE, False, WAITING),
    (AWAY, SERVING, False, LASTSRV),
    (AWAY, SERVING, True, OFFLINE),
    (AWAY, SYNCING, True, OFFLINE),
    (AWAY, SYNCING, False, OFFLINE),
    (AWAY, WAITING, True, OFFLINE),
    (AWAY, WAITING, False, OFFLINE),
    (AWAY, OFFLINE, True, OFFLINE),
    (AWAY, OFFLINE, False, OFFLINE),
    (AWAY, LASTSRV, False, LASTSRV),
]


def view(*states: TargetState, version: int = 5) -> ChainView:
    members = tuple(Member(TargetId(index + 1), state) for index, state in enumerate(states))
    return ChainView(ChainId(7), version, tuple(sorted(members, key=lambda member: member.state)))


def reports(*states: LocalState, version: int = 5) -> dict[TargetId, Report]:
    return {TargetId(index + 1): Report(state, version) for index, state in enumerate(states)}


def state_of(chain: ChainView, target: int) -> TargetState:
    return next(member.state for member in chain.members if member.target_id == target)


@pytest.mark.parametrize(("local", "now", "other_serves", "wanted"), ROWS)
def test_row(local: LocalState, now: TargetState, other_serves: bool, wanted: TargetState) -> None:
    other, other_local = (SERVING, UPTODATE) if other_serves else (OFFLINE, AWAY)
    step = next_chain(view(now, other), reports(local, other_local))
    assert state_of(step.chain, 1) == wanted
    assert step.chain.version == (5 if wanted == now else 6)
    assert [(move.target_id, move.before, move.after) for move in step.moves] == (
        [] if wanted == now else [(1, now, wanted)]
    )


def test_a_target_that_nobody_reports_is_away() -> None:
    step = next_chain(view(SERVING, SERVING), reports(UPTODATE))
    assert state_of(step.chain, 2) == OFFLINE


def test_all_serving_targets_die_at_once() -> None:
    step = next_chain(view(SERVING, SERVING, SERVING), {})
    assert [member.state for member in step.chain.members] == [LASTSRV, OFFLINE, OFFLINE]
    assert step.chain.members[0].target_id == 1


def test_a_sync_that_ends_as_the_last_server_dies_leaves_a_server() -> None:
    step = next_chain(view(SERVING, SYNCING), reports(AWAY, UPTODATE))
    assert state_of(step.chain, 2) == SERVING
    assert state_of(step.chain, 1) == OFFLINE


def test_one_is_synced_at_a_time_and_keeps_its_place() -> None:
    waiting_first = ChainView(ChainId(7), 5, (Member(TargetId(1), SERVING), Member(TargetId(2), WAITING)))
    step = next_chain(view(SERVING, WAITING, SYNCING), reports(UPTODATE, ONLINE, ONLINE))
    assert step.chain == view(SERVING, WAITING, SYNCING)
    step = next_chain(view(SERVING, WAITING, WAITING), reports(UPTODATE, ONLINE, ONLINE))
    assert [member.state for member in step.chain.members] == [SERVING, SYNCING, WAITING]
    assert next_chain(waiting_first, reports(UPTODATE, ONLINE)).chain.members[1].state == SYNCING


def test_a_report_for_an_older_version_neither_ends_a_sync_nor_ends_an_absence() -> None:
    late = {TargetId(1): Report(UPTODATE, 5), TargetId(2): Report(UPTODATE, 4)}
    assert state_of(next_chain(view(SERVING, SYNCING), late).chain, 2) == SYNCING
    assert state_of(next_chain(view(SERVING, OFFLINE), late).chain, 2) == OFFLINE


def test_a_report_from_before_it_served_takes_no_target_out() -> None:
    """The daemon has a lease and may answer reads: the others must not go on without it."""
    late = {TargetId(1): Report(UPTODATE, 5), TargetId(2): Report(AWAY, 4)}
    assert next_chain(view(SERVING, SERVING), late).chain == view(SERVING, SERVING)
    now = {TargetId(1): Report(UPTODATE, 5), TargetId(2): Report(AWAY, 5)}
    assert state_of(next_chain(view(SERVING, SERVING), now).chain, 2) == OFFLINE


def test_the_order_is_serving_first_and_stable() -> None:
    step = next_chain(view(SERVING, SERVING, SERVING), reports(AWAY, UPTODATE, UPTODATE))
    assert [member.target_id for member in step.chain.members] == [2, 3, 1]


@pytest.mark.parametrize("states", list(itertools.product(TargetState, repeat=3)))
def test_presuming_changes_nothing(states: tuple[TargetState, ...]) -> None:
    """A mgmtd that has heard nobody yet keeps every chain that it could have left behind."""
    serving, lastsrv, syncing = states.count(SERVING), states.count(LASTSRV), states.count(SYNCING)
    if (serving == 0) == (lastsrv == 0) or lastsrv > 1 or syncing > 1 or (syncing and not serving):
        return
    chain = view(*states)
    known = {member.target_id: Report(presumed(member.state)) for member in chain.members}
    assert next_chain(chain, known).chain == chain


Node = tuple[tuple[tuple[int, TargetState], ...], frozenset[int]]


def choices(state: TargetState, complete: bool) -> Iterator[Report]:
    yield Report(AWAY, 5)
    yield Report(ONLINE, 5)
    yield Report(ONLINE, 4)
    yield Report(UPTODATE, 4)
    if complete:
        yield Report(UPTODATE, 5)


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_every_reachable_chain(replicas: int) -> None:
    start: Node = (tuple((target, SERVING) for target in range(1, replicas + 1)), frozenset(range(1, replicas + 1)))
    seen, frontier = {start}, [start]
    while frontier:
        members, complete = frontier.pop()
        before = ChainView(ChainId(1), 5, tuple(Member(TargetId(target), state) for target, state in members))
        options = [list(choices(state, target in complete)) for target, state in members]
        for picked in itertools.product(*options):
            known = {TargetId(target): report for (target, _), report in zip(members, picked, strict=True)}
            step = next_chain(before, known)
            after = step.chain
            states = [member.state for member in after.members]
            story = f"{before} {known} -> {after}"
            assert sorted(member.target_id for member in after.members) == list(range(1, replicas + 1)), story
            assert states == sorted(states), story
            assert states.count(SYNCING) <= 1, story
            assert (states.count(SERVING) > 0) != (states.count(LASTSRV) == 1), story
            assert after.version == 5 + (after.members != before.members), story
            assert {m.target_id for m in step.moves} == {
                new.target_id
                for new in after.members
                for old in before.members
                if old.target_id == new.target_id and old.state != new.state
            }, story
            assert all(m.target_id in complete for m in after.members if m.state in (SERVING, LASTSRV)), story
            for node in successors(after, complete):
                if node not in seen:
                    seen.add(node)
                    frontier.append(node)
    assert any(all(state == SERVING for _, state in members) for members, _ in seen)
    assert any(LASTSRV in dict(members).values() for members, _ in seen)
    assert replicas == 1 or any(SYNCING in dict(members).values() for members, _ in seen)


def successors(chain: ChainView, complete: frozenset[int]) -> Iterator[Node]:
    """Writes go on where somebody serves, and who does not take part misses them; a sync may end, or not yet."""
    members = tuple((int(member.target_id), member.state) for member in chain.members)
    if any(state == SERVING for _, state in members):
        complete = frozenset(target for target, state in members if target in complete and state in (SERVING, SYNCING))
    yield members, complete
    for target, state in members:
        if state == SYNCING:
            yield members, complete | {target}
