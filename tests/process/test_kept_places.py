"""Places that a client of this host keeps: used without asking, and never once they might be wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from fs3.client.connect import Client, connect
from fs3.client.file import OpenFile
from fs3.client.kept_places import Kept
from fs3.client.storage import ChunkUpdate, Op
from fs3.clock import lease_now_s
from fs3.cluster.local import LocalCluster
from fs3.errors import Unavailable
from fs3.layout import LayoutChoice
from fs3.transport import change_counters

SIZE = 1 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=2, replicas=2, port=0, lease_s=2.0) as running:
        yield running


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    made = connect(cluster.url)
    yield made
    made.close()


def written(client: Client, path: str, *, replicas: int = 2, chunks: int = 1) -> tuple[OpenFile, bytes]:
    return written_of(client, path, chunks * SIZE, replicas=replicas)


def written_of(client: Client, path: str, size: int, *, replicas: int = 2) -> tuple[OpenFile, bytes]:
    data = np.random.default_rng(len(path)).bytes(size)
    choice = LayoutChoice(replicas=replicas, chunk_bytes=SIZE)
    with client.files.create_writer(path, layout_choice=choice) as writer:
        writer.write(data)
    return client.files.open_read(path), data


def known(client: Client, file: OpenFile, data: bytes) -> None:
    """Read until places of all the file's chunks are kept."""
    for _ in range(20):
        assert client.files.read(file) == data
    assert len(client.storage.same_host.kept) >= len(data) // SIZE


def overwrite(client: Client, file: OpenFile, data: bytes) -> None:
    asked = file.range_of(0, SIZE)
    assert asked is not None
    update = ChunkUpdate(hi=asked.hi, lo=asked.lo, chain=asked.chain, op=Op.REPLACE, data=data, chunk_bytes=SIZE)
    client.storage.write([update], deadline_s=lease_now_s() + 60)


