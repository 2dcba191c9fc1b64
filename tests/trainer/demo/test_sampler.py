"""The sampler on a local folder: it notes every call, and tells when a byte is not the one that was written."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3_trainer.demo.sampler import READ_BYTES, READ_RANGES, WRITE_BYTES, Call, slowest_s, throughput
from fs3_trainer.demo.waiting import wait_until


def run_until(sampler, condition) -> None:
    sampler.start()
    wait_until(condition, what="enough calls", timeout_s=60)


def test_calls_are_noted_with_their_bytes(sampler):
    run_until(sampler, lambda: sampler.last_ended > 0)
    sampled = sampler.stop()
    assert not sampled.failures
    assert {call.bytes for call in sampled.reads} == {READ_RANGES * READ_BYTES}
    assert {call.bytes for call in sampled.writes} == {WRITE_BYTES}
    assert all(call.began <= call.ended for call in (*sampled.reads, *sampled.writes))
    assert sampler.lost_writes() == []


def test_a_wrong_byte_is_a_failure(sampler, files):
    for path, content in files.items():
        Path(path).write_bytes(bytes(len(content)))
    run_until(sampler, lambda: bool(sampler.failures))
    sampled = sampler.stop()
    assert "are not those that were written" in sampled.failures[0]
    assert not sampled.reads


def test_a_call_that_raises_is_a_failure(sampler, files):
    Path(next(iter(files))).unlink()
    run_until(sampler, lambda: bool(sampler.failures))
    assert "FileNotFoundError" in sampler.stop().failures[0]


@pytest.mark.parametrize("damage", ["removed", "changed"])
def test_a_lost_write_is_told(sampler, tmp_path, damage):
    run_until(sampler, lambda: sampler.last_ended > 0)
    sampler.stop()
    path = tmp_path / "scratch" / "000000"
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    (lost,) = sampler.lost_writes()
    assert "000000" in lost


times = st.floats(0, 100, allow_nan=False)
calls = st.lists(st.builds(lambda a, b, n: Call(min(a, b), max(a, b), n), times, times, st.integers(0, 2**30)))


@given(calls)
def test_throughput_neither_loses_nor_invents_bytes(calls):
    edges = np.linspace(-1, 101, 409)
    rates = throughput(tuple(calls), edges)
    assert (rates >= 0).all()
    assert float(rates @ np.diff(edges)) == pytest.approx(sum(call.bytes for call in calls))


def test_throughput_spreads_a_call_over_its_time():
    calls = (Call(1.0, 3.0, 400), Call(3.0, 3.5, 100))
    assert throughput(calls, np.arange(6.0)).tolist() == [0, 200, 200, 100, 0]


def test_the_slowest_call_shows_in_every_bin_it_was_in_flight():
    calls = (Call(0.2, 0.4, 1), Call(0.5, 2.5, 1), Call(3.9, 4.0, 1))
    found = slowest_s(calls, np.arange(6.0))
    assert np.allclose(found, [2.0, 2.0, 2.0, 0.1, np.nan], equal_nan=True)
