"""LOCATE over a real socket: places and sums that are right for any range, descriptors that can only read, blocks that
stay what they were until the client has acknowledged, also after the daemon's end; and to whom none of it is given."""

from __future__ import annotations

import fcntl
import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fs3 import checksum
from fs3.clock import deadline_after
from fs3.errors import Invalid, NotFound, StaleRouting
from fs3.storage import file_locks
from fs3.storage.descriptors import Budget, Descriptors
from fs3.storage.locate import LocatePath
from fs3.storage.reply import Kept
from fs3.transport.frame_core import Feature, Flag, Header, Kind
from fs3.transport.local import LocalConnection
from fs3.transport.messages import FILE_KEY, NO_FILE, PLACE, RESULT, SUM, Op

_LENGTHS = [1, 4096, 4097, 70_000, 262_144, 300_000, 1 << 20]


def _connect(daemon: Any, **changed: Any) -> LocalConnection:
    path = daemon.server.config.unix_dir / "storage-1.sock"
    said = {"features": Feature.SAME_HOST, **changed}
    connection = LocalConnection.open(f"unix:{path}", daemon.hello(**said), timeout_s=10)
    daemon.connections.append(connection)
    return connection


@pytest.fixture
def local(daemon: Any) -> Iterator[LocalConnection]:
    made = _connect(daemon)
    yield made
    made.close()


@pytest.fixture(scope="module")
def chunks(daemon: Any) -> dict[int, bytes]:
    rng = random.Random(7)
    made = {index: rng.randbytes(_LENGTHS[index % len(_LENGTHS)]) for index in range(len(_LENGTHS) * 2)}
    connection = daemon.connect()
    daemon.put(connection, made)
    connection.close()
    return made


def _ask(daemon: Any, connection: LocalConnection, asked: list[tuple[int, int, int]]) -> int:
    ranges = daemon.ranges(asked)
    return connection.send(
        Kind.LOCATE, [ranges.tobytes()], count=len(ranges), flags=Flag.CHECKSUM, deadline_s=deadline_after(30)
    )


def _take(connection: LocalConnection) -> tuple[Any, list[int], Any]:
    """RESULT records, sums, PLACE records; descriptors go to `connection.files`."""
    header, head = connection.receive_head()
    assert header.flags & Flag.NEED_ACK and not header.body_bytes
    results = np.frombuffer(head, dtype=RESULT, count=header.count).copy()
    total = int(results["n_sums"].sum())
    sums = np.frombuffer(head, dtype=SUM, count=total, offset=results.nbytes).tolist()
    at = results.nbytes + total * 4
    places = np.frombuffer(head, dtype=PLACE, count=header.count, offset=at).copy()
    keys = np.frombuffer(head, dtype=FILE_KEY, offset=at + places.nbytes).tolist()
    connection.files.update(zip(keys, connection.fresh(), strict=True))
    return results, sums, places


def _locate(daemon: Any, connection: LocalConnection, asked: list[tuple[int, int, int]]) -> tuple[Any, list[int], Any]:
    _ask(daemon, connection, asked)
    return _take(connection)


def _read(connection: LocalConnection, place: Any, offset: int, length: int) -> bytes:
    return os.pread(connection.files[int(place["file"])], length, int(place["position"]) + offset)


