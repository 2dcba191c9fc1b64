"""What the write path of a storage process counts; write_stats.py tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Counters of the write path; each is only ever added to."""

    updates: int = 0
    settled: int = 0
    recovered_chunks: int = 0
    recovered_bytes: int = 0
    removed_chunks: int = 0
    recoveries: int = 0
    forgotten: int = 0
    notes: int = 0
