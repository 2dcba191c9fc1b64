"""What the write path of a storage process counts; every field becomes a Prometheus metric (figures.py)."""

from __future__ import annotations

from dataclasses import dataclass

from fs3.storage.ahead import AheadFigures
from fs3.storage.chain_state import ChainState, Duty
from fs3.storage.repair import RepairCounts
from fs3.storage.replication import Replication


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteStats:
    """Counters since the start, and gauges."""

    updates: int
    forwarded: int
    forward_failures: int
    settled: int
    recovered_chunks: int
    recovered_bytes: int
    removed_chunks: int
    recoveries: int
    forgotten: int
    notes: int
    reports: int
    damage_found: int
    repaired: int
    repair_failures: int
    ahead_pieces: int
    ahead_passed_on: int
    ahead_used: int
    ahead_missed: int
    ahead_given_back: int
    locked_chunks: int
    serving_targets: int
    syncing_targets: int


def stats_of(state: ChainState, replication: Replication, repairs: RepairCounts, ahead: AheadFigures) -> WriteStats:
    """The figures of now."""
    counts = replication.counts
    forwarded, failures = replication.sent
    duties = [role.duty for role in state.roles()]
    return WriteStats(
        updates=counts.updates,
        forwarded=forwarded,
        forward_failures=failures,
        settled=counts.settled,
        recovered_chunks=counts.recovered_chunks,
        recovered_bytes=counts.recovered_bytes,
        removed_chunks=counts.removed_chunks,
        recoveries=counts.recoveries,
        forgotten=counts.forgotten,
        notes=counts.notes,
        reports=repairs.reports,
        damage_found=repairs.confirmed,
        repaired=repairs.repaired,
        repair_failures=repairs.failed,
        ahead_pieces=ahead.pieces,
        ahead_passed_on=ahead.passed_on,
        ahead_used=ahead.used,
        ahead_missed=ahead.missed,
        ahead_given_back=ahead.given_back,
        locked_chunks=replication.locks.held(),
        serving_targets=duties.count(Duty.SERVE),
        syncing_targets=duties.count(Duty.SYNC),
    )