def test_places_and_sums_of_random_ranges(daemon: Any, chunks: dict[int, bytes], local: LocalConnection) -> None:
    rng = random.Random(11)
    for count in [1, 2, 20, 200]:
        asked = []
        for _ in range(count):
            index = rng.choice(list(chunks))
            size = len(chunks[index])
            offset = rng.choice([0, rng.randrange(size + 1), rng.randrange(size + 1) // 4096 * 4096, size + 5])
            asked.append((index, offset, rng.choice([0, 1, 4096, 65_536, rng.randrange(size + 100)])))
        results, sums, places = _locate(daemon, local, asked)
        assert not results["status"].any()
        at = 0
        for (index, offset, length), result, place in zip(asked, results, places, strict=True):
            whole = chunks[index]
            expected = whole[offset : offset + length]
            assert result["length"] == len(expected) and result["chunk_length"] == len(whole)
            if not expected:
                assert result["n_sums"] == 0 and place["file"] == NO_FILE
                continue
            assert _read(local, place, offset, len(expected)) == expected
            begin = offset // 4096 * 4096
            end = min(-(-(offset + len(expected)) // 4096) * 4096, len(whole))
            for piece_begin, piece_end in checksum.pieces(begin, end - begin, len(whole)):
                assert sums[at] == checksum.crc(whole[piece_begin:piece_end]), (index, piece_begin, piece_end)
                at += 1
        assert at == len(sums)


def test_what_cannot_be_read_has_a_status_and_no_place(
    daemon: Any, chunks: dict[int, bytes], local: LocalConnection
) -> None:
    ranges = daemon.ranges([(6, 0, 100), (999, 0, 100), (6, 0, 100)])
    ranges["chain_version"][2] += 1
    local.send(Kind.LOCATE, [ranges.tobytes()], count=3, deadline_s=deadline_after(10))
    results, sums, places = _take(local)
    assert results["status"].tolist() == [0, NotFound.code, StaleRouting.code]
    assert len(sums) == 1 and places["file"].tolist()[1:] == [NO_FILE, NO_FILE]
    assert _read(local, places[0], 0, 100) == chunks[6][:100]


def test_a_file_comes_once_on_each_connection(daemon: Any, chunks: dict[int, bytes], local: LocalConnection) -> None:
    _locate(daemon, local, [(index, 0, 1) for index in chunks])
    files = dict(local.files)
    assert files
    _locate(daemon, local, [(index, 0, 1) for index in chunks])
    assert local.files == files


def test_many_requests_without_waiting(daemon: Any, chunks: dict[int, bytes], local: LocalConnection) -> None:
    asked = [_ask(daemon, local, [(6, number * 4096, 4096)]) for number in range(100)]
    for number in range(len(asked)):
        _, _, places = _take(local)
        assert _read(local, places[0], number * 4096, 4096) == chunks[6][number * 4096 : (number + 1) * 4096]


def test_descriptors_can_only_read(daemon: Any, chunks: dict[int, bytes], local: LocalConnection) -> None:
    _locate(daemon, local, [(6, 0, 1)])
    for fd in local.files.values():
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor"):
            os.ftruncate(fd, 0)


def test_over_tcp_there_are_no_descriptors(daemon: Any) -> None:
    connection = daemon.connect(features=int(Feature.SAME_HOST))
    assert connection.hello_reply.features == Feature.AHEAD
    connection.send(Kind.LOCATE, [daemon.ranges([(6, 0, 1)]).tobytes()], count=1, deadline_s=deadline_after(10))
    with pytest.raises(Invalid, match="LOCATE is for clients of the daemon's own user"):
        connection.receive_head()


def test_who_did_not_offer_to_read_by_itself_gets_none(daemon: Any) -> None:
    connection = _connect(daemon, features=0)
    assert connection.hello_reply.features == Feature.AHEAD
    _ask(daemon, connection, [(6, 0, 1)])
    with pytest.raises(Invalid, match="offered it in HELLO"):
        connection.receive_head()


def _positions(daemon: Any, index: int, connection: Any, count: int) -> set[tuple[int, int]]:
    """Where the next `count` versions of a chunk lie."""
    seen = set()
    daemon.durable = True
    for number in range(count):
        daemon.put(connection, {index: random.Random(number).randbytes(60_000)})
        _, located = daemon.located(index)
        seen.add((int(located.file[0]), int(located.position[0])))
    return seen


def test_a_block_is_not_reused_before_it_is_acknowledged(daemon: Any, local: LocalConnection) -> None:
    connection = daemon.connect()
    first = random.Random(1).randbytes(60_000)
    daemon.put(connection, {200: first})
    _, _, places = _locate(daemon, local, [(200, 0, 60_000)])
    file, position = int(places["file"][0]) & 0xFFFF, int(places["position"][0])
    assert (file, position) not in _positions(daemon, 200, connection, 40)
    assert _read(local, places[0], 0, 60_000) == first
    local.acknowledge()
    seen: set[tuple[int, int]] = set()
    daemon.until(lambda: (file, position) in seen.union(_positions(daemon, 200, connection, 5)), "the block is reused")


def test_a_client_that_goes_away_lets_go_of_its_blocks(daemon: Any) -> None:
    gone = _connect(daemon)
    connection = daemon.connect()
    daemon.put(connection, {201: bytes(60_000)})
    _locate(daemon, gone, [(201, 0, 60_000)])
    assert daemon.kept()
    gone.close()
    daemon.until(lambda: not daemon.kept(), "nothing is kept")
    daemon.put(connection, {201: bytes(60_000)})
    daemon.until(lambda: not any(engine.stats().locked for engine in daemon.server.engines), "nothing is locked")


def test_a_client_that_is_killed_lets_go_of_its_blocks(daemon: Any) -> None:
    daemon.put(daemon.connect(), {202: bytes(60_000)})
    ranges = daemon.ranges([(202, 0, 60_000)]).tobytes()
    hello, path = daemon.hello(features=int(Feature.SAME_HOST)), daemon.server.config.unix_dir / "storage-1.sock"
    read, write = os.pipe()
    child = os.fork()
    if not child:
        connection = LocalConnection.open(f"unix:{path}", hello, timeout_s=10)
        connection.send(Kind.LOCATE, [ranges], count=1, deadline_s=deadline_after(30))
        connection.receive_head()
        os.write(write, b"shown")
        signal.pause()
    assert os.read(read, 5) == b"shown"
    assert daemon.kept()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    daemon.until(lambda: not daemon.kept(), "nothing is kept")
    os.close(read)
    os.close(write)


def test_the_connection_is_seen_closed_before_blocks_are_let_go(start: Any, tmp_path: Any) -> None:
    """`still_open` is what a client trusts that has read what it does not sum."""
    with start(unix_dir=tmp_path) as daemon:
        local = _connect(daemon)
        daemon.put(daemon.connect(), {1: bytes(60_000)})
        _locate(daemon, local, [(1, 0, 60_000)])
        (peer,) = [peer for thread in daemon.server.threads for peer in thread.peers.values() if peer.descriptors]
        states: list[bool] = []
        close = peer.outbox.close
        peer.outbox.close = lambda: (states.append(local.still_open()), close())
        assert local.still_open()
        peer.loop.post(lambda: peer.loop._close(peer))
        daemon.until(lambda: bool(states), "the daemon has closed the connection")
        assert states == [False]


def test_pins_outlive_the_daemon(start: Any, tmp_path: Any) -> None:
    """A new run of the daemon does not reuse a block that a client of the last run has locked, until it lets go."""
    first = random.Random(1).randbytes(60_000)
    with start(unix_dir=tmp_path, disks=1) as daemon:
        connection = daemon.connect()
        daemon.put(connection, {1: bytes(60_000)})
        daemon.put(connection, {2: first})
        local = _connect(daemon)
        _, _, places = _locate(daemon, local, [(2, 0, 60_000)])
        file, position = int(places["file"][0]), int(places["position"][0])
        # As after SIGKILL: the description is locked, and nobody unlocks it.
        mine = os.dup(local.files[file])
        again = os.open(f"/proc/self/fd/{mine}", os.O_RDONLY)
        file_locks.lock(again, position, 60_000)
        daemon.put(connection, {2: bytes(60_000)})
    with start(unix_dir=tmp_path, disks=1) as daemon:
        (engine,) = daemon.server.engines
        daemon.seq = 1_000  # other updates than those of the first run
        assert engine.stats().locked == 1
        connection = daemon.connect()
        assert (file, position) not in _positions(daemon, 2, connection, 40)
        assert os.pread(mine, 60_000, position) == first
        os.close(again)
        seen: set[tuple[int, int]] = set()
        daemon.until(lambda: (file, position) in seen.union(_positions(daemon, 2, connection, 5)), "it is reused")
        assert engine.stats().locked == 0
    os.close(mine)


def test_a_block_in_use_that_is_locked_is_not_reused_once_it_is_freed(start: Any, tmp_path: Any) -> None:
    with start(unix_dir=tmp_path, disks=1) as daemon:
        connection = daemon.connect()
        first = random.Random(1).randbytes(60_000)
        daemon.put(connection, {2: first})
        local = _connect(daemon)
        _, _, places = _locate(daemon, local, [(2, 0, 60_000)])
        file, position = int(places["file"][0]), int(places["position"][0])
        again = os.open(f"/proc/self/fd/{local.files[file]}", os.O_RDONLY)
        file_locks.lock(again, position, 1)
    with start(unix_dir=tmp_path, disks=1) as daemon:
        (engine,) = daemon.server.engines
        daemon.seq = 1_000  # other updates than those of the first run
        assert engine.stats().locked == 0
        connection = daemon.connect()
        assert (file, position) not in _positions(daemon, 2, connection, 40)
        assert engine.stats().locked == 1
        assert os.pread(again, 60_000, position) == first
    os.close(again)


def test_descriptors_are_given_to_no_more_than_there_may_be(
    daemon: Any, chunks: dict[int, bytes], local: LocalConnection
) -> None:
    budget = daemon.server.service._locates._budget
    taken = 0
    while budget.take():
        taken += 1
    try:
        results, _, places = _locate(daemon, local, [(6, 0, 100)])
        assert results["status"].tolist() == [0] and places["file"].tolist() == [NO_FILE] and not local.files
    finally:
        budget.give_back(taken)
    _, _, places = _locate(daemon, local, [(6, 0, 100)])
    assert _read(local, places[0], 0, 100) == chunks[6][:100]


def test_another_user_gets_none(daemon: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    folder = daemon.server.config.unix_dir
    hello = daemon.hello(features=int(Feature.SAME_HOST))
    os.chmod(folder, 0o711)
    os.chmod(folder / "storage-1.sock", 0o666)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.chdir(folder)  # others may not come here by the whole path
            os.setresuid(65_534, 65_534, 65_534)
            connection = LocalConnection.open("unix:storage-1.sock", hello, timeout_s=10)
            os.write(write, b"features %d" % connection.hello_reply.features)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    assert os.read(read, 100) == b"features %d" % Feature.AHEAD
    os.close(read)


def test_removed_chunks_are_read_while_they_are_pinned(daemon: Any, local: LocalConnection) -> None:
    connection = daemon.connect()
    data = random.Random(5).randbytes(100_000)
    daemon.put(connection, {300: data})
    _, _, places = _locate(daemon, local, [(300, 0, 100_000)])
    daemon.write(connection, [(300, Op.REMOVE, b"")])
    for number in range(30):
        daemon.put(connection, {301: random.Random(number).randbytes(100_000)})
    assert _read(local, places[0], 0, 100_000) == data


def test_few_ranges_are_located_as_many_are(daemon: Any, chunks: dict[int, bytes]) -> None:
    """One by one in plain Python, or together in numpy: the same answer, or the first says that it has none."""
    rng = random.Random(8)
    path, plain = LocatePath(daemon.server.reads), 0
    for number in range(400):
        asked = []
        for _ in range(rng.randrange(1, 6)):
            index = rng.randrange(len(chunks) + (number % 4 == 0))  # the last is no chunk
            size = len(chunks.get(index, b""))
            begin, end = sorted(rng.randrange(size + 5_000) for _ in range(2))
            asked.append((index, begin, rng.choice([end - begin, size, 4_096])))
        ranges = daemon.ranges(asked)
        if rng.random() < 0.05:
            ranges["chain_version"][0] += 1
        header, few_kept, many_kept = Header(Kind.LOCATE, number, count=len(asked)), Kept(), Kept()
        few = path._few(header, ranges, few_kept, Descriptors(Budget(0)))
        many = path._many(header, ranges, many_kept, None)
        few_kept.release()
        many_kept.release()
        if few is not None:
            plain += 1
            assert few == many, asked
        else:
            assert many.failed or min(np.frombuffer(many.results, dtype=RESULT)["length"]) == 0, asked
    assert 100 < plain < 390 and daemon.kept() == 0
