"""Reading from the block files of real daemons on this host: the right bytes, of one version, whatever the daemons and
the other clients do meanwhile.

Chunks are overwritten all the time with patterns that say which chunk they are of and which write they came by, and the
disk is small, so that a block that one chunk lets go of is soon another's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import threading
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fs3.client.connect import Client, connect
from fs3.client.file import OpenFile
from fs3.client.storage import RANGE, ChunkUpdate, Op
from fs3.client.verified_core import Verified
from fs3.clock import lease_now_s
from fs3.cluster.local import LocalCluster
from fs3.errors import Corrupt, Unavailable
from fs3.ids import ChainId, NodeId, file_chunk
from fs3.layout import LayoutChoice
from fs3.pb import storage_pb2
from fs3.transport.connection import Connection
from fs3.transport.frame_core import Feature, Kind
from fs3.transport.local import LocalConnection
from fs3.transport.messages import PLACE, RESULT

CHUNK_BYTES = 512 << 10
CHUNKS = 6
INODE = 1 << 40  # of no file
_PATTERN = struct.Struct("<II")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=2, replicas=2, port=0, lease_s=1.5) as running:
        yield running


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    made = connect(cluster.url)
    yield made
    made.close()


def written(client: Client, path: str, size: int, *, replicas: int = 2) -> tuple[OpenFile, bytes]:
    data = np.random.default_rng(size).bytes(size)
    choice = LayoutChoice(replicas=replicas, chunk_bytes=1 << 20)
    with client.files.create_writer(path, layout_choice=choice) as writer:
        writer.write(data)
    return client.files.open_read(path), data


def come_back(cluster: LocalCluster, client: Client, node: int) -> None:
    """Start a killed node again, and wait until it serves with all that it missed."""
    killed = client.mgmtd.routing.nodes[NodeId(node)].generation
    cluster.restart_node(node)
    deadline_s = lease_now_s() + 60
    while client.mgmtd.fetch().nodes[NodeId(node)].generation == killed:
        assert lease_now_s() < deadline_s, f"node {node} does not come back"
    cluster.wait_serving(recovered=True, timeout_s=60)


def check(client: Client, file: OpenFile, data: bytes, seed: int, sizes: tuple[int, int]) -> None:
    """Read many random ranges at once and compare them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(*sizes, 40)
    offsets = rng.integers(0, len(data) - lengths)
    out = bytearray(int(lengths.sum()))
    client.files.read_batch([file], np.zeros(40, dtype=np.int64), offsets, lengths, out)
    at = 0
    for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
        assert out[at : at + length] == data[offset : offset + length], (offset, length)
        at += length


def test_random_ranges_are_read_from_the_block_files(client: Client) -> None:
    file, data = written(client, "/random", 5 << 20)
    for seed in range(6):
        check(client, file, data, seed, (1 << 10, 2 << 20))
    assert client.storage.same_host.read_bytes > 40 << 20
    assert len(client.storage.same_host.verified)


def test_small_ranges_and_who_does_not_want_it_are_read_over_the_network(cluster: LocalCluster, client: Client) -> None:
    file, data = written(client, "/network", 3 << 20)
    check(client, file, data, 1, (1, 4 << 10))
    assert not client.storage.same_host.read_bytes
    other = connect(cluster.url, same_host=False)
    try:
        check(other, file, data, 2, (1 << 10, 1 << 20))
        assert not other.storage.same_host.read_bytes
    finally:
        other.close()


def _open_block_files(cluster: LocalCluster) -> list[str]:
    """The paths of this process's descriptors of the cluster's block files."""
    paths = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            paths.append(os.readlink(f"/proc/self/fd/{name}"))
    return [path for path in paths if path.endswith(".blk") and path.startswith(str(cluster.folder.path))]


def test_in_a_forked_child_and_in_its_parent(cluster: LocalCluster, client: Client) -> None:
    file, data = written(client, "/forked", 3 << 20)
    check(client, file, data, 1, (64 << 10, 1 << 20))
    for _ in range(4):  # which keeps mappings, and starts the thread that lets go of them
        client.files.map_batch([file], np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), np.array([1 << 20]))
    mappings = client.storage.same_host.mappings
    assert len(mappings) and _open_block_files(cluster)
    child = os.fork()
    if not child:
        status = 1
        try:
            inherited = [*_open_block_files(cluster), *range(len(mappings))]
            check(client, file, data, 2, (64 << 10, 1 << 20))
            status = 0 if client.storage.same_host.read_bytes and not inherited else 2
        finally:
            os._exit(status)
    check(client, file, data, 3, (64 << 10, 1 << 20))
    assert os.waitpid(child, 0)[1] == 0
    check(client, file, data, 4, (64 << 10, 1 << 20))


