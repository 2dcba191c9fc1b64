"""Storage daemons of several worker processes: killed one by one under load, stopped, orphaned; more and fewer of them.

Nothing waits for a time: each step waits for a routing, or an end of a process, that shows it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fs3.cli import main
from fs3.client.connect import connect
from fs3.client.meta import LayoutChoice
from fs3.client.mgmtd import MgmtdClient
from fs3.clock import deadline_after, lease_now_s
from fs3.cluster.folder import free_port, port_is_free
from fs3.cluster.local import LocalCluster
from fs3.errors import Unavailable
from fs3.ids import NodeId, machine_of, worker_node
from fs3.routing import NodeKind, Routing

WAIT_S = 90.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with LocalCluster(folder, nodes=2, replicas=2, workers=2, port=0, lease_s=1.5) as made:
        client = connect(made.url)
        client.meta.mkdir("/two", layout=LayoutChoice(replicas=2))
        client.close()
        yield made


def workers(cluster: LocalCluster, node: int) -> list[psutil.Process]:
    """The worker processes of a storage daemon, by their numbers."""
    return sorted(psutil.Process(cluster.pids[f"storage-{node}"]).children(), key=lambda one: one.cmdline()[-2])


def wait_for(cluster: LocalCluster, reached: Callable[[Routing], bool]) -> Routing:
    deadline_s = deadline_after(WAIT_S)
    client = MgmtdClient.connect(cluster.shape.addresses)
    try:
        routing = client.fetch()
        while not reached(routing):
            assert lease_now_s() < deadline_s, routing
            routing = client.refresh(routing.version, 1.0)
        return routing
    finally:
        client.close()


def storage_nodes(routing: Routing) -> set[int]:
    return {int(node.node_id) for node in routing.nodes.values() if node.kind == NodeKind.STORAGE}


def fs3(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints; it must succeed."""
    capsys.readouterr()
    status = main.run(arguments)
    shown = capsys.readouterr()
    assert status == 0, shown.err
    return shown.out


def test_each_worker_is_a_node_and_no_chain_is_twice_on_a_machine(
    cluster: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    routing = cluster.wait_serving()
    ids = {worker_node(node, worker) for node in (1, 2) for worker in (0, 1)}
    assert storage_nodes(routing) == ids == {target.node_id for target in routing.targets.values()}
    assert len({routing.nodes[node].endpoints for node in ids}) == 4
    for chain in routing.chains:
        machines = [machine_of(target.node_id) for target in routing.serving(chain)]
        assert len(set(machines)) == len(machines)
    disks = {disk.node_id: disk for disk in routing.disks}
    real = os.statvfs(cluster.folder.path)
    assert sum(disk.total_bytes for disk in disks.values()) < 2 * real.f_frsize * real.f_bavail, "nothing counts twice"
    names = [line.split()[0] for line in fs3(capsys, "status", cluster.url).splitlines() if "storage" in line]
    assert names == ["1", "1.1", "2", "2.1"]
    rows = json.loads(fs3(capsys, "admin", "targets", cluster.url, "--node", "1", "--json"))
    alone = json.loads(fs3(capsys, "admin", "targets", cluster.url, "--node", "1.1", "--json"))
    assert {row["node"] for row in rows} == {1, worker_node(1, 1)}
    assert {row["node"] for row in alone} == {worker_node(1, 1)}
    assert "targets of 2 nodes" in fs3(capsys, "admin", "scrub", "start", cluster.url, "--node", "2")
    scrubbed = json.loads(fs3(capsys, "admin", "scrub", "status", cluster.url, "--node", "2", "--json"))
    assert [row["node"] for row in scrubbed] == [2, worker_node(2, 1)]


@pytest.mark.parametrize("worker", [0, 1])
def test_a_worker_killed_under_load_costs_no_call_and_comes_back(
    cluster: LocalCluster, clients_of: Any, worker: int
) -> None:
    node = NodeId(worker_node(1, worker))
    before = cluster.wait_serving(recovered=True).nodes[node].generation
    with clients_of(cluster.url, f"two/kill{worker}") as clients:
        clients.progress(5)
        processes = workers(cluster, 1)
        processes[worker].kill()
        clients.progress(10)
        wait_for(cluster, lambda routing: routing.nodes[node].generation != before and routing.nodes[node].alive)
        cluster.wait_serving(recovered=True, timeout_s=WAIT_S)
        clients.progress(3)
    assert workers(cluster, 1)[1 - worker].pid == processes[1 - worker].pid, "the other one was left alone"


def test_the_supervisors_death_ends_its_workers_and_recovery_does_the_rest(
    cluster: LocalCluster, clients_of: Any
) -> None:
    with clients_of(cluster.url, "two/orphans") as clients:
        processes = workers(cluster, 2)
        assert len(processes) == 2
        cluster.kill_node(2)
        _, alive = psutil.wait_procs(processes, timeout=WAIT_S)
        assert not alive
        clients.progress(5)
        cluster.restart_node(2)
        cluster.wait_serving(recovered=True, timeout_s=WAIT_S)
        clients.progress(3)


def test_a_stop_reaches_every_worker(cluster: LocalCluster) -> None:
    processes = workers(cluster, 2)
    os.kill(cluster.pids["storage-2"], signal.SIGTERM)
    psutil.wait_procs(processes, timeout=WAIT_S)
    deadline_s = deadline_after(WAIT_S)
    ended = cluster.reap()
    while not ended and lease_now_s() < deadline_s:
        ended = cluster.reap()
    assert [(one.name, one.status) for one in ended] == [("storage-2", 0)]
    assert not any(process.is_running() for process in processes)
    log = cluster.folder.log("storage-2").read_text()
    assert "storage 2 stopped" in log and "storage 2.1 stopped" in log
    assert not list((cluster.folder.path / "run").glob("storage-2*.sock")), "their sockets' names are gone"
    cluster.restart_node(2)
    cluster.wait_serving(recovered=True, timeout_s=WAIT_S)


def test_more_workers_keep_the_data_and_fewer_need_a_drain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"/file{number}": os.urandom(700_000 + number) for number in range(8)}

    def check(url: str) -> None:
        client = connect(url)
        assert {path: client.files.read(client.files.open_read(path)) for path in files} == files
        client.close()

    with LocalCluster(tmp_path, nodes=1, port=0, lease_s=1.5) as cluster:
        client = connect(cluster.url)
        for path, data in files.items():
            with client.files.create_writer(path) as writer:
                writer.write(data)
        client.close()
    more = worker_node(1, 1)
    with LocalCluster(tmp_path, workers=2, lease_s=1.5) as cluster:
        check(cluster.url)
        wait_for(cluster, lambda routing: more in storage_nodes(routing))
        fs3(capsys, "admin", "balance", cluster.url, "--wait")
        routing = wait_for(cluster, lambda routing: True)
        counts = [sum(target.node_id == node for target in routing.targets.values()) for node in (1, more)]
        assert counts == [1, 1]
        check(cluster.url)
    with pytest.raises(
        Unavailable, match=r"workers 1: worker 1\.1 still has 1 target; set workers = 2, and first: fs3"
    ):
        LocalCluster(tmp_path, workers=1, lease_s=1.5).start(timeout_s=WAIT_S)
    with LocalCluster(tmp_path, workers=2, lease_s=1.5) as cluster:
        fs3(capsys, "admin", "drain", cluster.url, "--node", "1.1", "--wait")
    with LocalCluster(tmp_path, workers=1, lease_s=1.5) as cluster:
        check(cluster.url)
        assert fs3(capsys, "admin", "remove", cluster.url, "--node", "1.1") == "node 1.1 is removed\n"
        assert storage_nodes(wait_for(cluster, lambda routing: True)) == {1}


