"""Damaged chunks in a chain: looked at, marked, given their bytes back by another replica; never by a wrong one, and
never so that a chunk is blocked. Damage is done to a replica's files behind its back."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import write_cluster as wc

from fs3 import checksum
from fs3.clock import deadline_after
from fs3.errors import Busy, Corrupt, NoSpace, NotFound, Unavailable
from fs3.storage.blocks import HEADER_BYTES
from fs3.transport.frame_core import Header, Kind
from fs3.transport.messages import RANGE, Op

DATA = random.Random(5).randbytes(600_000)
CHUNK = (1 << 56 | 1, 0)


def flip(node: Any, target_id: int, chunk: tuple[int, int], at: int, what: str = "data") -> None:
    """Turn one bit of a chunk's data or of its fine sums."""
    where = node.raw.lookup(
        np.array([target_id], np.uint32), np.array([chunk[0]], np.uint64), np.array([chunk[1]], np.uint64)
    )
    file, position = node.raw.file(int(where.file[0])), int(where.position[0])
    begin = position if what == "data" else HEADER_BYTES + 4 * file.fine_at(position)
    with Path(file.path).open("r+b") as handle:
        handle.seek(begin + at)
        byte = handle.read(1)[0]
        handle.seek(begin + at)
        handle.write(bytes([byte ^ 1]))


def report(node: Any, chunk: tuple[int, int]) -> int:
    """What a daemon answers to a client's report of one chunk of chain 1."""
    ranges = np.zeros(1, dtype=RANGE)
    ranges["hi"], ranges["lo"], ranges["chain"] = *chunk, 1
    return int(node.write_path.report(ranges)["status"][0])


def mended(cluster: Any, node_id: int) -> None:
    cluster.wait(lambda: not cluster.nodes[node_id].raw.damaged(), f"repair on node {node_id}")


@pytest.mark.parametrize("node_id", [1, 2, 3])
@pytest.mark.parametrize("what", ["data", "sums"])
def test_a_reported_chunk_is_repaired_in_place(make: Callable[..., Any], node_id: int, what: str) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    version, _ = client.write(1, CHUNK, Op.REPLACE, DATA)
    node = cluster.nodes[node_id]
    assert report(node, CHUNK) == 0
    flip(node, 100 + node_id, CHUNK, 40, what)
    assert report(node, CHUNK) == Corrupt.code
    mended(cluster, node_id)
    assert report(node, CHUNK) == 0
    cluster.check_replicas()
    stats = node.write_path.stats()
    assert (stats.reports, stats.damage_found, stats.repaired) == (3, 1, 1)
    assert node.raw.info(100 + node_id, *CHUNK)[:3] == (True, version, 0)
    # Where only the sums were damaged, no bytes came from elsewhere.
    assert client.write(1, CHUNK, Op.WRITE, b"and writes go on", 77) == (version + 1, len(DATA))
    cluster.check_replicas()


def test_a_disk_that_takes_no_repair_does_not_keep_others_from_theirs(make: Callable[..., Any]) -> None:
    """Both targets are of one daemon. A full disk may stay full for long."""
    cluster = make(chains=2)
    client = wc.Client(cluster, 7)
    node = cluster.nodes[2]
    mine = [role.target_id for role in sorted(node.write_path.state.roles(), key=lambda role: role.chain_id)]
    stuck = node.write_path.state.local()[0]

    def full(target_id: int, *_: Any) -> None:
        if target_id == stuck:
            raise NoSpace("the disk is full")

    node.engine.refuse["repair"] = full
    for chain_id, target_id in enumerate(mine, start=1):
        client.write(chain_id, (CHUNK[0], chain_id), Op.REPLACE, DATA)
        flip(node, target_id, (CHUNK[0], chain_id), 40)
        assert node.raw.mark_damaged(target_id, CHUNK[0], chain_id, 1)
    for chain_id, target_id in enumerate(mine, start=1):
        node.write_path.repair.suspect((target_id, CHUNK[0], chain_id))
    cluster.wait(lambda: {key[0] for key in node.raw.damaged()} == {stuck}, "repair of the other")
    cluster.wait(lambda: node.write_path.repair.why(next(iter(node.raw.damaged()))) == "the disk is full", "a reason")
    node.engine.refuse.clear()
    node.write_path.repair.suspect(next(iter(node.raw.damaged())))
    mended(cluster, 2)
    cluster.check_replicas()


