"""Either side dies at the worst moment: reads go on with another I/O process, and an application leaves nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from fs3 import usrbio
from fs3.cluster.local import LocalCluster
from fs3.errors import Fs3Error, Invalid, Unavailable
from fs3.usrbio import Ior, Iov, UsrBio
from fs3.usrbio.control import WORK_S
from fs3.usrbio.ring_format import SUBMITTED
from fs3.usrbio.start import ANSWER_S
from fs3.usrbio.writers import END_S
from tests.conftest import io_processes
from tests.fs3.usrbio.conftest import SIZES, Batch, Stalled, kill, shared_pieces, until

PATHS = list(SIZES)
ROOT = Path(__file__).resolve().parents[3]


def test_reads_under_way_go_on_when_the_io_process_is_killed(
    cluster: LocalCluster, io: UsrBio, noise: dict[str, bytes], runtime_directory: Path
) -> None:
    files = io.open_files(PATHS)
    before = io.stats()["pid"]
    with io.ior(depth=8) as ring:
        iovs = [io.iov(2 << 20) for _ in range(6)]
        batches = [Batch.random(files, noise, seed, 100) for seed in range(6)]
        batches[0].submit(ring, iovs[0])
        ring.wait()[0].check()
        with Stalled(cluster):
            numbers = [batch.submit(ring, iov) for batch, iov in zip(batches, iovs, strict=True)]
            assert ring.wait(timeout_s=0) == []
            kill(before)
        done = ring.wait(at_least=6)
        assert sorted(one.check().number for one in done) == numbers
        for batch, iov in zip(batches, iovs, strict=True):
            batch.check(iov)
        (after,) = io_processes(runtime_directory)
        assert after != before and io.stats()["pid"] == after and len(io.open_files(PATHS)) == 3
        for iov in iovs:
            iov.close()


def test_the_next_batch_starts_another_io_process(io: UsrBio, noise: dict[str, bytes]) -> None:
    files = io.open_files(PATHS)
    with io.iov(2 << 20) as first, io.iov(2 << 20) as second, io.ior() as ring:
        for iov in (first, second, first):
            batch = Batch.random(files, noise, 1, 30)
            batch.submit(ring, iov)
            ring.wait()[0].check()
            batch.check(iov)
            kill(io.stats()["pid"])


def test_a_batch_that_ends_with_every_io_process_fails(cluster: LocalCluster, io: UsrBio) -> None:
    files, zero = io.open_files(PATHS), np.zeros(1, dtype=np.int64)
    with io.iov(8_192) as iov, io.ior() as ring:
        with Stalled(cluster):
            ring.read(files, zero, zero, zero + 10, iov, zero)
            for tries in range(3):
                assert ring.under_way == 1 and ring.wait(timeout_s=0.01) == [], tries
                kill(io.stats()["pid"])
            (done,) = ring.wait()
        with pytest.raises(Unavailable, match="3 I/O processes have ended while they read this batch"):
            done.check()
        ring.read(files, zero, zero, zero + 10, iov, zero)
        ring.wait()[0].check()


def test_no_other_io_process_can_be_had(
    cluster: LocalCluster, noise: dict[str, bytes], runtime_directory: Path
) -> None:
    usrbio.open(cluster.url).close()  # starts it
    with usrbio.open(cluster.url, start=False) as io, io.iov(8_192) as iov, io.ior() as ring:
        files, zero = io.open_files(PATHS), np.zeros(1, dtype=np.int64)
        with Stalled(cluster):
            ring.read(files, zero, zero, zero + 10, iov, zero)
            kill(io.stats()["pid"])
            (done,) = ring.wait()
        assert isinstance(done.error, Unavailable) and "the I/O process ended while it read" in str(done.error)
        with pytest.raises(Unavailable, match="start one with fs3 usrbio"):
            ring.read(files, zero, zero, zero + 10, iov, zero)
        with usrbio.open(cluster.url):
            ring.read(files, zero, zero, zero + 10, iov, zero)
            ring.wait()[0].check()


def test_one_that_is_stopped_politely_ends_what_it_reads(
    io: UsrBio, noise: dict[str, bytes], runtime_directory: Path
) -> None:
    files = io.open_files(PATHS)
    with io.iov(16 << 20) as iov, io.ior(depth=32) as ring:
        batch = Batch.random(files, noise, 1, 900)
        pid = io.stats()["pid"]
        failed = []

        def read_on() -> bool:
            batch.submit(ring, iov)
            failed.extend(one for one in ring.wait() if one.error is not None)
            return not Path(f"/proc/{pid}").exists()

        assert not read_on()
        os.kill(pid, signal.SIGTERM)
        until(read_on, "it goes on")
        read_on()
        batch.check(iov)
        assert not failed and io_processes(runtime_directory) == [io.stats()["pid"]] != [pid]


def stands_still(pid: int) -> bool:
    """Whether no thread of the process runs any more: a signal to stop takes a moment."""
    stats = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def test_one_that_hangs_is_killed(io: UsrBio, noise: dict[str, bytes]) -> None:
    files = io.open_files(PATHS)
    pid = io.stats()["pid"]
    with io.iov(2 << 20) as iov, io.ior() as ring:
        batch = Batch.random(files, noise, 1, 30)
        batch.submit(ring, iov)
        ring.wait()[0].check()
        os.kill(pid, signal.SIGSTOP)
        until(lambda: stands_still(pid), "it runs on")
        batch.submit(ring, iov, timeout_s=0.1)
        (done,) = ring.wait()
        assert isinstance(done.error, Unavailable)
        batch.submit(ring, iov)
        ring.wait()[0].check()
        assert io.stats()["pid"] != pid


def test_one_whose_files_were_removed_leaves_those_of_the_next_alone(
    cluster: LocalCluster, io: UsrBio, runtime_directory: Path
) -> None:
    first = io.stats()["pid"]
    for file in (runtime_directory / "fs3").iterdir():
        file.unlink()
    with usrbio.open(cluster.url) as other:
        second = other.stats()["pid"]
        os.kill(first, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{first}").exists(), "it does not end")
        with usrbio.open(cluster.url, start=False) as third:
            assert third.stats()["pid"] == second != first


def test_it_is_not_killed_while_meta_is_silent(cluster: LocalCluster, io: UsrBio) -> None:
    """However many files are opened: it says so before the application takes it for one that hangs."""
    meta = psutil.Process(cluster.pids["meta"])
    pid = io.stats()["pid"]
    meta.suspend()
    try:
        with pytest.raises(Unavailable, match="did not answer in time"):
            io.open_files(["/noise-a"] * 600)
    finally:
        meta.resume()
    assert io.stats()["pid"] == pid and len(io.open_files(["/noise-a"] * 600)) == 600
    assert WORK_S + END_S < ANSWER_S, "nor is it while it closes again what it had opened for writing"


def test_a_ring_that_makes_no_sense_is_given_up_alone(io: UsrBio, noise: dict[str, bytes]) -> None:
    files = io.open_files(PATHS)
    batch = Batch.random(files, noise, 1, 30)
    with io.iov(2 << 20) as iov, io.ior() as broken, io.ior() as sound:
        batch.submit(broken, iov)
        broken.wait()[0].check()
        broken._memory.view[:4_096].cast("Q")[SUBMITTED] = 1 << 40
        batch.submit(sound, iov)
        sound.wait()[0].check()
        batch.submit(broken, iov)  # rights the counter, or finds the connection gone: either way it ends
        (done,) = broken.wait()
        assert done.error is None or isinstance(done.error, Fs3Error)
        assert io.stats()["rings"] == 2
        batch.check(iov)


_APPLICATION = """
import sys, numpy as np
from fs3 import usrbio
url, batches = sys.argv[1], int(sys.argv[2])
io = usrbio.open(url)
iovs = [io.iov(5 << 20) for _ in range(4)]
rings = [io.ior(depth=64) for _ in range(3)]
files = io.open_files(["/noise-c"])
one = np.zeros(1, dtype=np.int64)
for ring in rings:
    for iov in iovs:
        ring.read(files, one, one, one + 10, iov, one)
    for done in ring.wait(at_least=4):
        done.check()
