"""A cluster on etcd from which one process after the other is killed while trees are copied into it: no call fails.

Nothing waits for a time: the next process is killed when some more has been copied.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fs3.client.connect import Client, connect
from fs3.cluster.etcd import LocalEtcd
from fs3.cluster.local import LocalCluster

_FILES = 64  # more than etcd takes in one transaction
_WAIT_S = 60.0
_COPY = """
import select, sys
from fs3.cli.main import run
turn = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    status = run(["cp", "-r", sys.argv[1], f"{sys.argv[2]}/turn-{turn}"])
    if status:
        sys.exit(status)
    turn += 1
    print("copied", turn, flush=True)
"""


@pytest.fixture
def cluster(etcd: LocalEtcd, tmp_path: Path) -> Iterator[LocalCluster]:
    assert etcd.members  # it is installed
    with LocalCluster(tmp_path / "c", nodes=3, replicas=2, port=0, lease_s=3.0, kv="etcd") as running:
        yield running


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for number in range(_FILES):
        path = tmp_path / "tree" / f"d{number % 3}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"file {number}\n".encode() * (number * 11))
    return tmp_path / "tree"


class Copier:
    """A process that runs `fs3 cp -r` again and again, into a new directory each time, until one fails."""

    def __init__(self, tree: Path, url: str) -> None:
        self.done = 0
        self._child = subprocess.Popen(
            [sys.executable, "-c", _COPY, str(tree), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def progress(self, copies: int) -> None:
        """Wait until so many more are done."""
        assert self._child.stdout is not None and self._child.stderr is not None
        wanted = self.done + copies
        while self.done < wanted:
            line = self._child.stdout.readline()
            assert line, self._child.stderr.read()
            self.done += line.startswith("copied")

    def __enter__(self) -> Copier:
        self.progress(1)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None:
            self._child.kill()
        out, said = self._child.communicate(timeout=_WAIT_S)
        self.done += out.count("copied")
        assert kind is not None or self._child.returncode == 0, said


def victims(cluster: LocalCluster, client: Client) -> Iterator[str]:
    """Those to kill, each as things are when it is its turn."""
    yield f"etcd-{cluster.etcd.leader()}"
    primary = client.mgmtd.primary()
    yield next(name for name in cluster.shape.mgmtd_names if primary.endswith(f":{cluster.shape.ports[name][0]}"))
    yield "meta"
    yield "storage-1"
    yield f"etcd-{cluster.etcd.leader()}"


def test_killed_one_after_the_other_while_trees_are_copied(cluster: LocalCluster, tree: Path) -> None:
    client = connect(cluster.url)
    with Copier(tree, cluster.url) as copier:
        for name in victims(cluster, client):
            cluster.kill(name)
            copier.progress(2)
            cluster.restart(name)
            cluster.wait_serving(recovered=True, timeout_s=_WAIT_S)
        copier.progress(1)
    for turn in range(copier.done):
        assert client.meta.usage(f"/turn-{turn}").files == _FILES
        for path in tree.rglob("f*"):
            handle = client.files.open_read(f"/turn-{turn}/{path.relative_to(tree)}")
            assert client.files.read(handle) == path.read_bytes(), path
    for name in (*cluster.shape.names, *(f"etcd-{member}" for member in cluster.etcd.members)):
        assert name in cluster.pids, f"{name} has ended"
    assert not cluster.reap()
    client.close()
