"""The write path on real engines, in one process: every replica gets every update once, whoever dies when.

Checked after each scenario: all SERVING replicas hold the same verified bytes, versions, tombstones and results of
updates; versions count the updates that were applied; nothing stays pending.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import write_cluster as wc

from fs3.clock import deadline_after
from fs3.errors import Busy, Conflict, Corrupt, Fs3Error, Invalid, NoSpace, StaleRouting, Unavailable
from fs3.storage.forward import Frame
from fs3.transport.frame_core import Header, Kind
from fs3.transport.messages import Op, UpdateFlag

A, B, C = (1, 1), (1, 2), (2, 1)


def batch(cluster: Any, updates: list[tuple[int, tuple[int, int], Op, bytes, int]], client: int = 9) -> Any:
    """One WRITE frame to the node that is head of the first update's chain: RESULT [n]."""
    parts = [
        wc.update_record(
            chain,
            cluster.routing.chain(chain).version,
            chunk,
            op,
            data,
            offset,
            client=client,
            channel=number,
            seq=1,
        )
        for number, (chain, chunk, op, data, offset) in enumerate(updates)
    ]
    head = cluster.serving(updates[0][0])[0]
    body = memoryview(b"".join(data for _, _, _, data, _ in updates))
    return head.write_path.update(
        Header(Kind.WRITE, 1),
        np.concatenate([record for record, _ in parts]),
        np.concatenate([sums for _, sums in parts]),
        body,
        0,
        deadline_s=deadline_after(10.0),
    )


def test_a_batch_reaches_every_replica_and_one_bad_update_fails_alone(make: Callable[..., Any]) -> None:
    cluster = make(chains=2)
    results = batch(
        cluster,
        [
            (1, A, Op.REPLACE, b"a" * 10_000, 0),
            (1, B, Op.WRITE, b"b" * 100, 5_000),
            (1, A, Op.WRITE, b"x" * 10, 4_090),
            (2, C, Op.REPLACE, b"of another head", 0),
            (1, C, Op.WRITE, b"beyond", 1 << 20),
            (1, B, Op.TRUNCATE, b"", 5_050),
            (1, C, Op.REMOVE, b"", 0),
        ],
    )
    assert results["status"].tolist() == [0, 0, 0, StaleRouting.code, Invalid.code, 0, 0]
    assert results["version"].tolist() == [1, 1, 2, 0, 0, 2, 0]
    assert results["chunk_length"].tolist() == [10_000, 5_100, 10_000, 0, 0, 5_050, 0]
    cluster.check_replicas()
    expected_a = bytearray(b"a" * 10_000)
    expected_a[4_090:4_100] = b"x" * 10
    assert cluster.contents(cluster.nodes[3], 1) == {A: (2, bytes(expected_a)), B: (2, bytes(5_000) + b"b" * 50)}


def test_wrong_sums_change_nothing_anywhere(make: Callable[..., Any]) -> None:
    cluster = make()
    records, sums = wc.update_record(1, 1, A, Op.REPLACE, b"written", client=5, seq=1)
    results = cluster.nodes[1].write_path.update(
        Header(Kind.WRITE, 1), records, sums, memoryview(b"wrltten"), 0, deadline_s=deadline_after(5.0)
    )
    assert results["status"].tolist() == [Corrupt.code]
    assert all(cluster.contents(node, 1) == {} for node in cluster.nodes.values())


