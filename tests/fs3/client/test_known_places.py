"""What a client keeps of places on its host, beside what tests/process/test_kept_places.py shows with daemons."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fs3.block_file import BlockLayout
from fs3.client.block_read import BlockRead
from fs3.client.kept_places import KeptPlaces, Run
from fs3.client.plan_core import Asked
from fs3.client.same_host import SameHost
from fs3.client.select_core import ReplicaTable, replica_table
from fs3.client.verified_core import MOST_CHUNKS, Verified
from fs3.ids import NodeId
from fs3.pb import storage_pb2
from fs3.routing import Node, NodeKind, Routing
from fs3.runtime import SYSTEM
from fs3.transport.change_counters import ChangeCounters

SIZE = 64 << 10
COUNTERS_KEY = 0xFFFF


class Daemon:
    """A run of a daemon, as far as its counters and one block file go."""

    def __init__(self, folder: Path, generation: int) -> None:
        folder.mkdir()
        self.run: Run = ("unix:/daemon", generation)
        self.counters = ChangeCounters(folder / "CHANGES")
        self.path = folder / "blocks"
        layout = BlockLayout(0, SIZE, 16)
        self.path.write_bytes(layout.pack())
        os.truncate(self.path, layout.file_bytes)

    def tell(self, kept: KeptPlaces, *, chunks: int) -> None:
        """As a connection's first replies do."""
        fd = self.counters.share()
        kept.know(self.run, COUNTERS_KEY, fd)
        os.close(fd)
        with self.path.open("rb") as file:
            for lo in range(chunks):
                place = (*self.run, 0, lo)
                read = BlockRead(
                    file.fileno(),
                    1 << 20,
                    (0, 1, SIZE),
                    memoryview(bytearray(1)),
                    (memoryview(bytearray(4096)), memoryview(bytearray(4096))),
                    np.zeros(0, dtype=np.uint32),
                    place=place,
                    identity=(1, lo, 1),
                )
                kept.keep(self.run, (1, lo, 1), read, 0, 0, 1 << 20)


@pytest.fixture
def kept() -> KeptPlaces:
    return KeptPlaces(Verified(), SYSTEM.lock())


@pytest.fixture
def often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("often")
def test_readers_and_the_end_of_a_daemon_do_not_disturb_each_other(tmp_path: Path) -> None:
    for turn in range(5):
        lock = SYSTEM.lock()
        verified = Verified()
        kept = KeptPlaces(verified, lock)
        daemon = Daemon(tmp_path / str(turn), turn)
        daemon.tell(kept, chunks=MOST_CHUNKS)
        for lo in range(MOST_CHUNKS):
            verified.add((*daemon.run, 0, lo), (1, lo, 1), 1, 0.0)
        daemon.counters.close()
        over = threading.Event()

        def read(first: int, kept: KeptPlaces = kept, over: threading.Event = over) -> None:
            out = memoryview(bytearray(4096))
            for lo in range(first, MOST_CHUNKS):
                if over.is_set():
                    return
                assert kept.read([Asked(1, lo, 0, 4096, 1)], [out], 0.0) is None

        readers = [threading.Thread(target=read, args=(MOST_CHUNKS // 2 * number,)) for number in range(2)]
        for reader in readers:
            reader.start()
        until_s = time.monotonic() + 10
        while len(kept) == MOST_CHUNKS and time.monotonic() < until_s:
            time.sleep(0)
        with lock:
            kept.clean()
        over.set()
        for reader in readers:
            reader.join()
        assert len(kept) == 0


def test_runs_that_are_over_leave_no_descriptor_however_often_their_counters_came(
    tmp_path: Path, kept: KeptPlaces
) -> None:
    for generation in range(20):
        daemon = Daemon(tmp_path / str(generation), generation)
        daemon.tell(kept, chunks=3)
        daemon.tell(kept, chunks=1)  # another connection
        assert len(kept) == 3 and _open_files_in(tmp_path)
        daemon.counters.close()
        kept.clean()
    del daemon  # whose mapping is the last
    gc.collect()
    assert len(kept) == 0
    assert not _open_files_in(tmp_path)


def _open_files_in(folder: Path) -> list[str]:
    """What this process has open there, whether or not the file is still linked.

    Not the count of all descriptors: other threads of the process open some of their own meanwhile.
    """
    paths = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since
            paths.append(os.readlink(f"/proc/self/fd/{name}"))
    return [path for path in paths if path.startswith(f"{folder}/")]


def _table(paths: list[Path]) -> ReplicaTable:
    """Of daemons that listen at `paths`."""
    nodes = tuple(
        Node(node_id=NodeId(number), kind=NodeKind.STORAGE, endpoints=(f"h:{number}",), unix_endpoints=(str(path),))
        for number, path in enumerate(paths, 1)
    )
    return replace(replica_table(Routing()), nodes=nodes, endpoints=tuple(node.endpoints[0] for node in nodes))


def test_each_call_asks_at_the_sockets_of_the_routing_it_began_with(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    both, last = _table(paths), _table(paths[1:])
    here = SameHost(storage_pb2.Hello(), max_connections=1, stall_s=1.0)
    assert here.near(both) is not None
    assert here.near(last) is not None  # another thread, which knows that a node has died
    assert [here.socket(both, endpoint) for endpoint in (0, 1)] == [f"unix:{path}" for path in paths]
    assert here.socket(last, 0) == f"unix:{paths[1]}"
    here.close()
