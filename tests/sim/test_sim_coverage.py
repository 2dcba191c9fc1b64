"""Coverage counts what the cores decide, wherever they are called from, and knows what is missing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sim_coverage import (
    CHAIN,
    CLIENT,
    CRAQ,
    EXPECTED,
    FAULT,
    IMPOSSIBLE,
    PAIR,
    PHASE,
    RESYNC,
    Coverage,
    Spies,
    expect_faults,
    missing,
)
from sim_kernel import Event

from fs3 import errors
from fs3.client import read_path
from fs3.ids import ChainId, TargetId
from fs3.mgmtd import routing_core
from fs3.mgmtd.chain_core import ChainView, Member, Report
from fs3.routing import LocalState, TargetState
from fs3.storage import craq_core, resync_core, target_core
from fs3.storage.engine_api import ChunkInfo, DedupEntry
from fs3.storage.target_core import Phase, Place, Stand
from fs3.transport.messages import CHUNK_META, Op


@pytest.fixture
def seen() -> Counter[tuple[str, str]]:
    coverage = Coverage()
    with Spies(coverage):
        _decide_a_lot()
    before = coverage.counts.total()
    read_path.after_read(errors.Busy.code)
    assert coverage.counts.total() == before, "outside nothing is counted"
    return coverage.counts


def _decide_a_lot() -> None:
    members = tuple(
        Member(TargetId(at), state) for at, state in enumerate((TargetState.SERVING, TargetState.OFFLINE), start=1)
    )
    view = ChainView(ChainId(1), 4, members)
    routing_core.next_chain(view, {TargetId(1): Report(LocalState.UPTODATE, 4)})
    routing_core.next_chain(view, {TargetId(2): Report(LocalState.ONLINE, 4)})
    serving = target_core.next_stand(Stand(Phase.COMPLETE), Place(TargetState.SERVING, 4), ours=True, holds=True)
    target_core.next_stand(serving, Place(TargetState.SERVING, 5), ours=True, holds=True)
    target_core.prepared(Stand(Phase.CLEARING))
    here, there = np.zeros(2, dtype=CHUNK_META), np.zeros(2, dtype=CHUNK_META)
    here["lo"], there["lo"] = [1, 2], [2, 3]
    here["version"] = there["version"] = 1
    resync_core.compare(here, there)
    info = ChunkInfo(True, 3, 0, 10, 4)
    craq_core.head_decides(Op.PUT_IF_ABSENT, (1, 2, 3), info, None, None)
    craq_core.head_decides(Op.WRITE, (1, 2, 3), info, DedupEntry(3, 3, 10), None)
    craq_core.head_decides(Op.WRITE, (1, 2, 4), info, DedupEntry(3, 3, 10), None)
    craq_core.after_forward(errors.StaleRouting.code, first=True, whole=False)
    read_path.after_read(errors.Committing.code)


def test_decisions_are_counted_by_what_they_were(seen: Counter[tuple[str, str]]) -> None:
    assert dict(seen) == {
        (CHAIN, "uptodate SERVING -> SERVING"): 1,
        (CHAIN, "offline OFFLINE -> OFFLINE"): 1,
        (CHAIN, "offline SERVING, none serves -> LASTSRV"): 1,
        (CHAIN, "online OFFLINE -> WAITING"): 1,
        (PHASE, "COMPLETE (SERVING) -> SERVING"): 1,
        (PHASE, "CLEARING (work done) -> STALE"): 1,
        (RESYNC, "only here: transfer"): 1,
        (RESYNC, "same: nothing"): 1,
        (RESYNC, "only there: remove"): 1,
        (CRAQ, "head: nothing to do, PUT_IF_ABSENT"): 1,
        (CRAQ, "head: answered before"): 1,
        (CRAQ, "head: staged, WRITE"): 1,
        (CRAQ, "successor: StaleRouting -> RETRY"): 1,
        (CLIENT, "read: Committing -> TAIL"): 1,
    }
    known = {(group, what) for group, whats in EXPECTED.items() for what in whats}
    assert not seen.keys() - known, "what is counted and what is expected must have the same names"


def test_what_never_occurred_is_named_and_what_cannot_is_not(
    seen: Counter[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = missing(seen)
    assert (CHAIN, "uptodate SYNCING -> SERVING") in absent
    assert (RESYNC, "pending there: transfer") in absent
    assert (CHAIN, "uptodate SERVING -> SERVING") not in absent
    monkeypatch.setitem(IMPOSSIBLE, (CHAIN, "uptodate SYNCING -> SERVING"), "for the test")
    assert (CHAIN, "uptodate SYNCING -> SERVING") not in missing(seen)


def test_pairs_are_faults_that_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim_coverage.EXPECTED", dict(EXPECTED))
    monkeypatch.setattr("sim_coverage.IMPOSSIBLE", {})
    expect_faults(["crash", "slow disk", "partition"], {"crash + crash": "for the test"})
    coverage = Coverage()
    for kind, what in (
        ("fault", "crash"),
        ("fault", "partition"),
        ("heal", "crash"),
        ("fault", "slow disk"),
        ("fault", "slow disk"),
        ("heal", "partition"),
    ):
        coverage.hear(Event(0.0, "storage-1", kind, {"what": what}))
    assert {key: count for key, count in coverage.counts.items() if key[0] == FAULT} == {
        (FAULT, "crash"): 1,
        (FAULT, "partition"): 1,
        (FAULT, "slow disk"): 2,
    }
    absent = [what for group, what in missing(coverage.counts) if group == PAIR]
    assert absent == ["crash + slow disk", "partition + partition"]