def _find(cluster: LocalCluster, node: int, data: bytes) -> tuple[Path, int] | None:
    """The block file and position where a node has `data`'s second 4 KiB, if it has them; the page cache does not keep
    what was looked at."""
    for path in (cluster.folder.path / f"storage-{node}" / "disk" / "blocks").glob("*.blk"):
        fd = os.open(path, os.O_RDONLY)
        size, end = os.fstat(fd).st_size, 0
        try:
            while end < size:
                begin = os.lseek(fd, end, os.SEEK_DATA)
                end = os.lseek(fd, begin, os.SEEK_HOLE)
                at = os.pread(fd, end - begin, begin).find(data[4096:8192])
                if at >= 0:
                    return path, begin + at
        except OSError:
            continue  # no more data, only the hole that is most of the file
        finally:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
    return None


def _flip_on_disk(cluster: LocalCluster, node: int, data: bytes) -> None:
    """One bit of where this node has these bytes, on the disk and not in the page cache."""
    found = _find(cluster, node, data)
    assert found is not None, "these bytes are on no disk"
    with found[0].open("r+b") as file:
        file.seek(found[1])
        file.write(bytes([data[4096] ^ 1]))
        file.flush()
        os.fsync(file.fileno())
        _drop(file.fileno(), found[1])


def _drop(fd: int, position: int) -> None:
    """Have the page cache let go of this byte; it does not while somebody looks at the page."""
    until_s = lease_now_s() + 30
    while lease_now_s() < until_s:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(fd, [bytearray(1)], position, os.RWF_NOWAIT)
        except BlockingIOError:
            return
    raise AssertionError("the page cache keeps what was changed")


def test_what_comes_from_the_disk_again_is_verified_again(cluster: LocalCluster, client: Client) -> None:
    """Chunks of one replica: there is no other to read."""
    file, data = written(client, "/lone", 1 << 20, replicas=1)
    for _ in range(2):
        assert client.files.read(file) == data
    assert client.storage.same_host.read_bytes == 2 * len(data)
    node = next(node for node in (1, 2) if _find(cluster, node, data))
    _flip_on_disk(cluster, node, data)
    with pytest.raises(Corrupt, match="failed its checksum on every serving target"):
        client.files.read(file)


def test_a_damaged_block_is_read_from_the_other_replica_and_repaired(cluster: LocalCluster, client: Client) -> None:
    file, data = written(client, "/damaged", 1 << 20)
    for node in (1, 2):
        _flip_on_disk(cluster, node, data)
        deadline_s = lease_now_s() + 30
        while not _find(cluster, node, data):
            # Else only one of the two is read, and what `_find` brought to the page cache is taken for verified.
            client.storage.same_host.kept.clear()
            client.storage.same_host.verified.clear()
            assert client.files.read(file) == data
            assert lease_now_s() < deadline_s, "it was not repaired"


def test_without_its_socket_a_daemon_is_read_over_the_network(cluster: LocalCluster, client: Client) -> None:
    file, data = written(client, "/socket", 3 << 20)
    paths = [Path(path) for node in client.mgmtd.routing.nodes.values() for path in node.unix_endpoints]
    assert len(paths) == 2
    for path in paths:
        path.rename(path.with_suffix(".away"))
    try:
        check(client, file, data, 1, (100 << 10, 1 << 20))
        assert not client.storage.same_host.read_bytes
    finally:
        for path in paths:
            path.with_suffix(".away").rename(path)


def test_a_daemon_that_stands_still_is_given_up_for_another(cluster: LocalCluster) -> None:
    client = connect(cluster.url)
    try:
        file, data = written(client, "/stalled", 3 << 20)
        check(client, file, data, 1, (100 << 10, 1 << 20))
        pid = cluster.pids["storage-1"]
        os.kill(pid, signal.SIGSTOP)
        try:
            check(client, file, data, 2, (100 << 10, 1 << 20))
        finally:
            os.kill(pid, signal.SIGCONT)
        cluster.wait_serving(recovered=True)
    finally:
        client.close()


