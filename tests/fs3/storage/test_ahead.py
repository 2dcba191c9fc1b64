"""Bytes that go ahead of their updates: every replica gets the update once and whole, whatever became of the pieces."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import write_cluster as wc

from fs3.clock import deadline_after
from fs3.errors import Busy, Corrupt, Fs3Error, Invalid, NoSpace
from fs3.storage import ahead as ahead_module
from fs3.storage.ahead import piece_of
from fs3.transport.frame_core import Header, Kind
from fs3.transport.messages import AHEAD, Op, UpdateFlag

A, B = (1, 1), (1, 2)
KIB = 1 << 10
PIECE = 8 * KIB
noise = random.Random(1).randbytes


def used_bytes(cluster: Any) -> list[int]:
    return [node.raw.stats().used_bytes for node in cluster.nodes.values()]


def figures(cluster: Any) -> list[tuple[int, int]]:
    """(updates whose bytes were there, those whose were not) of every node."""
    return [
        (node.write_path.ahead.figures.used, node.write_path.ahead.figures.missed) for node in cluster.nodes.values()
    ]


def frame(cluster: Any, chunk: tuple[int, int], data: bytes, *, seq: int = 1, op: Op = Op.REPLACE) -> Any:
    """(UPDATE record [1] whose bytes go ahead, its sums, the pieces) for the head of chain 1."""
    records, sums = wc.update_record(1, cluster.routing.chain(1).version, chunk, op, data, client=7, seq=seq)
    pieces = wc.pieces_of(records, sums, data, PIECE)
    records["flags"] |= np.uint16(UpdateFlag.AHEAD)
    return records, sums, pieces


def update(node: Any, records: Any, sums: Any, *, deadline_s: float = 5.0) -> Any:
    """The RESULT record of an update without its bytes."""
    return node.write_path.update(
        Header(Kind.WRITE, 1), records, sums, memoryview(b""), 0, deadline_s=deadline_after(deadline_s)
    )[0]


def expire(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give back what is left, as is done after a while."""
    monkeypatch.setattr(ahead_module, "KEPT_S", -1.0)
    for node in cluster.nodes.values():
        node.write_path.ahead.expire()
        assert node.write_path.ahead.empty()


@pytest.mark.parametrize("size", [1, 4 * KIB, PIECE, PIECE + 1, 100_000, 300 * KIB])
@pytest.mark.parametrize("op", [Op.REPLACE, Op.PUT_IF_ABSENT])
def test_no_byte_goes_with_the_update(make: Callable[..., Any], size: int, op: Op) -> None:
    cluster, data = make(), noise(size)
    assert wc.Client(cluster, 7).write(1, A, op, data, piece_bytes=PIECE) == (1, size)
    assert [node.port.body_bytes for node in cluster.nodes.values()] == [0, 0, 0]
    assert figures(cluster) == [(1, 0)] * 3
    cluster.check_replicas()
    assert cluster.contents(cluster.nodes[3], 1) == {A: (1, data)}
    assert len(set(used_bytes(cluster))) == 1 and used_bytes(cluster)[0] <= 2 * max(size, 32 * KIB)


@pytest.mark.parametrize("seed", range(20))
def test_in_any_order_and_twice(make: Callable[..., Any], seed: int) -> None:
    cluster, chance = make(), random.Random(seed)
    data = noise(chance.randint(1, 120_000))
    records, sums, pieces = frame(cluster, A, data)
    many = [*pieces, *chance.choices(pieces, k=3)]
    chance.shuffle(many)
    threads = [threading.Thread(target=wc.arrive, args=(cluster.nodes[1], piece)) for piece in many]
    for thread in threads:
        thread.start()
    result = update(cluster.nodes[1], records, sums)  # it may come before them
    for thread in threads:
        thread.join()
    if result["status"]:
        assert result["status"] == Busy.code
        assert wc.Client(cluster, 7).write(1, A, Op.REPLACE, data, seq=1) == (1, len(data))
    cluster.check_replicas()
    assert cluster.contents(cluster.nodes[2], 1) == {A: (1, data)}


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("which", [0, 2])
def test_a_piece_that_is_lost_has_the_bytes_sent_with_the_update(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, at: int, which: int
) -> None:
    """On the way to the head, or from one replica to the next, which does not hear that it was lost."""
    monkeypatch.setattr(ahead_module, "_WAIT_S", 0.1)
    cluster, data = make(), noise(3 * PIECE)
    lost = lambda piece: piece.record["offset"][0] == which * PIECE  # noqa: E731
    records, sums, pieces = frame(cluster, A, data)
    if at > 1:
        cluster.nodes[at - 1].port.lose = lost
    for piece in pieces:
        if at > 1 or not lost(piece):
            wc.arrive(cluster.nodes[1], piece)
    result = update(cluster.nodes[1], records, sums)
    if at == 1:
        assert result["status"] == Busy.code
        cluster.check_replicas()
        assert cluster.contents(cluster.nodes[1], 1) == {}
        wc.Client(cluster, 7).write(1, A, Op.REPLACE, data, seq=1)
    else:
        assert result["status"] == 0
        assert cluster.nodes[at - 1].port.body_bytes == len(data)
    expire(cluster, monkeypatch)
    cluster.check_replicas()
    assert cluster.contents(cluster.nodes[3], 1) == {A: (1, data)}
    assert len(set(used_bytes(cluster))) == 1


