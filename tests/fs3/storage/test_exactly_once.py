"""Sessions and forgotten removals on real engines: no update is applied twice and nothing removed comes back, whoever
has heard of what, dies, restarts or is synced in between.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import write_cluster as wc

from fs3.clock import deadline_after
from fs3.errors import Conflict, Fs3Error, Invalid, NoSpace, SessionEnded, StaleRouting, Unavailable
from fs3.pb import storage_pb2
from fs3.sessions import SessionTable
from fs3.storage.tombstones import Tombstones
from fs3.transport.frame_core import Header, Kind
from fs3.transport.messages import Op, UpdateFlag

A, B, C = (1, 1), (1, 2), (2, 1)
ALIVE = SessionTable(version=1, last_id=9, live=frozenset({7, 8, 9}))
ENDED = SessionTable(version=2, last_id=9, live=frozenset({8, 9}))  # the session 7 is over
RETRY = UpdateFlag.RETRY


def tombstones(cluster: Any) -> dict[int, list[int]]:
    """By node, the versions of chain 1's removals."""
    return {
        node.node_id: [-version for version, _ in cluster.contents(node, 1).values() if version < 0]
        for node in cluster.serving(1)
    }


# Removals


def test_a_forgotten_chunk_begins_anew_everywhere(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    for chunk in (A, B):
        client.write(1, chunk, Op.REPLACE, b"x")
    client.write(1, A, Op.REMOVE)
    assert tombstones(cluster) == {1: [2], 2: [2], 3: [2]}
    assert cluster.forget_removals(1) == [""]
    assert tombstones(cluster) == {1: [], 2: [], 3: []}
    assert client.write(1, A, Op.REMOVE) == (0, 0)
    assert client.write(1, A, Op.WRITE, b"again", 3) == (1, 8)
    cluster.check_replicas()
    assert cluster.forget_removals(1) == [] and cluster.contents(cluster.nodes[3], 1)[B] == (1, b"x")


@pytest.mark.parametrize("place", [0, 1, 2], ids=["head", "middle", "tail"])
def test_a_replica_that_dies_at_any_step_of_forgetting(make: Callable[..., Any], place: int) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    step = 0
    while True:
        chunk = (1, step)
        client.write(1, chunk, Op.REPLACE, b"removed")
        client.write(1, chunk, Op.REMOVE)
        victim = cluster.serving(1)[place].node_id
        cluster.steps.arm(step, lambda victim=victim: cluster.kill(victim))
        with contextlib.suppress(wc.Died):
            cluster.forget_removals(1)
        cluster.steps.disarm()
        killed = cluster.nodes[victim].dead
        cluster.notice()
        have = [len(versions) for versions in tombstones(cluster).values()]
        assert have == sorted(have, reverse=True), f"step {step}: gone in front of a replica that has it"
        if step % 2:
            client.write(1, chunk, Op.WRITE, b"new", 2)
            cluster.check_replicas(f"step {step}", tombstones=False)
        if killed:
            cluster.restart(victim)
            cluster.wait_serving()
        if not step % 2:
            client.write(1, chunk, Op.WRITE, b"new", 2)
        cluster.check_replicas(f"step {step}, back again", tombstones=False)
        assert all(cluster.contents(node, 1)[chunk][1] == b"\0\0new" for node in cluster.nodes.values())
        client.write(1, chunk, Op.REMOVE)
        assert set(cluster.forget_removals(1)) <= {""}
        assert not any(tombstones(cluster).values())
        if not killed:
            break
        step += 1
    assert step >= 4


def test_all_die_while_forgetting(make: Callable[..., Any]) -> None:
    """At every step: each comes back with what its disk had; the chunk is removed, and can be made again."""
    cluster = make()
    client = wc.Client(cluster, 7)
    for step in itertools.count():
        chunk = (1, step)
        client.write(1, chunk, Op.REPLACE, b"removed")
        client.write(1, chunk, Op.REMOVE)
        cluster.steps.arm(step, lambda: cluster.kill(1, 2, 3))
        with contextlib.suppress(wc.Died):
            cluster.forget_removals(1)
        cluster.steps.disarm()
        if not cluster.nodes[1].dead:
            break
        cluster.restart(1, 2, 3)
        cluster.wait_serving()
        assert all(chunk not in found or found[chunk][0] < 0 for found in _contents(cluster)), f"step {step}"
        client.write(1, chunk, Op.REPLACE, b"new")
        cluster.check_replicas(f"step {step}", tombstones=False)
        client.write(1, chunk, Op.REMOVE)
        cluster.forget_removals(1)
    assert step >= 4


def _contents(cluster: Any) -> list[dict[tuple[int, int], tuple[int, bytes]]]:
    return [cluster.contents(node, 1) for node in cluster.serving(1)]


@pytest.mark.parametrize("hop", [1, 2])
def test_a_frame_from_before_a_removal_is_known_for_old_however_late_it_is(make: Callable[..., Any], hop: int) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    sender = cluster.nodes[hop]
    sender.port.delay = 1
    assert client.write(1, A, Op.REPLACE, b"created") == (1, 7)
    (late,) = sender.port.late
    client.write(1, A, Op.REMOVE)
    assert cluster.forget_removals(1) == ["Busy"], "the frame may still arrive"
    assert late()["status"].tolist() == [0], "it is answered, and nothing changes"
    assert tombstones(cluster) == {1: [2], 2: [2], 3: [2]}
    cluster.check_replicas()
    cluster.kill(3)  # a change of the chain, after which frames of the time before are refused
    cluster.restart(3)
    cluster.wait_serving()
    assert cluster.forget_removals(1) == [""]
    assert late()["status"].tolist() == [StaleRouting.code]
    assert not any(_contents(cluster))


def test_a_late_forget_changes_nothing_that_came_after_it(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, A, Op.REPLACE, b"one")
    client.write(1, A, Op.REMOVE)
    cluster.nodes[1].port.delay = 1
    assert cluster.forget_removals(1) == ["Unavailable"]
    assert client.write(1, A, Op.REPLACE, b"two") == (3, 3)
    (late,) = cluster.nodes[1].port.late
    assert late()["status"].tolist() == [Conflict.code]
    cluster.check_replicas()
    client.write(1, A, Op.REMOVE)
    assert late()["status"].tolist() == [Conflict.code], "another removal than it was about"
    assert tombstones(cluster) == {1: [4], 2: [4], 3: [4]}


def test_nothing_is_forgotten_while_a_replica_is_synced(make: Callable[..., Any]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, A, Op.REPLACE, b"one")
    client.write(1, A, Op.REMOVE)
    cluster.kill(3)
    for node in (1, 2):
        cluster.nodes[node].port.hold_sync = True
    cluster.restart(3)
    cluster.wait(lambda: _states(cluster) == ["SERVING", "SERVING", "SYNCING"], "SYNCING replica")
    assert cluster.forget_removals(1) == ["Busy"]
    for node in (1, 2):
        cluster.nodes[node].port.hold_sync = False
    cluster.wait_serving()
    assert cluster.forget_removals(1) == [""] and not any(_contents(cluster))


def _states(cluster: Any) -> list[str]:
    return sorted(target.state.name for target in cluster.routing.targets.values())


def test_the_chore_forgets_what_it_has_seen_unchanged_for_a_while(make: Callable[..., Any]) -> None:
    """Tombstones.forget on a clock of the test's."""
    cluster = make()
    client = wc.Client(cluster, 7)
    for lo in range(4):
        client.write(1, (1, lo), Op.REPLACE, b"x")
    now = [0.0]
    head = cluster.nodes[1].write_path
    chore = Tombstones(head.state, head._replication, tombstone_s=600.0)
    chore._now_s = lambda: now[0] + deadline_after(0.0)
    assert chore.forget(101) == 600.0
    for lo in range(3):
        client.write(1, (1, lo), Op.REMOVE)
    assert chore.forget(101) == 600.0, "a look: three of them"
    now[0] += 300.0
    assert 299.0 < chore.forget(101) <= 300.0
    client.write(1, (1, 1), Op.REPLACE, b"again")
    client.write(1, (1, 2), Op.REPLACE, b"again")
    client.write(1, (1, 2), Op.REMOVE)
    now[0] += 301.0
    assert chore.forget(101) < 1.0
    assert tombstones(cluster) == {1: [4], 2: [4], 3: [4]}, "the one that is as it was seen goes"
    assert chore.forget(101) == 600.0
    now[0] += 601.0
    chore.forget(101)
    assert not any(tombstones(cluster).values())
    cluster.check_replicas()
    assert head.stats().forgotten == cluster.nodes[3].write_path.stats().forgotten == 2
    behind = cluster.nodes[2].write_path
    assert Tombstones(behind.state, behind._replication, tombstone_s=600.0).forget(102) is None


# Sessions


def _late(cluster: Any, op: Op = Op.WRITE, *, attempts: int = 20) -> str:
    """What becomes of an attempt of client 7's first update that arrives now: "answered" or the error's class."""
    client = wc.Client(cluster, 7)
    for _ in range(attempts):
        try:
            client.attempt(1, A, op, b"+once", 4, seq=1, attempt_s=5.0)
        except StaleRouting:
            with cluster.changed:
                cluster.changed.wait(0.002)
            continue
        except Fs3Error as error:
            return type(error).__name__
        return "answered"
    return "StaleRouting"


def test_a_head_refuses_whose_session_has_ended_and_all_forget_him(make: Callable[..., Any]) -> None:
    cluster = make()
    cluster.sessions(ALIVE)
    mine, other = wc.Client(cluster, 7), wc.Client(cluster, 8)
    mine.write(1, A, Op.REPLACE, b"base")
    other.write(1, B, Op.REPLACE, b"base")
    cluster.sessions(ENDED, forget=False)
    assert mine.write(1, A, Op.REPLACE, b"base", seq=1) == (1, 4), "what is known is said"
    with pytest.raises(SessionEnded):
        mine.write(1, A, Op.REPLACE, b"more")
    cluster.sessions(ENDED)
    for node in cluster.nodes.values():
        assert {record.client for record in node.raw.dedup_records(100 + node.node_id)} <= {7, 8}
    cluster.nodes[1].write_path._sessions.forget(0)
    for node in cluster.nodes.values():
        node.write_path._sessions.forget(0)
        assert [record.client for record in node.raw.dedup_records(100 + node.node_id)] == [8]
    with pytest.raises(SessionEnded):
        mine.write(1, A, Op.REPLACE, b"base", seq=1)
    assert wc.Client(cluster, 10).write(1, A, Op.REPLACE, b"newer than the table") == (2, 20)
    cluster.check_replicas()


HEARD = [(), (1,), (2, 3), (1, 2, 3)]


@pytest.mark.parametrize("heard", HEARD, ids=lambda heard: "heard by " + ("".join(map(str, heard)) or "none"))
@pytest.mark.parametrize("then", ["stays", "head dies", "head and middle die", "all restart", "tail is emptied"])
def test_a_late_frame_of_a_dead_client_is_never_applied_twice(
    make: Callable[..., Any], heard: tuple[int, ...], then: str
) -> None:
    """Whichever replicas have heard of the session's end and forgotten, whoever is head then, with whatever table."""
    cluster = make()
    cluster.sessions(ALIVE)
    wc.Client(cluster, 8).write(1, A, Op.REPLACE, b"base")
    assert wc.Client(cluster, 7).write(1, A, Op.WRITE, b"+once", 4) == (2, 9)
    if heard:
        cluster.sessions(ENDED, *heard)
    victims = {"stays": (), "head dies": (1,), "head and middle die": (1, 2), "all restart": (1, 2, 3)}.get(then, (3,))
    cluster.kill(*victims)
    cluster.notice()
    if then == "all restart":
        cluster.restart(1, 2, 3)
        cluster.wait(lambda: bool(cluster.serving(1)), "head")
        head = cluster.serving(1)[0]
        outcome = _late(cluster)
        assert outcome == ("StaleRouting" if head.node_id in heard else "answered"), "the fence holds, or the result"
        cluster.sessions(ALIVE, head.node_id)
        assert _late(cluster) == outcome, "a table older than the fence"
        cluster.sessions(ENDED)
        cluster.wait_serving()
        assert _late(cluster) == "SessionEnded"
    elif then == "tail is emptied":
        cluster.restart(3, emptied=True)
        if set(heard) & {1, 2}:  # the predecessor may have forgotten: the new one must hear of it first
            wanted = cluster.nodes[2].write_path._sessions.version(cluster.nodes[2].raw, 102)
            cluster.sessions(ENDED if wanted > 1 else ALIVE, 3)
        else:
            cluster.sessions(ALIVE, 3)
        cluster.wait_serving()
        cluster.kill(1, 2)
        cluster.notice()
        assert _late(cluster) in ("answered", "SessionEnded")
    else:
        head = cluster.serving(1)[0].node_id
        assert _late(cluster) == ("SessionEnded" if head in heard else "answered")
    for found in _contents(cluster):
        assert found[A] == (2, b"base+once")


def test_recovery_ends_only_where_as_much_is_known_of_sessions(make: Callable[..., Any]) -> None:
    cluster = make()
    cluster.sessions(ALIVE)
    wc.Client(cluster, 7).write(1, A, Op.REPLACE, b"once")
    cluster.kill(3)
    cluster.notice()
    cluster.sessions(ENDED, 1, 2)
    cluster.restart(3, emptied=True)
    cluster.wait(lambda: _states(cluster) == ["SERVING", "SERVING", "SYNCING"], "SYNCING replica")
    new = cluster.nodes[3].write_path
    version = cluster.routing.chain(1).version
    for table in (None, ALIVE):
        if table is not None:
            cluster.sessions(table, 3)
        with pytest.raises(StaleRouting, match="sessions are known up to"):
            new.sync_done(storage_pb2.SyncDoneRequest(chain_id=1, chain_version=version, sessions=2))
    cluster.sessions(ENDED, 3)
    cluster.wait_serving()
    assert cluster.nodes[3].raw.get_state(103, b"sessions") == (2).to_bytes(8, "little"), "also after its restart"
    cluster.kill(1, 2, 3)
    cluster.restart(3)
    assert cluster.nodes[3].write_path._sessions.version(cluster.nodes[3].raw, 103) == 2


def test_a_replica_dies_at_any_step_of_forgetting_a_client(make: Callable[..., Any]) -> None:
    cluster = make()
    cluster.sessions(ALIVE)
    head = cluster.nodes[1]
    for step in itertools.count():
        number = 20 + step
        table = SessionTable(version=3 + step, last_id=1_000, live=frozenset(range(number + 1, 1_000)))
        client = wc.Client(cluster, number)
        assert client.write(1, (1, number), Op.WRITE, b"once", 0) == (1, 4)
        head.write_path.on_sessions(table)
        cluster.steps.arm(step, lambda: cluster.kill(1, 2, 3))
        with contextlib.suppress(wc.Died):
            head.write_path._sessions.forget(0)
        cluster.steps.disarm()
        if not head.dead:
            break
        cluster.restart(1, 2, 3)
        cluster.wait(lambda: bool(cluster.serving(1)), "head")
        try:
            assert client.write(1, (1, number), Op.WRITE, b"once", 0, seq=1, seconds=0.2) == (1, 4)
        except Fs3Error as error:
            assert isinstance(error, StaleRouting | Unavailable), error
        cluster.sessions(table)
        cluster.wait_serving()
        assert all(found[1, number][0] == 1 for found in _contents(cluster)), f"step {step}"
    assert step == 2


# Answers that change nothing


@pytest.mark.parametrize("op", [Op.PUT_IF_ABSENT, Op.REMOVE])
@pytest.mark.parametrize("then", ["stays", "head dies", "all restart", "a new tail is left alone"])
def test_an_attempt_that_arrives_after_its_retry_was_answered_is_not_applied(
    make: Callable[..., Any], op: Op, then: str
) -> None:
    cluster = make()
    client, other = wc.Client(cluster, 7), wc.Client(cluster, 8)
    data = b"mine" if op is Op.PUT_IF_ABSENT else b""
    if op is Op.PUT_IF_ABSENT:
        other.write(1, A, Op.REPLACE, b"theirs")
    # The first attempt is on its way; the second is answered.
    answer = client.write(1, A, op, data, seq=1, flags=RETRY)
    assert answer == ((0, 6) if op is Op.PUT_IF_ABSENT else (0, 0))
    other.write(1, A, *((Op.REMOVE,) if op is Op.PUT_IF_ABSENT else (Op.REPLACE, b"theirs")))
    before = _contents(cluster)[0]
    if then == "head dies":
        cluster.kill(1)
        cluster.notice()
    elif then == "all restart":
        cluster.kill(1, 2, 3)
        cluster.restart(1, 2, 3)
        cluster.wait_serving()
    elif then == "a new tail is left alone":
        cluster.kill(3)
        cluster.restart(3, emptied=True)
        cluster.wait_serving()
        cluster.kill(1, 2)
        cluster.notice()
    assert client.write(1, A, op, data, seq=1) == answer
    assert all(found == before for found in _contents(cluster))
    version = abs(before[A][0])
    assert client.write(1, A, op, data, seq=2) == (version + 1, len(data)), "the next one is"


def test_a_note_reaches_a_replica_that_is_synced(make: Callable[..., Any]) -> None:
    cluster = make()
    client, other = wc.Client(cluster, 7), wc.Client(cluster, 8)
    other.write(1, A, Op.REPLACE, b"theirs")
    _hold(cluster, 3)
    assert client.write(1, A, Op.PUT_IF_ABSENT, b"mine", seq=1, flags=RETRY) == (0, 6)
    _let_go(cluster)
    cluster.check_replicas()
    assert cluster.nodes[3].raw.dedup(103, 7, 1) is not None


@pytest.mark.parametrize("place", [0, 1, 2], ids=["head", "middle", "tail"])
def test_a_replica_dies_at_any_step_of_a_note(make: Callable[..., Any], place: int) -> None:
    cluster = make()
    client, other = wc.Client(cluster, 7), wc.Client(cluster, 8)
    for step in itertools.count():
        chunk = (1, step)
        other.write(1, chunk, Op.REPLACE, b"theirs")
        victim = cluster.serving(1)[place].node_id
        cluster.steps.arm(step, lambda victim=victim: cluster.kill(victim))
        assert client.write(1, chunk, Op.PUT_IF_ABSENT, b"mine", flags=RETRY) == (0, 6)
        cluster.steps.disarm()
        killed = cluster.nodes[victim].dead
        cluster.notice()
        other.write(1, chunk, Op.REMOVE)
        assert client.write(1, chunk, Op.PUT_IF_ABSENT, b"mine", seq=client.seq) == (0, 6)
        if killed:
            cluster.restart(victim)
            cluster.wait_serving()
        cluster.check_replicas(f"step {step}")
        if not killed:
            break
    assert step >= 4


# What 3FS had wrong, and what its kind may have wrong


def _hold(cluster: Any, node_id: int) -> None:
    """Node `node_id` is in recovery, which does not end."""
    for node in cluster.nodes.values():
        node.port.hold_sync = True
    cluster.kill(node_id)
    cluster.restart(node_id)
    cluster.wait(lambda: "SYNCING" in _states(cluster), "SYNCING replica")


def _let_go(cluster: Any) -> None:
    for node in cluster.nodes.values():
        node.port.hold_sync = False
    cluster.wait_serving()


def test_every_operation_while_a_successor_is_synced(make: Callable[..., Any]) -> None:
    """3FS: truncate and extend while syncing. Each operation, on chunks that the replica has, has not, or has older."""
    cluster = make()
    client = wc.Client(cluster, 7)
    ops = [
        (Op.WRITE, b"written", 3),
        (Op.REPLACE, b"replaced", 0),
        (Op.TRUNCATE, b"", 2),
        (Op.TRUNCATE, b"", 9_000),
        (Op.REMOVE, b"", 0),
        (Op.PUT_IF_ABSENT, b"put", 0),
    ]
    for at in range(len(ops)):
        client.write(1, (1, at), Op.REPLACE, b"known to all")
        client.write(1, (3, at), Op.REPLACE, b"will be older")
    cluster.kill(3)
    cluster.notice()
    for at in range(len(ops)):
        client.write(1, (3, at), Op.WRITE, b"is newer than", 2)
    _hold(cluster, 3)
    for hi in (1, 2, 3):
        for at, (op, data, offset) in enumerate(ops):
            client.write(1, (hi, at), op, data, offset)
    assert "SYNCING" in _states(cluster)
    _let_go(cluster)
    cluster.check_replicas()
    found = cluster.contents(cluster.nodes[3], 1)
    assert found[1, 0] == (2, b"knowritten a"[:3] + b"written" + b"ll") and found[1, 2] == (2, b"kn")
    assert found[1, 3][1] == b"known to all".ljust(9_000, b"\0") and found[1, 4] == (-2, b"")
    assert found[1, 5] == (1, b"known to all") and found[2, 5] == (1, b"put")


def test_a_batch_of_removals_of_which_one_fails(make: Callable[..., Any]) -> None:
    """3FS: batch remove, partial failure. The others are removed, on every replica; the one can be removed later."""
    cluster = make()
    client = wc.Client(cluster, 9)
    for lo in range(5):
        client.write(1, (1, lo), Op.REPLACE, b"x")

    tail = cluster.nodes[3].engine
    real = tail._engine.stage_and_commit

    def some(updates: Any) -> Any:
        refused = [update.lo == 2 for update in updates]
        done = iter(real([update for update, no in zip(updates, refused, strict=True) if not no]))
        return [NoSpace("full") if no else next(done) for no in refused]

    tail.refuse["stage_and_commit"] = some
    parts = [wc.update_record(1, 1, (1, lo), Op.REMOVE, client=8, channel=lo, seq=1) for lo in range(5)]
    head = cluster.nodes[1].write_path

    def send() -> list[int]:
        return head.update(
            Header(Kind.WRITE, 1),
            np.concatenate([record for record, _ in parts]),
            np.concatenate([sums for _, sums in parts]),
            memoryview(b""),
            0,
            deadline_s=deadline_after(5.0),
        )["status"].tolist()

    assert send() == [0, 0, NoSpace.code, 0, 0]
    cluster.check_replicas()
    assert [key for key, (version, _) in cluster.contents(cluster.nodes[2], 1).items() if version > 0] == [(1, 2)]
    tail.refuse.clear()
    assert send() == [0] * 5
    cluster.check_replicas()


def test_a_refusal_of_what_may_be_behind_is_no_refusal(make: Callable[..., Any]) -> None:
    """The middle's first frame got no answer, so the tail may have it; the second is refused. Were the refusal passed
    on, the head would drop its version and give the number to the next update."""
    cluster = make()
    first, second = wc.Client(cluster, 7), wc.Client(cluster, 8)
    first.write(1, A, Op.REPLACE, b"base")
    cluster.nodes[2].port.delay = 1
    tail = cluster.nodes[3].engine
    tail.refuse["stage_and_commit"] = lambda updates: [NoSpace("full")] * len(updates)
    with pytest.raises(Unavailable):
        first.attempt(1, A, Op.WRITE, b"first", 4, seq=2, attempt_s=0.5)
    assert [cluster.nodes[node].raw.info(100 + node, *A).pending for node in (1, 2)] == [2, 2]
    tail.refuse.clear()
    assert second.write(1, A, Op.WRITE, b"second", 9) == (3, 15)
    cluster.check_replicas()
    assert _contents(cluster)[2][A] == (3, b"basefirstsecond")
    assert first.write(1, A, Op.WRITE, b"first", 4, seq=2) == (2, 9)


@pytest.mark.parametrize("error", [StaleRouting, Conflict, NoSpace])
def test_what_is_left_pending_is_answered_as_unknown(make: Callable[..., Any], error: type[Fs3Error]) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    middle = cluster.nodes[2].engine
    cluster.nodes[1].port.delay = 1
    middle.refuse["stage"] = lambda updates: [error("so it says")] * len(updates)
    with pytest.raises(Unavailable):
        client.attempt(1, A, Op.REPLACE, b"data", 0, seq=1, attempt_s=0.3)
    assert cluster.nodes[1].raw.info(101, *A).pending == 1
    middle.refuse.clear()
    assert client.write(1, A, Op.REPLACE, b"data", seq=1) == (1, 4)
    cluster.check_replicas()


def test_an_update_dropped_because_it_was_refused_stays_dropped(make: Callable[..., Any]) -> None:
    """Refused by the tail, dropped by the others; then all restart: nobody may find it pending and commit it."""
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, A, Op.REPLACE, b"before")
    cluster.nodes[3].engine.refuse["stage_and_commit"] = lambda updates: [NoSpace("full")] * len(updates)
    syncs = [cluster.nodes[node].raw.stats().wal_syncs for node in (1, 2)]
    with pytest.raises(NoSpace):
        client.write(1, A, Op.REPLACE, b"after")
    assert [cluster.nodes[node].raw.stats().wal_syncs - was for node, was in zip((1, 2), syncs, strict=True)] == [2, 2]
    cluster.kill(1, 2, 3)
    cluster.restart(1, 2, 3)
    cluster.wait_serving()
    cluster.check_replicas()
    assert _contents(cluster)[0][A] == (1, b"before")


