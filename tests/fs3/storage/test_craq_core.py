"""The decisions about one update, over every combination of what a replica can know.

Checked: a head never gives a version twice and never skips one; a replica accepts exactly the next version; a SYNCING
replica never goes back under one chain version; only a version that nobody behind can have is dropped. And a chain of
pure replicas, driven by these decisions through every order of crashes that two updates allow, agrees at the end.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest

from fs3 import errors
from fs3.errors import Conflict, Invalid, NoSpace, SessionEnded, StaleRouting
from fs3.storage import channel_core
from fs3.storage.channel_core import Seen, Standing, judge
from fs3.storage.craq_core import (
    After,
    Say,
    after_forward,
    check_flags,
    forget_decides,
    head_decides,
    note_decides,
    replica_decides,
    syncing_decides,
)
from fs3.storage.engine_api import ChunkInfo, DedupEntry, DedupRecord
from fs3.transport.messages import Op, UpdateFlag

INFOS = [
    ChunkInfo(found, version, pending, 10 if found else 0, chain_version)
    for found, version in ((False, 0), (False, 4), (True, 4))
    for pending in (0, version + 1)
    for chain_version in (2, 3)
]


RESULTS = [None, DedupEntry(4, 3, 7), DedupEntry(5, 4, 7), DedupEntry(6, 4, 7)]


@pytest.mark.parametrize("op", [Op.WRITE, Op.REPLACE, Op.REMOVE, Op.PUT_IF_ABSENT, Op.TRUNCATE])
@pytest.mark.parametrize("standing", list(Standing))
def test_head(op: Op, standing: Standing) -> None:
    identities = [(1, 2, 5), (1, 2, 4), (9, 2, 5)]
    for info, result, pending, retry in itertools.product(INFOS, RESULTS, identities, (False, True)):
        asked = pending if info.pending else None
        decision = head_decides(op, (1, 2, 5), info, result, asked, standing=standing, retry=retry)
        if result is not None and result.seq == 5:
            assert (decision.say, decision.version, decision.length, decision.error) == (Say.ANSWER, 4, 7, None)
        elif result is not None and result.seq > 5:
            assert decision.say is Say.ANSWER and isinstance(decision.error, Invalid)
        elif info.pending and pending == (1, 2, 5):
            assert (decision.say, decision.version) == (Say.RESUME, info.pending), "whatever has become of the client"
        elif standing is not Standing.LIVE:
            refusal = SessionEnded if standing is Standing.ENDED else StaleRouting
            assert decision.say is Say.ANSWER and type(decision.error) is refusal
        elif info.pending:
            assert decision.say is Say.SETTLE
        elif op is Op.PUT_IF_ABSENT and info.found:
            assert (decision.say, decision.version, decision.length) == (Say.PASS if retry else Say.ANSWER, 0, 10)
        elif op is Op.REMOVE and not info.found:
            assert (decision.say, decision.version) == (Say.PASS if retry else Say.ANSWER, info.version)
            assert (decision.length, decision.error) == (0, None)
        else:
            assert (decision.say, decision.version) == (Say.STAGE, info.version + 1)


def test_a_client_without_an_identity_is_never_taken_for_another() -> None:
    info = ChunkInfo(True, 4, 5, 10, 1)
    nobody = (0, 0, 0)
    assert head_decides(Op.WRITE, nobody, info, DedupEntry(0, 1, 1), nobody).say is Say.SETTLE
    absent = ChunkInfo(False, 0, 0, 0, 0)
    assert head_decides(Op.REMOVE, nobody, absent, None, None, retry=True).say is Say.ANSWER, "nothing to be known by"
    assert head_decides(Op.WRITE, nobody, absent, None, None, standing=Standing.ENDED).say is Say.STAGE


@pytest.mark.parametrize("info", INFOS)
@pytest.mark.parametrize("fresh", [False, True])
def test_replica(info: ChunkInfo, fresh: bool) -> None:
    for version, pending in itertools.product(range(8), [(1, 2, 5), (9, 2, 5)]):
        asked = pending if info.pending else None
        decision = replica_decides(1, 2, version, info, fresh=fresh, identity=(1, 2, 5), pending=asked)
        if version == 0:
            assert isinstance(decision.error, Invalid)
        elif version <= info.version:
            assert (decision.say, decision.version, decision.error) == (Say.ANSWER, info.version, None)
        elif info.pending:
            if version == info.pending and pending == (1, 2, 5):
                assert (decision.say, decision.version) == (Say.RESUME, version)
            else:
                assert isinstance(decision.error, Conflict)
        elif info.found:
            assert (decision.say is Say.STAGE) == (version == info.version + 1 and not fresh)
        else:
            assert (decision.say is Say.STAGE) == fresh, (
                "any version above a tombstone's, if the sender lacks the chunk too"
            )
        if decision.say is Say.STAGE:
            assert decision.version == version and decision.error is None


@pytest.mark.parametrize("info", INFOS)
@pytest.mark.parametrize("version", range(1, 8))
def test_forget(info: ChunkInfo, version: int) -> None:
    decision = forget_decides(1, 2, version, info)
    if info.pending or info.found or info.version not in (0, version):
        assert isinstance(decision.error, Conflict)
    else:
        assert (decision.say, decision.version, decision.error) == (Say.PASS, version, None)


def test_note() -> None:
    assert note_decides((1, 2, 5), 0, 9, None) == note_decides((1, 2, 5), 0, 9, DedupEntry(4, 1, 1))
    assert note_decides((1, 2, 5), 0, 9, None).say is Say.PASS
    for known in (DedupEntry(5, 0, 9), DedupEntry(6, 3, 3)):
        assert note_decides((1, 2, 5), 0, 9, known).say is Say.ANSWER, "never over a newer result"


@pytest.mark.parametrize("info", INFOS)
@pytest.mark.parametrize("version", range(8))
def test_syncing(info: ChunkInfo, version: int) -> None:
    decision = syncing_decides(1, 2, version, 3, info)
    if info.chain_version < 3 or info.version == 0 or version > info.version:
        assert (decision.say, decision.version) == (Say.STAGE, version), "what is older than this recovery counts not"
    elif version == info.version:
        assert decision.say is Say.ANSWER and decision.error is None
    else:
        assert isinstance(decision.error, Conflict)


def test_after_a_forward() -> None:
    for code, first, whole in itertools.product(errors.BY_CODE, (False, True), (False, True)):
        after = after_forward(code, first=first, whole=whole)
        if after is After.ABORT:
            assert first and not errors.BY_CODE[code].retryable
        if errors.BY_CODE[code].retryable:
            assert after in (After.RETRY, After.KEEP)
    assert after_forward(0, first=True, whole=True) is After.COMMIT
    assert after_forward(NoSpace.code, first=True, whole=False) is After.ABORT
    assert after_forward(NoSpace.code, first=False, whole=False) is After.KEEP
    assert after_forward(errors.Corrupt.code, first=True, whole=False) is After.WHOLE
    assert after_forward(errors.Corrupt.code, first=False, whole=True) is After.KEEP


@pytest.mark.parametrize("op", list(Op))
@pytest.mark.parametrize("flags", [UpdateFlag.NONE, *UpdateFlag, UpdateFlag.SYNC_REPLACE | UpdateFlag.DAMAGED])
def test_flags(op: Op, flags: UpdateFlag) -> None:
    plain = flags & ~(UpdateFlag.OS_DURABILITY | UpdateFlag.SYNC_RESULT)
    if op in (Op.REPLACE, Op.PUT_IF_ABSENT):
        plain &= ~UpdateFlag.AHEAD  # it makes no difference to these, and does not fit the others
    clients = op not in (Op.FORGET, Op.NOTE) and not plain & ~UpdateFlag.RETRY
    assert (check_flags(op, flags, from_client=True, syncing=False) is None) == clients
    fits = not plain & ~(UpdateFlag.RETRY | UpdateFlag.FRESH) and op is not Op.PUT_IF_ABSENT
    assert (check_flags(op, flags, from_client=False, syncing=False) is None) == fits
    whole = flags == UpdateFlag.SYNC_REMOVE or (UpdateFlag.SYNC_REPLACE in flags and op is Op.REPLACE)
    notes = op is Op.NOTE and not plain & ~(UpdateFlag.RETRY | UpdateFlag.FRESH)
    syncing = notes or (whole and op is not Op.PUT_IF_ABSENT)
    assert (check_flags(op, flags, from_client=False, syncing=True) is None) == syncing


def test_channels() -> None:
    entry = DedupEntry(5, 1, 1)
    assert [judge(entry, 1, seq) for seq in (4, 5, 6)] == [Seen.LATE, Seen.REPEATED, Seen.NEW]
    assert judge(None, 1, 1) is Seen.NEW and judge(entry, 0, 5) is Seen.NEW
    arriving = [DedupRecord(1, channel, DedupEntry(5, 1, 1)) for channel in range(4)]
    known = {(1, 0): DedupEntry(4, 1, 1), (1, 1): DedupEntry(5, 9, 9), (1, 2): DedupEntry(6, 1, 1)}
    assert [record.channel for record in channel_core.newer_results(known, arriving)] == [0, 3]


@dataclass
class Replica:
    """One chunk at one replica: versions as (number, identity), results by identity."""

    committed: int = 0
    by: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    pending: tuple[int, tuple[int, int, int]] | None = None
    results: dict[tuple[int, int], DedupEntry] = field(default_factory=dict)

    def info(self) -> ChunkInfo:
        return ChunkInfo(self.committed > 0, self.committed, self.pending[0] if self.pending else 0, 1, 1)

    def pending_by(self) -> tuple[int, int, int] | None:
        return self.pending[1] if self.pending else None

    def commit(self) -> None:
        assert self.pending is not None
        version, identity = self.pending
        self.committed, self.pending = version, None
        self.by[version] = identity
        self.results[identity[:2]] = DedupEntry(identity[2], version, 1)


class Died(Exception):
    """The chosen replica stops before the chosen step."""


class Chain:
    """Replicas that act by the core's decisions; `victim` dies before step `at`, the rest goes on without it."""

    def __init__(self, victim: int, at: int) -> None:
        self.replicas = [Replica() for _ in range(3)]
        self.alive = [0, 1, 2]
        self.victim, self.at, self.count = victim, at, 0

    def step(self, place: int) -> None:
        if place == self.victim and place in self.alive:
            if self.count == self.at:
                self.alive.remove(place)
                raise Died
            self.count += 1

    def write(self, identity: tuple[int, int, int]) -> DedupEntry:
        while True:
            head = self.alive[0]
            try:
                return self._head(head, identity)
            except Died:
                continue

    def _head(self, place: int, identity: tuple[int, int, int]) -> DedupEntry:
        one = self.replicas[place]
        while True:
            self.step(place)
            pending = one.pending[1] if one.pending else None
            decision = head_decides(Op.WRITE, identity, one.info(), one.results.get(identity[:2]), pending)
            if decision.say is Say.ANSWER:
                assert decision.error is None
                return one.results[identity[:2]]
            if decision.say is Say.STAGE:
                one.pending = decision.version, identity
            self._finish(place)

    def _replica(self, place: int, version: int, identity: tuple[int, int, int]) -> None:
        one = self.replicas[place]
        self.step(place)
        fresh = one.committed == 0  # the chunk is never removed here
        decision = replica_decides(1, 1, version, one.info(), fresh=fresh, identity=identity, pending=one.pending_by())
        assert decision.error is None
        if decision.say is Say.STAGE:
            one.pending = version, identity
        if decision.say is not Say.ANSWER:
            assert one.pending == (version, identity), "the same version, of another update"
            self._finish(place)
        self.step(place)

    def _finish(self, place: int) -> None:
        one = self.replicas[place]
        assert one.pending is not None
        while True:
            self.step(place)
            behind = [other for other in self.alive if other > place]
            if not behind:
                break
            try:
                self._replica(behind[0], *one.pending)
                break
            except Died:
                if place not in self.alive:
                    raise
        self.step(place)
        one.commit()
        self.step(place)


@pytest.mark.parametrize("victim", range(3))
def test_a_chain_of_pure_replicas_applies_each_update_once_whoever_dies_when(victim: int) -> None:
    at = 0
    while True:
        chain = Chain(victim, at)
        assert chain.write((1, 1, 1)).version == 1
        assert chain.write((2, 1, 1)).version == 2
        assert chain.write((1, 1, 1)).version == 1, "repeated"
        assert chain.write((1, 1, 2)).version == 3
        left = [chain.replicas[place] for place in chain.alive]
        assert all(one.by == {1: (1, 1, 1), 2: (2, 1, 1), 3: (1, 1, 2)} and one.pending is None for one in left)
        assert all(one.results == left[0].results for one in left)
        if len(left) == 3:
            break
        at += 1
    assert at > 8
