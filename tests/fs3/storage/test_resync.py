"""Recovery: a replica that was away, emptied or went its own way becomes equal to its predecessor, by copying only what
differs, while writes go on."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import write_cluster as wc

from fs3 import checksum
from fs3.clock import deadline_after
from fs3.errors import Conflict, NoSpace, Unavailable
from fs3.routing import TargetState
from fs3.storage.engine_api import Update
from fs3.storage.pace_core import Pace
from fs3.transport.frame_core import Header, Kind
from fs3.transport.messages import Op, UpdateFlag


def change(node: Any, target_id: int, chunk: tuple[int, int], op: Op, data: bytes, version: int) -> None:
    """Change a chunk of one replica behind everybody's back."""
    update = Update(
        target_id=target_id,
        hi=chunk[0],
        lo=chunk[1],
        op=op,
        data=memoryview(data),
        fine=checksum.fine_sums(memoryview(data)),
        version=version,
        chain_version=1,
        flags=UpdateFlag.SYNC_REPLACE if op is Op.REPLACE else UpdateFlag.SYNC_REMOVE,
    )
    (result,) = node.raw.stage_and_commit([update])
    assert result.version == version, result


def copied(cluster: Any) -> tuple[int, int]:
    """(chunks copied, chunks removed) by recovery so far, by all nodes."""
    stats = [node.write_path.stats() for node in cluster.nodes.values()]
    return sum(one.recovered_chunks for one in stats), sum(one.removed_chunks for one in stats)


@pytest.mark.parametrize("page", [1, 3, 4_096])
def test_only_what_differs_is_copied(make: Callable[..., Any], page: int) -> None:
    cluster = make()
    for node in cluster.nodes.values():
        node.write_path._recovery.page_chunks = page
    client = wc.Client(cluster, 7)
    for lo in range(10):
        client.write(1, (1, lo), Op.REPLACE, bytes([lo]) * (5_000 * lo))
    cluster.kill(3)
    client.write(1, (1, 2), Op.WRITE, b"changed", 50)
    client.write(1, (1, 3), Op.TRUNCATE, b"", 100)
    client.write(1, (1, 4), Op.REMOVE)
    client.write(1, (1, 5), Op.REMOVE)
    client.write(1, (1, 5), Op.REPLACE, b"again")
    client.write(1, (2, 0), Op.REPLACE, b"new")
    lost = cluster.nodes[3]
    change(lost, 103, (1, 6), Op.REPLACE, b"another history", 1)
    change(lost, 103, (1, 7), Op.REPLACE, b"ahead of the others", 9)
    change(lost, 103, (3, 3), Op.REPLACE, b"nobody else has it", 4)
    change(lost, 103, (3, 4), Op.REMOVE, b"", 6)
    cluster.restart(3)
    cluster.wait_serving()
    cluster.check_replicas()
    # 2, 3, 5, 6, 7 and the new one are copied; 4 is removed with its tombstone, (3, 3) and (3, 4) without.
    assert copied(cluster) == (6, 3)
    assert client.write(1, (3, 4), Op.REPLACE, b"its stale tombstone is gone") == (1, 27)
    cluster.check_replicas()


