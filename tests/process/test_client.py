"""The client against real daemons: random batches, a daemon killed under reads and writes, a damaged disk, forks.

Nothing here waits for a time: the workers count their operations, and the test goes on when they have done enough.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fs3.client.connect import Client, connect
from fs3.client.meta import LayoutChoice
from fs3.cluster.local import LocalCluster

CHUNK = 256 << 10
SMALL_CHUNKS = LayoutChoice(chunk_bytes=CHUNK)
WAIT_S = 90.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=3, replicas=3, port=0, lease_s=1.5) as made:
        yield made


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    made = connect(cluster.url)
    yield made
    made.close()


def noise(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def write(client: Client, path: str, data: bytes) -> None:
    with client.files.create_writer(path, layout_choice=SMALL_CHUNKS) as writer:
        writer.write(data)


class Workers:
    """Threads that repeat an operation until told to stop; `progress` waits until each has done so many more."""

    def __init__(self, operations: list[Callable[[int], None]]) -> None:
        self._stop = False
        self._done = [0] * len(operations)
        self._changed = threading.Condition()
        self.failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, args=(index, operation)) for index, operation in enumerate(operations)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, index: int, operation: Callable[[int], None]) -> None:
        while not self._stop:
            try:
                operation(self._done[index])
            except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
                with self._changed:
                    self.failures.append(error)
                    self._changed.notify_all()
                return
            with self._changed:
                self._done[index] += 1
                self._changed.notify_all()

    def progress(self, more: int) -> None:
        with self._changed:
            goal = [done + more for done in self._done]
            reached = self._changed.wait_for(
                lambda: self.failures or all(done >= wanted for done, wanted in zip(self._done, goal, strict=True)),
                WAIT_S,
            )
        assert not self.failures, self.failures
        assert reached, f"only {self._done} of {goal} operations were done"

    def stop(self) -> list[int]:
        self._stop = True
        for thread in self._threads:
            thread.join(WAIT_S)
        assert not self.failures, self.failures
        return self._done


def test_random_batches_equal_memory(client: Client) -> None:
    sizes = [1, 4_095, CHUNK, CHUNK + 1, 1_000_003, 3 << 20]
    datas = [noise(size, size) for size in sizes]
    client.files.create_batch([f"/random-{at}" for at in range(len(sizes))], datas, layout_choice=SMALL_CHUNKS)
    handles = client.files.open_many([f"/random-{at}" for at in range(len(sizes))])
    rng = np.random.default_rng(11)
    for count in (1, 7, 64, 400):
        index = rng.integers(0, len(sizes), count)
        cuts = np.sort(rng.random((count, 2)), axis=1)
        if count == 400:
            cuts[:, 1] = cuts[:, 0]  # many small ones: 4 KiB from there, aligned for every second
        offsets = (cuts[:, 0] * np.array(sizes)[index]).astype(np.int64)
        if count == 400:
            offsets[::2] -= offsets[::2] % 4_096
            lengths = np.minimum(4_096, np.array(sizes)[index] - offsets)
        else:
            lengths = (cuts[:, 1] * np.array(sizes)[index]).astype(np.int64) - offsets
        out = bytearray(int(lengths.sum()))
        client.files.read_batch(handles, index, offsets, lengths, out)
        expected = b"".join(
            datas[file][offset : offset + length]
            for file, offset, length in zip(index.tolist(), offsets.tolist(), lengths.tolist(), strict=True)
        )
        assert out == expected


def test_a_replaced_file_is_seen_whole_and_new(client: Client) -> None:
    for turn in range(3):
        data = noise(2 * CHUNK + turn, turn)
        write(client, "/replaced", data)
        assert client.files.read(client.files.open_read("/replaced")) == data


def test_a_forked_child_reads_and_writes(client: Client) -> None:
    data = noise(3 * CHUNK, 5)
    write(client, "/parent", data)
    handle = client.files.open_read("/parent")
    assert client.files.read(handle) == data
    child = os.fork()
    if child == 0:
        code = 1
        try:
            write(client, "/child", data[::-1])
            code = 0 if client.files.read(handle) == data else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.files.read(client.files.open_read("/child")) == data[::-1]
    write(client, "/parent", data)


def test_a_damaged_block_is_served_from_another_replica(cluster: LocalCluster, client: Client) -> None:
    data = noise(4 * CHUNK, 77)
    write(client, "/damaged", data)
    damaged = 0
    for path in (cluster.folder.path / "storage-1").rglob("*"):
        if path.is_file() and path.stat().st_size >= CHUNK:
            damaged += flip_bits(path, [data[at + 5_000 : at + 5_100] for at in range(0, len(data), CHUNK)])
    assert damaged == 4, "every node has every chunk: four must be found on the first node's disk"
    handle = client.files.open_read("/damaged")
    for offset, length in [(0, len(data))] * 6 + [(4_096, 4_096)] * 6 + [(5_050, 10)] * 6:
        assert client.files.read(handle, offset, length) == data[offset : offset + length]


def flip_bits(path: Path, contents: list[bytes]) -> int:
    """Damage each of `contents` where the file has it, as a disk would; how many it had."""
    found = 0
    with path.open("r+b") as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)  # a block file is mostly holes
            except OSError:
                break
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            data = os.pread(file.fileno(), at - begin, begin)
            for content in contents:
                place = data.find(content)
                if place >= 0:
                    os.pwrite(file.fileno(), bytes([data[place + 50] ^ 1]), begin + place + 50)
                    found += 1
    return found


def test_a_daemon_killed_under_reads_and_writes_fails_no_call(cluster: LocalCluster, client: Client) -> None:
    files = client.files
    data = noise(24 * CHUNK, 99)
    write(client, "/read", data)
    handle = files.open_read("/read")
    written: dict[str, bytes] = {}

    def read_large(_: int) -> None:
        assert files.read(handle) == data

    def read_small(turn: int) -> None:
        rng = np.random.default_rng(turn)
        offsets = rng.integers(0, len(data) // 4_096, 256) * 4_096
        out = bytearray(256 * 4_096)
        files.read_batch([handle], np.zeros(256, dtype=np.int32), offsets, np.full(256, 4_096), out)
        assert out == b"".join(data[at : at + 4_096] for at in offsets.tolist())

    def write_large(turn: int) -> None:
        content = noise(5 * CHUNK + turn, turn)
        write(client, f"/large-{turn % 8}", content)
        written[f"/large-{turn % 8}"] = content

    def write_small(turn: int) -> None:
        paths = [f"/small-{turn % 4}-{at}" for at in range(20)]
        contents = [noise(500 + at, turn * 20 + at) for at in range(20)]
        files.create_batch(paths, contents)
        written.update(zip(paths, contents, strict=True))

    workers = Workers([read_large, read_small, write_large, write_small])
    try:
        workers.progress(2)
        cluster.kill_node(2)
        workers.progress(4)
        cluster.restart_node(2)
        workers.progress(2)
        cluster.wait_serving(recovered=True, timeout_s=WAIT_S)
    finally:
        done = workers.stop()
    assert min(done) >= 8
    handles = files.open_many(list(written))
    for path, now in zip(written, handles, strict=True):
        assert files.read(now) == written[path], path
    # What was brought up to date while writes went on is read from that node alone.
    cluster.kill_node(1)
    cluster.kill_node(3)
    for path, now in zip(written, handles, strict=True):
        assert files.read(now) == written[path], path
    for node in (1, 3):
        cluster.restart_node(node)
    cluster.wait_serving(recovered=True, timeout_s=WAIT_S)