def test_put_if_absent_and_removal_are_decided_by_the_head(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    assert client.write(1, A, Op.PUT_IF_ABSENT, b"first") == (1, 5)
    assert client.write(1, A, Op.PUT_IF_ABSENT, b"second one") == (0, 5)
    assert client.write(1, A, Op.REMOVE) == (2, 0)
    assert client.write(1, A, Op.REMOVE) == (2, 0)
    assert client.write(1, A, Op.PUT_IF_ABSENT, b"third") == (3, 5)
    cluster.check_replicas()
    assert cluster.contents(cluster.nodes[2], 1) == {A: (3, b"third")}


def test_a_repeated_update_is_answered_and_a_late_one_refused(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    assert client.write(1, A, Op.WRITE, b"one", seq=1) == (1, 3)
    assert client.write(1, A, Op.WRITE, b"one", seq=1) == (1, 3)
    assert client.write(1, A, Op.WRITE, b"two!", seq=2) == (2, 4)
    with pytest.raises(Invalid):
        client.write(1, A, Op.WRITE, b"one", seq=1)
    assert cluster.contents(cluster.nodes[3], 1) == {A: (2, b"two!")}


def test_stale_versions_wrong_places_and_frames_that_do_not_add_up_are_refused(make: Callable[..., Any]) -> None:
    cluster = make()

    def send(node: int, hop: int, **fields: Any) -> int:
        records, sums = wc.update_record(1, fields.pop("chain_version", 1), A, Op.REPLACE, b"x", **fields)
        results = cluster.nodes[node].write_path.update(
            Header(Kind.WRITE, 1), records, sums, memoryview(b"x"), hop, deadline_s=deadline_after(5.0)
        )
        return int(results["status"][0])

    assert send(1, 0, chain_version=2) == StaleRouting.code
    assert send(2, 0) == StaleRouting.code  # not the head
    assert send(1, 1, version=1) == StaleRouting.code  # nobody precedes the head
    assert send(2, 1, version=0) == Invalid.code
    assert send(3, 2, version=2) == Conflict.code  # update 1 is missing
    assert send(3, 2, version=1, flags=UpdateFlag.SYNC_REPLACE) == Invalid.code
    assert send(1, 0, flags=UpdateFlag.SYNC_REPLACE) == Invalid.code
    records, sums = wc.update_record(1, 1, A, Op.REPLACE, b"x")
    with pytest.raises(Invalid):
        cluster.nodes[1].write_path.update(Header(Kind.WRITE, 1, deadline_ms=100), records, sums, memoryview(b"xy"), 0)
    cluster.check_replicas()
    assert cluster.contents(cluster.nodes[1], 1) == {}


def test_a_full_disk_at_the_tail_leaves_no_trace(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, A, Op.REPLACE, b"before")
    full = cluster.nodes[3].engine
    full.refuse["stage_and_commit"] = lambda updates: [NoSpace("full")] * len(updates)
    with pytest.raises(NoSpace):
        client.write(1, A, Op.REPLACE, b"after")
    full.refuse.clear()
    cluster.check_replicas()
    assert client.write(1, A, Op.REPLACE, b"after it has room") == (2, 17)
    cluster.check_replicas()


def test_bytes_damaged_on_the_tails_disk_are_replaced_by_the_whole_chunk(make: Callable[..., Any]) -> None:
    """A partial write meets an old block that the tail cannot verify: its predecessor sends the whole chunk."""
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, A, Op.REPLACE, b"o" * 9_000)
    seen: list[Op] = []

    def damaged(updates: Any) -> Any:
        seen.append(updates[0].op)
        return [Corrupt("old block")] if updates[0].op is Op.WRITE else None

    cluster.nodes[3].engine.refuse["stage_and_commit"] = damaged
    assert client.write(1, A, Op.WRITE, b"n", 100) == (2, 9_000)
    assert seen == [Op.WRITE, Op.REPLACE]
    cluster.check_replicas()


def test_a_chunk_with_a_pending_version_still_shows_the_committed_one(make: Callable[..., Any]) -> None:
    """While the successor has not acknowledged, the index says version 1 with 2 pending: readers see none of it."""
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, A, Op.REPLACE, b"committed")
    seen: list[Any] = []

    def look(_updates: Any) -> None:
        for node in (1, 2):
            info = cluster.nodes[node].raw.info(100 + node, *A)
            data = cluster.nodes[node].raw.read_chunk(100 + node, *A)
            seen.append((info.version, info.pending, bytes(data.data)))

    cluster.nodes[3].engine.refuse["stage_and_commit"] = look
    client.write(1, A, Op.REPLACE, b"new")
    assert seen == [(1, 2, b"committed")] * 2