print("ready", flush=True)
sys.stdin.readline()
for number in range(batches):
    for ring in rings:
        ring.read(files, one, one, one + (5 << 20), iovs[number % 4], one)
print("submitted", flush=True)
sys.stdin.readline()
for ring in rings:
    for done in ring.wait(at_least=batches):
        done.check()
print("done", flush=True)
"""


@contextmanager
def application(cluster: LocalCluster, batches: int) -> Iterator[subprocess.Popen[str]]:
    """A process that reads; it says how far it is, and goes on when it is told to."""
    with subprocess.Popen(
        [sys.executable, "-c", _APPLICATION, cluster.url, str(batches)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def go_on(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_an_application_that_is_killed_leaves_nothing(cluster: LocalCluster, io: UsrBio) -> None:
    pid = io.stats()["pid"]
    assert shared_pieces(pid)[:2] == (0, 0)
    until(lambda: io.stats()["connections"] == 1, "connections of other tests")
    descriptors = shared_pieces(pid)[2]
    with application(cluster, 20) as process, Stalled(cluster):
        assert shared_pieces(pid)[0] == 15, "three rings, each with four pieces of memory"
        assert go_on(process) == "submitted"
        process.kill()
        process.wait()
    until(lambda: io.stats() == {"connections": 1, "rings": 0, "iovs": 0, "pid": pid}, "its rings are still there")
    until(lambda: shared_pieces(pid)[:2] == (0, 0), f"{shared_pieces(pid)} pieces of memory are still there")
    assert shared_pieces(pid)[2] <= descriptors + 16, "descriptors beside the client's connections are left"
    files, zero = io.open_files(PATHS), np.zeros(1, dtype=np.int64)
    with io.iov(8_192) as iov, io.ior() as ring:
        ring.read(files, zero, zero, zero + 10, iov, zero)
        ring.wait()[0].check()


def test_several_applications_at_once_and_their_io_process_dies(cluster: LocalCluster, io: UsrBio) -> None:
    with application(cluster, 8) as one, application(cluster, 8) as other:
        with Stalled(cluster):
            assert go_on(one) == go_on(other) == "submitted"
            kill(io.stats()["pid"])
        assert go_on(one) == go_on(other) == "done"


def test_what_is_closed_is_given_back(io: UsrBio, noise: dict[str, bytes]) -> None:
    files = io.open_files(PATHS)
    pid = io.stats()["pid"]
    with io.ior() as ring:
        for turn in range(4):
            with io.iov(1 << 20) as iov:
                batch = Batch.random(files, noise, turn, 10)
                batch.submit(ring, iov)
                ring.wait()[0].check()
            assert io.stats()["iovs"] == 0 and shared_pieces(pid)[0] == 1, "the I/O process still has it"
            with pytest.raises(Invalid, match="this shared memory is closed"):
                batch.submit(ring, iov)
    assert io.stats()["rings"] == io.stats()["iovs"] == 0 and shared_pieces(pid)[:2] == (0, 0)
    assert shared_pieces(os.getpid())[1] == 0


def test_closing_waits_for_what_is_being_read(cluster: LocalCluster, io: UsrBio) -> None:
    """Else it would be written into memory that serves something else by then."""
    files, zero = io.open_files(PATHS), np.zeros(1, dtype=np.int64)
    iov, ring = io.iov(8_192), io.ior()
    with Stalled(cluster):
        ring.read(files, zero, zero, zero + 10, iov, zero, timeout_s=0.3)
        ring.close()
        assert io.stats()["rings"] == 0
        iov.close()


def _in_child(io: UsrBio, ring: Ior, iov: Iov, url: str, answers: multiprocessing.SimpleQueue[str]) -> None:
    files, zero = usrbio.Files(), np.zeros(1, dtype=np.int64)
    for act in (io.stats, ring.wait, lambda: ring.read(files, zero, zero, zero, iov, zero), lambda: io.iov(1)):
        try:
            act()
            answers.put("allowed")
        except Invalid as error:
            answers.put(str(error))
    with usrbio.open(url) as own, own.iov(8_192) as memory, own.ior() as mine:
        mine.read(own.open_files(PATHS), zero, zero, zero + 100, memory, zero)
        answers.put(mine.wait()[0].check().results["length"][0])
    ring.close()
    io.close()


def test_a_forked_child_opens_its_own(cluster: LocalCluster, io: UsrBio, noise: dict[str, bytes]) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with io.iov(2 << 20) as iov, io.ior() as ring:
        batch = Batch.random(io.open_files(PATHS), noise, 1, 30)
        batch.submit(ring, iov)
        child = context.Process(target=_in_child, args=(io, ring, iov, cluster.url, answers))
        child.start()
        said = [answers.get() for _ in range(5)]
        child.join()
        assert all("open it again here" in one or "open USRBIO again here" in one for one in said[:4]), said
        assert said[4] == 100 and child.exitcode == 0
        ring.wait()[0].check()
        batch.check(iov)
        assert io.stats()["rings"] == 1
