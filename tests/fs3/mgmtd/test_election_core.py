"""The rules of the claim: each verdict by itself, then several candidates on one store, with random delays and deaths.

The walk checks what the picture in election_core.py promises while all clocks run at one rate: nobody takes over while
the holder may still answer, and once the faults stop somebody decides within a bounded time, and goes on doing so.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fs3.mgmtd.election_core import Candidate, Claim, Tenure, Verdict

E = 8.0
CLAIM = Claim(node_id=1, generation=10, address="a:1", epoch=3, beat=7)


def test_an_absent_claim_and_one_s_own_are_taken_at_once() -> None:
    candidate = Candidate(1, 11, E)
    assert candidate.look(None, 0.0) == Verdict.TAKE
    assert candidate.look(replace(CLAIM, generation=10), 0.0) == Verdict.TAKE, "an earlier run's"
    assert candidate.look(replace(CLAIM, generation=11), 0.0) == Verdict.TAKE, "this run's, from before it stood by"


def test_another_s_claim_is_taken_after_e_without_a_beat() -> None:
    candidate = Candidate(2, 10, E)
    assert candidate.look(CLAIM, 100.0) == Verdict.WAIT
    assert candidate.next_look_s(100.0) == 101.0
    assert candidate.look(CLAIM, 107.9) == Verdict.WAIT
    assert candidate.next_look_s(107.9) == 108.0
    assert candidate.look(replace(CLAIM, beat=8), 108.0) == Verdict.WAIT
    assert candidate.look(replace(CLAIM, beat=8), 115.9) == Verdict.WAIT
    assert candidate.look(replace(CLAIM, beat=8), 116.0) == Verdict.TAKE


def test_a_twin_that_was_started_later_is_told_from_a_clock_that_went_back() -> None:
    later = replace(CLAIM, generation=99)
    twin = Candidate(1, 10, E)
    assert twin.look(later, 0.0) == Verdict.WAIT
    assert twin.look(replace(later, beat=8), 1.0) == Verdict.TWIN
    restarted = Candidate(1, 10, E)
    assert restarted.look(later, 0.0) == Verdict.WAIT
    assert restarted.look(later, 8.0) == Verdict.TAKE, "the run before it is dead, whatever the wall clock says"


def test_a_tenure_counts_from_the_start_of_the_renewal() -> None:
    tenure = Tenure(E)
    assert not tenure.valid(0.0)
    tenure.renewed(10.0)
    assert tenure.valid(17.9) and not tenure.valid(18.0)
    assert tenure.next_renewal_s == 12.0
    tenure.renewed(9.0)
    assert tenure.valid(17.9), "an answer that comes late shortens nothing"


class Member:
    """One run of one mgmtd in the walk: it looks, takes over and renews as election.py does; messages travel."""

    def __init__(self, walk: Walk, number: int, generation: int) -> None:
        self.walk = walk
        self.number = number
        self.generation = generation
        self.alive = True
        self.candidate = Candidate(number, generation, E)
        self.tenure: Tenure | None = None
        self.epoch = 0

    def decides(self) -> bool:
        return self.alive and self.tenure is not None and self.tenure.valid(self.walk.now_s)

    def look(self) -> None:
        self.walk.ask(self, lambda: self.walk.claim, self.judge)

    def judge(self, claim: Claim | None) -> None:
        verdict = self.candidate.look(claim, self.walk.now_s)
        assert verdict != Verdict.TWIN
        if verdict == Verdict.TAKE:
            started_s = self.walk.now_s
            self.walk.ask(self, lambda: self.walk.take(self, claim), lambda epoch: self.taken(epoch, started_s))
        else:
            self.walk.at(self.candidate.next_look_s(self.walk.now_s), self, self.look)

    def taken(self, epoch: int, started_s: float) -> None:
        if epoch == 0:
            self.look()
            return
        self.epoch, self.tenure = epoch, Tenure(E)
        self.tenure.renewed(started_s)
        self.walk.at(self.tenure.next_renewal_s, self, self.renew)

    def renew(self) -> None:
        started_s = self.walk.now_s
        if self.tenure is None or not self.tenure.valid(started_s):
            self.tenure = None
            self.look()
        else:
            self.walk.ask(self, lambda: self.walk.renew(self), lambda held: self.renewed(held, started_s))

    def renewed(self, held: bool, started_s: float) -> None:
        assert self.tenure is not None
        if held:
            self.tenure.renewed(started_s)
            self.walk.at(self.tenure.next_renewal_s, self, self.renew)
        else:
            self.tenure = None
            self.look()


class Walk:
    """The store, the time, and the messages on their way."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now_s = 0.0
        self.claim: Claim | None = None
        self.epoch = 0
        self.calm = False
        self.members: list[Member] = []
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, time_s: float, member: Member, act: Callable[[], None]) -> None:
        entry = max(time_s, self.now_s), next(self._count), lambda: act() if member.alive else None
        heapq.heappush(self._due, entry)

    def ask(self, member: Member, store: Callable[[], Any], answer: Callable[[Any], None]) -> None:
        """Half of the slow ways are slow for what is asked: it arrives even if whoever asked has died."""

        def arrive() -> None:
            found = store()
            self.at(self.now_s + self.way_s(), member, lambda: answer(found))

        heapq.heappush(self._due, (self.now_s + self.way_s(), next(self._count), arrive))

    def way_s(self) -> float:
        slow = not self.calm and self.chance.random() < 0.1
        return self.chance.uniform(0, 2 * E if slow else E / 50)

    def take(self, member: Member, seen: Claim | None) -> int:
        if self.claim != seen:
            return 0
        rivals = [one.number for one in self.members if one.decides() and one is not member]
        assert not rivals, f"{member.number} takes over from {rivals} at {self.now_s}"
        self.epoch += 1
        self.claim = Claim(member.number, member.generation, "", self.epoch, 0)
        return self.epoch

    def renew(self, member: Member) -> bool:
        if self.claim is None or self.claim.epoch != member.epoch:
            return False
        self.claim = replace(self.claim, beat=self.claim.beat + 1)
        return True

    def run(self, until_s: float) -> None:
        while self._due[0][0] < until_s:
            self.now_s, _, act = heapq.heappop(self._due)
            act()
            assert sum(member.decides() for member in self.members) <= 1


@pytest.mark.parametrize("seed", range(60))
def test_nobody_takes_over_while_another_may_answer(seed: int) -> None:
    walk = Walk(seed)
    walk.members = [Member(walk, number, 1) for number in (1, 2, 3)]
    for member in walk.members:
        member.look()
    for generation in range(2, 30):
        walk.run(walk.now_s + walk.chance.uniform(0, 4 * E))
        place = walk.chance.randrange(3)
        walk.members[place].alive = False
        walk.members[place] = reborn = Member(walk, place + 1, generation)
        walk.at(walk.now_s + walk.chance.uniform(0, 4 * E), reborn, reborn.look)
    terms = walk.epoch
    walk.calm = True
    walk.run(walk.now_s + 8 * E)
    assert sum(member.decides() for member in walk.members) == 1
    assert terms > 5
    settled = walk.epoch
    walk.run(walk.now_s + 20 * E)
    assert walk.epoch == settled, "without faults the primary stays"