def test_a_head_whose_lease_has_run_out_takes_no_writes(make: Callable[..., Any]) -> None:
    cluster = make()
    cluster.nodes[1].write_path._may_write = lambda: False
    records, sums = wc.update_record(1, 1, A, Op.REPLACE, b"x")
    with pytest.raises(Unavailable):
        cluster.nodes[1].write_path.update(Header(Kind.WRITE, 1, deadline_ms=100), records, sums, memoryview(b"x"), 0)


def test_a_locked_chunk_is_busy_and_the_rest_of_the_batch_goes_on(make: Callable[..., Any]) -> None:
    cluster = make()
    head = cluster.nodes[1].write_path
    assert head._replication.locks.acquire([(101, *A)], deadline_after(1.0))
    parts = [
        wc.update_record(1, 1, chunk, Op.REPLACE, b"x", client=5, channel=n, seq=1) for n, chunk in enumerate((A, B))
    ]
    results = head.update(
        Header(Kind.WRITE, 1),
        np.concatenate([record for record, _ in parts]),
        np.concatenate([sums for _, sums in parts]),
        memoryview(b"xx"),
        0,
        deadline_s=deadline_after(0.2),
    )
    assert results["status"].tolist() == [Busy.code, 0]
    head._replication.locks.release([(101, *A)])


def _until_not_killed(cluster: Any, scenario: Callable[[int], bool]) -> int:
    """Run `scenario(step)` for step 0, 1, ... until the write needs no so many steps; how many there were."""
    step = 0
    while scenario(step):
        step += 1
        assert step < 200
    return step


@pytest.mark.parametrize("place", [0, 1, 2], ids=["head", "middle", "tail"])
def test_a_replica_that_dies_at_any_step_costs_no_update_and_doubles_none(make: Callable[..., Any], place: int) -> None:
    """For every step of a write: kill the replica there, let the client retry, check, bring it back, check again."""
    cluster = make()
    client = wc.Client(cluster, 7)

    def scenario(step: int) -> bool:
        chunk = (1, step)
        client.write(1, chunk, Op.REPLACE, b"base")
        victim = cluster.serving(1)[place].node_id
        cluster.steps.arm(step, lambda: cluster.kill(victim))
        answer = client.write(1, chunk, Op.WRITE, b"+once", 4)
        cluster.steps.disarm()
        killed = cluster.nodes[victim].dead
        assert answer == (2, 9), f"step {step}"
        cluster.notice()
        assert client.write(1, chunk, Op.WRITE, b"+once", 4, seq=client.seq) == (2, 9)
        cluster.check_replicas(f"step {step}")
        if killed:
            cluster.restart(victim)
            cluster.wait_serving()
            cluster.check_replicas(f"step {step}, back again")
        assert all(cluster.contents(node, 1)[chunk] == (2, b"base+once") for node in cluster.nodes.values())
        return bool(killed)

    steps = _until_not_killed(cluster, scenario)
    assert steps >= 8


