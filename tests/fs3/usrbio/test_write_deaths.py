"""Either side dies while files are written: nothing that was acknowledged is lost, nothing is written twice in silence.

meta ends the sessions of a process that died a minute later; here that minute is over when a test says so.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from fs3 import usrbio
from fs3.client.connect import Client
from fs3.client.storage import RANGE
from fs3.cluster.local import LocalCluster
from fs3.errors import Fs3Error, InUse, MaybeApplied, NotFound, Unavailable
from fs3.kv import keys
from fs3.kv.api import Transaction, transact
from fs3.kv.opening import open_store
from fs3.kvcache.keys_core import page_chunk
from fs3.layout import LayoutChoice
from fs3.usrbio import Ior, UsrBio
from fs3.usrbio.ring_format import TAKEN
from tests.conftest import io_processes
from tests.fs3.usrbio.conftest import CHUNK_BYTES, Stalled, kill, shared_pieces, until

ROOT = Path(__file__).resolve().parents[3]
ZERO = np.zeros(1, dtype=np.int64)
SIZE = 50_000


@pytest.fixture
def home(client: Client) -> Iterator[str]:
    client.meta.mkdir("/home", layout=LayoutChoice(chunk_bytes=CHUNK_BYTES))
    yield "/home"
    client.meta.remove("/home", recursive=True)


def contents(client: Client, path: str) -> bytes:
    return client.files.read(client.files.open_read(path))


def a_minute_later(cluster: LocalCluster, client: Client, *paths: str) -> None:
    """End the write sessions of these files as meta's collector does it."""

    async def end() -> None:
        kv = await open_store(str(cluster.folder.path / "meta" / "meta.sqlite"), keys.group)

        async def body(txn: Transaction) -> None:
            for path in paths:
                txn.delete(keys.session(client.meta.stat_one(path).inode_id))

        await transact(kv, body)
        await kv.close()

    asyncio.run(end())


def taken(ring: Ior) -> int:
    """Batches that the I/O process has begun with, since it knows the ring."""
    return int(ring._memory.view[:4_096].cast("Q")[TAKEN])