class Asking:
    """How many requests a client's connections of this host have sent."""

    def __init__(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        here = client.storage.same_host
        borrow = here.borrow

        def counted(*given: object, **named: object) -> object:
            self.count += 1
            return borrow(*given, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(here, "borrow", counted)


def node_of(client: Client, file: OpenFile) -> int:
    """Which node's block file a file's first chunk is read from."""
    asked = file.range_of(0, 1)
    assert asked is not None
    endpoint = client.storage.same_host.kept._kept[asked.hi, asked.lo, asked.chain].place[0]  # type: ignore[index]
    return int(str(endpoint).rpartition("-")[2].removesuffix(".sock"))


def test_more_block_files_than_may_be_open_cost_the_places_in_those_known_first(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = client.storage.same_host.kept
    monkeypatch.setattr(kept, "_most_files", 4)
    written_files = [written_of(client, f"/class-{number}", (64 << 10) << number) for number in range(5)]
    for file, data in written_files:  # each in a block file of its own, on either node
        for _ in range(20):
            assert client.files.read(file) == data
        assert len(kept._files) <= 4
    asking = Asking(client, monkeypatch)
    for _ in range(20):
        assert client.files.read(file) == data
    assert asking.count < 5, "but for moments in which a daemon had no time to say that it may be relied on"


@pytest.mark.parametrize("forgets", [False, True])
def test_any_part_of_what_was_read_is_read_again_without_asking(
    client: Client, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    """Also when it forgets what it has verified: it compares with the sums in the block file."""
    file, data = written(client, f"/again-{forgets}", chunks=3)
    known(client, file, data)
    asking = Asking(client, monkeypatch)
    rng = np.random.default_rng(3)
    for turn in range(300):
        count = 1 + turn % 16
        lengths = rng.integers(1, [5_000, SIZE, 1_000][turn % 3], count)
        offsets = rng.integers(0, len(data), count) // SIZE * SIZE + rng.integers(0, SIZE - lengths + 1)
        if turn % 4 == 0:
            offsets, lengths = offsets // 4_096 * 4_096, np.full(count, 4_096)
        out = bytearray(int(lengths.sum()))
        if forgets:
            client.storage.same_host.verified.clear()
        client.files.read_batch([file], np.zeros(count, dtype=np.int64), offsets, lengths, out)
        ranges = zip(offsets.tolist(), lengths.tolist(), strict=True)
        assert out == b"".join(data[begin : begin + length] for begin, length in ranges)
    assert asking.count < 30, "but for moments in which a daemon had no time to say that it may be relied on"


def test_a_part_that_was_never_read_is_verified_without_asking(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    file, data = written(client, "/part")
    head = bytearray(64 << 10)
    for _ in range(20):
        client.files.read_batch(
            [file], np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), np.array([64 << 10]), head
        )
    asking = Asking(client, monkeypatch)
    for _ in range(3):
        assert client.files.read(file) == data
    assert head == data[: 64 << 10] and asking.count <= 1


def test_a_write_is_seen_by_the_next_read_of_another_client(cluster: LocalCluster, client: Client) -> None:
    file, data = written(client, "/seen")
    known(client, file, data)
    writer = connect(cluster.url, same_host=False)  # another client: those of a URL are shared
    try:
        for turn in range(60):
            new = bytes([turn]) * SIZE
            overwrite(writer, file, new)
            assert client.files.read(file) == new
            if turn % 3:
                assert client.files.read(file) == new
    finally:
        writer.close()


@contextlib.contextmanager
def stopped(cluster: LocalCluster, node: int) -> Iterator[None]:
    parent = psutil.Process(cluster.pids[f"storage-{node}"])
    pids = [one.pid for one in (parent, *parent.children(recursive=True))]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def mapped(client: Client, file: OpenFile, offset: int = 0, length: int = SIZE) -> memoryview:
    (view,) = client.files.map_batch([file], np.zeros(1, dtype=np.int64), np.array([offset]), np.array([length]))
    return view


def test_what_is_mapped_is_handed_out_again_without_asking_until_it_changes(
    cluster: LocalCluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, data = written(client, "/mapped", chunks=20)
    many = np.arange(20, dtype=np.int64) * SIZE
    for _ in range(20):  # until both replicas' counters are known, and each chunk was mapped
        client.files.map_batch([file], np.zeros(20, dtype=np.int64), many, np.full(20, SIZE))
    assert len(client.storage.same_host.mappings) == 20
    asking = Asking(client, monkeypatch)
    old = mapped(client, file)
    assert old == data[:SIZE] and mapped(client, file, SIZE - 5, 5) == data[SIZE - 5 : SIZE]
    assert b"".join(client.files.map_batch([file], np.zeros(20, dtype=np.int64), many, np.full(20, SIZE))) == data
    assert asking.count == 0

    writer = connect(cluster.url)
    new = np.random.default_rng(0).bytes(SIZE)
    overwrite(writer, file, new)
    assert mapped(client, file) == new and asking.count > 0
    assert old == data[:SIZE]
    writer.close()


def test_part_by_part_a_chunk_is_mapped_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    file, data = written(client, "/parts")
    for _ in range(20):
        assert mapped(client, file, 0, 1) == data[:1]
    asking = Asking(client, monkeypatch)
    mappings = client.storage.same_host.mappings
    memory = set()
    for offset in range(0, SIZE, SIZE // 8):
        for _ in range(4):
            assert mapped(client, file, offset, SIZE // 8) == data[offset : offset + SIZE // 8]
            memory |= {id(one.memory) for one in mappings._kept.values()}
    assert len(memory) == 1 and asking.count <= 1


def test_a_daemon_that_is_stopped_is_relied_on_no_longer_than_its_lease(cluster: LocalCluster, client: Client) -> None:
    """The other replica goes on without it, and its counters say nothing of that."""
    file, data = written(client, "/stopped")
    known(client, file, data)
    writer = connect(cluster.url, same_host=False)  # another client: those of a URL are shared
    new = bytes(range(256)) * (SIZE // 256)
    acknowledged, stop, failures = threading.Event(), threading.Event(), []

    def read() -> None:
        try:
            while not stop.is_set():
                must = acknowledged.is_set()
                found = client.files.read(file)
                assert found == new or (found == data and not must), "what was overwritten was read afterwards"
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=read)
    with stopped(cluster, node_of(client, file)):
        thread.start()
        try:
            overwrite(writer, file, new)
            acknowledged.set()
            for _ in range(20):
                assert client.files.read(file) == new
        finally:
            stop.set()
            thread.join()
    writer.close()
    assert not failures
    cluster.wait_serving(recovered=True, timeout_s=60)
    assert client.files.read(file) == new


def _counters(cluster: LocalCluster, node: int) -> list[Path]:
    return list((cluster.folder.path / f"storage-{node}").rglob("CHANGES"))


def test_the_next_run_of_a_daemon_ends_what_is_known_of_the_one_before(cluster: LocalCluster, client: Client) -> None:
    """Here it does so while its predecessor's lease would still run, and the blocks have other bytes by then."""
    file, data = written(client, "/killed", replicas=1)
    known(client, file, data)
    node = node_of(client, file)
    kept = client.storage.same_host.kept
    cluster.kill_node(node)
    for path in _counters(cluster, node):
        change_counters.end(path)
    (views,) = ({id(one.counters): one.counters for one in kept._kept.values()}.values(),)
    assert all(view.over() for view in views)
    with pytest.raises(Unavailable):
        storage = client.storage
        asked = file.range_of(0, SIZE)
        assert asked is not None
        storage.read_one(asked, memoryview(bytearray(SIZE)), deadline_s=lease_now_s() + 0.5)
    cluster.restart_node(node)
    cluster.wait_serving(recovered=True, timeout_s=60)
    known(client, file, data)
    assert len(kept._counters) <= 2, "those of the run before were forgotten"


def holds(kept: Kept) -> None:
    """Wait until it does: a daemon that has no time to say so lets it lapse for a moment."""
    deadline_s = lease_now_s() + 30
    while not kept.counters.hold(kept.word, kept.state):
        assert lease_now_s() < deadline_s


def test_a_target_that_does_not_serve_any_more_is_not_relied_on(cluster: LocalCluster, client: Client) -> None:
    file, data = written(client, "/drained")
    known(client, file, data)
    asked = file.range_of(0, 1)
    assert asked is not None
    kept = client.storage.same_host.kept._kept[asked.hi, asked.lo, asked.chain]
    holds(kept)
    node = 3 - node_of(client, file)
    cluster.kill_node(node)  # the chain of two becomes a chain of one: another version, another table
    deadline_s = lease_now_s() + 30
    while kept.counters.hold(kept.word, kept.state):
        assert client.files.read(file) == data
        assert lease_now_s() < deadline_s
    assert client.files.read(file) == data
    cluster.restart_node(node)
    cluster.wait_serving(recovered=True, timeout_s=60)


def test_without_counters_every_read_is_asked_for(
    cluster: LocalCluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, data = written(client, "/asked")
    monkeypatch.setattr(change_counters, "time_namespace", lambda: 1)  # as if this process were in another
    asking = Asking(client, monkeypatch)
    for _ in range(4):
        assert client.files.read(file) == data
    assert asking.count == 4 and not client.storage.keeps_places


def test_the_counters_are_the_daemons_users_and_for_reading(cluster: LocalCluster, client: Client) -> None:
    file, data = written(client, "/mode")
    known(client, file, data)
    for node in (1, 2):
        (path,) = _counters(cluster, node)
        assert path.stat().st_mode & 0o777 == 0o600
    asked = file.range_of(0, 1)
    assert asked is not None
    words = client.storage.same_host.kept._kept[asked.hi, asked.lo, asked.chain].counters._words
    assert words.readonly