def test_all_replicas_die_at_any_step(make: Callable[..., Any]) -> None:
    """The client's retry after the restart is still applied once, whatever was pending or committed where."""
    cluster = make()
    client = wc.Client(cluster, 7)

    def scenario(step: int) -> bool:
        chunk = (1, step)
        client.write(1, chunk, Op.REPLACE, b"base")
        cluster.steps.arm(step, lambda: cluster.kill(1, 2, 3))
        answer = None
        try:
            answer = client.attempt(1, chunk, Op.WRITE, b"+once", 4, seq=client.seq + 1, attempt_s=5.0)
        except Fs3Error as error:
            assert error.retryable
        client.seq += 1
        cluster.steps.disarm()
        killed = cluster.nodes[1].dead
        if killed:
            cluster.restart(1, 2, 3)
        cluster.wait_serving()
        cluster.check_replicas(f"step {step}, back again")
        if answer is not None:
            assert all(cluster.contents(node, 1)[chunk] == (2, b"base+once") for node in cluster.nodes.values())
        assert client.write(1, chunk, Op.WRITE, b"+once", 4, seq=client.seq) == (2, 9)
        cluster.wait_serving()
        cluster.check_replicas(f"step {step}, written again")
        assert cluster.contents(cluster.nodes[2], 1)[chunk] == (2, b"base+once")
        return bool(killed)

    assert _until_not_killed(cluster, scenario) >= 8


def test_a_pending_version_of_another_client_is_finished_first(make: Callable[..., Any]) -> None:
    cluster = make()
    first, second = wc.Client(cluster, 7), wc.Client(cluster, 8)
    down = lambda updates: [Busy("for now")] * len(updates)  # noqa: E731
    cluster.nodes[2].engine.refuse["stage"] = down
    with pytest.raises(Unavailable):
        first.attempt(1, A, Op.WRITE, b"first", 0, seq=1, attempt_s=0.2)
    assert cluster.nodes[1].raw.info(101, *A).pending == 1
    cluster.nodes[2].engine.refuse.clear()
    assert second.write(1, A, Op.WRITE, b"second", 5) == (2, 11)
    assert first.write(1, A, Op.WRITE, b"first", 0, seq=1) == (1, 5)
    cluster.check_replicas()
    assert cluster.contents(cluster.nodes[3], 1) == {A: (2, b"firstsecond")}


