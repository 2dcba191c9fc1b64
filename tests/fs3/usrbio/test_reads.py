"""Reading through the I/O process: the bytes that were written, for every way to ask; and every wrong way is told."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from fs3 import usrbio
from fs3.client.connect import Client
from fs3.client.storage import RANGE
from fs3.cluster.local import LocalCluster
from fs3.errors import Busy, Conflict, Invalid, IsADirectory, NoSpace, NotFound, PermissionDenied, Unavailable
from fs3.transport.descriptors import close_all
from fs3.usrbio import Files, Priority, UsrBio
from fs3.usrbio.place import place_of
from fs3.usrbio.process import serve
from tests.conftest import io_processes
from tests.fs3.usrbio.conftest import SIZES, Batch, Stalled, until

PATHS = list(SIZES)


def test_random_batches_have_what_was_written(io: UsrBio, noise: dict[str, bytes]) -> None:
    files = io.open_files(PATHS)
    with io.iov(16 << 20) as iov, io.ior(depth=4, ranges=600) as ring:
        for seed, count in enumerate((1, 2, 50, 600)):
            batch = Batch.random(files, noise, seed, count)
            iov.view[:] = bytes(iov.nbytes)
            number = batch.submit(ring, iov)
            (done,) = ring.wait()
            assert (done.number, done.check().results["length"].tolist()) == (number, batch.lengths.tolist())
            batch.check(iov)
            filled = np.zeros(iov.nbytes, dtype=bool)
            for place, length in zip(batch.places.tolist(), batch.lengths.tolist(), strict=True):
                filled[place : place + length] = True
            assert not iov.array()[~filled].any(), "bytes were written beside the ranges"


def test_many_batches_are_under_way_at_once(io: UsrBio, noise: dict[str, bytes]) -> None:
    files = io.open_files(PATHS)
    with io.ior(depth=8) as ring:
        iovs = [io.iov(2 << 20) for _ in range(8)]
        batches = [Batch.random(files, noise, seed, 100) for seed in range(8)]
        for _ in range(5):
            numbers = [batch.submit(ring, iov, submit=False) for batch, iov in zip(batches, iovs, strict=True)]
            assert ring.submit() == 8 and ring.submit() == 0
            with pytest.raises(Busy, match="as many as the ring is deep"):
                batches[0].submit(ring, iovs[0])
            done = ring.wait(at_least=8)
            assert sorted(one.check().number for one in done) == numbers
            for batch, iov in zip(batches, iovs, strict=True):
                batch.check(iov)
        assert ring.wait() == [] and ring.under_way == 0
        for iov in iovs:
            iov.close()


def test_files_added_later_are_known(io: UsrBio, noise: dict[str, bytes]) -> None:
    files = io.open_files(PATHS[:1])
    with io.iov(4 << 20) as iov, io.ior() as ring:
        Batch.random(files, noise, 1, 5).submit(ring, iov)
        ring.wait()[0].check()
        assert files.add(io.open_many(PATHS[1:])) == 1
        batch = Batch.random(files, noise, 2, 50)
        batch.submit(ring, iov)
        ring.wait()[0].check()
        batch.check(iov)


def test_each_batch_under_way_may_have_files_of_its_own(
    cluster: LocalCluster, io: UsrBio, noise: dict[str, bytes]
) -> None:
    """More than an I/O process is otherwise told of."""
    opened, zero = io.open_many(["/noise-b"]), np.zeros(1, dtype=np.int64)
    with io.iov(8_192) as iov, io.ior(depth=600, ranges=1) as ring:
        with Stalled(cluster):
            for number in range(600):
                ring.read(Files(opened), zero, zero + number, zero + 10, iov, zero + 10 * number)
        for done in ring.wait(at_least=600):
            done.check()
        for number in range(600):
            assert iov.view[10 * number :][:10] == noise["/noise-b"][number : number + 10]


def test_chunks_are_read_by_their_ids(io: UsrBio, client: Client, noise: dict[str, bytes]) -> None:
    (file,) = client.files.open_many(["/noise-a"])
    ranges = np.zeros(3, dtype=RANGE)
    ranges["hi"], ranges["lo"], ranges["length"] = 1 << 56 | file.inode_id, [0, 3, 99], 1_000
    ranges["chain"] = file.chains[ranges["lo"] % len(file.chains)]
    with io.iov(4_096) as iov, io.ior() as ring:
        ring.read_chunks(ranges, iov, np.arange(3) * 1_000)
        (done,) = ring.wait()
        assert done.check().results["status"].tolist() == [0, 0, NotFound.code]
        assert done.results["length"].tolist() == [1_000, 777, 0]
        assert done.results["chunk_length"].tolist()[:2] == [file.layout.chunk_bytes, 777]
        assert iov.view[:1_000] == noise["/noise-a"][:1_000] and iov.view[1_000:1_777] == noise["/noise-a"][-777:]


def test_a_range_that_fails_costs_no_other(io: UsrBio, client: Client, noise: dict[str, bytes]) -> None:
    (doomed,) = client.files.create_batch(["/doomed"], [b"x" * 5_000])
    files = io.open_files(["/noise-b", "/doomed", "/noise-c"])
    client.meta.remove("/doomed")
    assert doomed.layout is not None
    client.storage.remove_file_chunks(doomed.inode_id, doomed.layout, doomed.length)
    index, offsets = np.array([0, 1, 2, 0, 2]), np.array([10, 0, 20, SIZES["/noise-b"] - 50, 30])
    lengths, places = np.array([100] * 5), np.arange(5) * 100
    with io.iov(4_096) as iov, io.ior(timeout_s=20.0) as ring:
        ring.read(files, index, offsets, lengths, iov, places)
        (done,) = ring.wait()
        assert done.results["status"].tolist() == [0, NotFound.code, 0, Invalid.code, 0]
        assert done.results["length"].tolist() == [100, 0, 100, 0, 100]
        with pytest.raises((NotFound, Invalid)):
            done.check()
        for place in (0, 2, 4):
            data = noise[files[int(index[place])].path]
            assert iov.view[place * 100 : place * 100 + 100] == data[offsets[place] : offsets[place] + 100]


@pytest.mark.parametrize(
    ("index", "offset", "length", "place", "words"),
    [
        (0, 0, SIZES["/noise-a"] + 1, 0, "/noise-a: bytes 0 to .* are not within the file"),
        (0, -1, 10, 0, "are not within the file"),
        (0, 0, -5, 0, "are not within the file"),
        (2**62, 0, 10, 0, "there are 3 files, from 0 on"),
        (-1, 0, 10, 0, "there are 3 files, from 0 on"),
        (0, 0, 10, 8_190, "do not fit into a buffer of 8192 bytes"),
        (0, 0, 10, -10, "do not fit into a buffer of 8192 bytes"),
    ],
)
def test_a_wrong_range_is_told_when_its_batch_ends(
    io: UsrBio, index: int, offset: int, length: int, place: int, words: str
) -> None:
    files = io.open_files(PATHS)
    with io.iov(8_192) as iov, io.ior() as ring:
        ring.read(files, *(np.array([one]) for one in (index, offset, length)), iov, np.array([place]))
        (done,) = ring.wait()
        with pytest.raises(Invalid, match=words):
            done.check()


def test_ranges_that_overlap_in_memory_are_refused(io: UsrBio) -> None:
    files, two = io.open_files(PATHS), np.zeros(2, dtype=np.int64)
    with io.iov(8_192) as iov, io.ior() as ring:
        ring.read(files, two, two, two + 10, iov, np.array([0, 9]))
        with pytest.raises(Invalid, match="overlap"):
            ring.wait()[0].check()


def test_a_wrong_batch_is_refused_at_once(io: UsrBio) -> None:
    files, one = io.open_files(PATHS), np.zeros(1, dtype=np.int64)
    with io.iov(8_192) as iov, io.ior(depth=2, ranges=4) as ring:
        for columns, words in (
            ((np.zeros(5, int),) * 4, "takes from 1 to 4 in one"),
            ((np.zeros(0, int),) * 4, "takes from 1 to 4 in one"),
            ((one, one, one, np.zeros(2, int)), r"places in the memory of shape \[2\]"),
            ((one, np.zeros(1), one, one), "offsets of type float64"),
            ((one, one, np.zeros((1, 1), int), one), r"lengths of shape \[1, 1\]"),
        ):
            with pytest.raises(Invalid, match=words):
                ring.read(files, *columns[:3], iov, columns[3])
        with pytest.raises(Invalid, match="timeout of 0"):
            ring.read(files, one, one, one, iov, one, timeout_s=0)
        for endless in (float("inf"), 1.1e6):
            with pytest.raises(Invalid, match="at most 1,000,000"):
                ring.read(files, one, one, one, iov, one, timeout_s=endless)
        with pytest.raises(Invalid, match="must be RANGE records"):
            ring.read_chunks(np.zeros(1, dtype=np.int64), iov, one)
        assert ring.under_way == 0
        strided = np.arange(20, dtype=np.int32)[::5]  # other whole numbers, with gaps: converted
        ring.read(files, strided * 0, strided, strided * 0 + 3, iov, strided)
        ring.wait()[0].check()
    for wrong in ({"depth": 0}, {"ranges": 1 << 20}, {"priority": 3}, {"timeout_s": 0.0}, {"timeout_s": 1e300}):
        with pytest.raises(Invalid):
            io.ior(**wrong)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="this ring is closed"):
        ring.wait()
    with pytest.raises(Invalid, match="shared memory is closed"):
        iov.view  # noqa: B018


def test_files_that_cannot_be_opened(io: UsrBio, client: Client) -> None:
    with pytest.raises(NotFound, match="/nope"):
        io.open_files(["/noise-a", "/nope"])
    with pytest.raises(IsADirectory):
        io.open_files(["/"])
    assert len(io.open_files([])) == 0


def test_memory_is_seen_as_arrays_and_tensors_without_a_copy(io: UsrBio, noise: dict[str, bytes]) -> None:
    torch = pytest.importorskip("torch")
    files, zero = io.open_files(["/noise-b"]), np.zeros(1, dtype=np.int64)
    with io.iov(8_192) as iov, io.ior() as ring:
        array, tensor = iov.array("<u4", (16, 4), 64), iov.tensor()
        ring.read(files, zero, zero, zero + 4_096, iov, zero)
        ring.wait()[0].check()
        assert array.tobytes() == noise["/noise-b"][64 : 64 + 256]
        assert tensor[:4_096].numpy().tobytes() == noise["/noise-b"][:4_096] and tensor.dtype == torch.uint8
        with pytest.raises(Invalid, match="no array of"):
            iov.array("f8", (2_000,))
    assert array.tobytes() == noise["/noise-b"][64 : 64 + 256], "a view is good as long as somebody holds it"


def test_more_memory_than_there_is(io: UsrBio) -> None:
    with pytest.raises(NoSpace, match="ask for less"):
        io.iov(1 << 50)
    with pytest.raises(Invalid):
        io.iov(0)


def test_memory_in_use_is_not_closed(cluster: LocalCluster, io: UsrBio) -> None:
    files, zero = io.open_files(["/noise-b"]), np.zeros(1, dtype=np.int64)
    iov = io.iov(8_192)
    with io.ior() as ring:
        with Stalled(cluster):
            ring.read(files, zero, zero, zero + 10, iov, zero)
            with pytest.raises(Invalid, match="are under way"):
                iov.close()
            assert ring.wait(timeout_s=0.01) == [] and ring.wait(timeout_s=0) == []
        ring.wait()[0].check()
        iov.close()


def test_a_batch_ends_at_its_deadline(cluster: LocalCluster, io: UsrBio, noise: dict[str, bytes]) -> None:
    files = io.open_files(PATHS)
    with io.iov(4 << 20) as iov, io.ior(timeout_s=30.0) as ring:
        batch = Batch.random(files, noise, 3, 20)
        with Stalled(cluster):
            batch.submit(ring, iov, timeout_s=0.2)
            (done,) = ring.wait()
        assert isinstance(done.error, Unavailable) and (done.results["status"] == Unavailable.code).all()
        batch.submit(ring, iov)
        ring.wait()[0].check()
        batch.check(iov)


def test_a_batch_may_have_days(cluster: LocalCluster, io: UsrBio, noise: dict[str, bytes]) -> None:
    files, zero = io.open_files(["/noise-b"]), np.zeros(1, dtype=np.int64)
    with io.iov(4_096) as iov, io.ior(timeout_s=1e6) as ring:
        with Stalled(cluster):
            ring.read(files, zero, zero, zero + 10, iov, zero)
            assert ring.wait(timeout_s=0.01) == []
        (done,) = ring.wait(timeout_s=1e300)
        assert done.check() and iov.view[:10] == noise["/noise-b"][:10]


def test_a_busy_io_process_ends_what_it_does_not_come_to(
    cluster: LocalCluster, noise: dict[str, bytes], runtime_directory: Path
) -> None:
    """It is not taken for one that hangs; and what has time is read in its turn, though it was submitted before."""
    with usrbio.open(cluster.url, workers=2) as io:
        files, pid = io.open_files(["/noise-c"]), io.stats()["pid"]
        zero = np.zeros(1, dtype=np.int64)
        with io.iov(8_192) as iov, io.ior() as busy, io.ior(timeout_s=0.1) as ring:
            ring.read(files, zero, zero, zero, iov, zero)
            ring.wait()[0].check()
            with Stalled(cluster):
                for number in range(4):
                    busy.read(files, zero, zero, zero + 10, iov, zero + 10 * number)
                patient = ring.read(files, zero, zero, zero + 10, iov, zero + 100, timeout_s=60.0)
                hasty = ring.read(files, zero, zero, zero + 10, iov, zero + 200)
                (done,) = ring.wait()
                assert done.number == hasty and isinstance(done.error, Unavailable)
                assert "the batch's time was over before the I/O process came to it" in str(done.error)
            (done,) = ring.wait()
            assert done.check().number == patient
            assert all(one.check() for one in busy.wait(at_least=4))
            assert iov.view[100:110] == noise["/noise-c"][:10]
        assert io.stats()["pid"] == pid, "it was killed for what was not its fault"


def test_a_high_priority_is_not_kept_waiting_by_a_low_one(
    cluster: LocalCluster, noise: dict[str, bytes], runtime_directory: Path
) -> None:
    """Of many low batches most still wait when one of high priority, submitted last, has ended."""
    with usrbio.open(cluster.url, workers=2) as io:
        files = io.open_files(["/noise-c"])
        zero = np.zeros(1, dtype=np.int64)
        with (
            io.iov(5 << 20) as large,
            io.iov(4_096) as small,
            io.ior(depth=64, priority=Priority.LOW) as low,
            io.ior(priority=Priority.HIGH) as high,
        ):
            high.read(files, zero, zero, zero + 10, small, zero)
            high.wait()[0].check()  # all is registered
            with Stalled(cluster):
                for _ in range(64):
                    low.read(files, zero, zero, zero + (5 << 20), large, zero)
                high.read(files, zero, zero, zero + 10, small, zero)
            high.wait()[0].check()
            assert low.under_way - len(low.wait(timeout_s=0)) > 32
            done = low.wait(at_least=low.under_way)
            assert all(one.error is None for one in done)


def test_a_busy_thread_does_not_stop_it(io: UsrBio, noise: dict[str, bytes]) -> None:
    """That it does not slow it down either is for benchmarks/usrbio.py to show."""
    files = io.open_files(PATHS)
    stop = False

    def work() -> int:
        count = 0
        while not stop:
            count += 1
        return count

    busy = threading.Thread(target=work)
    busy.start()
    try:
        with io.iov(4 << 20) as iov, io.ior() as ring:
            for seed in range(20):
                batch = Batch.random(files, noise, seed, 100)
                batch.submit(ring, iov)
                ring.wait()[0].check()
                batch.check(iov)
    finally:
        stop = True
        busy.join()


def test_there_is_one_io_process_for_all(cluster: LocalCluster, io: UsrBio, runtime_directory: Path) -> None:
    (pid,) = io_processes(runtime_directory)
    assert pid != os.getpid() and io.stats()["pid"] == pid
    with usrbio.open(cluster.url + "/any/path") as other:
        assert other.stats()["pid"] == pid
    with pytest.raises(Conflict, match="is running already"):
        serve(cluster.shape.addresses, secret="", workers=1, idle_s=None)


def test_an_application_with_many_descriptors_starts_one(
    cluster: LocalCluster, noise: dict[str, bytes], runtime_directory: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4_096), hard))
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    try:
        with usrbio.open(cluster.url) as io:
            assert io.stats()["connections"] == 1
    finally:
        close_all(many)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_ends_when_nobody_has_used_it_for_a_while(cluster: LocalCluster, runtime_directory: Path) -> None:
    with usrbio.open(cluster.url, idle_s=0.1) as io:
        assert io_processes(runtime_directory) == [io.stats()["pid"]]
    until(lambda: not io_processes(runtime_directory), "it did not end")
    with pytest.raises(Unavailable, match="start one with fs3 usrbio"):
        usrbio.open(cluster.url, start=False)


def test_a_cluster_that_does_not_answer_and_a_wrong_url(runtime_directory: Path) -> None:
    with pytest.raises(Unavailable, match=r"no cluster answers at 127\.0\.0\.1:1 "):
        usrbio.open("fs3://127.0.0.1:1")
    with pytest.raises(Invalid, match="is not an fs3 URL"):
        usrbio.open("/local")
    until(lambda: not io_processes(runtime_directory), "it goes on without a cluster")


def test_a_directory_that_others_can_enter_is_not_used(cluster: LocalCluster, runtime_directory: Path) -> None:
    (runtime_directory / "fs3").mkdir(mode=0o700)
    (runtime_directory / "fs3").chmod(0o755)
    with pytest.raises(PermissionDenied, match="nobody else can enter"):
        usrbio.open(cluster.url)


def test_each_user_group_and_secret_has_a_process_of_its_own(runtime_directory: Path) -> None:
    assert place_of(["a:1", "b:2"], "") == place_of(["b:2", "a:1"], "")
    assert place_of(["a:1"], "").key != place_of(["a:1"], "s").key != place_of(["a:2"], "s").key


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a PID namespace")
def test_a_pid_namespace_has_a_process_of_its_own(runtime_directory: Path) -> None:
    """It shares the directory with others: a container that has it mounted, say."""
    prints = "from fs3.usrbio.place import place_of; print(place_of(['a:1'], ''))"
    ours, theirs = (
        subprocess.run([*wrapped, sys.executable, "-c", prints], capture_output=True, text=True, check=True).stdout
        for wrapped in ([], ["unshare", "--pid", "--fork", "--mount-proc"])
    )
    assert str(place_of(["a:1"], "")) == ours.strip() != theirs.strip()
    assert str(runtime_directory) in theirs