def test_nothing_is_copied_to_a_replica_that_missed_nothing(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    for lo in range(5):
        client.write(1, (1, lo), Op.REPLACE, b"data")
    cluster.kill(2)
    cluster.restart(2)
    cluster.wait_serving()
    assert copied(cluster) == (0, 0)


def test_an_emptied_disk_is_filled_again(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    for lo in range(20):
        client.write(1, (1, lo), Op.REPLACE, random.Random(lo).randbytes(10_000 + lo))
    client.write(1, (1, 0), Op.REMOVE)
    cluster.kill(1)
    cluster.restart(1, emptied=True)
    node = cluster.nodes[1]
    cluster.wait_serving()
    cluster.check_replicas()
    assert copied(cluster) == (19, 1)
    assert len(cluster.contents(node, 1)) == 20


def test_an_emptied_disk_of_the_last_that_served_serves_nothing(make: Callable[..., Any]) -> None:
    cluster = make(replicas=1)
    wc.Client(cluster, 7).write(1, (1, 1), Op.REPLACE, b"the only copy")
    cluster.kill(1)
    cluster.restart(1, emptied=True)
    node = cluster.nodes[1]
    cluster.wait(lambda: bool(node.write_path.local_targets()), "creation")
    cluster.wait(node.write_path.idle, "quiet")
    assert cluster.routing.targets[101].state == TargetState.LASTSRV


def test_writes_during_recovery_reach_the_replica_whole(make: Callable[..., Any]) -> None:
    """Before every page that recovery asks for, and after it, clients change chunks that it has, or has not, passed."""
    cluster = make()
    client = wc.Client(cluster, 7)
    for lo in range(12):
        client.write(1, (1, lo), Op.REPLACE, bytes([lo]) * 6_000)
    cluster.kill(3)
    client.write(1, (1, 5), Op.WRITE, b"missed", 0)
    during = wc.Client(cluster, 8)
    rng = random.Random(4)
    pages = []
    port = cluster.nodes[2].write_path._port
    node = cluster.nodes[2]
    node.write_path._recovery.page_chunks = 4
    sync_list = port.sync_list

    def busy() -> None:
        for op in (Op.WRITE, Op.TRUNCATE, Op.REMOVE, Op.REPLACE):
            chunk = (1, rng.randrange(14))
            data = rng.randbytes(50) if op in (Op.WRITE, Op.REPLACE) else b""
            during.write(1, chunk, op, data, rng.randrange(100) if op in (Op.WRITE, Op.TRUNCATE) else 0)

    def listing(*args: Any, **kwargs: Any) -> Any:
        busy()
        found = sync_list(*args, **kwargs)
        pages.append(len(found[1]))
        busy()
        return found

    port.sync_list = listing
    cluster.restart(3)
    cluster.wait_serving()
    assert len(pages) >= 3
    cluster.check_replicas()


def test_results_travel_so_that_a_retry_at_the_recovered_replica_is_known(make: Callable[..., Any]) -> None:
    cluster = make(nodes=2, replicas=2)
    client = wc.Client(cluster, 7)
    client.write(1, (1, 1), Op.REPLACE, b"base")
    cluster.kill(2)
    assert client.write(1, (1, 1), Op.WRITE, b"+once", 4, seq=2) == (2, 9)
    cluster.restart(2)
    cluster.wait_serving()
    cluster.kill(1)
    cluster.notice()
    assert client.write(1, (1, 1), Op.WRITE, b"+once", 4, seq=2) == (2, 9)
    assert cluster.contents(cluster.nodes[2], 1)[1, 1] == (2, b"base+once")


def test_recovery_that_is_cut_short_starts_again_under_the_next_chain(make: Callable[..., Any]) -> None:
    """The predecessor dies between two pages: another takes over, and the replica ends up equal."""
    cluster = make()
    client = wc.Client(cluster, 7)
    for lo in range(12):
        client.write(1, (1, lo), Op.REPLACE, bytes([lo]) * 6_000)
    cluster.kill(3)
    for lo in range(12):
        client.write(1, (1, lo), Op.WRITE, b"newer", 0)
    cluster.nodes[2].write_path._recovery.page_chunks = 4
    port = cluster.nodes[2].write_path._port
    sync_list, calls = port.sync_list, []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            cluster.kill(2)
            cluster.notice()
        return sync_list(*args, **kwargs)

    port.sync_list = dying
    cluster.restart(3)
    cluster.wait(lambda: [node.node_id for node in cluster.serving(1)] == [1, 3], "recovery by the other")
    cluster.check_replicas()
    cluster.restart(2)
    cluster.wait_serving()
    cluster.check_replicas()


def test_a_frame_that_its_sender_gave_up_does_not_undo_a_later_one(make: Callable[..., Any]) -> None:
    """To a SYNCING replica: version 3, then a late copy of version 2, then a late removal from before."""
    cluster = make(nodes=2, replicas=2)
    client = wc.Client(cluster, 7)
    client.write(1, (1, 1), Op.REPLACE, b"one")
    cluster.kill(2)
    client.write(1, (1, 1), Op.REPLACE, b"two")
    client.write(1, (1, 1), Op.REPLACE, b"three")
    answers: list[list[int]] = []
    node = cluster.nodes[2]
    sync_done = cluster.nodes[1].write_path._port.sync_done

    def late(endpoint: str, request: Any, *, deadline_s: float) -> None:
        for op, data, version, flag in (
            (Op.REPLACE, b"two", 2, UpdateFlag.SYNC_REPLACE),
            (Op.REMOVE, b"", 0, UpdateFlag.SYNC_REMOVE),
            (Op.REPLACE, b"three", 3, UpdateFlag.SYNC_REPLACE),
        ):
            record, sums = wc.update_record(1, request.chain_version, (1, 1), op, data, version=version, flags=flag)
            answer = cluster.nodes[2].write_path.update(
                Header(Kind.WRITE, 1), record, sums, memoryview(data), 1, deadline_s=deadline_after(5.0)
            )
            answers.append(answer["status"].tolist())
        sync_done(endpoint, request, deadline_s=deadline_s)

    cluster.nodes[1].write_path._port.sync_done = late
    cluster.restart(2)
    cluster.wait_serving()
    assert answers == [[Conflict.code], [Conflict.code], [0]]
    assert cluster.contents(node, 1) == {(1, 1): (3, b"three")}


def test_a_newer_result_is_not_replaced_by_the_predecessors_snapshot(make: Callable[..., Any]) -> None:
    cluster = make(nodes=2, replicas=2)
    client = wc.Client(cluster, 7)
    client.write(1, (1, 1), Op.REPLACE, b"one", seq=1)
    cluster.kill(2)
    cluster.notice()
    port = cluster.nodes[1].write_path._port
    forward, pushed = port.forward, []

    def overtaken(frames: Any, *, deadline_s: float) -> Any:
        results = [frame for frame in frames if (frame.records["flags"] & UpdateFlag.SYNC_RESULT).all()]
        if results and not pushed:
            pushed.append(1)
            assert client.write(1, (1, 1), Op.REPLACE, b"two", seq=2) == (2, 3)  # after the snapshot was taken
        return forward(frames, deadline_s=deadline_s)

    port.forward = overtaken
    cluster.restart(2)
    cluster.wait_serving()
    assert pushed
    cluster.check_replicas()
    assert cluster.nodes[2].raw.dedup(102, 7, 1).seq == 2
    assert np.array_equal(cluster.nodes[1].raw.metas(101, b"", 9)["version"], [2])


def test_what_recovery_moves_is_what_differs(make: Callable[..., Any]) -> None:
    """Counted in bytes: the chunks that differ, whole, and nothing else; nothing at all where none do."""
    cluster = make()
    client = wc.Client(cluster, 7)
    rng = random.Random(3)
    sizes = {lo: rng.randrange(1, 300_000) for lo in range(40)}
    for lo, size in sizes.items():
        client.write(1, (1, lo), Op.REPLACE, rng.randbytes(size))

    def moved(to: int) -> int:
        nodes = [node for node_id, node in cluster.nodes.items() if node_id != to]
        return sum(node.write_path.stats().recovered_bytes for node in nodes)

    cluster.kill(2)
    cluster.restart(2)
    cluster.wait_serving()
    assert moved(2) == 0
    for lost in (1, 2, 3):
        before = moved(lost)
        cluster.kill(lost)
        cluster.notice()
        changed = rng.sample(sorted(sizes), 7)
        for lo in changed:
            sizes[lo] = client.write(1, (1, lo), Op.WRITE, rng.randbytes(9_000), rng.randrange(sizes[lo]))[1]
        cluster.restart(lost)
        cluster.wait_serving()
        cluster.check_replicas()
        differing = sum(sizes[lo] for lo in changed)
        assert differing <= moved(lost) - before <= 1.05 * differing


def test_recovery_keeps_to_its_rate(make: Callable[..., Any]) -> None:
    """The waits are added up instead of waited for."""
    cluster = make()
    client = wc.Client(cluster, 7)
    for lo in range(12):
        client.write(1, (1, lo), Op.REPLACE, bytes(200_000))
    cluster.kill(3)
    cluster.notice()
    recovery = cluster.nodes[2].write_path._recovery
    recovery._pace = Pace(100_000)
    waited: list[float] = []
    recovery.closing = Waits(recovery.closing, waited)
    cluster.restart(3, emptied=True)
    cluster.wait_serving()
    cluster.check_replicas()
    # 12 chunks go in one batch of 2.4 MB, which takes 24 seconds less the slack.
    assert 22.0 < sum(waited) <= 24.0


class Waits:
    """An event whose waits are noted."""

    def __init__(self, event: Any, waited: list[float]) -> None:
        self._event = event
        self._waited = waited

    def wait(self, timeout: float) -> bool:
        self._waited.append(timeout)
        return bool(self._event.is_set())

    def is_set(self) -> bool:
        return bool(self._event.is_set())

    def set(self) -> None:
        self._event.set()


def test_recovery_ends_after_what_was_pending_before_it(make: Callable[..., Any]) -> None:
    """Who was behind then, and is gone, may have shown it; the replica that comes back must have it when it serves."""
    cluster = make(nodes=2, replicas=2)
    client = wc.Client(cluster, 7)
    cluster.kill(2)
    seen: list[int] = []

    def full(_staged: Any) -> Any:
        seen.append(len(cluster.serving(1)))
        if len(seen) == 4:
            cluster.nodes[1].engine.refuse.clear()
        raise NoSpace("for now")

    cluster.nodes[1].engine.refuse["commit"] = full
    with pytest.raises(Unavailable):
        client.attempt(1, (1 << 56 | 1, 0), Op.REPLACE, b"shown", 0, seq=1, attempt_s=0.2)
    cluster.restart(2)
    cluster.wait_serving()
    cluster.wait(lambda: not cluster.nodes[1].raw.pending_of(101), "end of the pending version")
    assert seen[1:] == [1] * (len(seen) - 1), "nobody else serves before it is committed"
    cluster.check_replicas()