class _Meanwhile(Verified):
    """What is known, and something that happens between the daemon's answer and the read."""

    def __init__(self, known: Verified, happens: Callable[[], None]) -> None:
        super().__init__()
        self._known = known._known
        self._happens = happens

    def of(self, place: Hashable, identity: tuple[int, int, int], now_s: float) -> int:
        happens, self._happens = self._happens, lambda: None
        happens()
        return super().of(place, identity, now_s)


def test_nothing_is_taken_unverified_from_a_daemon_that_has_gone(cluster: LocalCluster, client: Client) -> None:
    """Its blocks may be anything by then: here one is changed, as if another run had reused it."""
    file, data = written(client, "/gone", 1 << 20)
    places = {node: _find(cluster, node, data) for node in (1, 2)}
    assert client.files.read(file) == data
    here = client.storage.same_host
    here.kept.clear()  # test_kept_places.py is about those
    while len(here.verified) < 2:
        assert client.files.read(file) == data
        here.kept.clear()
    victim = {}

    def die() -> None:
        lent = here._pool._lent
        (name,) = [name for name, count in lent.items() if count]
        node = int(name.rpartition("-")[2].removesuffix(".sock"))
        found = places[node]
        assert found is not None
        cluster.kill_node(node)
        victim.update(node=node, found=found)
        _write_at(found, bytes([data[4096] ^ 1]))

    here.verified = _Meanwhile(here.verified, die)
    before = here.read_bytes
    assert client.files.read(file) == data
    assert victim and here.read_bytes > before, "it was read, and not believed"
    _write_at(victim["found"], data[4096:4097])
    come_back(cluster, client, victim["node"])


def _write_at(where: tuple[Path, int], data: bytes) -> None:
    with where[0].open("r+b") as file:
        os.pwrite(file.fileno(), data, where[1])


# -- under overwrites


