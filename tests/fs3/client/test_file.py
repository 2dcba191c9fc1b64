"""Files over the data plane's test server: batches of random ranges equal memory, writers publish all or nothing."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fs3.client.file import FileClient
from fs3.client.meta import Written
from fs3.client.renewal import Renewal
from fs3.client.sending import THREADS, WINDOW
from fs3.client.storage import StorageClient
from fs3.errors import Corrupt, Exists, Fs3Error, Invalid, IsADirectory, NoSpace, NotFound, SessionEnded, Unavailable
from fs3.ids import InodeId
from fs3.inode import Inode, InodeType

CHUNK = 64 << 10


@pytest.fixture
def files(cluster, meta):
    storage = StorageClient(cluster.mgmtd, timeout_s=20.0)
    made = FileClient(storage, meta, cluster.mgmtd)
    yield made
    made.close()
    storage.close()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a terminal: what a shell starts in the background ignores SIGINT, and so do the processes it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


SIZES = [0, 1, 4_096, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 777]


@pytest.mark.parametrize("piece", [1_000, CHUNK, 3 * CHUNK + 5, 1 << 20])
def test_what_a_writer_took_is_read_back(files, piece: int) -> None:
    for size in SIZES:
        data = noise(size, size)
        with files.create_writer("/f") as writer:
            for at in range(0, size, piece):
                buffer = bytearray(data[at : at + piece])
                assert writer.write(buffer) == len(buffer)
                buffer[:] = bytes(len(buffer))  # the caller's memory is its own again
        handle = files.open_read("/f")
        assert handle.length == size
        assert files.read(handle) == data
        assert files.read(handle, size // 3, size // 2) == data[size // 3 :][: size // 2]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 6), st.floats(0, 1), st.floats(0, 1)), max_size=40), st.booleans())
def test_random_batches_over_many_files_equal_memory(
    files, wanted: list[tuple[int, float, float]], shuffled: bool
) -> None:
    datas = [noise(size, size) for size in SIZES]
    if not files.meta.files:
        files.create_batch([f"/{at}" for at in range(7)], datas)
    handles = files.open_many([f"/{at}" for at in range(7)])
    index = np.array([file for file, _, _ in wanted], dtype=np.int32)
    cuts = [sorted((int(a * SIZES[file]), int(b * SIZES[file]))) for file, a, b in wanted]
    offsets = np.array([begin for begin, _ in cuts], dtype=np.int64)
    lengths = np.array([end - begin for begin, end in cuts], dtype=np.int64)
    order = np.random.default_rng(len(wanted)).permutation(len(wanted)) if shuffled else np.arange(len(wanted))
    out_offsets = np.zeros(len(wanted), dtype=np.int64)
    out_offsets[order] = np.cumsum(lengths[order]) - lengths[order]
    out = bytearray(int(lengths.sum()))
    files.read_batch(handles, index, offsets, lengths, out, out_offsets if shuffled else None)
    for file, (begin, end), to in zip(index.tolist(), cuts, out_offsets.tolist(), strict=True):
        assert out[to : to + end - begin] == datas[file][begin:end]


def test_a_batch_of_small_files_is_one_create_and_one_publish(files, meta, cluster) -> None:
    before = sum(len(server.asked) for server in cluster.servers)
    datas = {f"/small/{at}": noise(at * 37, at) for at in range(100)}
    files.create_batch(list(datas), list(datas.values()))
    assert (meta.calls["create"], meta.calls["publish"]) == (1, 1)
    assert sum(len(server.asked) for server in cluster.servers) - before == 3
    assert [files.read(handle) for handle in files.open_many(list(datas))] == list(datas.values())


def test_empty_files_are_made_by_the_publish_alone(files, meta, cluster) -> None:
    files.create_batch(["/a", "/b"], [b"", b""])
    assert (meta.calls["create"], meta.calls["publish"]) == (0, 1) and not any(one.asked for one in cluster.servers)
    datas = {"/c": b"", "/d": noise(100), "/e": b"", "/f": noise(70_000)}
    made = files.create_batch(list(datas), list(datas.values()))
    assert (meta.calls["create"], meta.calls["publish"]) == (1, 2) and not meta.unpublished
    assert [one.length for one in made] == [0, 100, 0, 70_000]
    assert [files.read(handle) for handle in files.open_many(list(datas))] == list(datas.values())
    with pytest.raises(Exists, match="/a"):
        files.create_batch(["/x", "/a"], [b"1", b""], replace=False)
    assert len(meta.abandoned) == 1 and "/x" not in meta.files
    with pytest.raises(Exists, match="/a"):
        files.create_batch(["/a"], [b""], replace=False)
    assert len(meta.abandoned) == 1, "nothing to give up"


def test_ranges_outside_the_file_and_directories_are_refused(files, meta) -> None:
    files.create_batch(["/f"], [b"0123456789"])
    handle = files.open_read("/f")
    with pytest.raises(Invalid, match="/f: bytes 5 to 11 are not within the file, which has 10"):
        files.read(handle, 5, 6)
    with pytest.raises(Invalid, match="/f: bytes 5 to 4611686018427387909 are not within the file, which has 10"):
        files.read(handle, 5, 1 << 62)
    with pytest.raises(Invalid, match="do not fit"):
        files.read_batch([handle], np.array([0]), np.array([0]), np.array([10]), bytearray(9))
    with pytest.raises(NotFound, match="/gone"):
        files.open_many(["/f", "/gone"])
    meta.files["/d"] = Inode(inode_id=InodeId(5), type=InodeType.DIRECTORY, mode=0o755)
    with pytest.raises(IsADirectory, match="/d"):
        files.open_read("/d")


@pytest.mark.parametrize("column", [list, np.array])
def test_buffers_and_columns_that_cannot_be_are_refused_and_nothing_is_touched(files, column) -> None:
    with files.create_writer("/f") as writer:
        writer.write(bytes(range(200)) * 5)
    handle = files.open_read("/f")
    grid = np.zeros((100, 2), np.uint8)
    for index, offsets, lengths, out, places, text in (
        ([0], [0], [100], bytearray(50), None, "do not fit"),
        ([0], [0], [10], bytearray(100), [-5], "do not fit"),
        ([0], [0], [10], bytearray(100), [95], "do not fit"),
        ([0], [0], [10], bytearray(100), [(1 << 63) - 1], "do not fit"),
        ([0], [0], [100], bytes(100), None, "read-only"),
        ([0], [0], [50], grid[:, 0], None, "gaps"),
        ([0, 0], [0, 500], [10, 10], bytearray(100), [0, 5], "overlap"),
        ([0, 0, 0], [0, 5, 9], [10, 4, 10], bytearray(100), [50, 20, 45], "overlap"),
        ([1], [0], [1], bytearray(10), None, "there are 1 files"),
        ([-1], [0], [1], bytearray(10), None, "there are 1 files"),
        ([0, 0], [0], [1], bytearray(10), None, "one for each of 1 ranges"),
        ([0], [0.5], [1], bytearray(10), None, "whole numbers"),
        ([0], [1 << 62], [1 << 62], bytearray(10), None, "not within the file"),
        ([0], [0], [-2], bytearray(10), None, "not within the file"),
    ):
        before = bytes(out)
        with pytest.raises(Invalid, match=text):
            where = column(places) if places is not None else None
            files.read_batch([handle], column(index), column(offsets), column(lengths), out, where)
        assert bytes(out) == before
    with pytest.raises(TypeError):
        files.read_batch([handle], [0], [0], [1], "no buffer")
    files.read_batch([handle], [], [], [], bytearray(0))
    files.read_batch([handle], [0], [0], [200], grid)  # of any shape and type, as long as it is contiguous
    assert grid.tobytes() == bytes(range(200))
    numbers = np.zeros(2)
    files.read_batch([handle, handle], [0, 1, 0], [0, 3, 900], [3, 3, 0], numbers, [3, 0, 1])
    assert numbers.tobytes()[:6] == bytes([3, 4, 5, 0, 1, 2])


def test_many_ranges_at_once(files) -> None:
    data = random.Random(4).randbytes(300_000)
    with files.create_writer("/f") as writer:
        writer.write(data)
    count = 50_000
    offsets = np.random.default_rng(1).integers(0, len(data) - 8, count)
    out = bytearray(8 * count)
    files.read_batch([files.open_read("/f")], np.zeros(count, np.int32), offsets, np.full(count, 8, np.uint8), out)
    assert bytes(out) == b"".join(data[at : at + 8] for at in offsets.tolist())


def test_a_lost_chunk_is_corrupt_and_a_replaced_file_is_not_found(files, meta, cluster) -> None:
    data = noise(3 * CHUNK)
    files.create_batch(["/f"], [data])
    handle = files.open_read("/f")
    key = next(key for key in cluster.shared.chunks if key[2] == 1)
    lost = cluster.shared.chunks.pop(key)
    with pytest.raises(Corrupt, match=rf"/f: chunk 1 on chain {key[0]} has 0 bytes"):
        files.read(handle)
    lost.data = lost.data[:100]
    cluster.shared.chunks[key] = lost
    with pytest.raises(Corrupt, match="has 100 bytes"):
        files.read(handle)
    files.create_batch(["/f"], [b"new"])
    with pytest.raises(NotFound, match="/f: was removed or replaced"):
        files.read(handle)
    assert files.read(files.open_read("/f")) == b"new"


def test_a_writer_that_raises_or_is_abandoned_leaves_nothing(files, meta) -> None:
    files.create_batch(["/f"], [b"old"])
    with pytest.raises(KeyError), files.create_writer("/f") as writer:
        writer.write(noise(2 * CHUNK))
        raise KeyError("the caller's own")
    assert meta.abandoned == [writer.inode_id] and not meta.unpublished
    writer.abandon()
    with pytest.raises(Invalid, match="closed"):
        writer.write(b"x")
    assert files.read(files.open_read("/f")) == b"old"
    with pytest.raises(Exists), files.create_writer("/f", replace=False) as writer:
        writer.write(b"y")
    with pytest.raises(Exists):
        files.create_batch(["/f"], [b"z"], replace=False)
    assert len(meta.abandoned) == 3 and not meta.unpublished
    assert files.read(files.open_read("/f")) == b"old"


@pytest.mark.parametrize("piece", [CHUNK, 10 * CHUNK])
def test_a_chunk_that_cannot_be_written_fails_the_writer(files, meta, cluster, piece: int) -> None:
    for server in cluster.servers:
        server.read_status = {chain: NoSpace.code for chain in range(1, 7)}
    writer = files.create_writer("/f")
    with pytest.raises(NoSpace, match=r"/f: file .* chunk"):
        for _ in range(100):
            writer.write(noise(piece))
    for server in cluster.servers:
        server.read_status = {}
    with pytest.raises(NoSpace):
        writer.close()
    writer.abandon()
    assert not meta.files and not meta.unpublished


@pytest.mark.parametrize("piece", [1, 4 * CHUNK])
def test_a_writer_that_was_interrupted_publishes_nothing(files, meta, cluster, interruptible, piece: int) -> None:
    """The chunk that it held in its hands is not sent, and what comes after it must not take its place."""
    for server in cluster.servers:
        server.goes_on.clear()
    writer = files.create_writer("/f")
    for size in (*[CHUNK] * WINDOW, CHUNK - 1):
        writer.write(noise(size))

    def watch() -> None:
        """Until the writer waits for room."""
        writing = threading.main_thread().ident or 0
        while "_settle_some" not in [one.name for one in traceback.extract_stack(sys._current_frames()[writing])]:
            pass
        signal.pthread_kill(writing, signal.SIGINT)

    threading.Thread(target=watch).start()
    with pytest.raises(KeyboardInterrupt):
        writer.write(noise(piece))
    for server in cluster.servers:
        server.goes_on.set()
    for call in (lambda: writer.write(noise(piece)), writer.close):
        with pytest.raises(Fs3Error, match=r"^/f: a write was interrupted \(KeyboardInterrupt\)"):
            call()
    writer.abandon()
    assert meta.calls["publish"] == 0


def test_a_writer_whose_client_is_closed_publishes_nothing(files, meta, cluster) -> None:
    for server in cluster.servers:
        server.goes_on.clear()
    writers = [files.create_writer(f"/{number}") for number in range(THREADS // WINDOW + 1)]
    for writer in writers * WINDOW:
        writer.write(noise(CHUNK))
    files.close()
    for server in cluster.servers:
        server.goes_on.set()
    for call in (writers[-1].close, lambda: writers[-1].write(noise(CHUNK)), writers[-1].close):
        with pytest.raises(Invalid, match=r"^/2: the client is closed"):
            call()
    assert meta.calls["publish"] == 0
    for writer in writers:
        writer.abandon()


@pytest.mark.parametrize("piece", [100, CHUNK, 100 * CHUNK])
def test_a_writer_whose_session_is_lost_sends_no_more(files, meta, cluster, piece: int) -> None:
    """What it sent would stay for ever: nobody collects the chunks of a file that has been collected."""
    writer = files.create_writer("/f")
    writer.write(noise(2 * CHUNK + 5))
    meta.collect()
    files.renew()
    for call in (lambda: writer.write(noise(piece)), writer.close):
        with pytest.raises(SessionEnded, match=r"^/f: the write session is over.*write the file again$"):
            call()
    writer.abandon()
    assert sum(cluster.shared.applied.values()) <= 2 and meta.calls["publish"] == 0
    with files.create_writer("/f") as again:
        again.write(b"anew")
    assert files.read(files.open_read("/f")) == b"anew"


def test_a_write_of_many_chunks_ends_soon_after_the_session(files, meta, cluster) -> None:
    writer = files.create_writer("/f")
    sent = threading.Event()

    def lose() -> None:
        if not sent.is_set() and sum(cluster.shared.applied.values()) > 9:
            sent.set()
            meta.collect()
            files.renew()

    for server in cluster.servers:
        server.on_write = lose
    with pytest.raises(SessionEnded):
        writer.write(noise(200 * CHUNK))
    writer.abandon()
    assert sent.is_set() and sum(cluster.shared.applied.values()) < 9 + 4 * WINDOW


def test_a_batch_whose_session_is_lost_publishes_nothing(files, meta, cluster) -> None:
    def lose() -> None:
        meta.collect()
        files.renew()

    for server in cluster.servers:
        server.on_write = lose
    with pytest.raises(SessionEnded, match=r"^/0: the write session is over"):
        files.create_batch([f"/{number}" for number in range(9)], [noise(CHUNK)] * 9)
    assert meta.calls["publish"] == 0 and len(meta.abandoned) == 9


def test_closing_twice_publishes_once(files, meta) -> None:
    writer = files.create_writer("/f")
    writer.write(b"abc")
    assert writer.length == 3
    assert writer.close() == writer.close() == meta.files["/f"]
    writer.abandon()
    assert meta.calls["publish"] == 1 and not meta.abandoned


def test_a_node_that_dies_while_a_file_is_written_and_read_fails_nothing(files, cluster) -> None:
    data = noise(40 * CHUNK + 9)
    dead = cluster.servers[2]

    def promote() -> None:
        if cluster.mgmtd.routing.version == 1:
            for chain in range(1, 7):
                cluster.set_chain(chain, [1, 2])

    cluster.mgmtd.on_refresh = promote
    with files.create_writer("/f") as writer:
        for at in range(0, len(data), CHUNK):
            if at == 20 * CHUNK:
                dead.stop()
            writer.write(data[at : at + CHUNK])
    assert files.read(files.open_read("/f")) == data
    assert set(cluster.shared.applied.values()) == {1}


def test_open_writers_are_renewed_until_they_end(meta) -> None:
    seen = threading.Event()
    meta.on_renew = seen.set
    renewal = Renewal(meta, every_s=0.001)
    renewal.add([7, 8])
    assert seen.wait(20)
    renewal.discard([7])
    while 7 in meta.renewed[-1:]:
        seen.clear()
        assert seen.wait(20)
    renewal.close()
    assert renewal._thread is not None
    renewal._thread.join(20)
    assert {7, 8} == set(meta.renewed)


def test_a_renewal_that_fails_is_not_the_last(meta) -> None:
    failures: list[Exception] = [Unavailable("nobody answers"), ValueError("a defect")]
    renewed = threading.Event()

    def fail() -> None:
        if failures:
            raise failures.pop()
        renewed.set()

    meta.on_renew = fail
    renewal = Renewal(meta, every_s=0.001)
    renewal.add([7])
    assert renewed.wait(20) and not failures
    renewal.close()


def test_what_is_told_of_a_session_is_not_said_of_the_next(meta) -> None:
    """A file is closed and opened again while a renewal of its first session is under way."""
    renewal = Renewal(meta, now=lambda: 100.0)
    renewal.add([7, 8], asked_s=90.0, written=lambda: Written(1))

    def reopen() -> None:
        renewal.discard([7])
        renewal.add([7], asked_s=95.0, written=lambda: Written(2))

    meta.on_renew = reopen
    meta.lost = {7}
    renewal.now()
    renewal.check(7, lease_s=10.1)
    renewal.check_new(7, "/f")
    with pytest.raises(Unavailable, match="for 5 s"):
        renewal.check(7, lease_s=9.9)
    renewal.check(8, lease_s=0.1)
    meta.on_renew = lambda: None
    renewal.now()
    with pytest.raises(NotFound, match="session is over"):
        renewal.check(7, lease_s=60.0)
    renewal.close()


def test_a_forked_child_reads_with_the_handle_and_writes_its_own_file(files, meta) -> None:
    data = noise(9 * CHUNK)
    with files.create_writer("/f") as writer:
        writer.write(data)
    handle = files.open_read("/f")
    assert files.read(handle) == data
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with files.create_writer("/g") as mine:
                mine.write(data)
            code = 0 if files.read(handle) == files.read(files.open_read("/g")) == data else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert files.read(handle) == data


def test_a_forked_child_leaves_the_writers_of_its_parent_alone(files, meta, cluster) -> None:
    """With chunks under way, which nobody in the child would ever see end, and threads that may hold locks."""
    data = noise(5 * CHUNK + 9)
    for server in cluster.servers:
        server.goes_on.clear()
    writer = files.create_writer("/f")
    for at in range(0, len(data), CHUNK):
        writer.write(data[at : at + CHUNK])
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        code = 1
        try:
            for call in (writer.close, lambda: writer.write(b"more")):
                with pytest.raises(Invalid, match=rf"^/f: process {os.getppid()} opened it"):
                    call()
            writer.abandon()
            with pytest.raises(Invalid):
                writer.close()
            code = 0 if meta.calls == {"create": 1} and not meta.abandoned else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for server in cluster.servers:
        server.goes_on.set()
    writer.close()
    assert files.read(files.open_read("/f")) == data
