"""Peers must move the right bytes, under the congestion control of all, leave nothing, and say why they are missing."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.peers import redis_py
from benchmarks.peers.congestion import loopback_congestion, use_loopback_congestion
from benchmarks.peers.driven import Driven
from benchmarks.peers.environment import python_with
from benchmarks.peers.grpc_aio import GrpcAio
from benchmarks.peers.iperf3 import Iperf3
from benchmarks.peers.mooncake_tcp import Mooncake
from benchmarks.peers.nginx import Nginx
from benchmarks.peers.peer import Missing, Peer, Peers
from benchmarks.peers.redis_server import Redis
from benchmarks.peers.server import program

SIZE, BLOCK = 1 << 20, 4 << 10
LISTENER = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    print(server.getsockname()[1], flush=True)
    accepted, _ = server.accept()
    print(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\\0").decode(), flush=True)
"""


def needs(name: str) -> pytest.MarkDecorator:
    try:
        program(name, name)
    except Missing as missing:
        return pytest.mark.skip(reason=f"{name}: {missing}")
    return pytest.mark.skipif(False, reason="")


@pytest.fixture
def noise(tmp_path: Path) -> tuple[Path, bytes]:
    data = np.random.default_rng(3).bytes(SIZE)
    (tmp_path / "noise").write_bytes(data)
    return tmp_path / "noise", data


@contextlib.contextmanager
def ending(peer: Peer) -> Iterator[None]:
    """The peer, started; after the block nothing of it runs."""
    with peer:
        processes = peer.processes
        assert all(process.is_running() for process in processes)
        yield
    assert not psutil.wait_procs(processes, timeout=10)[1]


@needs("nginx")
def test_nginx(noise: tuple[Path, bytes], tmp_path: Path) -> None:
    path, data = noise
    nginx = Nginx(path, tmp_path / "nginx")
    with ending(nginx):
        assert len(nginx.processes) > 1, "no workers"
        for connection in (nginx.connect(), nginx.connect()):
            for offset, length in ((0, SIZE), (1, 1), (SIZE - 7, 7), (123, 300_000), (5, 100)):
                out = memoryview(bytearray(length))
                assert connection.read(offset, out) == length
                assert out == data[offset : offset + length]
        with pytest.raises(ConnectionError, match="416"):
            connection.read(SIZE, memoryview(bytearray(1)))


@needs("redis-server")
def test_redis(noise: tuple[Path, bytes], tmp_path: Path) -> None:
    path, data = noise
    redis = Redis(path, BLOCK, tmp_path / "redis")
    with ending(redis):
        connection = redis.connect()
        for keys in ([0], [255, 0, 7, 7], list(range(256))):
            out = memoryview(bytearray(len(keys) * BLOCK))
            assert connection.read(keys, out) == len(out)
            assert out == b"".join(data[key * BLOCK : (key + 1) * BLOCK] for key in keys)
        with pytest.raises(ConnectionError, match="Redis answered"):
            connection.put([], [])


@needs("iperf3")
@pytest.mark.parametrize("streams", [1, 3])
def test_iperf3(streams: int, tmp_path: Path) -> None:
    iperf3 = Iperf3(tmp_path / "iperf3")
    with ending(iperf3):
        timed = iperf3.run(streams, 16 << 20)
    assert timed.amount >= 16 << 20 and timed.seconds > 0


def test_grpc(noise: tuple[Path, bytes], tmp_path: Path) -> None:
    path, data = noise
    grpc = GrpcAio(path, tmp_path / "grpc")
    with ending(grpc):
        for offset, length in ((0, SIZE), (77, 4_096)):
            out = memoryview(bytearray(length))
            grpc.read_into(offset, out)
            assert out == data[offset : offset + length]
        timed = grpc.read([0, BLOCK], BLOCK, 3, 0.0)
        assert timed.amount >= 3 and timed.client_cpu_s >= 0


def test_a_server_is_put_on_the_congestion_control_of_all() -> None:
    with subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        use_loopback_congestion(psutil.Process(server.pid))
        with socket.create_connection(("127.0.0.1", port)):
            assert server.stdout.readline().strip() == loopback_congestion() != "reno"


def test_a_missing_program_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.server.shutil.which", lambda name: None)
    makes: dict[str, Callable[[], Peer]] = {
        "nginx-light": lambda: Nginx(tmp_path, tmp_path / "it"),
        "redis-server": lambda: Redis(tmp_path, BLOCK, tmp_path / "it"),
        "iperf3": lambda: Iperf3(tmp_path / "it"),
    }
    with contextlib.ExitStack() as stack:
        servers: list[Peer] = []
        peers = Peers(stack, servers)
        for package, make in makes.items():
            assert peers.start(package, make) is None
            assert peers.absent[package] == f"not installed (apt-get install --no-install-recommends {package})"
        assert not servers
    assert not list(tmp_path.iterdir())


@needs("nginx")
def test_a_server_that_does_not_start_says_why(noise: tuple[Path, bytes], tmp_path: Path) -> None:
    nginx = Nginx(noise[0], tmp_path / "nginx")
    with (
        socket.create_server(("127.0.0.1", nginx.port)),
        pytest.raises(Missing, match=r"does not start here.*bind"),
        nginx,
    ):
        raise AssertionError("its port is taken")


def test_an_environment_is_not_made_unless_asked_for(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"redis==8\.1\.0 is not installed in redis"):
        python_with(tmp_path / "redis", ("redis==8.1.0",), install=False)
    assert not list(tmp_path.iterdir())


def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="cannot be installed"):
        python_with(tmp_path / "none", (str(tmp_path / "no-such-package"),), install=True)
    with pytest.raises(Missing, match="is not installed"):
        python_with(tmp_path / "none", (str(tmp_path / "no-such-package"),), install=False)


def test_mooncake_outside_of_its_environment(noise: tuple[Path, bytes], tmp_path: Path) -> None:
    mooncake = Mooncake(Path(sys.executable), noise[0], tmp_path / "mooncake", SIZE)
    with pytest.raises(Missing, match="No module named 'mooncake'"), mooncake:
        raise AssertionError("it is not installed here")


def test_a_program_that_ends_says_why(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="No module named 'redis'"):
        Driven([sys.executable, "-S", os.fspath(Path(redis_py.__file__)), "1", "mget"], tmp_path / "log")
