"""A real cluster of one node, files of noise on it, and I/O processes of the tests' own in a directory of their own."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from fs3 import usrbio
from fs3.client.connect import Client, connect
from fs3.clock import deadline_after, lease_now_s
from fs3.cluster.local import LocalCluster
from fs3.layout import LayoutChoice
from fs3.usrbio import Files, Ior, Iov, UsrBio

CHUNK_BYTES = 256 << 10
SIZES = {"/noise-a": 3 * CHUNK_BYTES + 777, "/noise-b": 200_000, "/noise-c": 5 << 20}
_WAIT_S = 60.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=1, replicas=1, port=0) as made:
        yield made


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    made = connect(cluster.url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def noise(client: Client) -> dict[str, bytes]:
    """What is in the files, by path."""
    chance = np.random.default_rng(11)
    datas = {path: chance.bytes(size) for path, size in SIZES.items()}
    client.files.create_batch(list(datas), list(datas.values()), layout_choice=LayoutChoice(chunk_bytes=CHUNK_BYTES))
    return datas


@pytest.fixture
def io(cluster: LocalCluster, noise: dict[str, bytes], runtime_directory: Path) -> Iterator[UsrBio]:
    with usrbio.open(cluster.url) as made:
        yield made


def shared_pieces(pid: int) -> tuple[int, int, int]:
    """How many pieces of shared memory a process has mapped, how many descriptors of it, and how many in all."""
    maps = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd:fs3-" in line]
    held = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held.append(os.readlink(entry))
        except OSError:
            continue
    return len(maps), sum("memfd:fs3-" in name for name in held), len(held)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for it. Raises: AssertionError: it did not come true."""
    deadline_s, pause = deadline_after(_WAIT_S), threading.Event()
    while not condition():
        assert lease_now_s() < deadline_s, what
        pause.wait(0.01)


@dataclass
class Stalled:
    """The storage daemon, stopped inside the `with` block: what is read then waits."""

    cluster: LocalCluster

    def __enter__(self) -> None:
        stopped = self._signal(signal.SIGSTOP)
        until(lambda: all(one.status() == psutil.STATUS_STOPPED for one in stopped), "it does not stop")

    def __exit__(self, *error: object) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> list[psutil.Process]:
        (pid,) = (pid for name, pid in self.cluster.pids.items() if name.startswith("storage"))
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in processes:
            process.send_signal(number)
        return processes


def kill(pid: int) -> None:
    """With SIGKILL, and wait until it has gone: memory goes first, and only then do its sockets hang up."""
    process = os.pidfd_open(pid)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    ended, _, _ = select.select([process], [], [], 10)
    os.close(process)
    assert ended, "it lives on"


@dataclass
class Batch:
    """Random ranges of files, and what must be read."""

    files: Files
    index: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    places: NDArray[np.int64]
    datas: list[bytes]

    @classmethod
    def random(cls, files: Files, noise: dict[str, bytes], seed: int, count: int, *, most: int = 9_000) -> Batch:
        chance = np.random.default_rng(seed)
        index = chance.integers(0, len(files), count)
        sizes = np.array([file.length for file in files])[index]
        lengths = chance.integers(0, most, count)
        offsets = (chance.random(count) * (sizes - lengths + 1)).astype(np.int64)
        gaps = chance.integers(0, 100, count)
        places = np.cumsum(lengths + gaps) - lengths
        return cls(files, index, offsets, lengths, places, [noise[file.path] for file in files])

    def submit(self, ring: Ior, iov: Iov, **options: Any) -> int:
        return ring.read(self.files, self.index, self.offsets, self.lengths, iov, self.places, **options)

    def check(self, iov: Iov) -> None:
        rows = zip(self.index.tolist(), self.offsets.tolist(), self.lengths.tolist(), self.places.tolist(), strict=True)
        for file, offset, length, place in rows:
            assert iov.view[place : place + length] == self.datas[file][offset : offset + length], (file, offset)
