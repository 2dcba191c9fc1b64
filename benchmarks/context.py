"""What all benchmarks of a run share: the cluster, the same bytes on fs3 and in a local file, rounds and progress."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil

from benchmarks.bare_pair import BarePair
from benchmarks.peers.environment import python_with
from benchmarks.peers.peer import Peer, Peers
from benchmarks.rounds import Case, Timed, cpu_s, interleave, with_cpu
from fs3.client.connect import Client, connect
from fs3.client.file import OpenFile
from fs3.cluster.local import LocalCluster
from fs3.layout import LayoutChoice
from fs3.transport.buffers import allocate

REQUEST_BYTES = 4 << 20
NODES = 3
_SEED = 20_240_229


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much a run moves."""

    rounds: int
    seconds: float
    """of each case in each round"""
    file_bytes: int
    """of the file that is read"""
    write_bytes: int
    """of each file that is written"""
    state_bytes: int
    """of the synthetic checkpoint"""
    corpus: str
    """what the data set is made of: "standard library", or "json" (its package json alone)"""
    preset: str
    """the trainer's"""
    train_steps: int
    """measured in each round, after a few that are not"""
    entries: int
    """of the large directory"""
    directories: tuple[int, int] | None
    """entries of those in which memory is compared"""
    chunks: int
    """of the engine that is opened"""
    sweep_s: float
    """of each point of the sweep"""
    sweep_bytes: int
    """the most that is read or written at once there, and a quarter of its data"""
    sweep_points: int
    """about how many of its points are measured, besides cold reads and their repetition; 0: all"""
    cold_calls: int
    """at most, of one pass of cold reads"""


FULL = Sizes(
    rounds=5,
    seconds=0.6,
    file_bytes=256 << 20,
    write_bytes=128 << 20,
    state_bytes=256 << 20,
    corpus="standard library",
    preset="small",
    train_steps=5,
    entries=100_000,
    directories=(100_000, 1_000_000),
    chunks=1_000_000,
    sweep_s=1.0,
    sweep_bytes=64 << 20,
    sweep_points=0,
    cold_calls=2_000,
)
QUICK = Sizes(
    rounds=2,
    seconds=0.1,
    file_bytes=32 << 20,
    write_bytes=16 << 20,
    state_bytes=16 << 20,
    corpus="json",
    preset="tiny",
    train_steps=2,
    entries=2_000,
    directories=None,
    chunks=20_000,
    sweep_s=0.3,
    sweep_bytes=4 << 20,
    sweep_points=6,
    cold_calls=200,
)


class Context:
    """One run. What a benchmark does not ask for is not made. Use it as a context manager."""

    def __init__(
        self, folder: Path, sizes: Sizes, say: Callable[[str], None] = lambda line: None, *, install: bool = False
    ) -> None:
        """`folder`: empty, on the disk to be measured, the run's own. `say` hears what is going on.

        `install`: peers that are Python packages may be installed, beside `folder`, where later runs find them.
        """
        self.folder = folder.resolve()
        self.sizes = sizes
        self.say = say
        self._install = install
        self._servers: list[Peer] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def measure(
        self, what: str, cases: Mapping[str, Case], *, warm: Collection[str] = (), writes: bool = False
    ) -> dict[str, list[Timed]]:
        """The cases as `rounds.interleave` runs them, with the CPU seconds of this process and of the servers.

        With `writes` each begins on a disk that has nothing left to write: else whoever syncs pays for what others did
        not.
        """
        steps = (self.sizes.rounds + 1) * len(cases) - len(warm)
        done = 0

        def on_step(name: str) -> None:
            nonlocal done
            done += 1
            self.say(f"{what}: {name} ({done}/{steps})")
            if writes:
                os.sync()

        counted = {name: with_cpu(case, self.servers_cpu_s) for name, case in cases.items()}
        return interleave(counted, self.sizes.rounds, on_step, warm=warm)

    @cached_property
    def cluster(self) -> LocalCluster:
        """Three storage nodes, chains of up to three replicas."""
        self.say("starting a cluster of three storage nodes")
        return self._stack.enter_context(LocalCluster(self.folder / "cluster", nodes=NODES, replicas=3, port=0))

    @cached_property
    def client(self) -> Client:
        """This process's client of the cluster, which reads over the network although all daemons run on this host."""
        return self._connected(same_host=False)

    @cached_property
    def unchecked(self) -> Client:
        """Another, which asks for no checksums and looks at none."""
        return self._connected(same_host=False, verify=False)

    @cached_property
    def client_here(self) -> Client:
        """Another, which reads from the block files of the daemons by itself."""
        return self._connected()

    def _connected(self, **reading: bool) -> Client:
        client = connect(self.cluster.url, **reading)
        self._stack.callback(client.close)
        return client

    def servers_cpu_s(self) -> float:
        """CPU seconds that the daemons and the servers of peers have used; only one of them works at a time."""
        return sum(map(cpu_s, [*self.daemons, *(process for peer in self._servers for process in peer.processes)]))

    @contextlib.contextmanager
    def peers(self) -> Iterator[Peers]:
        """Whatever is started by it ends with it."""
        with contextlib.ExitStack() as stack:
            yield Peers(stack, self._servers)

    def python_with(self, name: str, *packages: str) -> Path:
        """The Python of peer `name`'s own environment. Raises: Missing."""
        self.say(f"looking for {' '.join(packages)}")
        return python_with(self.folder.parent / "peers" / name, packages, install=self._install)

    @cached_property
    def daemons(self) -> list[psutil.Process]:
        """The processes of the cluster."""
        parents = [psutil.Process(pid) for pid in self.cluster.pids.values()]
        return parents + [child for parent in parents for child in parent.children(recursive=True)]

    @cached_property
    def local_path(self) -> Path:
        """A local file of noise, in the page cache."""
        self.say("writing the local file")
        path = self.folder / "noise"
        noise = np.random.default_rng(_SEED)
        with path.open("wb") as file:
            for _ in range(self.sizes.file_bytes // REQUEST_BYTES):
                file.write(noise.bytes(REQUEST_BYTES))
        return path

    @cached_property
    def bare(self) -> BarePair:
        """A bare server of the local file."""
        pair = self._stack.enter_context(BarePair(self.local_path))
        self._servers.append(pair)
        return pair

    def remote(self, replicas: int) -> OpenFile:
        """The bytes of the local file on fs3, in 4 MiB chunks."""
        if replicas not in self._remotes:
            self.local_path, self.client  # noqa: B018 - made first, and said so
            self.say(f"writing the file to fs3, {replicas} replicas")
            self._remotes[replicas] = self.copy(f"/noise-{replicas}", replicas)
        return self._remotes[replicas]

    def copy(self, path: str, replicas: int) -> OpenFile:
        """A new file with the bytes of the local one."""
        choice = LayoutChoice(replicas=replicas, chunk_bytes=REQUEST_BYTES)
        with (
            self.local_path.open("rb") as local,
            self.client.files.create_writer(path, layout_choice=choice) as writer,
        ):
            while piece := local.read(REQUEST_BYTES):
                writer.write(piece)
        return self.client.files.open_read(path)

    @cached_property
    def _remotes(self) -> dict[int, OpenFile]:
        return {}


def buffer(size: int) -> memoryview:
    """Memory to receive into, of the kind that fs3's own buffer pools have, its pages already there."""
    memory = memoryview(allocate(size))
    for at in range(0, size, 4_096):
        memory[at] = 1
    return memory
