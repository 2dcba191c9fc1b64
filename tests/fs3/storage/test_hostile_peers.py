"""Peers that keep what others need: memory for bodies and replies, pinned blocks, connections, threads.

Each test holds a daemon's resource as a hostile peer would, and checks that a well-behaved one gets it all the same.
tests/process/test_hostile_bytes.py sends malformed bytes to whole clusters.
"""

from __future__ import annotations

import logging
import random
import socket
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fs3.clock import deadline_after
from fs3.errors import Busy, Fs3Error, Invalid, Unavailable
from fs3.pb import storage_pb2
from fs3.storage.body_pool import Body, Share
from fs3.storage.connections import Patience
from fs3.storage.service import _deadline_s
from fs3.transport.frame_core import HEADER_BYTES, Flag, Header, Kind, pack_header, unpack_header
from fs3.transport.messages import LIST_CHUNKS, Op

MIB = 1 << 20
_BEGUN = 40_000


def _announcement(daemon: Any, size: int) -> bytes:
    """The beginning of a WRITE that is said to bring `size` bytes, with enough of them to be given the memory."""
    updates, sums = daemon.updates([(1, Op.REPLACE, bytes(size))])
    head = updates.tobytes() + sums[0].tobytes()
    return (
        pack_header(Header(Kind.WRITE, 2, count=1, head_bytes=len(head), body_bytes=size), head) + head + bytes(_BEGUN)
    )


def test_who_announces_much_and_sends_little_keeps_no_writer_waiting(start: Callable[..., Any]) -> None:
    patience = Patience(scarce_s=1.0)  # the writer is a thread of this process, which may stand still for a while
    with start(max_body_bytes=MIB, max_inflight_bytes=2 * MIB, disks=1, patience=patience) as daemon:
        hoarders = [daemon.connect() for _ in range(8)]
        good = daemon.connect()
        for hoarder in hoarders:
            hoarder._sock.sendall(_announcement(daemon, MIB))
        share = daemon.server.pool.shares[0]
        daemon.until(lambda: share.wanted, "the memory is taken and others wait")
        daemon.put(good, {2: random.Random(1).randbytes(300_000)})
        for hoarder in hoarders:
            hoarder.close()
        daemon.until(lambda: daemon.server.pool.lent_bytes == 0, "all memory is back")


def test_an_announcement_alone_takes_no_memory(start: Callable[..., Any]) -> None:
    with start(max_body_bytes=MIB, max_inflight_bytes=2 * MIB, disks=1, patience=Patience(scarce_s=60.0)) as daemon:
        hoarders = [daemon.connect() for _ in range(8)]
        for hoarder in hoarders:
            hoarder._sock.sendall(_announcement(daemon, MIB)[:-20_000])
        good = daemon.connect()
        for turn in range(20):
            daemon.put(good, {2: random.Random(turn).randbytes(300_000)})
        daemon.until(lambda: daemon.server.pool.lent_bytes == 0, "none of them has memory")


def test_a_slow_body_that_nobody_waits_for_may_take_its_time(start: Callable[..., Any]) -> None:
    with start(max_body_bytes=MIB, max_inflight_bytes=2 * MIB, disks=1, patience=Patience(scarce_s=0.0)) as daemon:
        slow, good = daemon.connect(), daemon.connect()
        data = random.Random(2).randbytes(200_000)
        updates, sums = daemon.updates([(1, Op.REPLACE, data)])
        head = updates.tobytes() + sums[0].tobytes()
        slow._sock.sendall(
            pack_header(Header(Kind.WRITE, 2, count=1, head_bytes=len(head), body_bytes=len(data)), head)
        )
        slow._sock.sendall(head + data[:70_000])
        swept = [thread.peers for thread in daemon.server.threads]
        before = max(peer.now_s for peers in swept for peer in list(peers.values()))
        daemon.until(
            lambda: min(peer.now_s for peers in swept for peer in list(peers.values())) > before + 1.0,
            "two sweeps went by",
        )
        slow._sock.sendall(data[70_000:])
        daemon.until(lambda: not isinstance(_read(daemon, good), Fs3Error), "the slow write has arrived")
        assert _read(daemon, good) == data


def _read(daemon: Any, connection: Any) -> Any:
    answer = daemon.read(connection, [(1, 0, MIB)])
    return Unavailable("not there") if answer.results["status"][0] else answer.bodies[0]


def test_who_goes_away_while_he_waits_for_memory_is_forgotten(start: Callable[..., Any]) -> None:
    with start(max_body_bytes=MIB, max_inflight_bytes=MIB, disks=1, patience=Patience(scarce_s=60.0)) as daemon:
        holder = daemon.connect()
        holder._sock.sendall(_announcement(daemon, MIB))
        daemon.until(lambda: daemon.server.pool.lent_bytes == MIB, "the first has the memory")
        share = daemon.server.pool.shares[0]
        for round_ in range(20):
            waiter = daemon.connect()
            waiter._sock.sendall(_announcement(daemon, MIB))
            daemon.until(lambda: share.wanted, "it waits")
            if round_ % 2:  # a reset; else an ordinary end
                waiter._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            waiter.close()
            daemon.until(lambda: not share.wanted, "nothing is left of it")


def test_a_waiter_that_gives_up_lets_smaller_ones_pass() -> None:
    share = Share(4 * MIB)
    held = share.take(3 * MIB, lambda body: None)
    granted: list[str] = []

    def large(body: Body) -> None:
        granted.append("large")

    assert share.take(2 * MIB, large) is None
    assert share.take(MIB, lambda body: granted.append("small")) is None
    share.forget(large)
    assert granted == ["small"]
    share.forget(large)
    assert held is not None
    share.give_back(held)
    assert granted == ["small"] and not share.wanted


