"""Sending replies: in order, whole, over sockets that take a little at a time; and what happens when the disk fails
after the head has left."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fs3.errors import Corrupt
from fs3.storage.outbox import Outbox
from fs3.storage.reply import FileRange, Origin, Part, Reply
from fs3.transport.frame_core import pack_trailer, unpack_trailer

MIB = 1 << 20


@dataclass(frozen=True)
class Blocks:
    """A file as a block file shows it."""

    fd: int
    view: memoryview
    sums: NDArray[np.uint32]

    def fine_at(self, position: int) -> int:
        return 0

    def coarse_at(self, position: int) -> int:
        return 0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A server's socket, nonblocking, and a client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    server.setblocking(False)
    client.settimeout(10)
    yield server, client
    server.close()
    client.close()


@pytest.fixture
def blocks(tmp_path: Path) -> Blocks:
    path = tmp_path / "blocks"
    path.write_bytes(np.random.default_rng(1).bytes(8 * MIB))
    fd = os.open(path, os.O_RDWR)
    return Blocks(fd, memoryview(mmap.mmap(fd, 8 * MIB, access=mmap.ACCESS_READ)), np.empty(0, dtype=np.uint32))


def _reply(request_id: int, parts: list[Part], blocks: Blocks | None = None, at: list[int] | None = None) -> Reply:
    """A reply of `parts` and a trailer; `at` gives the positions of its parts on disk."""
    whole = [b"head", *parts, pack_trailer(0, 0)]
    total = sum(part.length if isinstance(part, FileRange) else len(part) for part in whole)
    plain = not any(isinstance(part, FileRange) for part in parts)
    reply = Reply(request_id, whole, total, plain=plain, need_ack=not plain)
    if blocks is not None and at is not None:
        origins: list[Origin | None] = [None, *(Origin(blocks, position, row) for row, position in enumerate(at))]
        reply.find_origins = lambda: origins
    return reply


def _drain(outbox: Outbox, server: socket.socket, client: socket.socket, *, budget: int, step: int) -> bytes:
    """What the client receives, taking at most `step` bytes after each flush."""
    out = b""
    expected = sum(reply.total for reply in outbox._queue)
    while len(out) < expected:
        outbox.flush(server, budget)
        out += client.recv(step)
    assert len(outbox) == 0
    return out


@pytest.mark.parametrize(("budget", "step"), [(1 << 30, 1 << 20), (1000, 300), (1 << 20, 100_000), (1, 1)])
def test_parts_of_all_kinds_arrive_in_order(
    pair: tuple[socket.socket, socket.socket], blocks: Blocks, budget: int, step: int
) -> None:
    outbox = Outbox()
    size = 4 * MIB if step > 1000 else 20 * step
    expected = b""
    for number in range(4):
        start = number * 1000
        parts: list[Part] = [
            b"edge%d" % number,
            FileRange(blocks, start, size),
            blocks.view[start : start + 30],
            b"y" * 70,
            FileRange(blocks, start + 7, 11),
        ]
        view = bytes(blocks.view)
        expected += b"head" + b"edge%d" % number + view[start : start + size] + view[start : start + 30]
        expected += b"y" * 70 + view[start + 7 : start + 18] + pack_trailer(0, 0)
        outbox.put(_reply(number, parts), 0.0)
    assert _drain(outbox, *pair, budget=budget, step=step) == expected
    assert outbox.unacked == 4
    outbox.acknowledge(2)
    assert outbox.unacked == 1


def test_more_buffers_than_one_call_takes(pair: tuple[socket.socket, socket.socket], blocks: Blocks) -> None:
    outbox = Outbox()
    cuts = [(row * 97 % 5000, row * 97 % 5000 + 13) for row in range(3000)]
    outbox.put(_reply(1, [blocks.view[a:b] for a, b in cuts]), 0.0)
    expected = b"head" + b"".join(bytes(blocks.view[a:b]) for a, b in cuts) + pack_trailer(0, 0)
    assert _drain(outbox, *pair, budget=1 << 30, step=5000) == expected


def test_small_replies_leave_together(pair: tuple[socket.socket, socket.socket]) -> None:
    server, client = pair
    outbox = Outbox()
    for number in range(20):
        outbox.put(_reply(number, [bytes(100)]), 0.0)
    before = outbox.sent_bytes
    assert not outbox.flush(server, 1)  # a budget for one call
    assert outbox.sent_bytes - before == 20 * 120 and len(outbox) == 0
    assert len(client.recv(20 * 120, socket.MSG_WAITALL)) == 20 * 120


def test_a_full_socket_is_said(pair: tuple[socket.socket, socket.socket], blocks: Blocks) -> None:
    outbox = Outbox()
    for number in range(4):
        outbox.put(_reply(number, [FileRange(blocks, 0, 8 * MIB)]), 0.0)
    assert outbox.flush(pair[0], 1 << 40)
    assert len(outbox) > 0


@pytest.mark.parametrize("by_sendfile", [True, False])
def test_what_cannot_be_read_is_zeros_and_the_trailer_says_so(
    pair: tuple[socket.socket, socket.socket], blocks: Blocks, by_sendfile: bool
) -> None:
    data = bytes(blocks.view)
    at, size = [0, 3 * MIB, 5 * MIB, MIB], 100_000
    parts: list[Part] = [
        FileRange(blocks, position, size) if by_sendfile else blocks.view[position : position + size] for position in at
    ]
    outbox = Outbox()
    outbox.put(_reply(1, parts, blocks, at), 0.0)
    outbox.put(_reply(2, [b"after it"]), 0.0)
    # Pages beyond a file's end cannot be had from its mapping, nor by reading: so looks a bad sector.
    os.ftruncate(blocks.fd, 4 * MIB)
    got = _drain(outbox, *pair, budget=1 << 30, step=1 << 20)
    body = got[4 : 4 + 4 * size]
    assert [body[row * size : (row + 1) * size] for row in range(4)] == [
        data[:size],
        data[3 * MIB : 3 * MIB + size],
        bytes(size),
        data[MIB : MIB + size],
    ]
    assert unpack_trailer(got[4 + 4 * size :][:16]) == (Corrupt.code, 2)
    assert got[4 + 4 * size + 16 :] == b"headafter it" + pack_trailer(0, 0)
    assert outbox.unreadable == 1


def test_a_part_that_becomes_unreadable_in_its_middle(
    pair: tuple[socket.socket, socket.socket], blocks: Blocks
) -> None:
    data = bytes(blocks.view)
    outbox = Outbox()
    outbox.put(_reply(1, [FileRange(blocks, MIB, 5 * MIB)], blocks, [MIB]), 0.0)
    os.ftruncate(blocks.fd, 2 * MIB)
    got = _drain(outbox, *pair, budget=1 << 30, step=1 << 20)
    assert got[4 : 4 + MIB] == data[MIB : 2 * MIB] and got[4 + MIB : -16] == bytes(4 * MIB)
    assert unpack_trailer(got[-16:]) == (Corrupt.code, 0)


def test_a_peer_that_is_gone_is_not_taken_for_a_bad_disk(
    pair: tuple[socket.socket, socket.socket], blocks: Blocks
) -> None:
    server, client = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    client.close()
    outbox = Outbox()
    outbox.put(_reply(1, [FileRange(blocks, 0, 8 * MIB)], blocks, [0]), 0.0)
    with pytest.raises(ConnectionError):
        for _ in range(100):
            outbox.flush(server, 1 << 30)
    assert outbox.unreadable == 0
