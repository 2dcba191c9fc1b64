"""Large chunks go down a chain of real daemons piece by piece, over sockets; and all is well if a daemon does not."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from fs3.client.connect import Client, connect
from fs3.client.meta import LayoutChoice
from fs3.clock import deadline_after
from fs3.cluster.folder import storage_name
from fs3.cluster.local import LocalCluster
from fs3.pb import storage_pb2
from fs3.routing import NodeKind
from fs3.transport.connection import Connection
from fs3.transport.frame_core import Kind

SIZE = 10 << 20  # chunks of 4 MiB, and half of one
EVERYWHERE = LayoutChoice(replicas=3)
WAIT_S = 90.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=3, replicas=3, port=0, lease_s=1.5) as made:
        yield made


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    made = connect(cluster.url)
    yield made
    made.close()


def noise(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def write(client: Client, path: str, data: bytes, choice: LayoutChoice = EVERYWHERE) -> None:
    with client.files.create_writer(path, layout_choice=choice) as writer:
        writer.write(data)


def counted(client: Client, name: str) -> list[int]:
    """A counter of the write path of every storage daemon."""
    routing = client.mgmtd.fetch(2.0)
    hello = storage_pb2.Hello(protocol=1, cluster_id=routing.cluster_id, role="client")
    found = []
    for node in sorted(routing.nodes.values(), key=lambda node: node.node_id):
        if node.kind is NodeKind.STORAGE:
            connection = Connection.open(node.endpoints[0], hello, timeout_s=5.0)
            connection.send(Kind.STATS, [b""], count=0, deadline_s=deadline_after(5.0))
            _, head = connection.receive_head()
            found.append(json.loads(storage_pb2.StatsReply.FromString(bytes(head)).json)["writes"][name])
            connection.close()
    return found


def test_every_replica_has_the_bytes_before_the_update(cluster: LocalCluster, client: Client) -> None:
    before = counted(client, "ahead_used")
    data = noise(SIZE, 1)
    write(client, "/ahead", data)
    assert client.files.read(client.files.open_read("/ahead")) == data
    used = [after - then for then, after in zip(before, counted(client, "ahead_used"), strict=True)]
    assert sum(used) == 9 and counted(client, "ahead_missed") == [0, 0, 0]
    assert sum(counted(client, "ahead_passed_on")) >= 2 * 10


def test_small_chunks_and_chains_of_one_replica_do_without(cluster: LocalCluster, client: Client) -> None:
    before = counted(client, "ahead_pieces")
    write(client, "/one-replica", noise(SIZE, 2), LayoutChoice(replicas=1))
    write(client, "/small", noise((2 << 20) - 1, 3))
    assert counted(client, "ahead_pieces") == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_daemon_that_ends_or_stops_meanwhile_costs_no_write(
    cluster: LocalCluster, client: Client, number: signal.Signals
) -> None:
    data = [noise(SIZE, seed) for seed in range(4)]
    written: list[str] = []
    goes_on = threading.Event()
    failures: list[BaseException] = []

    def writes() -> None:
        try:
            while not goes_on.is_set() or len(written) < 6:
                path = f"/{number.name}-{len(written)}"
                write(client, path, data[len(written) % len(data)])
                written.append(path)
        except BaseException as error:  # noqa: BLE001  # it is the test's
            failures.append(error)

    def until_written(count: int) -> None:
        while len(written) < count and thread.is_alive():
            thread.join(0.01)

    thread = threading.Thread(target=writes)
    thread.start()
    until_written(2)
    if number is signal.SIGKILL:
        cluster.kill_node(2)
        until_written(len(written) + 3)
        cluster.restart_node(2)
    else:
        stopped = psutil.Process(cluster.pids[storage_name(2)])
        stopped.suspend()
        until_written(len(written) + 3)
        stopped.resume()
    goes_on.set()
    thread.join(WAIT_S)
    assert not failures and not thread.is_alive(), failures
    cluster.wait_serving(recovered=True, timeout_s=WAIT_S)
    for at, path in enumerate(written):
        assert client.files.read(client.files.open_read(path)) == data[at % len(data)], path
