"""Writing through the I/O process: what the ordinary client then reads; what is wrong is told, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fs3 import usrbio
from fs3.client.connect import Client
from fs3.client.storage import RANGE
from fs3.cluster.local import LocalCluster
from fs3.errors import Busy, InUse, Invalid, IsADirectory, MaybeApplied, NotFound, QuotaExceeded, Unavailable
from fs3.kvcache.keys_core import page_chunk
from fs3.layout import MAX_FILE_BYTES, LayoutChoice
from fs3.usrbio import Ior, Iov, UsrBio, WritableFiles
from fs3.usrbio.ring_format import TAKEN
from fs3.usrbio.writers import MAX_WRITABLE
from tests.fs3.usrbio.conftest import CHUNK_BYTES, Stalled, until

ZERO = np.zeros(1, dtype=np.int64)
SETTINGS = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
GAPS = st.sampled_from([0, 0, 1, 4_096, CHUNK_BYTES - 1, CHUNK_BYTES + 7])
LENGTHS = st.sampled_from([0, 1, 100, 4_096, CHUNK_BYTES, 2 * CHUNK_BYTES + 1])
BATCHES = st.lists(
    st.lists(st.tuples(st.integers(0, 1), GAPS, LENGTHS), min_size=1, max_size=6), min_size=1, max_size=4
)


@pytest.fixture
def home(client: Client) -> Iterator[str]:
    """A directory whose files have chunks of 256 KiB."""
    client.meta.mkdir("/home", layout=LayoutChoice(chunk_bytes=CHUNK_BYTES))
    yield "/home"
    client.meta.remove("/home", recursive=True)


def contents(client: Client, path: str) -> bytes:
    return client.files.read(client.files.open_read(path))


def put(ring: Ior, files: WritableFiles, iov: Iov, offset: int, data: bytes, **options: float) -> usrbio.Done:
    """Write one range, and how that ended."""
    iov.view[: len(data)] = data
    ring.write(files, ZERO, ZERO + offset, ZERO + len(data), iov, ZERO, **options)
    (done,) = ring.wait()
    return done


@SETTINGS
@given(BATCHES, st.integers(0, 1_000))
def test_files_have_what_batches_wrote(
    io: UsrBio, client: Client, home: str, batches: list[list[tuple[int, int, int]]], seed: int
) -> None:
    chance = np.random.default_rng(seed)
    paths = [f"{home}/one-{seed}", f"{home}/other-{seed}"]
    models = [bytearray(chance.bytes(CHUNK_BYTES + 99)), bytearray()]
    client.files.create_batch(paths, [bytes(one) for one in models])
    with io.iov(8 * CHUNK_BYTES) as iov, io.ior(depth=4) as ring, io.open_for_writing(paths) as files:
        iov.view[:] = chance.bytes(iov.nbytes)
        for batch in batches:
            index, gaps, lengths = np.array(batch, dtype=np.int64).T
            offsets = np.zeros(len(batch), dtype=np.int64)
            for file in (0, 1):
                mine = index == file
                offsets[mine] = np.cumsum(gaps[mine] + lengths[mine]) - lengths[mine]
            order = chance.permutation(len(batch))
            index, offsets, lengths = index[order], offsets[order], lengths[order]
            places = (chance.random(len(batch)) * (iov.nbytes - lengths + 1)).astype(np.int64)
            number = ring.write(files, index, offsets, lengths, iov, places)
            (done,) = ring.wait()
            assert done.check().number == number and done.results["length"].tolist() == lengths.tolist()
            for file, offset, size, place in zip(
                *map(np.ndarray.tolist, (index, offsets, lengths, places)), strict=True
            ):
                model = models[file]
                if size:
                    model.extend(bytes(max(offset + size - len(model), 0)))
                    model[offset : offset + size] = iov.view[place : place + size]
            assert [contents(client, path) for path in paths] == models, "seen by others before it is closed"
    assert [contents(client, path) for path in paths] == models


def test_files_are_made_where_there_are_none(io: UsrBio, client: Client, home: str) -> None:
    with io.iov(8_192) as iov, io.ior() as ring:
        with pytest.raises(NotFound, match="/home/new"):
            io.open_for_writing([f"{home}/new"])
        with io.open_for_writing([f"{home}/new"], create=True) as files:
            assert contents(client, f"{home}/new") == b""
            put(ring, files, iov, 0, b"fresh").check()
        with io.open_for_writing([f"{home}/new"], create=True) as files:
            put(ring, files, iov, 5, b" and kept").check()
            files.sync()
    assert contents(client, f"{home}/new") == b"fresh and kept"


def test_many_batches_and_rings_write_one_file(io: UsrBio, client: Client, home: str) -> None:
    path, size = f"{home}/shared", 3 * CHUNK_BYTES // 2
    with io.open_for_writing([path], create=True) as files, io.iov(16 * size) as iov:
        expected = np.random.default_rng(5).bytes(16 * size)
        iov.view[: 16 * size] = expected
        with io.ior(depth=8) as one, io.ior(depth=8) as other:
            for number in np.random.default_rng(6).permutation(16).tolist():
                at = ZERO + number * size
                (one if number % 2 else other).write(files, ZERO, at, ZERO + size, iov, at)
            done = one.wait(at_least=8) + other.wait(at_least=8)
            assert len(done) == 16 and all(batch.check() for batch in done)
            with pytest.raises(Invalid, match="are under way"):
                one.write(files, ZERO, ZERO, ZERO + 9, iov, ZERO, submit=False)
                iov.close()
            one.wait()[0].check()
    assert contents(client, path) == expected


def test_nobody_else_writes_it_meanwhile(io: UsrBio, client: Client, cluster: LocalCluster, home: str) -> None:
    path = f"{home}/mine"
    client.files.create_batch([path], [b"abc"])
    with io.open_for_writing([path]):
        with pytest.raises(InUse, match="is open for writing in this application already"):
            io.open_for_writing([path])
        with pytest.raises(InUse, match="is being written"):
            client.files.open_update(path)
        with usrbio.open(cluster.url) as second, pytest.raises(InUse, match="is being written"):
            second.open_for_writing([path])
    client.files.open_update(path).close()
    unclosed = usrbio.open(cluster.url)
    files = unclosed.open_for_writing([path])
    unclosed.close()
    assert files.closed
    client.files.open_update(path).close()


def test_files_that_cannot_be_opened_for_writing(io: UsrBio, client: Client, home: str) -> None:
    client.files.create_batch([f"{home}/here"], [b"abc"])
    with pytest.raises(NotFound, match="/home/nope"):
        io.open_for_writing([f"{home}/here", f"{home}/nope"])
    with pytest.raises(IsADirectory):
        io.open_for_writing([f"{home}/here", home])
    with pytest.raises(InUse):
        io.open_for_writing([f"{home}/here", f"{home}/here"])
    io.open_for_writing([f"{home}/here"]).close()


def _columns(*values: int) -> list[NDArray[np.int64]]:
    return [np.array([value], dtype=np.int64) for value in values]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (_columns(1, 0, 5, 0), "there are 1 files, from 0 on"),
        (_columns(-1, 0, 5, 0), "there are 1 files, from 0 on"),
        (_columns(0, -1, 5, 0), "/home/kept: bytes from -1"),
        (_columns(0, MAX_FILE_BYTES, 5, 0), "a file has from 0 to"),
        (_columns(0, 2**63 - 1, 5, 0), "a file has from 0 to"),
        (_columns(0, 0, -5, 0), "are not within the memory of 8192 bytes"),
        (_columns(0, 0, 5, 8_190), "are not within the memory of 8192 bytes"),
        (_columns(0, 0, 5, -1), "are not within the memory of 8192 bytes"),
        (_columns(0, 0, 2**62, 0), "are not within the memory of 8192 bytes"),
        ([np.zeros(2, int), np.array([0, 4]), np.array([5, 5]), np.array([0, 9])], "/home/kept: ranges of .* overlap"),
        ([np.zeros(2, int), np.array([9, 0]), np.array([5, 10]), np.array([0, 9])], "/home/kept: ranges of .* overlap"),
    ],
)
def test_a_wrong_range_refuses_its_batch(
    io: UsrBio, client: Client, home: str, columns: list[NDArray[np.int64]], words: str
) -> None:
    client.files.create_batch([f"{home}/kept"], [b"as it was"])
    with io.iov(8_192) as iov, io.ior() as ring, io.open_for_writing([f"{home}/kept"]) as files:
        iov.view[:3] = b"bad"
        right = [np.array([0]), np.array([20]), np.array([3]), np.array([0])]
        together = [np.concatenate([good, bad]) for good, bad in zip(right, columns, strict=True)]
        ring.write(files, *together[:3], iov, together[3])
        (done,) = ring.wait()
        assert (done.results["status"] == Invalid.code).all() and not done.results["length"].any()
        with pytest.raises(Invalid, match=words):
            done.check()
        assert contents(client, f"{home}/kept") == b"as it was"
        put(ring, files, iov, 0, b"AS").check()
    assert contents(client, f"{home}/kept") == b"AS it was"


def test_a_wrong_call_is_refused_at_once(io: UsrBio, client: Client, home: str, noise: dict[str, bytes]) -> None:
    readable = io.open_files(["/noise-b"])
    with io.iov(8_192) as iov, io.ior(depth=1, ranges=4) as ring:
        with io.open_for_writing([f"{home}/new"], create=True) as files:
            with pytest.raises(Invalid, match="open them with `open_for_writing`"):
                ring.write(readable, ZERO, ZERO, ZERO, iov, ZERO)  # type: ignore[arg-type]
            with pytest.raises(Invalid, match="open them with `open_files`"):
                ring.read(files, ZERO, ZERO, ZERO, iov, ZERO)  # type: ignore[arg-type]
            with pytest.raises(Invalid, match="offsets of type float64"):
                ring.write(files, ZERO, np.zeros(1), ZERO, iov, ZERO)  # type: ignore[arg-type]
            ring.write(files, ZERO, ZERO, ZERO, iov, ZERO, submit=False)
            with pytest.raises(Busy):
                ring.write(files, ZERO, ZERO, ZERO, iov, ZERO)
            assert ring.wait()[0].check().results["length"].tolist() == [0]
        with pytest.raises(Invalid, match="these files are closed"):
            ring.write(files, ZERO, ZERO, ZERO, iov, ZERO)
        with pytest.raises(Invalid, match="these files are closed"):
            files.sync()
        files.close()
    assert contents(client, "/noise-b") == noise["/noise-b"]


def test_a_file_that_was_closed_meanwhile(io: UsrBio, client: Client, home: str) -> None:
    """By the I/O process's own account, whatever the application believes."""
    with io.iov(8_192) as iov, io.ior() as ring, io.open_for_writing([f"{home}/new"], create=True) as files:
        put(ring, files, iov, 0, b"begun").check()
        files.close()
        files._closed = False
        with pytest.raises(Invalid, match="/home/new: was closed"):
            put(ring, files, iov, 0, b"never").check()
        files._closed = True
    assert contents(client, f"{home}/new") == b"begun"