def test_a_pending_version_that_its_update_gave_up_is_settled_by_itself(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    cluster.nodes[2].engine.refuse["stage"] = lambda updates: [Busy("for now")] * len(updates)
    with pytest.raises(Unavailable):
        client.attempt(1, A, Op.WRITE, b"first", 0, seq=1, attempt_s=0.2)
    cluster.nodes[2].engine.refuse.clear()
    head = cluster.nodes[1].raw
    cluster.wait(lambda: not head.pending_of(101), "end of the pending version")
    # The commit publishes the chunk first and the update's result behind it.
    cluster.wait(lambda: head.dedup(101, 7, 1) is not None, "result of the update")
    cluster.check_replicas()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_writes_by_many_while_nodes_die_and_return(make: Callable[..., Any], seed: int) -> None:
    """Four writers with chunks of their own, each chunk's last acknowledged content and count of updates known."""
    cluster = make(nodes=4, chains=4)
    expected: dict[tuple[int, int], dict[tuple[int, int], bytearray | None]] = {}
    failures: list[BaseException] = []
    note = f"seed {seed}"

    def writer(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        client = wc.Client(cluster, 50 + number)
        mine: dict[tuple[int, int], bytearray | None] = {}
        try:
            for _ in range(25):
                chain = rng.randrange(1, 5)
                chunk = (chain, number * 10 + rng.randrange(2))
                old = mine.get(chunk)
                op = rng.choice([Op.WRITE, Op.WRITE, Op.REPLACE, Op.TRUNCATE, Op.REMOVE, Op.PUT_IF_ABSENT])
                data = rng.randbytes(rng.randrange(1, 9_000)) if op in (Op.WRITE, Op.REPLACE, Op.PUT_IF_ABSENT) else b""
                offset = rng.randrange(12_000) if op in (Op.WRITE, Op.TRUNCATE) else 0
                client.write(chain, chunk, op, data, offset, seconds=60.0)
                mine[chunk] = _applied(old, op, data, offset)
        except BaseException as error:  # noqa: BLE001 (shown by the test)
            failures.append(error)
        expected[number, 0] = mine

    threads = [threading.Thread(target=writer, args=(number,)) for number in range(4)]
    rng = random.Random(seed)
    for thread in threads:
        thread.start()
    for _ in range(3):
        victim = rng.randrange(1, 5)
        cluster.kill(victim)
        cluster.notice()
        cluster.restart(victim)
        cluster.wait(
            lambda: all(target.state.name == "SERVING" for target in cluster.routing.targets.values()), f"peace, {note}"
        )
    for thread in threads:
        thread.join(90.0)
        assert not thread.is_alive(), note
    assert not failures, f"{note}: {failures}"
    cluster.wait_serving()
    cluster.check_replicas(note)
    found = {}
    for chain in range(1, 5):
        for chunk, (version, data) in cluster.contents(cluster.serving(chain)[0], chain).items():
            if version > 0:
                found[chunk] = data
    wanted = {chunk: bytes(data) for mine in expected.values() for chunk, data in mine.items() if data is not None}
    assert found == wanted, note


def _applied(old: bytearray | None, op: Op, data: bytes, offset: int) -> bytearray | None:
    if op is Op.REMOVE:
        return None
    if op is Op.PUT_IF_ABSENT and old is not None:
        return old
    if op in (Op.REPLACE, Op.PUT_IF_ABSENT):
        return bytearray(data)
    content = bytearray(old or b"")
    if op is Op.TRUNCATE:
        return content[:offset] + bytes(max(offset - len(content), 0))
    content += bytes(max(offset + len(data) - len(content), 0))
    content[offset : offset + len(data)] = data
    return content


def test_a_disk_that_fails_takes_its_targets_out_of_the_chain(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)

    def fails(*_args: Any) -> None:
        raise Unavailable("fsync failed")

    cluster.nodes[2].engine.refuse["stage"] = fails
    assert client.write(1, A, Op.REPLACE, b"data") == (1, 4)
    assert [node.node_id for node in cluster.serving(1)] == [1, 3]
    cluster.check_replicas()


def test_a_disk_whose_records_are_damaged_takes_its_targets_out_of_the_chain(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    assert client.write(1, A, Op.REPLACE, b"data") == (1, 4)
    node = cluster.nodes[2]
    node.raw._metadata._damaged("as a read of it found")
    cluster.heartbeat(node)
    assert [node.node_id for node in cluster.serving(1)] == [1, 3]
    assert client.write(1, A, Op.REPLACE, b"other") == (2, 5)


@pytest.mark.parametrize(("node_id", "step"), [(2, "stage"), (3, "stage_and_commit")])
def test_a_disk_that_cannot_write_a_block_takes_its_targets_out_of_the_chain(
    make: Callable[..., Any], node_id: int, step: str
) -> None:
    """The error comes in the update's place: that of the call is of what all of them share."""
    cluster = make()
    client = wc.Client(cluster, 7)
    cluster.nodes[node_id].engine.refuse[step] = lambda updates: [Unavailable("I/O error")] * len(updates)
    assert client.write(1, A, Op.REPLACE, b"data") == (1, 4)
    assert [node.node_id for node in cluster.serving(1)] == [one for one in (1, 2, 3) if one != node_id]
    cluster.check_replicas()


def test_frames_keep_their_order_of_chunks(make: Callable[..., Any]) -> None:
    """One frame per successor, however many chains the batch has: asserted on the port."""
    cluster = make(nodes=2, chains=2, replicas=2)
    frames: list[list[Frame]] = []
    port = cluster.nodes[1].write_path._port
    forward = port.forward

    def counting(batch: Any, *, deadline_s: float) -> Any:
        frames.append(list(batch))
        return forward(batch, deadline_s=deadline_s)

    port.forward = counting
    batch(cluster, [(1, (1, number), Op.REPLACE, b"x", 0) for number in range(20)])
    assert [[len(frame.records) for frame in sent] for sent in frames] == [[20]]
    cluster.check_replicas()