def noise(count: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(count * SIZE)


def test_what_was_begun_may_be_applied_and_what_was_not_is_not(
    cluster: LocalCluster, io: UsrBio, client: Client, home: str
) -> None:
    """Of six files a few are being written, as many as there are threads."""
    paths, old, new = [f"{home}/{number}" for number in range(6)], noise(6, 1), noise(6, 2)
    places = np.arange(6) * SIZE
    client.files.create_batch(paths, [old[at : at + SIZE] for at in places.tolist()])
    with io.iov(6 * SIZE) as iov, io.ior(depth=8) as ring, io.open_for_writing(paths) as files:
        iov.view[: len(new)] = new
        ring.write(files, ZERO, ZERO, ZERO, iov, ZERO)
        ring.wait()[0].check()
        with Stalled(cluster):
            for number in range(6):
                ring.write(files, ZERO + number, ZERO, ZERO + SIZE, iov, ZERO + number * SIZE)
            until(lambda: taken(ring) >= 2, "nothing was begun")
            kill(io.stats()["pid"])
            begun = taken(ring) - 1
        done = sorted(ring.wait(at_least=6), key=lambda one: one.number)
        assert 0 < begun < 6
        for one in done[:begun]:
            assert isinstance(one.error, MaybeApplied) and one.results["status"].tolist() == [MaybeApplied.code]
        assert "the I/O process ended while it wrote this batch" in str(done[0].error)
        for number, one in list(enumerate(done))[begun:]:
            assert isinstance(one.error, InUse) and "nothing was written, since" in str(one.error)
            assert contents(client, paths[number]) == old[number * SIZE : (number + 1) * SIZE]
        a_minute_later(cluster, client, *paths)
        ring.write(files, np.arange(6), np.zeros(6, int), np.full(6, SIZE), iov, places)
        ring.wait()[0].check()
        assert b"".join(contents(client, path) for path in paths) == new
    assert all(free(client, path) for path in paths)


def test_what_waits_for_its_file_may_be_applied(cluster: LocalCluster, io: UsrBio, client: Client, home: str) -> None:
    """The I/O process has taken it, and nobody knows how far it came."""
    path, data = f"{home}/one", noise(6, 9)
    with io.iov(6 * SIZE) as iov, io.ior(depth=8) as ring, io.open_for_writing([path], create=True) as files:
        iov.view[: len(data)] = data
        ring.write(files, ZERO, ZERO, ZERO, iov, ZERO)
        ring.wait()[0].check()
        with Stalled(cluster):
            for number in range(6):
                ring.write(files, ZERO, ZERO + number * SIZE, ZERO + SIZE, iov, ZERO + number * SIZE)
            until(lambda: taken(ring) == 7, "a thread waits for another")
            kill(io.stats()["pid"])
        assert [type(one.error) for one in ring.wait(at_least=6)] == [MaybeApplied] * 6
        a_minute_later(cluster, client, path)
        ring.write(files, ZERO, ZERO, ZERO + 6 * SIZE, iov, ZERO)
        ring.wait()[0].check()
    assert contents(client, path) == data


def test_chunks_that_were_not_begun_are_written_by_the_next(
    cluster: LocalCluster, io: UsrBio, client: Client, runtime_directory: Path
) -> None:
    data, places = noise(6, 3), np.arange(6) * SIZE
    ranges = np.zeros(6, dtype=RANGE)
    ranges["hi"], ranges["lo"] = np.array([page_chunk(78, bytes([number]) * 32) for number in range(6)], np.uint64).T
    ranges["length"], ranges["chain"] = SIZE, min(client.mgmtd.routing.chains)
    with io.iov(6 * SIZE) as iov, io.ior(depth=8) as ring:
        iov.view[: len(data)] = data
        before = io.stats()["pid"]
        with Stalled(cluster):
            for number in range(6):
                one = slice(number, number + 1)
                ring.write_chunks(ranges[one], iov, places[one])
            until(lambda: taken(ring) >= 2, "nothing was begun")
            kill(before)
            begun = taken(ring)
        done = sorted(ring.wait(at_least=6), key=lambda one: one.number)
        assert 0 < begun < 6
        assert all(isinstance(one.error, MaybeApplied) for one in done[:begun])
        assert all(one.check().results["length"].tolist() == [SIZE] for one in done[begun:])
        out = memoryview(bytearray(len(data)))
        client.storage.read(ranges[begun:], out, places[begun:])
        assert out[places[begun] :] == data[places[begun] :]
        assert io_processes(runtime_directory) == [io.stats()["pid"]] != [before]


def test_what_was_acknowledged_is_in_the_file_when_the_io_process_dies(
    cluster: LocalCluster, io: UsrBio, client: Client, home: str
) -> None:
    paths, data = [f"{home}/grown", f"{home}/other"], noise(6, 4)
    with io.iov(6 * SIZE) as iov, io.ior() as ring, io.open_for_writing(paths, create=True) as files:
        iov.view[: len(data)] = data
        for turn in range(3):
            at = ZERO + turn * SIZE
            ring.write(files, ZERO, at, ZERO + SIZE, iov, at)
            ring.wait()[0].check()
            kill(io.stats()["pid"])
            assert contents(client, paths[0]) == data[: (turn + 1) * SIZE]
            ring.write(files, ZERO, ZERO, ZERO + 1, iov, ZERO)
            assert isinstance(ring.wait()[0].error, InUse), "two at once could write it"
            a_minute_later(cluster, client, *paths)
        ring.write(files, ZERO + 1, ZERO, ZERO + SIZE, iov, ZERO)
        ring.wait()[0].check()
    assert contents(client, paths[0]) == data[: 3 * SIZE] and contents(client, paths[1]) == data[:SIZE]


def test_a_file_that_was_replaced_meanwhile_is_not_written(
    cluster: LocalCluster, io: UsrBio, client: Client, home: str
) -> None:
    path = f"{home}/one"
    client.files.create_batch([path], [b"first"])
    with io.iov(8_192) as iov, io.ior() as ring, io.open_for_writing([path]) as files:
        kill(io.stats()["pid"])
        a_minute_later(cluster, client, path)
        client.files.create_batch([path], [b"second"])
        ring.write(files, ZERO, ZERO, ZERO + 3, iov, ZERO)
        (done,) = ring.wait()
        assert isinstance(done.error, NotFound) and "was removed or replaced since" in str(done.error)
    assert contents(client, path) == b"second"
    client.files.open_update(path).close()


def test_a_session_that_meta_has_ended_is_begun_again(
    cluster: LocalCluster, io: UsrBio, client: Client, home: str
) -> None:
    path, data = f"{home}/one", noise(3, 8)
    with io.iov(3 * SIZE) as iov, io.ior() as ring, io.open_for_writing([path], create=True) as files:
        iov.view[: len(data)] = data
        ring.write(files, ZERO, ZERO, ZERO + SIZE, iov, ZERO)
        ring.wait()[0].check()
        a_minute_later(cluster, client, path)
        ring.write(files, ZERO, ZERO + SIZE, ZERO + SIZE, iov, ZERO + SIZE)
        (done,) = ring.wait()
        assert isinstance(done.error, MaybeApplied) and "whether the file has become so long" in str(done.error)
        assert contents(client, path) == data[:SIZE]
        ring.write(files, ZERO, ZERO + SIZE, ZERO + 2 * SIZE, iov, ZERO + SIZE)
        ring.wait()[0].check()
    assert contents(client, path) == data


def test_files_are_closed_though_nobody_has_them_open(
    cluster: LocalCluster, io: UsrBio, client: Client, home: str, runtime_directory: Path
) -> None:
    files = io.open_for_writing([f"{home}/one"], create=True)
    kill(io.stats()["pid"])
    files.sync()
    files.close()
    assert io_processes(runtime_directory) == [], "one was started to close what it has not"
    a_minute_later(cluster, client, f"{home}/one")
    io.open_for_writing([f"{home}/one"]).close()


def test_one_that_is_stopped_politely_ends_what_it_writes_and_its_sessions(
    io: UsrBio, client: Client, home: str, runtime_directory: Path
) -> None:
    path, data = f"{home}/one", noise(4, 6)
    with io.iov(4 * SIZE) as iov, io.ior(depth=4) as ring, io.open_for_writing([path], create=True) as files:
        iov.view[: len(data)] = data
        pid = io.stats()["pid"]

        def write_on() -> bool:
            ring.write(files, ZERO, ZERO, ZERO + 4 * SIZE, iov, ZERO)
            ring.wait()[0].check()
            return not Path(f"/proc/{pid}").exists()

        assert not write_on()
        os.kill(pid, signal.SIGTERM)
        until(write_on, "it goes on")
        write_on()
        assert io_processes(runtime_directory) == [io.stats()["pid"]] != [pid]
    assert contents(client, path) == data


def test_one_that_is_stopped_politely_writes_what_waits_for_a_file_that_is_synced(
    cluster: LocalCluster, io: UsrBio, client: Client, home: str, runtime_directory: Path
) -> None:
    with io.iov(8_192) as iov, io.ior() as ring, io.open_for_writing([f"{home}/one"], create=True) as files:
        iov.view[:6] = b"abcdef"
        for _ in range(2):  # of the second one meta does not know yet when
            ring.write(files, ZERO, ZERO, ZERO + 3, iov, ZERO)
            ring.wait()[0].check()
        meta, pid = psutil.Process(cluster.pids["meta"]), io.stats()["pid"]
        (socket,) = (runtime_directory / "fs3").glob("*.sock")

        def waits() -> bool:
            ring.write(files, ZERO, ZERO, ZERO + 3, iov, ZERO + 3)
            return not ring.wait(timeout_s=0.3)

        meta.suspend()
        try:
            syncing = threading.Thread(target=files.sync)
            syncing.start()
            until(waits, "it is written meanwhile")
            os.kill(pid, signal.SIGTERM)
            until(lambda: not socket.exists(), "it goes on")
        finally:
            meta.resume()
        ring.wait()[0].check()
        syncing.join()
        until(lambda: not Path(f"/proc/{pid}").exists(), "it does not end")
    assert contents(client, f"{home}/one") == b"def"


def test_no_other_io_process_can_be_had(
    cluster: LocalCluster, client: Client, home: str, noise: dict[str, bytes], runtime_directory: Path
) -> None:
    usrbio.open(cluster.url).close()  # starts it
    with usrbio.open(cluster.url, start=False) as io, io.iov(8_192) as iov, io.ior(depth=8) as ring:
        files = io.open_for_writing([f"{home}/{number}" for number in range(6)], create=True)
        with Stalled(cluster):
            for number in range(6):
                ring.write(files, ZERO + number, ZERO, ZERO + 10, iov, ZERO)
            until(lambda: taken(ring) >= 2, "nothing was begun")
            kill(io.stats()["pid"])
            begun = taken(ring)
            done = sorted(ring.wait(at_least=6), key=lambda one: one.number)
        assert [type(one.error) for one in done] == [MaybeApplied] * begun + [Unavailable] * (6 - begun)
        assert "held writes that it had not begun with" in str(done[-1].error)
    assert files.closed


_APPLICATION = """
import sys, numpy as np
from fs3 import usrbio
url, path, count, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
io = usrbio.open(url)
iov, ring, zero = io.iov(count * size), io.ior(depth=64), np.zeros(1, dtype=np.int64)
files = io.open_for_writing([path], create=True)
iov.view[:] = bytes((place * 7 + len(path)) % 251 for place in range(iov.nbytes))
ring.write(files, zero, zero, zero + 1, iov, zero)
ring.wait()[0].check()
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    at = zero + number * size
    ring.write(files, zero, at, zero + size, iov, at)
print("submitted", flush=True)
for done in ring.wait(at_least=count):
    done.check()
print("done", flush=True)
sys.stdin.readline()
"""


def written(path: str, count: int) -> bytes:
    """What an application writes."""
    return bytes((place * 7 + len(path)) % 251 for place in range(count * SIZE))


@contextmanager
def application(cluster: LocalCluster, path: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """A process that has a file open for writing; it says how far it is, and goes on when it is told to."""
    with subprocess.Popen(
        [sys.executable, "-c", _APPLICATION, cluster.url, path, str(count), str(SIZE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            assert heard(process) == "ready"
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def free(client: Client, path: str) -> bool:
    """Whether anybody may begin to write it."""
    try:
        client.files.open_update(path).close()
    except Fs3Error as error:
        assert isinstance(error, InUse), error
        return False
    return True


def test_an_application_that_is_killed_leaves_nothing(
    cluster: LocalCluster, io: UsrBio, client: Client, home: str
) -> None:
    path, pid = f"{home}/one", io.stats()["pid"]
    with application(cluster, path, 8) as process:
        assert not free(client, path)
        with Stalled(cluster):
            go_on(process)
            assert heard(process) == "submitted"
            process.kill()
            process.wait()
        until(lambda: free(client, path), "its write session goes on")
    until(lambda: io.stats() == {"connections": 1, "rings": 0, "iovs": 0, "pid": pid}, "its ring is still there")
    assert shared_pieces(pid)[:2] == (0, 0)
    found, expected = contents(client, path), written(path, 8)
    for at in range(0, len(found), SIZE):
        assert found[at : at + SIZE] in (expected[at : at + SIZE], bytes(len(found[at : at + SIZE]))), at
    io.open_for_writing([path]).close()


def test_several_applications_write_at_once(cluster: LocalCluster, io: UsrBio, client: Client, home: str) -> None:
    paths = [f"{home}/a", f"{home}/bb", f"{home}/ccc"]
    with (
        application(cluster, paths[0], 9) as one,
        application(cluster, paths[1], 9) as two,
        application(cluster, paths[2], 9) as three,
    ):
        for process in (one, two, three):
            go_on(process)
        for process in (one, two, three):
            assert (heard(process), heard(process)) == ("submitted", "done")
        assert [contents(client, path) for path in paths] == [written(path, 9) for path in paths]
        assert not any(free(client, path) for path in paths)
    for path in paths:
        until(lambda path=path: free(client, path), "its write session goes on")  # type: ignore[misc]