def test_closed_files_are_none_of_those_that_a_ring_can_have(io: UsrBio, home: str) -> None:
    paths = [f"{home}/{number}" for number in range(MAX_WRITABLE // 2 + 1)]
    with io.iov(8_192) as iov, io.ior() as ring:
        for data in (b"first", b"second"):
            with io.open_for_writing(paths, create=True) as files:
                put(ring, files, iov, 0, data).check()


def test_what_is_under_way_when_its_files_are_closed_is_written(io: UsrBio, client: Client, home: str) -> None:
    with io.iov(8_192) as iov, io.ior() as ring, io.ior() as other:
        iov.view[:300] = bytes(range(100)) * 3
        with io.open_for_writing([f"{home}/new"], create=True) as files:
            for number in range(60):
                some = other if number % 3 else ring
                some.write(files, ZERO, ZERO + 5 * number, ZERO + 5, iov, ZERO + 5 * number, submit=False)
            ring.submit()
            other.submit()
        for done in (*ring.wait(at_least=20), *other.wait(at_least=40)):
            done.check()
    assert contents(client, f"{home}/new") == bytes(range(100)) * 3


def test_a_quota_is_told_and_the_file_goes_on(io: UsrBio, client: Client, home: str) -> None:
    client.meta.set_quota(home, max_bytes=CHUNK_BYTES)
    with io.iov(4 * CHUNK_BYTES) as iov, io.ior() as ring, io.open_for_writing([f"{home}/new"], create=True) as files:
        put(ring, files, iov, 0, b"within").check()
        done = put(ring, files, iov, 6, b"x" * 2 * CHUNK_BYTES)
        assert isinstance(done.error, QuotaExceeded) and done.results["status"].tolist() == [QuotaExceeded.code]
        assert contents(client, f"{home}/new") == b"within"
        put(ring, files, iov, 6, b" it again").check()
    assert contents(client, f"{home}/new") == b"within it again"


def test_a_batch_ends_at_its_deadline(cluster: LocalCluster, io: UsrBio, client: Client, home: str) -> None:
    pid = io.stats()["pid"]
    with io.iov(8_192) as iov, io.ior() as ring, io.open_for_writing([f"{home}/new"], create=True) as files:
        put(ring, files, iov, 0, b"first").check()
        with Stalled(cluster):
            done = put(ring, files, iov, 0, b"other", timeout_s=0.3)
            assert isinstance(done.error, Unavailable | MaybeApplied) and f"{home}/new" in str(done.error)
        put(ring, files, iov, 0, b"third").check()
        assert io.stats()["pid"] == pid, "it was killed for what was not its fault"
    assert contents(client, f"{home}/new") == b"third"


def test_what_waits_for_a_file_ends_in_its_own_time(
    cluster: LocalCluster, io: UsrBio, client: Client, home: str
) -> None:
    pid = io.stats()["pid"]
    with io.iov(8_192) as iov, io.ior() as ring, io.open_for_writing([f"{home}/new"], create=True) as files:
        iov.view[:6] = b"abcdef"
        put(ring, files, iov, 0, b"abcdef").check()
        with Stalled(cluster):
            first = ring.write(files, ZERO, ZERO, ZERO + 3, iov, ZERO + 3)
            second = ring.write(files, ZERO, ZERO + 3, ZERO + 3, iov, ZERO, timeout_s=0.3)
            third = ring.write(files, ZERO, ZERO + 6, ZERO + 3, iov, ZERO)
            (done,) = ring.wait()
            assert done.number == second and isinstance(done.error, Unavailable)
            assert "something else was written into it until this one's time was over" in str(done.error)
        rest = ring.wait(at_least=2)
        assert sorted(one.check().number for one in rest) == [first, third]
        assert io.stats()["pid"] == pid
    assert contents(client, f"{home}/new") == b"defdefabc"


def test_what_waits_for_a_file_keeps_no_thread(
    cluster: LocalCluster, client: Client, home: str, noise: dict[str, bytes], runtime_directory: Path
) -> None:
    """Not even if it ends a moment sooner than what it waits for: then its thread would wait until then."""
    with usrbio.open(cluster.url, workers=2) as io, io.iov(8_192) as iov, io.ior() as ring:
        files = io.open_for_writing([f"{home}/one", f"{home}/other"], create=True)
        counters = ring._memory.view[:4_096].cast("Q")
        with Stalled(cluster):
            for batch, file, timeout_s in ((1, 0, 20.0), (2, 0, 19.5), (3, 0, 19.0), (4, 1, 20.0)):
                ring.write(files, ZERO + file, ZERO, ZERO + 3, iov, ZERO, timeout_s=timeout_s)
                until(lambda: counters[TAKEN] == batch, "no thread was free for it")  # noqa: B023
        assert all(one.check() for one in ring.wait(at_least=4))
        counters.release()


def test_what_waits_for_a_file_ends_in_its_own_time_though_all_threads_are_busy(
    cluster: LocalCluster, client: Client, home: str, noise: dict[str, bytes], runtime_directory: Path
) -> None:
    """What writes first ends sooner than what waits for it, and then every thread reads."""
    with usrbio.open(cluster.url, workers=2) as io, io.iov(8_192) as iov:
        pid, readable = io.stats()["pid"], io.open_files(["/noise-b"])
        with io.ior() as ring, io.ior(priority=0) as busy, io.open_for_writing([f"{home}/new"], create=True) as files:
            put(ring, files, iov, 0, b"abc").check()
            counters = ring._memory.view[:4_096].cast("Q")
            with Stalled(cluster):
                for batch, timeout_s in ((2, 1.0), (3, 1.5)):
                    ring.write(files, ZERO, ZERO + 3 * batch, ZERO + 3, iov, ZERO, timeout_s=timeout_s)
                    until(lambda: counters[TAKEN] == batch, "no thread was free for it")  # noqa: B023
                for number in range(3):
                    busy.read(readable, ZERO, ZERO, ZERO + 3, iov, ZERO + 10 * (number + 1))
                done = ring.wait(at_least=2)
            assert "something else was written into it until this one's time was over" in str(done[1].error)
            assert all(one.check() for one in busy.wait(at_least=3))
            counters.release()
        assert io.stats()["pid"] == pid, "it was killed for what was not its fault"


def test_bytes_that_several_batches_write_are_of_one_of_them(
    cluster: LocalCluster, io: UsrBio, client: Client, home: str
) -> None:
    path, size = f"{home}/new", 10_000
    with io.iov(64 * size) as iov, io.ior(depth=64) as ring, io.open_for_writing([path], create=True) as files:
        for number in range(64):
            iov.view[number * size : (number + 1) * size] = bytes([number]) * size
        put(ring, files, iov, 0, bytes(size)).check()
        with Stalled(cluster):
            for number in range(64):
                begin = number % 16 * (size // 2)
                ring.write(files, ZERO, ZERO + begin, ZERO + size, iov, ZERO + number * size)
        assert all(one.check() for one in ring.wait(at_least=64))
    found = contents(client, path)
    assert len(found) == 15 * (size // 2) + size
    for at in range(0, len(found), size // 2):
        half = set(found[at : at + size // 2])
        assert len(half) == 1 and (at // (size // 2) - next(iter(half))) % 16 in (0, 1), "of two batches, or of another"


def test_chunks_are_written_by_their_ids(io: UsrBio, client: Client) -> None:
    chains = np.array(sorted(client.mgmtd.routing.chains), dtype=np.uint32)
    ranges = np.zeros(3, dtype=RANGE)
    ids = [page_chunk(77, bytes([number]) * 32) for number in range(3)]
    ranges["hi"], ranges["lo"] = np.array(ids, dtype=np.uint64).T
    ranges["length"], ranges["chain"] = [10, 200_000, 0], chains[0]
    places = np.array([0, 10, 5])
    data = np.random.default_rng(3).bytes(200_010)
    with io.iov(1 << 20) as iov, io.ior() as ring:
        iov.view[: len(data)] = data
        ring.write_chunks(ranges, iov, places)
        (done,) = ring.wait()
        assert done.check().results["length"].tolist() == [10, 200_000, 0] == done.results["chunk_length"].tolist()
        out = memoryview(bytearray(200_010))
        assert client.storage.read(ranges, out, places)["length"].tolist() == [10, 200_000, 0]
        assert out == data
        iov.view[:10] = b"0123456789"
        ring.write_chunks(ranges[:1], iov, places[:1], if_absent=True, durable=False)
        assert ring.wait()[0].check().results["length"].tolist() == [0], "one that exists was written"
        client.storage.read(ranges[:1], out, places[:1])
        assert out[:10] == data[:10]
        ring.write_chunks(ranges[:1], iov, places[:1])
        ring.wait()[0].check()
        client.storage.read(ranges[:1], out, places[:1])
        assert out[:10] == b"0123456789"
        for wrong, words in (
            (ranges[[0, 0]], "a chunk is named twice"),
            (_with(ranges[:1], "offset", 1), "are written whole"),
            (_with(ranges[:1], "length", 2**31), "are not within the memory"),
        ):
            ring.write_chunks(wrong, iov, places[: len(wrong)])
            with pytest.raises(Invalid, match=words):
                ring.wait()[0].check()
        ring.write_chunks(_with(ranges[:2], "chain", [chains[0], 9_999]), iov, places[:2], timeout_s=0.5)
        (done,) = ring.wait()
        assert isinstance(done.error, Unavailable) and done.results["length"].tolist() == [0, 0]


def _with(ranges: NDArray[np.void], name: str, value: object) -> NDArray[np.void]:
    other = ranges.copy()
    other[name] = value
    return other
