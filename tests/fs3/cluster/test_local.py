"""A whole cluster as processes: start, a killed daemon and its return, stop, a second start, and the command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fs3.client.mgmtd import MgmtdClient
from fs3.cluster.etcd import LocalEtcd
from fs3.cluster.folder import HOST
from fs3.cluster.local import LocalCluster
from fs3.cluster.stopping import stop_folder
from fs3.errors import Invalid, Unavailable
from fs3.routing import Routing, TargetState

FS3 = [sys.executable, "-m", "fs3.cli.main"]


def states(routing: Routing, node: int) -> set[TargetState]:
    return {target.state for target in routing.targets.values() if target.node_id == node}


def test_a_killed_daemon_comes_back_and_so_does_the_cluster(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    with LocalCluster(directory, nodes=2, replicas=2, port=0, lease_s=1.0) as cluster:
        with pytest.raises(Invalid, match="in use by a running cluster"):
            LocalCluster(directory).start()
        client = MgmtdClient.connect([cluster.shape.address])
        assert {chain.version for chain in client.routing.chains.values()} == {1}
        assert sorted(cluster.pids) == ["meta", "mgmtd", "storage-1", "storage-2"]
        before = cluster.pids["storage-1"]
        cluster.kill_node(1)
        routing = client.routing
        while routing.nodes[1].alive:  # type: ignore[index]
            routing = client.refresh(routing.version, 30.0)
        assert states(routing, 1) == {TargetState.OFFLINE, TargetState.LASTSRV}
        assert states(routing, 2) == {TargetState.SERVING}
        cluster.restart_node(1)
        assert cluster.pids["storage-1"] != before
        routing = cluster.wait_serving(recovered=True)
        assert states(routing, 1) == {TargetState.SERVING}
        identity, ports = routing.cluster_id, cluster.shape.ports
        client.close()
        pids = list(cluster.pids.values())
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with LocalCluster(directory) as again:
        assert again.shape.ports == ports and again.shape.nodes == 2
        client = MgmtdClient.connect([again.shape.address])
        assert client.routing.cluster_id == identity
        client.close()


def test_a_daemon_that_ends_at_once_is_named_with_its_reason(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "c", nodes=1, replicas=1, port=0)
    cluster.folder.hold()
    (cluster.folder.path / "meta").write_text("in the way")
    (cluster.folder.path / "fs3-cluster.json").write_text(
        json.dumps({"format": 1, "nodes": 1, "replicas": 1, "lease_s": 1.0, "ports": {}})
    )
    cluster.folder.release()
    with pytest.raises(Unavailable, match=r"meta ended with status 1: fs3: .*meta.*; its log is .*meta\.log"):
        cluster.start()
    assert cluster.pids == {} and not cluster.folder.in_use()


class Beaten(LocalCluster):
    """Others take the service ports of `victims` after they were chosen, before the daemons are started."""

    def __init__(self, directory: Path, victims: list[str], **options: int) -> None:
        super().__init__(directory, nodes=1, replicas=1, lease_s=1.0, **options)
        self.victims = victims
        self.others: list[socket.socket] = []
        self.spawned: list[str] = []

    def _spawn(self, name: str) -> None:
        if name in self.victims:
            self.victims.remove(name)
            self.others.append(socket.create_server((HOST, self.shape.ports[name][0])))
        self.spawned.append(name)
        super()._spawn(name)

    def taken(self) -> set[int]:
        return {one.getsockname()[1] for one in self.others}

    def stop(self) -> None:
        super().stop()
        for one in self.others:
            one.close()


def test_a_port_that_was_free_a_moment_ago_is_replaced(tmp_path: Path) -> None:
    victims = ["mgmtd", "mgmtd", "meta", "storage-1"]
    with Beaten(tmp_path / "c", victims, port=0) as cluster:
        assert cluster.spawned[:3] == ["mgmtd"] * 3, "nobody asks who has taken the port of mgmtd"
        assert not cluster.victims and len(cluster.others) == 4
        ports = {port for pair in cluster.shape.ports.values() for port in pair}
        assert not ports & cluster.taken()
        assert cluster.folder.remembered() == cluster.shape, "the next start finds them"


def test_a_named_port_and_a_remembered_one_are_not_replaced(tmp_path: Path) -> None:
    cluster = Beaten(tmp_path / "c", ["mgmtd"], port=free_port())
    with pytest.raises(Unavailable, match=r"mgmtd ended with status 1: .*the port is taken"):
        cluster.start()
    assert cluster.spawned == ["mgmtd"] and not cluster.folder.in_use()
    with LocalCluster(tmp_path / "c"):
        pass
    again = Beaten(tmp_path / "c", ["mgmtd"])
    with pytest.raises(Unavailable, match=r"mgmtd ended with status 1: .*the port is taken"):
        again.start()


def test_options_that_do_not_start_are_not_remembered(tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "c", nodes=1, replicas=1, port=0, lease_s=1.0) as cluster:
        shape = cluster.shape
    with pytest.raises(Unavailable, match=r"mgmtd ended with status 1: .*lease_s 700: must be between"):
        LocalCluster(tmp_path / "c", lease_s=700.0).start()
    assert cluster.folder.remembered() == shape
    with LocalCluster(tmp_path / "c") as again:
        assert again.shape == shape


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FS3, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_up_detached_status_and_down(tmp_path: Path) -> None:
    directory = str(tmp_path / "c")
    with LocalCluster(directory, nodes=1, replicas=1, port=0, lease_s=1.0) as made:
        url = made.url
    started = run("up", "--dir", directory, "--detach")
    assert started.returncode == 0, started.stderr
    assert started.stdout.startswith(f"{url} is ready: 1 storage nodes")
    try:
        shown = run("status", url, "--json")
        assert shown.returncode == 0 and json.loads(shown.stdout)["healthy"] is True
        again = run("up", "--dir", directory, "--detach")
        assert again.returncode == 1 and "in use by a running cluster" in again.stderr
        supervisor = json.loads((tmp_path / "c" / "run" / "up.json").read_text())["pid"]
        os.kill(supervisor, signal.SIGKILL)  # its daemons live on, and `down` finds them
    finally:
        ended = run("down", directory)
    assert ended.returncode == 0 and "stopped" in ended.stdout, ended.stderr
    assert run("status", url).returncode == 1
    assert not stop_folder(directory)


@pytest.mark.parametrize("detach", [(), ("--detach",)])
def test_up_names_what_is_in_its_way(detach: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "fs3-cluster.json").write_text(json.dumps({"format": 4, "nodes": 1, "replicas": 1}))
    (tmp_path / "log").write_text("in the way")
    failed = run("up", "--dir", str(tmp_path), "--port", str(free_port()), *detach)
    assert (failed.returncode, failed.stderr) == (1, f"fs3: {tmp_path / 'log'}: File exists\n")
    assert not LocalCluster(tmp_path).folder.in_use()


def test_up_on_etcd_down_and_up_again(etcd: LocalEtcd, tmp_path: Path) -> None:
    assert etcd.members  # it is installed
    directory = str(tmp_path / "c")
    made = LocalCluster(directory)
    port = str(free_port())  # it comes back to it: not the favourite, which another test may take meanwhile
    options = ("--kv", "etcd", "--nodes", "1", "--lease", "1", "--port", port)
    started = run("up", "--dir", directory, *options, "--detach")
    assert started.returncode == 0, started.stderr
    try:
        made.recall()
        assert (made.shape.mgmtds, made.shape.metas) == (2, 2)
        (tmp_path / "x").write_text("kept")
        assert run("cp", str(tmp_path / "x"), f"{made.url}/x").returncode == 0
        supervisor = json.loads((tmp_path / "c" / "run" / "up.json").read_text())["pid"]
        os.kill(supervisor, signal.SIGKILL)  # its daemons, etcd's members among them, live on, and `down` finds them
    finally:
        ended = run("down", directory)
    assert ended.returncode == 0 and "stopped" in ended.stdout, ended.stderr
    assert not [process for process in psutil.process_iter() if any(directory in part for part in _command(process))]
    with LocalCluster(directory) as again:
        assert {f"etcd-{member}" for member in (1, 2, 3)} < again.pids.keys()
        assert run("cat", f"{again.url}/x").stdout == "kept"


def test_on_a_machine_without_etcd_one_line_says_what_to_install(tmp_path: Path) -> None:
    command = [*FS3, "up", "--dir", str(tmp_path / "c"), "--kv", "etcd"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 1 and not (tmp_path / "c").exists()
    assert done.stderr == "fs3: there is no `etcd` on this machine; on Debian: apt-get install etcd-server\n"


def test_down_also_ends_a_daemon_that_was_started_again_by_hand(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    assert run("up", "--dir", str(directory), "--nodes", "1", "--replicas", "1", "--detach").returncode == 0
    config = directory / "config" / "storage-1.toml"
    first = next(p for p in psutil.process_iter() if str(config) in _command(p))
    first.kill()
    first.wait(10)
    relative = str(config.relative_to(tmp_path))
    by_hand = subprocess.Popen([*FS3, "storage", "--config", relative], cwd=tmp_path, stderr=subprocess.DEVNULL)
    reader = subprocess.Popen([sys.executable, "-c", "input()", str(config)], stdin=subprocess.PIPE)  # no daemon
    try:
        assert run("down", str(directory)).returncode == 0
        by_hand.wait(10)
        assert reader.poll() is None
    finally:
        by_hand.kill()
        reader.kill()


def test_down_ends_a_daemon_that_was_started_by_hand_without_up(tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "c", nodes=1, replicas=1, port=0, lease_s=1.0) as cluster:
        command = [*FS3, "mgmtd", "--config", str(cluster.folder.config("mgmtd"))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as by_hand:
        try:
            assert by_hand.stderr is not None
            assert any("listens on" in line for line in by_hand.stderr)
            ended = run("down", str(tmp_path / "c"))
            assert ended.returncode == 0 and ended.stdout.startswith("stopped; "), ended
            assert by_hand.wait(10) == 0
        finally:
            by_hand.kill()
    assert run("down", str(tmp_path / "c")).stdout.startswith("no cluster is running in ")


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_up_in_the_foreground_stops_at_ctrl_c(tmp_path: Path) -> None:
    command = [*FS3, "up", "--dir", str(tmp_path / "c"), "--nodes", "1", "--replicas", "1", "--lease", "1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--port", str(free_port())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "fsspec" in line:
                break
        process.send_signal(signal.SIGINT)
        lines += process.stdout.readlines()
        assert process.wait(60) == 0, lines
    assert lines[-1] == "stopped\n"
    assert not LocalCluster(tmp_path / "c").folder.in_use()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