def test_what_did_not_match_is_refused_and_given_back(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, data = make(), noise(3 * PIECE)
    empty = used_bytes(cluster)
    head = cluster.nodes[1]

    def wrong_bytes(pieces: list[Any]) -> None:
        pieces[1].data = memoryview(noise(PIECE))

    def wrong_sums(pieces: list[Any]) -> None:
        pieces[1].sums = pieces[0].sums

    def another_length(pieces: list[Any]) -> None:
        pieces[1].record["chunk_length"] = 4 * PIECE

    def another_version(pieces: list[Any]) -> None:
        for piece in pieces:
            piece.record["chain_version"] += 1

    def another_chain(pieces: list[Any]) -> None:
        for piece in pieces:
            piece.record["chain"] = 17

    for seq, spoil in enumerate((wrong_bytes, wrong_sums, another_length, another_version, another_chain), 1):
        records, sums, pieces = frame(cluster, A, data, seq=seq)
        spoil(pieces)
        for piece in pieces:
            wc.arrive(head, piece)
        assert update(head, records, sums, deadline_s=0.2)["status"] == Busy.code, spoil
    records, sums, pieces = frame(cluster, A, data, seq=9)
    for piece in pieces:
        wc.arrive(head, piece)
    assert update(head, records, sums[::-1].copy())["status"] == Busy.code  # the bytes are not those of the sums
    expire(cluster, monkeypatch)
    assert used_bytes(cluster) == empty
    assert all(cluster.contents(node, 1) == {} for node in cluster.nodes.values())


def test_what_changes_nothing_gives_its_block_back(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = make()
    client = wc.Client(cluster, 7)
    assert client.write(1, A, Op.REPLACE, b"there") == (1, 5)
    before = used_bytes(cluster)
    assert client.write(1, A, Op.PUT_IF_ABSENT, noise(5 * PIECE), piece_bytes=PIECE) == (0, 5)
    expire(cluster, monkeypatch)  # the replicas behind were never asked
    assert used_bytes(cluster) == before
    assert cluster.contents(cluster.nodes[2], 1) == {A: (1, b"there")}


@pytest.mark.parametrize("op", [Op.WRITE, Op.TRUNCATE, Op.REMOVE])
def test_only_whole_chunks_go_ahead(make: Callable[..., Any], op: Op) -> None:
    cluster = make()
    records, sums, _ = frame(cluster, A, noise(PIECE) if op is Op.WRITE else b"", op=op)
    assert update(cluster.nodes[1], records, sums)["status"] == Invalid.code


def test_an_update_that_is_sent_again_is_known(make: Callable[..., Any]) -> None:
    cluster, data = make(), noise(2 * PIECE)
    records, sums, pieces = frame(cluster, A, data)
    for _ in range(2):
        for piece in pieces:
            wc.arrive(cluster.nodes[1], piece)
        result = update(cluster.nodes[1], records, sums)
        assert (int(result["status"]), int(result["version"])) == (0, 1)
    assert wc.Client(cluster, 7).write(1, A, Op.REPLACE, data, seq=1) == (1, len(data))
    cluster.check_replicas()


def test_not_more_is_kept_than_there_is_room_for(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, data = make(), noise(2 * PIECE)
    head = cluster.nodes[1].write_path.ahead
    monkeypatch.setattr(ahead_module, "_MOST", 3)
    for seq in range(1, 4):
        wc.arrive(cluster.nodes[1], frame(cluster, A, data, seq=seq)[2][0])
    with pytest.raises(NoSpace, match="than are kept"):
        head.expect(frame(cluster, A, data, seq=4)[2][0].record)
    monkeypatch.setattr(ahead_module, "_MOST", 99)
    monkeypatch.setattr(ahead_module, "_MOST_BYTES", 3 * len(data) + 1)
    with pytest.raises(NoSpace, match="than are kept"):
        head.expect(frame(cluster, A, data, seq=4)[2][0].record)
    expire(cluster, monkeypatch)
    head.missed(head.expect(frame(cluster, A, data, seq=4)[2][0].record))


@pytest.mark.parametrize(
    ("offset", "length", "chunk_length"),
    [(0, 0, 100), (1, 99, 100), (0, 5_000, 6_000), (4_096, 4_096, 8_191), (0, 101, 100), (0, 1 << 20, 128 << 20)],
)
def test_pieces_that_make_no_sense(make: Callable[..., Any], offset: int, length: int, chunk_length: int) -> None:
    record = np.zeros(1, dtype=AHEAD)
    record["chain"], record["chain_version"] = 1, 2
    record["offset"], record["length"], record["chunk_length"] = offset, length, chunk_length
    ahead = make().nodes[1].write_path.ahead
    with pytest.raises(Invalid, match="a piece"):
        ahead.expect(record)
    assert ahead.empty()


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 65, 67])
def test_frames_that_make_no_sense(cut: int) -> None:
    body = memoryview(bytes(5_000))
    record = np.zeros(1, dtype=AHEAD)
    record["length"] = len(body)
    head = record.tobytes() + bytes(8)
    assert piece_of(Header(Kind.AHEAD, 1, count=1), head, body).sums.tolist() == [0, 0]
    for header, raw, data in (
        (Header(Kind.AHEAD, 1, count=1), head[:cut], body),
        (Header(Kind.AHEAD, 1, count=cut + 2), head, body),
        (Header(Kind.AHEAD, 1, count=1), head, body[: len(body) - 1 - cut]),
        (Header(Kind.AHEAD, 1, count=1), head + bytes(4), body),
    ):
        with pytest.raises(Invalid, match=r"an AHEAD frame|with \d sums"):
            piece_of(header, raw, data)


def test_a_full_disk_refuses_the_update_and_not_only_its_pieces(make: Callable[..., Any]) -> None:
    cluster = make()
    cluster.nodes[2].engine.refuse["reserve"] = lambda length: (_ for _ in ()).throw(NoSpace("full"))
    cluster.nodes[2].engine.refuse["stage"] = lambda updates: [NoSpace("full")] * len(updates)
    with pytest.raises(NoSpace):
        wc.Client(cluster, 7).write(1, A, Op.REPLACE, noise(3 * PIECE), piece_bytes=PIECE)
    cluster.nodes[2].engine.refuse.clear()
    assert wc.Client(cluster, 8).write(1, A, Op.REPLACE, b"room", piece_bytes=PIECE) == (1, 4)
    cluster.check_replicas()


def test_the_bytes_may_be_damaged_where_they_wait(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the head's disk, after their sums were looked at: whoever reads them finds out, as with any block."""
    cluster, data = make(), noise(3 * PIECE)
    records, sums, pieces = frame(cluster, A, data)
    for piece in pieces:
        wc.arrive(cluster.nodes[1], piece)
    (arrival,) = cluster.nodes[1].write_path.ahead._arrivals.values()
    file = cluster.nodes[1].raw._files[arrival.reserved.file]
    file.write_data(arrival.reserved.slot, 100, [memoryview(b"damage")])
    assert update(cluster.nodes[1], records, sums)["status"] == 0
    with pytest.raises(Corrupt):
        cluster.nodes[1].raw.read_chunk(101, *A)
    for node in (2, 3):
        assert bytes(cluster.nodes[node].raw.read_chunk(100 + node, *A).data) == data


@pytest.mark.parametrize("victims", [(1,), (2,), (3,), (1, 2, 3)])
def test_killed_at_any_step(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, victims: tuple[int, ...]
) -> None:
    """The pieces among them. Nothing is lost, applied twice, or left over."""
    monkeypatch.setattr(ahead_module, "_WAIT_S", 0.05)
    monkeypatch.setattr(ahead_module, "KEPT_S", 0.2)
    cluster = make()
    client = wc.Client(cluster, 7)
    step = 0
    while True:
        chunk, data = (1, step), noise(2 * PIECE)
        client.seq += 1
        cluster.steps.arm(step, lambda: cluster.kill(*victims))
        answer = None
        try:
            answer = client.attempt(1, chunk, Op.REPLACE, data, 0, seq=client.seq, attempt_s=5.0, piece_bytes=PIECE)
        except Fs3Error as error:
            assert error.retryable
        cluster.steps.disarm()
        killed = any(node.dead for node in cluster.nodes.values())
        if killed:
            cluster.restart(*victims)
        cluster.wait_serving()
        cluster.check_replicas(f"step {step}, back again")
        if answer is not None:
            assert all(cluster.contents(node, 1)[chunk] == (1, data) for node in cluster.nodes.values())
        assert client.write(1, chunk, Op.REPLACE, data, seq=client.seq) == (1, len(data))
        cluster.wait_serving()
        cluster.check_replicas(f"step {step}, written again")
        assert len(set(used_bytes(cluster))) == 1, f"step {step}: {used_bytes(cluster)}"
        if not killed:
            break
        step += 1
    assert step >= 20