class Daemon:
    """`fs3 storage` on a configuration of the test's own."""

    def __init__(self, folder: Path, cluster: LocalCluster, **values: Any) -> None:
        values = {"node_id": 9, "mgmtd": list(cluster.shape.addresses), "workers": 2, **values}
        config = folder / "storage.toml"
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        command = [sys.executable, "-m", "fs3.cli.main", "storage", "--config", str(config)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.communicate(timeout=WAIT_S)


def test_two_disks_are_a_workers_each(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disks = [tmp_path / "a", tmp_path / "b"]
    both = {9, int(worker_node(9, 1))}
    with Daemon(tmp_path, cluster, disks=[str(disk) for disk in disks]):
        routing = wait_for(cluster, lambda routing: both <= {int(disk.node_id) for disk in routing.disks})
        found = {(int(disk.node_id), disk.disk): disk.path for disk in routing.disks if disk.node_id in both}
        assert found == {(9, 0): str(disks[0]), (worker_node(9, 1), 1): str(disks[1] / "worker-1")}
        made = fs3(capsys, "admin", "create", cluster.url, "--node", "9", "--disk", "1", "--chain", "1")
        assert "on node 9.1 disk 1" in made
        wait_for(cluster, lambda routing: len(routing.serving(1)) == 2)
        fs3(capsys, "admin", "drain", cluster.url, "--node", "9", "--wait")
    wait_for(cluster, lambda routing: not any(routing.nodes[NodeId(node)].alive for node in both))
    fs3(capsys, "admin", "remove", cluster.url, "--node", "9")


def test_a_worker_that_cannot_start_ends_the_daemon_with_its_reason(cluster: LocalCluster, tmp_path: Path) -> None:
    port = next(port for port in (free_port(set()) for _ in range(100)) if port_is_free(port - 1))
    with (
        socket.create_server(("127.0.0.1", port)),
        Daemon(tmp_path, cluster, disks=[str(tmp_path / "a")], listen_port=port - 1) as daemon,
    ):
        said, _ = daemon.process.communicate(timeout=WAIT_S)
    assert daemon.process.returncode == 1
    reason = f"listen_port {port}: the port is taken by another process; stop that, or choose another port"
    assert said.splitlines()[-1] == f"fs3: storage 9.1: listen_host '127.0.0.1', {reason}"
