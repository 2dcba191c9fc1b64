"""`fs3 usrbio URL`: the I/O process as a daemon."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fs3 import usrbio
from fs3.cluster.local import LocalCluster
from tests.conftest import io_processes


@pytest.mark.usefixtures("noise")
def test_it_serves_until_it_is_stopped(cluster: LocalCluster, runtime_directory: Path) -> None:
    command = [sys.executable, "-m", "fs3.cli.main", "usrbio", cluster.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == f"reading for {cluster.url}\n"
        assert io_processes(runtime_directory) == [daemon.pid]
        zero = np.zeros(1, dtype=np.int64)
        with usrbio.open(cluster.url, start=False) as io, io.iov(4_096) as iov, io.ior() as ring:
            ring.read(io.open_files(["/noise-b"]), zero, zero, zero + 10, iov, zero)
            ring.wait()[0].check()
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 1 and "is running already" in second.stderr and second.stderr.count("\n") == 1
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
    assert not list(runtime_directory.rglob("*.sock"))


def test_mistakes_are_one_line(runtime_directory: Path) -> None:
    for url, words in (("fs3://127.0.0.1:1", "no cluster answers"), ("/local", "is not an fs3 URL")):
        done = subprocess.run(
            [sys.executable, "-m", "fs3.cli.main", "usrbio", url], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
