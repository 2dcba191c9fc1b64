"""Bytes that a disk has lost, and that an update which comes again, or a replica that was away, has: they are used, and
nothing is acknowledged that is lost. Damage is done to files behind a replica's back."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import write_cluster as wc

from fs3.errors import Busy, Corrupt, Invalid, NoSpace, Unavailable
from fs3.transport.messages import Op

DATA = random.Random(6).randbytes(300_000)
CHUNK = (1 << 56 | 1, 0)
OTHER = (1 << 56 | 2, 0)


def lose(node: Any, at: int = 100) -> None:
    """Turn one bit of what the node has pending of CHUNK."""
    (version,) = [version for key, version in node.raw._published.pending.items() if key[1:] == CHUNK]
    file = node.raw.file(version.file)
    with Path(file.path).open("r+b") as handle:
        handle.seek(file.position(version.slot) + at)
        byte = handle.read(1)[0]
        handle.seek(-1, 1)
        handle.write(bytes([byte ^ 1]))


def down(updates: Any) -> Any:
    return [Busy("for now")] * len(updates)


def left_pending(cluster: Any, client: Any, op: Op, data: bytes, *, refuses: int, how: str = "stage") -> None:
    """An update, number 1, gets no further than to the replicas in front of node `refuses`."""
    engine = cluster.nodes[refuses].engine
    engine.refuse[how] = down
    with pytest.raises(Unavailable):
        client.attempt(1, CHUNK, op, data, 0, seq=1, attempt_s=0.2)
    engine.refuse.clear()


def mended(cluster: Any) -> None:
    cluster.wait(lambda: not any(node.raw.damaged() for node in cluster.nodes.values() if not node.dead), "repair")


@pytest.mark.parametrize("op", [Op.REPLACE, Op.WRITE])
def test_the_last_that_serves_commits_it_and_says_what_it_is(make: Callable[..., Any], op: Op) -> None:
    """Whoever sends the whole chunk again has brought its bytes."""
    cluster = make()
    first, second = wc.Client(cluster, 7), wc.Client(cluster, 8)
    left_pending(cluster, first, op, DATA, refuses=2)
    lose(cluster.nodes[1])
    cluster.kill(2, 3)
    cluster.notice()
    head = cluster.nodes[1].raw
    cluster.wait(lambda: head.damaged().get((101, *CHUNK)) == 1, "mark")
    if op is Op.REPLACE:
        assert first.write(1, CHUNK, op, DATA, seq=1) == (1, len(DATA))
        assert not head.damaged()
    else:
        with pytest.raises(Corrupt):
            first.attempt(1, CHUNK, op, DATA, 0, seq=1, attempt_s=5.0)
        assert second.write(1, CHUNK, Op.REPLACE, b"new") == (2, 3)
    cluster.restart(2, 3)
    cluster.wait_serving()
    cluster.check_replicas()


def alone_with_a_syncing_one(cluster: Any, client: Any, op: Op, data: bytes) -> None:
    """Update number 1 is pending at node 1, which serves; node 2 is SYNCING, and lacks it."""
    cluster.kill(2)
    cluster.notice()
    client.write(1, OTHER, Op.REPLACE, b"other", seq=0)
    cluster.nodes[1].port.hold_sync = True
    cluster.restart(2)
    cluster.wait(lambda: cluster.nodes[2].write_path.state.role(1).duty.name == "SYNC", "recovery")
    left_pending(cluster, client, op, data, refuses=2, how="stage_and_commit")
    assert cluster.nodes[1].raw.info(101, *CHUNK).pending
    lose(cluster.nodes[1])


@pytest.mark.parametrize("op", [Op.REPLACE, Op.WRITE])
def test_a_retry_brings_its_bytes_for_a_syncing_replica(make: Callable[..., Any], op: Op) -> None:
    cluster = make(nodes=2, replicas=2)
    client = wc.Client(cluster, 7)
    alone_with_a_syncing_one(cluster, client, op, DATA)
    assert client.attempt(1, CHUNK, op, DATA, 0, seq=1, attempt_s=5.0) == (1, len(DATA))
    cluster.nodes[1].port.hold_sync = False
    cluster.wait_serving()
    mended(cluster)
    cluster.check_replicas()
    assert cluster.contents(cluster.nodes[1], 1)[CHUNK] == (1, DATA)


def test_a_syncing_replica_keeps_the_good_bytes_that_it_has(make: Callable[..., Any]) -> None:
    """It had committed the version before it went away, and is sent what the other's disk has made of it."""
    cluster = make(nodes=2, replicas=2)
    client = wc.Client(cluster, 7)
    port, engine = cluster.nodes[1].port, cluster.nodes[1].engine
    port.delay = 1 << 30
    with pytest.raises(Unavailable):
        client.attempt(1, CHUNK, Op.REPLACE, DATA, 0, seq=1, attempt_s=0.2)
    port.late[0]()
    lose(cluster.nodes[1])

    def full(_staged: Any) -> Any:
        raise NoSpace("for now")

    engine.refuse["commit"] = full
    cluster.kill(2)
    port.delay = 0  # not before: its settling would meet the other one, which serves
    cluster.restart(2)
    cluster.wait(lambda: cluster.nodes[2].write_path.state.role(1).duty.name == "SYNC", "recovery")
    engine.refuse.clear()
    cluster.wait_serving()
    cluster.nodes[1].write_path.repair.look((101, *CHUNK))  # a recovery that finds both alike reads nothing
    mended(cluster)
    cluster.check_replicas()
    assert cluster.contents(cluster.nodes[1], 1)[CHUNK] == (1, DATA)


@pytest.mark.parametrize(
    ("op", "offset", "others"),
    [
        (Op.REPLACE, 0, [(Op.REPLACE, DATA[:-1], 0), (Op.REPLACE, b"", 0), (Op.REMOVE, b"", 0)]),
        (Op.WRITE, 50_000, [(Op.WRITE, DATA, 50_001), (Op.WRITE, DATA[:-1] + b"?", 50_000), (Op.TRUNCATE, b"", 9)]),
        (Op.TRUNCATE, 70_000, [(Op.TRUNCATE, b"", 70_001), (Op.REMOVE, b"", 0), (Op.WRITE, b"x", 0)]),
        (Op.REMOVE, 0, [(Op.REPLACE, DATA, 0), (Op.TRUNCATE, b"", 0)]),
    ],
)
def test_other_bytes_under_the_number_of_what_is_pending_reach_nobody(
    make: Callable[..., Any], op: Op, offset: int, others: list[tuple[Op, bytes, int]]
) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    wc.Client(cluster, 8).write(1, CHUNK, Op.REPLACE, bytes(100_000))
    data = DATA if op in (Op.REPLACE, Op.WRITE) else b""
    engine = cluster.nodes[2].engine
    engine.refuse["stage"] = down
    with pytest.raises(Unavailable):
        client.attempt(1, CHUNK, op, data, offset, seq=1, attempt_s=0.2)
    for other, what, where in others:
        with pytest.raises(Invalid):
            client.attempt(1, CHUNK, other, what, where, seq=1, attempt_s=0.2)
    engine.refuse.clear()
    version, _ = client.write(1, CHUNK, op, data, offset, seq=1)
    assert version == 2
    cluster.check_replicas()
    expected = {
        Op.REPLACE: (2, DATA),
        Op.WRITE: (2, bytes(50_000) + DATA),
        Op.TRUNCATE: (2, bytes(70_000)),
        Op.REMOVE: (-2, b""),
    }
    assert cluster.contents(cluster.nodes[3], 1)[CHUNK] == expected[op]