def test_a_damaged_source_is_passed_over(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    flip(cluster.nodes[1], 101, CHUNK, 0)
    flip(cluster.nodes[2], 102, CHUNK, 500_000)
    assert report(cluster.nodes[2], CHUNK) == Corrupt.code
    mended(cluster, 2)
    assert report(cluster.nodes[1], CHUNK) == Corrupt.code
    mended(cluster, 1)
    cluster.check_replicas()


def test_without_a_good_copy_a_chunk_stays_marked_until_it_is_written(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    for node_id, node in cluster.nodes.items():
        flip(node, 100 + node_id, CHUNK, 10_000 * node_id)
    for node in cluster.nodes.values():
        assert report(node, CHUNK) == Corrupt.code
    for node_id, node in cluster.nodes.items():
        cluster.wait(lambda node=node: node.write_path.stats().repair_failures > 0, "an attempt")
        assert node.raw.damaged() == {(100 + node_id, *CHUNK): 1}
    with pytest.raises(Corrupt):  # it would keep damaged bytes
        client.write(1, CHUNK, Op.WRITE, b"part", 5)
    assert client.write(1, CHUNK, Op.REPLACE, b"from the source")[1] == 15
    assert not any(node.raw.damaged() for node in cluster.nodes.values())
    cluster.check_replicas()


def test_what_is_lost_is_as_good_as_absent_to_a_put_if_absent(make: Callable[..., Any]) -> None:
    """A cache page whose bytes are gone on every replica can be stored again."""
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    assert client.write(1, CHUNK, Op.PUT_IF_ABSENT, b"again") == (0, len(DATA))
    for node_id, node in cluster.nodes.items():
        flip(node, 100 + node_id, CHUNK, 10_000 * node_id)
    for node in cluster.nodes.values():
        assert report(node, CHUNK) == Corrupt.code
    assert client.write(1, CHUNK, Op.PUT_IF_ABSENT, b"again") == (2, 5)
    assert not any(node.raw.damaged() for node in cluster.nodes.values())
    cluster.check_replicas()


def test_what_one_who_is_away_may_have_is_not_absent_to_a_put_if_absent(make: Callable[..., Any]) -> None:
    cluster = make(replicas=2, nodes=2)
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    cluster.kill(2)
    cluster.notice()
    flip(cluster.nodes[1], 101, CHUNK, 300_000)
    assert report(cluster.nodes[1], CHUNK) == Corrupt.code
    assert client.write(1, CHUNK, Op.PUT_IF_ABSENT, b"again") == (0, len(DATA))
    cluster.restart(2)
    cluster.wait_serving()
    mended(cluster, 1)
    assert bytes(cluster.nodes[1].raw.read_chunk(101, *CHUNK).data) == DATA
    cluster.check_replicas()


def test_what_only_the_head_has_lost_is_not_absent_to_a_put_if_absent(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    flip(cluster.nodes[1], 101, CHUNK, 300_000)
    assert cluster.nodes[1].raw.mark_damaged(101, *CHUNK, 1)
    assert client.write(1, CHUNK, Op.PUT_IF_ABSENT, b"again") == (0, len(DATA))
    assert bytes(cluster.nodes[1].raw.read_chunk(101, *CHUNK).data) == DATA
    cluster.check_replicas()


def test_what_others_may_have_is_not_absent_to_a_put_if_absent(make: Callable[..., Any]) -> None:
    """Nobody can be asked at the moment: that is no word from them that the bytes are lost."""
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    cluster.nodes[1].port.unheard = 1_000
    flip(cluster.nodes[1], 101, CHUNK, 300_000)
    assert report(cluster.nodes[1], CHUNK) == Corrupt.code
    assert client.write(1, CHUNK, Op.PUT_IF_ABSENT, b"again") == (0, len(DATA))
    cluster.nodes[1].port.unheard = 0
    mended(cluster, 1)
    assert bytes(cluster.nodes[1].raw.read_chunk(101, *CHUNK).data) == DATA
    cluster.check_replicas()


def test_an_update_that_comes_again_is_not_said_to_be_lost_while_others_may_have_it(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    assert client.write(1, CHUNK, Op.WRITE, b"part", 5, seq=2) == (2, len(DATA))
    cluster.nodes[1].port.unheard = 1_000
    flip(cluster.nodes[1], 101, CHUNK, 300_000)
    assert report(cluster.nodes[1], CHUNK) == Corrupt.code
    with pytest.raises(Unavailable):
        client.attempt(1, CHUNK, Op.WRITE, b"part", 5, seq=2, attempt_s=0.5)
    cluster.nodes[1].port.unheard = 0
    assert client.write(1, CHUNK, Op.WRITE, b"part", 5, seq=2) == (2, len(DATA))
    mended(cluster, 1)
    cluster.check_replicas()


def test_reports_of_what_is_not_here_change_nothing(make: Callable[..., Any]) -> None:
    cluster = make()
    assert report(cluster.nodes[1], (1, 99)) == NotFound.code
    ranges = np.zeros(1, dtype=RANGE)
    ranges["chain"] = 55
    assert cluster.nodes[1].write_path.report(ranges)["status"][0] == NotFound.code
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    client.write(1, CHUNK, Op.REMOVE)
    assert report(cluster.nodes[1], CHUNK) == NotFound.code
    assert not cluster.nodes[1].raw.damaged()


@pytest.mark.parametrize("node_id", [2, 3])
def test_a_successor_that_cannot_read_its_old_version_gets_the_whole_chunk(
    make: Callable[..., Any], node_id: int
) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    flip(cluster.nodes[node_id], 100 + node_id, CHUNK, 300_000)
    assert client.write(1, CHUNK, Op.WRITE, b"part", 5) == (2, len(DATA))
    cluster.check_replicas()


@pytest.mark.parametrize("op", [Op.WRITE, Op.TRUNCATE])
def test_a_head_that_cannot_read_its_old_version_repairs_it_first(make: Callable[..., Any], op: Op) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    flip(cluster.nodes[1], 101, CHUNK, 300_000)
    if op is Op.WRITE:
        assert client.write(1, CHUNK, op, b"part", 5) == (2, len(DATA))
        expected = DATA[:5] + b"part" + DATA[9:]
    else:
        assert client.write(1, CHUNK, op, b"", 400_000) == (2, 400_000)
        expected = DATA[:400_000]
    assert cluster.nodes[1].write_path.stats().repaired == 1
    assert bytes(cluster.nodes[1].raw.read_chunk(101, *CHUNK).data) == expected
    cluster.check_replicas()


def test_bytes_that_fail_the_writers_sums_are_not_taken_for_damage(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    records, sums = wc.update_record(1, cluster.routing.chain(1).version, CHUNK, Op.WRITE, b"good", 5, client=9, seq=1)
    header = Header(Kind.WRITE, 1)
    results = cluster.nodes[1].write_path.update(
        header, records, sums, memoryview(b"evil"), 0, deadline_s=deadline_after(10)
    )
    assert results["status"][0] == Corrupt.code
    assert cluster.nodes[1].write_path.stats().damage_found == 0
    assert client.write(1, CHUNK, Op.WRITE, b"good", 5) == (2, len(DATA))
    cluster.check_replicas()


def grown_back(cluster: Any, lost: int) -> None:
    cluster.restart(lost, emptied=True)
    cluster.wait_serving()


def test_recovery_repairs_its_source_first(make: Callable[..., Any]) -> None:
    """Target 103 is refilled by 102, whose chunk is damaged and unknown to be; 101 has it."""
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    cluster.kill(3)
    cluster.notice()
    assert cluster.serving(1)[-1] is cluster.nodes[2]
    flip(cluster.nodes[2], 102, CHUNK, 1)
    grown_back(cluster, 3)
    assert not any(node.raw.damaged() for node in cluster.nodes.values())
    cluster.check_replicas()


def test_recovery_waits_for_one_who_may_have_a_good_copy(make: Callable[..., Any]) -> None:
    """101 has the bytes that 102 lost, and has not heard of the chain of which 103 is again; once 103 serves, 101 may
    be drained, and the last good copy with it. (Found by the simulator.)"""
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    cluster.kill(3)
    cluster.notice()
    flip(cluster.nodes[2], 102, CHUNK, 1)
    cluster.nodes[2].port.unheard = 3
    grown_back(cluster, 3)
    assert cluster.nodes[2].port.unheard == 0
    assert bytes(cluster.nodes[3].raw.read_chunk(103, *CHUNK).data) == DATA
    assert not any(node.raw.damaged() for node in cluster.nodes.values())
    cluster.check_replicas()


def test_recovery_without_a_good_copy_ends_and_is_honest(make: Callable[..., Any]) -> None:
    cluster = make(replicas=2, nodes=2)
    client = wc.Client(cluster, 7)
    other = (1 << 56 | 1, 1)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    client.write(1, other, Op.REPLACE, b"good")
    cluster.kill(2)
    cluster.notice()
    flip(cluster.nodes[1], 101, CHUNK, 1)
    grown_back(cluster, 2)
    assert cluster.nodes[1].raw.damaged() == {(101, *CHUNK): 1}
    assert cluster.nodes[2].raw.damaged() == {(102, *CHUNK): 1}
    assert bytes(cluster.nodes[2].raw.read_chunk(102, *other).data) == b"good"
    # Nothing is copied again: both sides know.
    copied = cluster.nodes[1].write_path.stats().recovered_chunks
    cluster.kill(2)
    cluster.restart(2)
    cluster.wait_serving()
    assert cluster.nodes[2].raw.damaged() == {(102, *CHUNK): 1}
    assert cluster.nodes[1].write_path.stats().recovered_chunks == copied
    # And a good copy heals all.
    for node, target_id in ((cluster.nodes[1], 101), (cluster.nodes[2], 102)):
        node.raw.repair(target_id, *CHUNK, 1, memoryview(DATA), checksum.fine_sums(memoryview(DATA)))
    cluster.check_replicas()


def test_what_one_who_comes_back_has_pending_may_be_the_last_good_copy(make: Callable[..., Any]) -> None:
    """Only the last replica's commit is synced: after a power loss the head has pending what both had committed."""
    cluster = make(replicas=2, nodes=2)
    client = wc.Client(cluster, 7)

    def forgets(_staged: Any) -> Any:
        raise Unavailable("as if a power loss had taken its record")

    cluster.nodes[1].engine.refuse["commit"] = forgets
    with pytest.raises(Unavailable):
        client.attempt(1, CHUNK, Op.REPLACE, DATA, 0, seq=1, attempt_s=0.2)
    assert cluster.nodes[2].raw.info(102, *CHUNK).version == 1 and cluster.nodes[1].raw.info(101, *CHUNK).pending == 1
    cluster.kill(1)
    cluster.notice()
    flip(cluster.nodes[2], 102, CHUNK, 1)
    cluster.restart(1)
    cluster.wait_serving()
    cluster.wait(lambda: not any(node.raw.damaged() for node in cluster.nodes.values()), "repair")
    cluster.check_replicas()
    for node in cluster.nodes.values():
        assert cluster.contents(node, 1)[CHUNK] == (1, DATA)


def test_recovery_gives_a_damaged_replica_its_bytes(make: Callable[..., Any]) -> None:
    """Same version, same sums in the records: without the mark recovery would see no difference."""
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    cluster.kill(3)
    cluster.notice()
    node = cluster.nodes[3]
    flip(node, 103, CHUNK, 1)
    assert node.raw.mark_damaged(103, *CHUNK, 1)
    cluster.restart(3)
    cluster.wait_serving()
    assert not cluster.nodes[3].raw.damaged()
    cluster.check_replicas()
    assert sum(one.write_path.stats().recovered_bytes for one in cluster.nodes.values()) == len(DATA)


def flip_pending(node: Any, target_id: int, chunk: tuple[int, int], at: int) -> None:
    """Turn one bit of the bytes of a chunk's pending version."""
    version = node.raw._published.pending[(target_id, *chunk)]
    file = node.raw.file(version.file)
    with Path(file.path).open("r+b") as handle:
        handle.seek(file.position(version.slot) + at)
        byte = handle.read(1)[0]
        handle.seek(file.position(version.slot) + at)
        handle.write(bytes([byte ^ 1]))


def left_pending(cluster: Any, client: Any, node_id: int, data: bytes, seq: int) -> None:
    """An update that `node_id` has pending, and its successor refuses for now; its client gives up."""
    behind = cluster.nodes[node_id + 1].engine
    for name in ("stage", "stage_and_commit"):
        behind.refuse[name] = lambda updates: [Busy("for now")] * len(updates)
    with pytest.raises(Unavailable):
        client.attempt(1, CHUNK, Op.REPLACE, data, 0, seq=seq, attempt_s=0.3)
    assert cluster.nodes[node_id].raw.info(100 + node_id, *CHUNK).pending == seq


@pytest.mark.parametrize("node_id", [1, 2])
def test_a_pending_version_that_lost_its_bytes_blocks_nobody(make: Callable[..., Any], node_id: int) -> None:
    """Its replica leaves the chain to those behind, who lack it, and comes back as they are."""
    cluster = make()
    client, other = wc.Client(cluster, 7), wc.Client(cluster, 8)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    left_pending(cluster, client, node_id, b"new" * 1_000, 2)
    flip_pending(cluster.nodes[node_id], 100 + node_id, CHUNK, 7)
    cluster.nodes[node_id + 1].engine.refuse.clear()
    version, length = other.write(1, CHUNK, Op.WRITE, b"other", 10)
    assert length in (len(DATA), 3_000)  # in front of node 2 there is a head that still has the bytes
    assert client.write(1, CHUNK, Op.REPLACE, b"new" * 1_000, seq=2)[0] in (version - 1, version + 1)
    cluster.wait_serving()
    assert not any(node.raw.damaged() for node in cluster.nodes.values())
    cluster.check_replicas()


def test_a_pending_version_that_lost_its_bytes_and_is_committed_behind_is_kept(make: Callable[..., Any]) -> None:
    """The frame arrived and only its answer was lost; so whoever reads the tail has seen it."""
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    port = cluster.nodes[1].port
    port.delay = 1 << 30
    with pytest.raises(Unavailable):
        client.attempt(1, CHUNK, Op.REPLACE, b"new" * 1_000, 0, seq=2, attempt_s=0.3)
    flip_pending(cluster.nodes[1], 101, CHUNK, 7)
    port.late[0]()
    assert cluster.contents(cluster.nodes[3], 1)[CHUNK] == (2, b"new" * 1_000)
    port.delay = 0
    assert wc.Client(cluster, 8).write(1, CHUNK, Op.WRITE, b"W", 0) == (3, 3_000)
    cluster.wait_serving()
    assert cluster.contents(cluster.nodes[1], 1)[CHUNK] == (3, b"Wew" + b"new" * 999)
    cluster.check_replicas()


@pytest.mark.parametrize("syncing", [False, True])
def test_a_pending_version_that_lost_its_bytes_at_the_last_that_serves_is_told_so(
    make: Callable[..., Any], syncing: bool
) -> None:
    """Somebody who is gone may have shown it to readers, so it is not dropped; its bytes are nobody's any more."""
    cluster = make(replicas=2, nodes=2)
    client = wc.Client(cluster, 7)
    client.write(1, CHUNK, Op.REPLACE, DATA)
    port = cluster.nodes[1].port
    if syncing:
        cluster.kill(2)
        cluster.notice()
        port.hold_sync = True
        cluster.restart(2)
        cluster.wait(lambda: [one.state.name for one in cluster.routing.targets.values()][1] == "SYNCING", "recovery")
    port.delay = 1 << 30
    with pytest.raises(Unavailable):
        client.attempt(1, CHUNK, Op.REPLACE, b"new" * 1_000, 0, seq=2, attempt_s=0.3)
    flip_pending(cluster.nodes[1], 101, CHUNK, 7)
    if not syncing:
        cluster.kill(2)
        cluster.notice()
        cluster.restart(2)
    port.delay = 0
    cluster.wait(lambda: not cluster.nodes[1].raw.pending_of(101), "end of the pending version")
    port.hold_sync = False
    cluster.wait_serving()
    assert report(cluster.nodes[1], CHUNK) == report(cluster.nodes[2], CHUNK) == Corrupt.code
    assert wc.Client(cluster, 8).write(1, CHUNK, Op.REPLACE, b"from the source") == (3, 15)
    assert not any(node.raw.damaged() for node in cluster.nodes.values())
    cluster.check_replicas()