class Overwritten:
    """Chunks 0 .. CHUNKS that `write` overwrites, and `read` checks: whole, of that chunk, never older than before."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.client = connect(cluster.url)
        chains = self.client.mgmtd.routing.chains.values()
        self._chains = sorted(int(chain.chain_id) for chain in chains if len(chain.targets) == 2)
        self.turn = 0
        self.acknowledged = 0
        self.reads = 0

    def chain(self, chunk: int) -> int:
        return self._chains[chunk % len(self._chains)]

    def write(self) -> None:
        """All of them once more."""
        self.turn += 1
        updates = []
        for chunk in range(CHUNKS):
            hi, lo = file_chunk(INODE, chunk)
            data = _PATTERN.pack(chunk, self.turn) * (CHUNK_BYTES // _PATTERN.size)
            updates.append(
                ChunkUpdate(hi=hi, lo=lo, chain=self.chain(chunk), op=Op.REPLACE, data=data, chunk_bytes=CHUNK_BYTES)
            )
        self.client.storage.write(updates, deadline_s=lease_now_s() + 60)
        self.acknowledged = self.turn

    def read(self, out: memoryview, seen: dict[int, int]) -> None:
        """All of them in one call. `seen`: the newest write of each chunk that this reader has met."""
        ranges = np.zeros(CHUNKS, dtype=RANGE)
        for chunk in range(CHUNKS):
            ranges["hi"][chunk], ranges["lo"][chunk] = file_chunk(INODE, chunk)
            ranges["chain"][chunk] = self.chain(chunk)
        ranges["length"] = CHUNK_BYTES
        places = np.arange(CHUNKS, dtype=np.int64) * CHUNK_BYTES
        oldest = self.acknowledged
        results = self.client.storage.read(ranges, out, places, deadline_s=lease_now_s() + 60)
        assert (results["length"] == CHUNK_BYTES).all(), results
        words = np.frombuffer(out, dtype="<u8").reshape(CHUNKS, -1)
        for chunk in range(CHUNKS):
            assert (words[chunk] == words[chunk, 0]).all(), f"chunk {chunk}: bytes of several writes in one read"
            of, turn = _PATTERN.unpack_from(out, chunk * CHUNK_BYTES)
            assert of == chunk, f"chunk {chunk}: bytes of chunk {of}"
            assert turn >= oldest, f"chunk {chunk}: write {turn} though write {oldest} had been acknowledged"
            assert turn >= seen[chunk], f"chunk {chunk}: write {turn} after write {seen[chunk]}"
            seen[chunk] = turn
        self.reads += 1

    def reading(self, stop: threading.Event, failures: list[BaseException]) -> Callable[[], None]:
        def run() -> None:
            out, seen = memoryview(bytearray(CHUNKS * CHUNK_BYTES)), dict.fromkeys(range(CHUNKS), 0)
            try:
                while not stop.is_set():
                    self.read(out, seen)
                    self.read(out, seen)
            except BaseException as error:
                failures.append(error)
                raise

        return run

    @contextlib.contextmanager
    def readers(self, count: int) -> Iterator[list[BaseException]]:
        """So many threads read all the time; raises what they raised."""
        stop, failures = threading.Event(), []
        threads = [threading.Thread(target=self.reading(stop, failures)) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield failures
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]


@pytest.fixture
def overwritten(cluster: LocalCluster) -> Iterator[Overwritten]:
    made = Overwritten(cluster)
    made.write()
    yield made
    made.client.close()


def test_every_read_is_of_one_version_while_all_is_overwritten(overwritten: Overwritten) -> None:
    with overwritten.readers(3) as failures:
        while overwritten.turn < 120 and not failures:
            overwritten.write()
    here = overwritten.client.storage.same_host
    assert here.read_bytes > overwritten.reads * CHUNK_BYTES, "most of it was read from the block files"


def test_daemons_killed_under_readers_cost_no_read_and_no_byte(cluster: LocalCluster, overwritten: Overwritten) -> None:
    with overwritten.readers(3) as failures:
        for turn in range(4):
            node = turn % 2 + 1
            cluster.kill_node(node)
            for _ in range(5):
                with contextlib.suppress(Unavailable):
                    overwritten.write()
            come_back(cluster, overwritten.client, node)
            before = overwritten.reads
            while overwritten.reads < before + 10 and not failures:
                overwritten.write()
            if failures:
                break


def test_a_block_that_was_shown_outlives_the_daemon_that_showed_it(
    cluster: LocalCluster, overwritten: Overwritten
) -> None:
    """SIGKILL while a client reads: the next run of the daemon gives the block to nobody while the client may read."""
    routing = overwritten.client.mgmtd.routing
    hello = storage_pb2.Hello(protocol=1, cluster_id=routing.cluster_id, role="client", features=int(Feature.SAME_HOST))
    reader = LocalConnection.open(f"unix:{routing.nodes[NodeId(1)].unix_endpoints[0]}", hello, timeout_s=10)
    ranges = np.zeros(1, dtype=RANGE)
    ranges["hi"], ranges["lo"] = file_chunk(INODE, 0)
    ranges["chain"], ranges["length"] = overwritten.chain(0), CHUNK_BYTES
    ranges["chain_version"] = routing.chains[ChainId(overwritten.chain(0))].version
    reader.send(Kind.LOCATE, [ranges.tobytes()], count=1, deadline_s=lease_now_s() + 10)
    _, head = reader.receive_head()
    sums = int(np.frombuffer(head, dtype=RESULT, count=1)["n_sums"][0])
    at = int(np.frombuffer(head, dtype=PLACE, count=1, offset=RESULT.itemsize + sums * 4)["position"][0])
    (fd,) = reader.fresh()
    shown = os.pread(fd, CHUNK_BYTES, at)
    assert _PATTERN.unpack_from(shown) == (0, overwritten.turn)

    cluster.kill_node(1)
    reader.close()
    come_back(cluster, overwritten.client, 1)
    for _ in range(30):
        overwritten.write()
    assert os.pread(fd, CHUNK_BYTES, at) == shown
    assert _locked_blocks(cluster, 1) == 1
    os.close(fd)
    deadline_s = lease_now_s() + 30
    while _locked_blocks(cluster, 1):
        assert lease_now_s() < deadline_s, "the block is not free once nobody may read it"


def _locked_blocks(cluster: LocalCluster, node: int) -> int:
    """How many freed blocks a node keeps for clients."""
    client = connect(cluster.url)
    routing = client.mgmtd.routing
    hello = storage_pb2.Hello(protocol=1, cluster_id=routing.cluster_id, role="client")
    asking = Connection.open(routing.nodes[NodeId(node)].endpoints[0], hello, timeout_s=10)
    asking.send(Kind.STATS, [b""], count=0, deadline_s=lease_now_s() + 10)
    said = storage_pb2.StatsReply.FromString(bytes(asking.receive_head()[1]))
    asking.close()
    return sum(int(disk["locked"]) for disk in json.loads(said.json)["disks"])


# -- mapped


def mapped(client: Client, file: OpenFile, ranges: list[tuple[int, int]]) -> list[memoryview]:
    offsets, lengths = np.array(ranges, dtype=np.int64).reshape(-1, 2).T
    return client.files.map_batch([file], np.zeros(len(ranges), dtype=np.int64), offsets, lengths)


@pytest.mark.parametrize("here", [True, False])
def test_mapped_ranges_are_the_files_bytes_and_cannot_be_written(cluster: LocalCluster, here: bool) -> None:
    client = connect(cluster.url, same_host=here)
    try:
        file, data = written(client, f"/mapped-{here}", 3 << 20)
        rng = np.random.default_rng(1)
        ranges = [(0, 1 << 20), (1 << 20, 4096), (5, 0), (0, 3 << 20), (3_000_000, len(data) - 3_000_000)]
        for _ in range(40):
            offset = int(rng.integers(0, len(data)))
            ranges.append((offset, int(rng.integers(0, len(data) - offset))))
        for _ in range(2):
            for view, (offset, length) in zip(mapped(client, file, ranges), ranges, strict=True):
                assert view == data[offset : offset + length], (offset, length)
                assert view.readonly
        assert mapped(client, file, []) == []
        assert bool(client.storage.same_host.read_bytes) is here
    finally:
        client.close()


def test_what_is_mapped_stays_as_it_is_whatever_becomes_of_the_chunk_and_the_daemons(
    cluster: LocalCluster, overwritten: Overwritten
) -> None:
    """Also after SIGKILL, and in a forked child alone; and once nothing is mapped nothing is kept."""
    ranges = np.zeros(CHUNKS, dtype=RANGE)
    for chunk in range(CHUNKS):
        ranges["hi"][chunk], ranges["lo"][chunk] = file_chunk(INODE, chunk)
        ranges["chain"][chunk] = overwritten.chain(chunk)
    ranges["length"] = CHUNK_BYTES
    views = [view for view in overwritten.client.storage.map(ranges) if view is not None]
    assert len(views) == CHUNKS
    copies = [bytes(view) for view in views]
    for _ in range(20):
        overwritten.write()
    assert [bytes(view) for view in views] == copies
    for node in (1, 2):
        cluster.kill_node(node)
        come_back(cluster, overwritten.client, node)
    for _ in range(20):
        overwritten.write()
    assert [bytes(view) for view in views] == copies
    assert _locked_blocks(cluster, 1) + _locked_blocks(cluster, 2) == CHUNKS

    ready, tell = os.pipe()
    look, done = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.write(tell, b"x")
            os.read(look, 1)
            status = 0 if [bytes(view) for view in views] == copies else 2
        finally:
            os._exit(status)
    assert os.read(ready, 1) == b"x"
    views.clear()
    for _ in range(20):
        overwritten.write()
    assert _locked_blocks(cluster, 1) + _locked_blocks(cluster, 2) == CHUNKS
    os.write(done, b"x")
    assert os.waitpid(child, 0)[1] == 0
    deadline_s = lease_now_s() + 30
    while _locked_blocks(cluster, 1) + _locked_blocks(cluster, 2):
        assert lease_now_s() < deadline_s, "blocks are kept that nobody has mapped"
    for fd in (ready, tell, look, done):
        os.close(fd)


def test_a_damaged_block_is_not_mapped(cluster: LocalCluster, client: Client) -> None:
    file, data = written(client, "/damaged-map", 1 << 20)
    for node in (1, 2):
        _flip_on_disk(cluster, node, data)
        deadline_s = lease_now_s() + 30
        while not _find(cluster, node, data):  # until it was repaired
            client.storage.same_host.verified.clear()
            client.storage.same_host.mappings.clear()  # or it stays with the other replica
            (view,) = mapped(client, file, [(0, 1 << 20)])
            assert view == data
            assert lease_now_s() < deadline_s, "a block that did not match was never read from the daemon"
