"""The daemon as its peers see it: who is let in, what malformed or slow peers get, limits, restart and a clean stop."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fs3.clock import deadline_after, lease_now_s
from fs3.config import from_mapping
from fs3.errors import Busy, Corrupt, Fs3Error, Invalid, PermissionDenied, Unavailable, from_code
from fs3.ids import node_name
from fs3.pb import storage_pb2
from fs3.storage import listeners
from fs3.storage.config import StorageConfig
from fs3.storage.connections import Patience
from fs3.storage.server import StorageServer
from fs3.transport.connection import Connection
from fs3.transport.frame_core import HEADER_BYTES, Header, Kind, pack_header, unpack_header
from fs3.transport.messages import RESULT, Op


def _raw(daemon: Any) -> socket.socket:
    host, _, port = daemon.server.address.rpartition(":")
    sock = socket.create_connection((host, int(port)))
    sock.settimeout(20)
    return sock


def _said(sock: socket.socket) -> tuple[Header, Fs3Error]:
    """The one reply that comes before the daemon closes."""
    raw = b""
    while got := sock.recv(65_536):
        raw += got
    header = unpack_header(raw)
    assert header.reply and header.status and len(raw) == HEADER_BYTES + header.head_bytes
    return header, from_code(header.status, raw[HEADER_BYTES:].decode())


def _hello(daemon: Any, **changed: Any) -> bytes:
    head = daemon.hello(**changed).SerializeToString()
    return pack_header(Header(Kind.HELLO, 1, head_bytes=len(head)), head) + head


def _damaged(frame: bytes) -> bytes:
    return frame[:-1] + bytes([frame[-1] ^ 1])


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"cluster_id": "another"}, PermissionDenied, "another"),
        ({"protocol": 9}, Invalid, "protocol 9"),
    ],
)
def test_who_is_not_let_in(daemon: Any, changed: dict[str, Any], error: type[Fs3Error], text: str) -> None:
    with pytest.raises(error, match=text):
        daemon.connect(**changed)


def test_the_hello_reply_says_the_limits(daemon: Any) -> None:
    said = daemon.connect().hello_reply
    config = daemon.server.config
    assert (said.node_id, said.max_ranges, said.max_body_bytes) == (1, config.max_ranges, config.max_body_bytes)
    assert said.generation == daemon.server.generation


def test_malformed_frames_are_answered_and_the_connection_closed(daemon: Any) -> None:
    hello = _hello(daemon)
    head = bytes(32)
    large = pack_header(Header(Kind.WRITE, 7, head_bytes=0, body_bytes=daemon.server.config.max_body_bytes + 1))
    deep = pack_header(Header(Kind.WRITE, 7, body_bytes=10, hop=200)) + bytes(10)
    cases: list[tuple[bytes, type[Fs3Error], int]] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(64), Invalid, 0),
        (pack_header(Header(Kind.READ, 3, count=1, head_bytes=32), head) + head, Invalid, 3),
        (_damaged(hello), Corrupt, 1),
        (hello[:60] + b"\0\0\0\0" + hello[64:], Corrupt, 1),
        (pack_header(Header(Kind.WRITE, 5, body_bytes=10)) + bytes(10), Invalid, 5),
        (pack_header(Header(Kind.HELLO, 6, head_bytes=1 << 20)), Invalid, 6),
        (pack_header(Header(Kind.HELLO, 6, head_bytes=3), b"\xff\xff\xff") + b"\xff\xff\xff", Invalid, 6),
    ]
    for stream, error, request_id in cases:
        with _raw(daemon) as sock:
            sock.sendall(stream)
            header, said = _said(sock)
            assert isinstance(said, error) and header.request_id == request_id, (stream[:70], said)
    for stream, error, request_id in [(large, Invalid, 7), (deep, Invalid, 7)]:
        connection = daemon.connect()
        connection._sock.sendall(stream)
        header, said = _said(connection._sock)
        assert isinstance(said, error) and header.request_id == request_id


def test_a_wrong_request_is_answered_and_the_connection_goes_on(daemon: Any) -> None:
    connection = daemon.connect()
    for kind, head, count in [
        (Kind.READ, bytes(31), 1),
        (Kind.READ, bytes(32), 2),
        (Kind.WRITE, bytes(81), 1),
        (77, b"", 0),
        (Kind.HELLO, daemon.hello().SerializeToString(), 0),
        (Kind.SYNC_LIST, b"\xff\xff", 0),
    ]:
        connection.send(kind, [head], count=count, deadline_s=deadline_after(10))
        with pytest.raises((Invalid, PermissionDenied)):
            connection.receive_head()
    daemon.put(connection, {1: b"still here"})


def test_random_bytes_break_only_their_own_connection(daemon: Any) -> None:
    rng = random.Random(21)
    good = daemon.connect()
    daemon.put(good, {2: b"x" * 5000})
    ranges = daemon.ranges([(2, 0, 100)]).tobytes()
    read = pack_header(Header(Kind.READ, 2, count=1, head_bytes=32), ranges) + ranges
    for _ in range(100):
        stream = bytearray(_hello(daemon) + read + read)
        for _ in range(rng.randrange(1, 4)):
            stream[rng.randrange(len(stream))] = rng.randrange(256)
        with _raw(daemon) as sock:
            sock.sendall(bytes(stream[: rng.randrange(1, len(stream) + 1)]))
            if rng.random() < 0.5:
                sock.shutdown(socket.SHUT_WR)
                sock.recv(100)
        assert daemon.read(good, [(2, 0, 10)]).bodies == [b"x" * 10]


def test_a_failure_inside_ends_one_connection(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    good, other = daemon.connect(), daemon.connect()
    daemon.put(good, {3: b"y" * 100})

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(daemon.server.reads, "query", fail)
        ranges = daemon.ranges([(3, 0, 0)])
        other.send(Kind.QUERY, [ranges.tobytes()], count=1, deadline_s=deadline_after(10))
        with pytest.raises(Unavailable):
            other.receive_head()
    assert daemon.read(good, [(3, 0, 100)]).bodies == [b"y" * 100]


def test_writes_are_checked_and_survive(daemon: Any) -> None:
    connection = daemon.connect()
    results = daemon.write(connection, [(10, Op.REPLACE, b"a" * 9000), (11, Op.REPLACE, b"b"), (12, Op.REMOVE, b"")])
    assert results["status"].tolist() == [0, 0, 0] and results["chunk_length"].tolist()[:2] == [9000, 1]
    updates, sums = daemon.updates([(10, Op.REPLACE, b"c" * 9000)])
    sums[0][1] ^= 1
    connection.send(
        Kind.WRITE, [updates.tobytes(), sums[0].tobytes()], [b"c" * 9000], count=1, deadline_s=deadline_after(10)
    )
    _, head = connection.receive_head()
    assert np.frombuffer(head, dtype=RESULT, count=1)["status"][0] == Corrupt.code
    assert daemon.read(connection, [(10, 0, 9000)]).bodies == [b"a" * 9000]


def test_a_writer_waits_for_memory_while_others_go_on(start: Callable[..., Any]) -> None:
    """One body's worth of memory: the second writer is served once the first has sent the rest of its body."""
    with start(max_body_bytes=1 << 20, max_inflight_bytes=1 << 20, disks=1) as daemon:
        first, second, reader = daemon.connect(), daemon.connect(), daemon.connect()
        daemon.put(reader, {0: b"r" * 100})
        data = random.Random(1).randbytes(1 << 20)
        updates, sums = daemon.updates([(1, Op.REPLACE, data)])
        head = updates.tobytes() + sums[0].tobytes()
        frame = pack_header(Header(Kind.WRITE, 1, count=1, head_bytes=len(head), body_bytes=len(data)), head) + head
        first._sock.sendall(frame + data[: 1 << 19])
        daemon.until(lambda: daemon.server.pool.lent_bytes == 1 << 20, "the first has the memory")
        done = threading.Event()
        threading.Thread(target=lambda: (daemon.put(second, {2: data}), done.set()), daemon=True).start()
        for _ in range(20):
            assert daemon.read(reader, [(0, 0, 100)]).bodies == [b"r" * 100]
        assert not done.is_set()
        first._sock.sendall(data[1 << 19 :])
        assert done.wait(20)
        raw = first._sock.recv(HEADER_BYTES + RESULT.itemsize, socket.MSG_WAITALL)
        assert unpack_header(raw).status == 0
        daemon.until(lambda: daemon.server.pool.lent_bytes == 0, "all memory came back")