def test_replies_that_nobody_takes_are_bounded(start: Callable[..., Any]) -> None:
    """Readers of many partial blocks who never receive: memory stays within the limit, and is given back."""
    limit = 8 * MIB
    with start(
        max_body_bytes=MIB, max_inflight_bytes=limit, io_threads=1, disks=1, patience=Patience(scarce_s=0.2)
    ) as daemon:
        good = daemon.connect()
        data = random.Random(3).randbytes(MIB)
        daemon.put(good, {1: data})
        held = daemon.server.threads[0].held
        ranges = daemon.ranges([(1, 4_096 * (at % 250) + 1, 8_000) for at in range(600)]).tobytes()
        greedy = [daemon.connect() for _ in range(10)]
        most = 0
        for _ in range(8):
            for one in greedy:
                one._sock.setblocking(False)
                head = pack_header(Header(Kind.READ, 9, flags=1, count=600, head_bytes=len(ranges)), ranges)
                try:
                    one._sock.sendall(head + ranges)
                except OSError:
                    continue  # pushed back, or closed: as it should be
                most = max(most, held.bytes_)
        daemon.until(lambda: held.bytes_ <= limit // 2, "those that take nothing are closed")
        # One reply may be under way on each thread for slow reads when the limit is reached.
        assert most <= limit + 8 * 6 * MIB
        daemon.until(lambda: _served(daemon, good, data), "a well-behaved reader is served")
        for one in greedy:
            one.close()
        daemon.until(lambda: held.bytes_ == 0 and daemon.kept() == 0, "all memory and blocks are back")


def _served(daemon: Any, connection: Any, data: bytes) -> bool:
    try:
        answer = daemon.read(connection, [(1, 1, 5_000)])
    except Busy:
        return False
    return bool(answer.bodies == [data[1:5_001]])


def test_blocks_do_not_stay_pinned_for_who_never_acknowledges(start: Callable[..., Any]) -> None:
    with start(disks=1, patience=Patience(ack_s=0.1)) as daemon:
        good, forgetful = daemon.connect(), daemon.connect()
        daemon.put(good, {1: random.Random(4).randbytes(MIB)})
        header, _ = (daemon.ask(forgetful, [(1, 0, MIB)]), daemon.take(forgetful))[1]
        assert header.flags & Flag.NEED_ACK and daemon.kept()
        daemon.until(lambda: daemon.kept() == 0, "its blocks are free again")
        daemon.until(lambda: not forgetful.alive(), "its connection is closed")


def test_idle_connections_make_room_for_new_ones(start: Callable[..., Any]) -> None:
    with start(max_connections=2, io_threads=1, disks=1, patience=Patience(idle_s=0.05)) as daemon:
        idle = [daemon.connect(), daemon.connect()]

        def let_in() -> bool:
            try:
                daemon.put(daemon.connect(), {1: b"let in"})
            except Busy:
                return False
            return True

        daemon.until(let_in, "the idle one has been closed")
        daemon.until(lambda: not all(one.alive() for one in idle), "one of them is gone")


def test_a_connection_with_work_under_way_is_never_idle(start: Callable[..., Any]) -> None:
    with start(max_connections=1, io_threads=1, disks=1, patience=Patience(idle_s=0.0)) as daemon:
        busy = daemon.connect()
        busy._sock.sendall(_announcement(daemon, MIB))
        daemon.until(lambda: daemon.server.pool.lent_bytes > 0, "its frame has begun")
        for _ in range(5):
            with pytest.raises((Busy, Unavailable)):
                daemon.connect()
        busy._sock.sendall(bytes(MIB - _BEGUN))
        header = unpack_header(busy._sock.recv(HEADER_BYTES, socket.MSG_WAITALL))
        assert (header.kind, header.count, header.status) == (Kind.WRITE, 1, 0)


def test_a_peer_that_resets_before_its_answer_is_no_news(daemon: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    host, _, port = daemon.server.address.rpartition(":")
    for _ in range(60):
        sock = socket.create_connection((host, int(port)))
        sock.sendall(b"no frame at all".ljust(64))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    daemon.until(lambda: not any(thread.peers for thread in daemon.server.threads), "all of them are gone")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_client_is_no_predecessor_whatever_it_calls_itself(daemon: Any) -> None:
    connection = daemon.connect(role="node 2")
    head = storage_pb2.SyncDoneRequest(chain_id=1, chain_version=1).SerializeToString()
    connection.send(Kind.SYNC_DONE, [head], count=0, deadline_s=deadline_after(10))
    with pytest.raises(Fs3Error, match="predecessor"):
        connection.receive_head()


def test_one_query_does_not_ask_for_a_thousand_listings(daemon: Any) -> None:
    connection = daemon.connect()
    ranges = np.repeat(daemon.ranges([(1, 0, 0)]), 1_000)
    ranges["offset"] = LIST_CHUNKS
    connection.send(Kind.QUERY, [ranges.tobytes()], count=len(ranges), deadline_s=deadline_after(10))
    with pytest.raises(Invalid, match="listings"):
        connection.receive_head()


def test_no_request_keeps_a_thread_for_days() -> None:
    assert _deadline_s(Header(Kind.WRITE, 1, deadline_ms=(1 << 32) - 1), 100.0) <= 100.0 + 120.0
    assert _deadline_s(Header(Kind.WRITE, 1, deadline_ms=5_000), 100.0) == 105.0
