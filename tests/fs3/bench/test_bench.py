"""What `fs3 bench` counts, and what jobs it takes."""

from __future__ import annotations

import random

import pytest

from fs3.bench.job import Job, Op
from fs3.bench.latency_core import Latencies
from fs3.errors import Invalid

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def test_percentiles_are_within_a_bucket_of_the_exact_ones() -> None:
    chance = random.Random(3)
    times = [int(chance.lognormvariate(13, 2)) + 1 for _ in range(20_000)]
    both = Latencies()
    for half in (times[::2], times[1::2]):
        part = Latencies()
        for ns in half:
            part.note(ns)
        both += part
    assert len(both) == len(times) and both.longest_ns == max(times) == both.percentile_ns(100)
    for percent in (1, 50, 90, 99, 99.9):
        exact = sorted(times)[-(-len(times) * int(percent * 10) // 1_000) - 1]
        assert exact <= both.percentile_ns(percent) * 1.000001 <= exact * 1.023, percent


def test_no_calls_and_absurd_ones() -> None:
    none = Latencies()
    assert none.percentile_ns(50) == 0 and len(none) == 0
    for ns in (0, 1, 1 << 62):
        none.note(ns)
    assert len(none) == 3 and none.percentile_ns(50) <= 2 and none.longest_ns == 1 << 62


def test_jobs_that_can_be_done() -> None:
    for job in (
        Job(Op.READ, 4 * MIB),
        Job(Op.RANDREAD, 4 * KIB, batch=256, clients=4, threads=8),
        Job(Op.WRITE, 0x100, batch=512),
        Job(Op.RANDRW, 512, read_share=0.5, data_bytes=MIB, file_bytes=MIB),
    ):
        job.check()
    assert Job(Op.READ, MIB, data_bytes=100 * MIB, file_bytes=64 * MIB).files == 2
    assert Job(Op.WRITE, MIB).files == 0


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (Job(Op.READ, 0), "at least one range"),
        (Job(Op.READ, MIB, batch=70_000), "too much"),
        (Job(Op.WRITE, 2 * GIB), "too much"),
        (Job(Op.READ, MIB, seconds=0), "more than 0"),
        (Job(Op.READ, MIB, clients=0), "more than 0"),
        (Job(Op.RANDRW, MIB, read_share=1.0), "share of reads"),
        (Job(Op.READ, MIB, file_bytes=KIB), "--file-size"),
        (Job(Op.READ, KIB, data_bytes=GIB, file_bytes=KIB), "too many"),
        (Job(Op.READ, MIB, threads=2_000), "--data"),
    ],
)
def test_jobs_that_cannot(job: Job, text: str) -> None:
    with pytest.raises(Invalid, match=text):
        job.check()