def test_memory_comes_back_from_a_writer_that_goes_away(start: Callable[..., Any]) -> None:
    with start(max_body_bytes=1 << 20, max_inflight_bytes=1 << 20, disks=1) as daemon:
        gone, waiting, other = daemon.connect(), daemon.connect(), daemon.connect()
        frame = pack_header(Header(Kind.WRITE, 1, body_bytes=1 << 20))
        gone._sock.sendall(frame + bytes(40_000))
        daemon.until(lambda: daemon.server.pool.lent_bytes > 0, "the first has the memory")
        waiting._sock.sendall(frame + bytes(40_000))
        gone.close()
        daemon.until(lambda: len(daemon.server.threads[0].peers) + len(daemon.server.threads[1].peers) == 2, "it left")
        waiting.close()
        daemon.put(other, {1: b"z" * 500_000})
        assert daemon.read(other, [(1, 0, 5)]).bodies == [b"zzzzz"]


def test_more_work_than_a_connection_may_have_is_busy(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(max_requests=3, disks=1) as daemon:
        connection = daemon.connect()
        daemon.put(connection, {1: b"1"})
        release = threading.Event()
        real = daemon.server.writes.update

        def slow(*args: Any, **named: Any) -> Any:
            assert release.wait(20)
            return real(*args, **named)

        monkeypatch.setattr(daemon.server.writes, "update", slow)
        for number in range(4):
            updates, sums = daemon.updates([(number + 2, Op.REPLACE, b"x")])
            connection.send(
                Kind.WRITE, [updates.tobytes(), sums[0].tobytes()], [b"x"], count=1, deadline_s=deadline_after(20)
            )
        with pytest.raises(Busy):
            connection.receive_head()
        release.set()
        for _ in range(3):
            header, head = connection.receive_head()
            assert np.frombuffer(head, dtype=RESULT, count=header.count)["status"].tolist() == [0]


def test_connections_have_a_limit(start: Callable[..., Any]) -> None:
    with start(max_connections=2, disks=1) as daemon:
        kept = [daemon.connect(), daemon.connect()]
        with pytest.raises(Busy, match="2 connections"):
            daemon.connect()
        kept[0].close()
        daemon.until(lambda: sum(len(thread.peers) for thread in daemon.server.threads) == 1, "one left")
        daemon.connect()


def test_slow_peers_are_closed(start: Callable[..., Any]) -> None:
    with start(patience=Patience(hello_s=1.5, frame_s=0.3), disks=1) as daemon:
        with _raw(daemon) as silent:
            assert silent.recv(100) == b""
        idle, half = daemon.connect(), daemon.connect()
        half._sock.sendall(pack_header(Header(Kind.READ, 2, head_bytes=3200)) + bytes(100))
        half._sock.settimeout(20)
        assert half._sock.recv(100) == b""
        daemon.put(idle, {1: b"an idle connection between frames stays"})


def test_the_secret_is_wanted(start: Callable[..., Any]) -> None:
    with start(secret="opensesame", disks=1) as daemon:
        for secret in ["", "opensesam", "opensesame!"]:
            with pytest.raises(PermissionDenied, match="secret"):
                daemon.connect(secret=secret)
        daemon.put(daemon.connect(secret="opensesame"), {1: b"in"})


def test_only_predecessors_recover(daemon: Any) -> None:
    connection = daemon.connect()
    request = storage_pb2.SyncDoneRequest(chain_id=1, chain_version=1)
    connection.send(Kind.SYNC_DONE, [request.SerializeToString()], count=0, deadline_s=deadline_after(10))
    with pytest.raises(PermissionDenied, match="predecessor"):
        connection.receive_head()
    connection = daemon.connect()
    connection.send(Kind.WRITE, [b""], count=0, hop=1, deadline_s=deadline_after(10))
    with pytest.raises(PermissionDenied, match="predecessor"):
        connection.receive_head()
    predecessor = daemon.connect(role="chain", node_id=2)
    predecessor.send(Kind.SYNC_DONE, [request.SerializeToString()], count=0, deadline_s=deadline_after(10))
    with pytest.raises(Fs3Error) as refused:
        predecessor.receive_head()
    assert not isinstance(refused.value, PermissionDenied)


def test_stats_and_metrics(daemon: Any) -> None:
    connection = daemon.connect()
    daemon.put(connection, {20: b"s" * 5000})
    daemon.read(connection, [(20, 0, 5000)])
    daemon.read(connection, [(12_345, 0, 5)])
    connection.send(Kind.STATS, [b""], count=0, deadline_s=deadline_after(10))
    _, head = connection.receive_head()
    reply = storage_pb2.StatsReply()
    reply.ParseFromString(bytes(head))
    stats = json.loads(reply.json)
    assert stats["server"]["read_bytes"] >= 5000 and stats["server"]["write_bytes"] >= 5000
    assert stats["server"]["requests"]["read"] >= 2 and stats["server"]["errors"]["NotFound"] >= 1
    assert len(stats["disks"]) == 2 and stats["writes"]["serving_targets"] == len(daemon.chains)
    text = urllib.request.urlopen(f"http://{daemon.server._exporter.address}/metrics").read().decode()
    for line in (
        'fs3_storage_requests_total{kind="read"}',
        'fs3_storage_errors_total{error="NotFound"}',
        "fs3_storage_read_bytes_total",
        "fs3_storage_connections",
        'what="free"',
    ):
        assert line in text


def test_without_a_lease_nothing_is_answered(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = daemon.connect()
    daemon.put(connection, {21: b"t"})
    agent = daemon.server.daemon.agent
    with monkeypatch.context() as patched:
        patched.setattr(type(agent), "serve_until_s", property(lambda self: lease_now_s() - 0.001))
        with pytest.raises(Unavailable, match="lost touch"):
            daemon.read(connection, [(21, 0, 1)])
        with pytest.raises(Unavailable, match="lost touch"):
            daemon.write(connection, [(21, Op.REPLACE, b"u")])
    daemon.until(lambda: daemon.read(connection, [(21, 0, 1)]).bodies == [b"t"], "it serves again")


def test_restart_on_the_same_disks(start: Callable[..., Any]) -> None:
    data = {index: random.Random(index).randbytes(100_000) for index in range(10)}
    with start() as daemon:
        daemon.put(daemon.connect(), data)
        generation, port = daemon.server.generation, int(daemon.server.address.rpartition(":")[2])
    with start(listen_port=port) as daemon:
        assert daemon.server.generation > generation and daemon.server.address == f"127.0.0.1:{port}"
        asked = [(index, 0, len(whole)) for index, whole in data.items()]
        assert daemon.read(daemon.connect(), asked).bodies == list(data.values())


def test_a_stop_is_clean(start: Callable[..., Any], tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with start(unix_dir=tmp_path) as daemon:
        connection = daemon.connect()
        daemon.put(connection, {1: b"x" * 300_000})
        daemon.read(connection, [(1, 0, 300_000)])
        address = daemon.server.address
        threads = set(threading.enumerate()) - before
    with pytest.raises(Unavailable):
        Connection.open(address, daemon.hello(), timeout_s=2)
    assert not (tmp_path / "storage-1.sock").exists()
    ours = {thread.name for thread in threads if thread.name.startswith("fs3-") and thread.is_alive()}
    assert not ours


def test_a_taken_metrics_port_leaves_no_folder_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = StorageConfig(
            node_id=1, mgmtd=("127.0.0.1:1",), disks=(tmp_path / "a", tmp_path / "b"), metrics_port=port
        )
        bound = listeners.bind(config)
        with pytest.raises(Invalid, match=f"metrics port 127.0.0.1:{port}"):
            StorageServer(config, "cluster", bound)
        bound.close()
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port(daemon: Any) -> None:
    port = int(daemon.server.address.rpartition(":")[2])
    with pytest.raises(Invalid, match=f"listen_port {port}: the port is taken"):
        listeners.bind(StorageConfig(node_id=2, mgmtd=("h:1",), disks=(Path("/x"),), listen_port=port))


def test_a_unix_socket_that_was_left_behind_is_replaced(daemon: Any, tmp_path: Path) -> None:
    config = StorageConfig(node_id=1, mgmtd=("h:1",), disks=(Path("/x"),), unix_dir=tmp_path)
    left = listeners.bind(config)
    for sock in left.sockets:
        sock.close()
    assert (tmp_path / "storage-1.sock").exists()
    listeners.bind(config).close()
    assert not (tmp_path / "storage-1.sock").exists()
    served = StorageConfig(node_id=1, mgmtd=("h:1",), disks=(Path("/x"),), unix_dir=daemon.server.config.unix_dir)
    with pytest.raises(Invalid, match="another daemon listens"):
        listeners.bind(served)
    (tmp_path / "storage-1.sock").write_text("mine")
    with pytest.raises(Invalid, match="in the way"):
        listeners.bind(config)


def test_a_disk_of_another_cluster_is_refused(start: Callable[..., Any], tmp_path: Path) -> None:
    with start(disks=1):
        pass
    config = StorageConfig(node_id=1, mgmtd=("127.0.0.1:1",), disks=(tmp_path / "disk0",))
    bound = listeners.bind(config)
    try:
        with pytest.raises(PermissionDenied, match="cluster"):
            StorageServer(config, "somebody-else", bound)
    finally:
        bound.close()
    lock = os.open(tmp_path / "disk0" / "LOCK", os.O_RDWR)
    os.close(lock)


def test_a_worker_has_ports_and_a_share_of_the_rates_of_its_own() -> None:
    values = {
        "node_id": 7,
        "mgmtd": ["h:1"],
        "disks": ["/a"],
        "workers": 3,
        "listen_port": 7302,
        "recovery_bytes_s": 10,
    }
    config = from_mapping(values, StorageConfig, where="config x.toml")
    workers = [config.of_worker(number) for number in range(3)]
    assert [node_name(one.node_id) for one in workers] == ["7", "7.1", "7.2"]
    assert [one.worker for one in workers] == [0, 1, 2]
    assert [(one.listen_port, one.metrics_port) for one in workers] == [(7302, 0), (7303, 0), (7304, 0)]
    assert {one.recovery_bytes_s for one in workers} == {4}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"node_id": 0}, "node_id 0: must be between 1 and 16777215"),
        ({"node_id": 1 << 24}, "node_id 16777216: must be between 1 and 16777215"),
        ({"node_id": 2 << 24 | 1, "workers": 2}, "node_id 33554433: must be between 1 and 16777215"),
        ({"workers": 0}, "workers 0: must be between 1 and 64"),
        ({"workers": 65}, "workers 65: must be between 1 and 64"),
        ({"workers": 2, "listen_port": 65_535}, "listen_port 65535: 2 workers take as many ports"),
        ({"workers": 3, "metrics_port": 65_534}, "metrics_port 65534: 3 workers take as many ports"),
        ({"worker": 2}, "did you mean 'workers'"),
        ({"mgmtd": []}, "at least one address"),
        ({"mgmtd": ["nowhere"]}, "expected host:port"),
        ({"disks": []}, "at least one folder"),
        ({"disks": ["/a", "/a"]}, "named twice"),
        ({"listen_host": "10.0.0.1"}, "can be reached from other machines"),
        ({"listen_host": "0.0.0.0", "insecure": True}, "by which other nodes reach"),
        ({"io_threads": 0}, "io_threads 0"),
        ({"max_body_bytes": 1}, "max_body_bytes 1"),
        ({"max_inflight_bytes": 1}, "at least max_body_bytes"),
        ({"disk": ["/a"]}, "did you mean 'disks'"),
        ({"engine": {"file_byte": 1}}, "did you mean 'file_bytes'"),
    ],
)
def test_mistakes_in_the_configuration(changed: dict[str, Any], text: str) -> None:
    values = {"node_id": 1, "mgmtd": ["h:1"], "disks": ["/a"], **changed}
    with pytest.raises(Invalid, match=text):
        from_mapping(values, StorageConfig, where="config x.toml")
