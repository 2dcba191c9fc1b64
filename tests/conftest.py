"""Real clusters for the tests that want one, one per test process: fs3's, and etcd's.

Each is started by the first test that asks for it. fs3's has three storage nodes and three replicas; tests keep to a
directory of their own (`home`), and those that kill daemons start clusters of their own (tests/process). etcd's has
three members; tests keep to a store of their own, and those that hurt members leave all of them healthy.
"""

from __future__ import annotations

import fcntl
import gc
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest

from fs3.cluster.etcd import LocalEtcd
from fs3.cluster.local import LocalCluster

_HERE = Path(__file__).parent
_number = itertools.count()

# What earlier tests of this process left in cycles, gRPC's channels and servers among it, is not for a child to
# collect: gRPC crashes, or waits for ever, in a process that was forked while one of its threads was at work.
os.register_at_fork(before=gc.collect)

# What takes longest comes first, what waits beside what computes: two workers end at about the same time.
_FIRST = (
    "trainer/demo/test_demo.py",
    "fs3/mgmtd/test_chain_with_daemons.py",
    "fs3/storage/test_engine_crash_points.py",
    "fs3/cluster/test_local.py",
    "sim/test_seeds.py",
    "test_readme.py",
    "sim/test_cluster.py",
    "process/test_etcd_failover.py",
    "test_ecosystem.py",
    "trainer/infer/test_runner.py",
    "benchmarks/test_run.py",
    "conformance/test_fsspec.py",
    "process/test_failover.py",
    "trainer/infer/test_generate.py",
    "trainer/train/test_checkpoint.py",
    "sim/test_mutants.py",
    "process/test_admin.py",
    "trainer/train/test_resume.py",
    "conformance/test_kv_etcd.py",
    "process/test_hostile_bytes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {str(_HERE / name): place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: rank.get(str(item.path), len(rank)))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=3, replicas=3, port=0) as running:
        yield running


@pytest.fixture(scope="session")
def cluster_url(cluster: LocalCluster) -> str:
    """`fs3://host:port`, without a slash at the end."""
    return cluster.url.rstrip("/")


@pytest.fixture
def fs(cluster_url: str) -> Any:
    """The fsspec filesystem of the test cluster."""
    return fsspec.url_to_fs(cluster_url + "/")[0]


@pytest.fixture
def home(fs: Any) -> str:
    """The path of a fresh directory on the test cluster."""
    path = f"/test-{os.getpid()}-{next(_number)}"
    fs.mkdir(path)
    return path


@pytest.fixture
def runtime_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The runtime directory of the user, empty; every I/O process that was started in it is gone afterwards."""
    made = Path(tempfile.mkdtemp(prefix="fs3-run-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(made))
    yield made
    for pid in io_processes(made):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(made, ignore_errors=True)


def io_processes(runtime_directory: Path) -> list[int]:
    """The I/O processes (fs3.usrbio) in a runtime directory: those that have their lock in it open."""
    found = []
    for process in psutil.process_iter():
        try:
            held = [os.readlink(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir()]
        except OSError:
            continue
        if any(name.startswith(str(runtime_directory)) and name.endswith(".lock") for name in held):
            found.append(process.pid)
    return found


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEtcd]:
    """Three members of etcd, which is installed if it is missing and can be."""
    if shutil.which("etcd") is None:
        _install_etcd()
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed; as root: apt-get install etcd-server")
    with LocalEtcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


def _install_etcd() -> None:
    """With Debian's package, as root, one test process at a time; without starting the service."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    with (Path(tempfile.gettempdir()) / "fs3-tests-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if shutil.which("etcd") is not None:
            return
        quiet = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "--no-install-recommends", "etcd-server"]
        for command in (install, ["apt-get", "update"], install):
            done = subprocess.run(command, env=quiet, capture_output=True, timeout=240, check=False)
            if command is install and done.returncode == 0:
                return
