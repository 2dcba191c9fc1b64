"""A real daemon stopped with SIGSTOP: reads go on without it, with the right bytes, and ask it again when it goes on.

A daemon may be silent for longer here than a read may take, and keeps its lease for longer than the test lasts: a read
that waited for the one that is stopped would fail.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from fs3.client.coalesce import AsyncReader
from fs3.client.connect import connect
from fs3.client.file import FileClient, OpenFile
from fs3.client.storage import StorageClient
from fs3.cluster.local import LocalCluster
from fs3.layout import LayoutChoice

_DATA = np.random.default_rng(8).bytes(24 << 20)
_ROUNDS = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder: Path = tmp_path_factory.mktemp("cluster")
    with LocalCluster(folder, nodes=3, replicas=3, port=0, lease_s=120.0) as made:
        yield made
        connect(made.url).close()


@pytest.fixture(params=[False, True], ids=["over the network", "from block files"])
def files(cluster: LocalCluster, request: pytest.FixtureRequest) -> Iterator[FileClient]:
    client = connect(cluster.url)
    storage = StorageClient(client.mgmtd, timeout_s=30.0, stall_s=100.0, same_host=request.param)
    storage.same_host.stall_s = 100.0
    made = FileClient(storage, client.meta, client.mgmtd)
    yield made
    made.close()
    storage.close()


@pytest.fixture
def file(files: FileClient) -> OpenFile:
    with files.create_writer("/data", layout_choice=LayoutChoice(replicas=3, chunk_bytes=1 << 20)) as writer:
        writer.write(_DATA)
    return files.open_read("/data")


@contextmanager
def stopped(cluster: LocalCluster, name: str) -> Iterator[None]:
    parent = psutil.Process(cluster.pids[name])
    pids = [one.pid for one in (parent, *parent.children(recursive=True))]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def read(files: FileClient, file: OpenFile, seed: int, count: int, length: int) -> None:
    offsets = np.random.default_rng(seed).integers(0, len(_DATA) - length, count)
    out = bytearray(count * length)
    files.read_batch([file], np.zeros(count, dtype=np.int64), offsets, np.full(count, length), out)
    for place, offset in enumerate(offsets.tolist()):
        assert out[place * length : (place + 1) * length] == _DATA[offset : offset + length]


def read_all_kinds(files: FileClient, file: OpenFile, seed: int) -> None:
    for count, length in ((64, 4_096), (1, 100), (3, 3 << 20)):
        read(files, file, seed, count, length)


def calm(files: FileClient) -> None:
    hedges = files.storage.peers.hedges
    for _ in range(2_000):
        if not hedges.late:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"late answers never came: {hedges.late}")


@pytest.mark.parametrize("threads", [1, 4])
def test_reads_go_on_while_a_daemon_is_stopped(
    cluster: LocalCluster, files: FileClient, file: OpenFile, threads: int
) -> None:
    errors: list[BaseException] = []

    def work(number: int, rounds: int) -> None:
        try:
            for turn in range(rounds):
                read_all_kinds(files, file, 1_000 * number + turn)
        except BaseException as error:  # noqa: BLE001 - raised by the test's thread
            errors.append(error)

    def at_once(rounds: int) -> None:
        running = [threading.Thread(target=work, args=(number, rounds)) for number in range(threads)]
        for one in running:
            one.start()
        for one in running:
            one.join()
        if errors:
            raise errors[0]

    at_once(10)
    hedges = files.storage.peers.hedges
    sent = hedges.sent
    table = files.storage.peers.table()
    (silent,) = (name for name, node in zip(table.endpoints, table.nodes, strict=True) if node.node_id == 2)
    with stopped(cluster, "storage-2"):
        at_once(_ROUNDS // threads)
        assert hedges.late[silent] and hedges.sent > sent
    calm(files)
    at_once(5)
    assert hedges.sent <= 16 + 0.03 * hedges.requests


def test_tasks_read_on_while_a_daemon_is_stopped(cluster: LocalCluster, files: FileClient, file: OpenFile) -> None:
    async def go() -> None:
        reader = AsyncReader(files)

        async def task(number: int) -> None:
            for offset in np.random.default_rng(number).integers(0, len(_DATA) - 5_000, 40).tolist():
                assert await reader.read(file, offset, 5_000) == _DATA[offset : offset + 5_000]

        for turn in range(2):
            await asyncio.gather(*(task(turn * 100 + number) for number in range(16)))
        with stopped(cluster, "storage-3"):
            for turn in range(4):
                await asyncio.gather(*(task(turn * 200 + number) for number in range(16)))
            assert files.storage.peers.hedges.late
        await asyncio.gather(*(task(number) for number in range(16)))
        reader.close()

    asyncio.run(go())
    calm(files)
