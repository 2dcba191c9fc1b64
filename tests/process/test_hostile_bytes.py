"""Hostile bytes against a real cluster: a seeded part of what `make hostile` sends a million cases of.

See hostile_run.py for what is checked. The generator is checked too: the same seed must send the same bytes, and its
cases must get past the daemon's first checks, or the run would show nothing.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from fs3.cluster.local import LocalCluster
from fs3.storage.reassembly_core import FrameAssembler

sys.path.insert(0, str(Path(__file__).parent))

from hostile_frames import Role, Source, Target
from hostile_rpc import RpcSource
from hostile_run import Siege, besiege

CASES = 12_000
TARGET = Target(cluster_id="c", chains=((1, 3), (2, 5)), nodes=(1, 2), max_ranges=4_096, max_body_bytes=64 << 20)


def test_a_seed_says_everything() -> None:
    first, second, other = Source(TARGET, 5), Source(TARGET, 5), Source(TARGET, 6)
    streams = [first.attack(100).stream for _ in range(200)]
    assert streams == [second.attack(100).stream for _ in range(200)]
    assert streams != [other.attack(100).stream for _ in range(200)]
    calls, again = RpcSource("meta", 5), RpcSource("meta", 5)
    assert [(calls.raw(), calls.call()) for _ in range(100)] == [(again.raw(), again.call()) for _ in range(100)]


def test_wrong_frames_are_frames_to_the_end() -> None:
    """What is counted as answered must come out of the daemon's own assembler as so many frames."""
    source = Source(TARGET, 7)
    frames = connections = 0
    while connections < 300:
        attack = source.attack(60)
        if attack.fatal or attack.abrupt:
            continue
        connections += 1
        assembler = FrameAssembler(max_head_bytes=1 << 20, max_body_bytes=TARGET.max_body_bytes)
        left, got = memoryview(source.hello(Role.CLIENT) + attack.stream), 0
        while left:
            space = assembler.space()
            taken = min(len(space), len(left))
            space[:taken] = left[:taken]
            assembler.received(taken)
            left = left[taken:]
            while True:
                if assembler.next() is not None:
                    got += 1
                elif assembler.wanted_body:
                    assembler.give_body(memoryview(bytearray(assembler.wanted_body)))
                else:
                    break
        assert got == attack.cases + 1
        assert not assembler.in_frame
        frames += got
    assert frames > 5_000


@pytest.mark.timeout(240)
def test_hostile_bytes_do_no_harm() -> None:
    # Not pytest's folder: a Unix socket, which is attacked too, needs a short path.
    with (
        tempfile.TemporaryDirectory(prefix="fs3-") as folder,
        LocalCluster(Path(folder) / "c", nodes=2, replicas=2, port=0) as cluster,
    ):
        siege = Siege(cluster, seed=3)
        outcome = besiege(siege, CASES, 3, processes=2)
        siege.client.close()
    print("\n".join(outcome.lines))
    assert not outcome.problems
    assert outcome.tally.cases.total() >= CASES
    assert siege.witness.turns > 3