def test_a_frame_that_waited_for_its_chunk_while_the_chain_changed_is_refused(make: Callable[..., Any]) -> None:
    """As the one of recovery that would put an old version back over what was written since."""
    cluster = make()
    client = wc.Client(cluster, 7)
    client.write(1, A, Op.REPLACE, b"one")
    _hold(cluster, 3)
    new = cluster.nodes[3].write_path
    version = cluster.routing.chain(1).version
    locks = new._replication.locks
    assert locks.acquire([(103, *A)], deadline_after(1.0))
    records, sums = wc.update_record(1, version, A, Op.REPLACE, b"one", version=1, flags=UpdateFlag.SYNC_REPLACE)
    answers: list[int] = []

    def send() -> None:
        results = new.update(
            Header(Kind.WRITE, 1), records, sums, memoryview(b"one"), 2, deadline_s=deadline_after(20.0)
        )
        answers.extend(results["status"].tolist())

    thread = threading.Thread(target=send)
    thread.start()
    cluster.wait(lambda: bool(locks._waiters[103, *A]), "waiting frame")
    new.state.sync_done(1, version)  # as the predecessor says, who has had an answer to another attempt
    cluster.wait(lambda: "SYNCING" not in _states(cluster), "end of recovery")
    locks.release([(103, *A)])
    thread.join(20.0)
    assert answers == [StaleRouting.code]
    _let_go(cluster)
    cluster.check_replicas()


def test_clients_cannot_send_what_only_replicas_send(make: Callable[..., Any]) -> None:
    cluster = make()
    for op, flags in [(Op.FORGET, 0), (Op.NOTE, 0), (Op.REPLACE, UpdateFlag.FRESH), (Op.REPLACE, UpdateFlag.DAMAGED)]:
        records, sums = wc.update_record(1, 1, A, op, client=7, seq=1, version=1, flags=UpdateFlag(flags))
        results = cluster.nodes[1].write_path.update(
            Header(Kind.WRITE, 1), records, sums, memoryview(b""), 0, deadline_s=deadline_after(5.0)
        )
        assert results["status"].tolist() == [Invalid.code]
