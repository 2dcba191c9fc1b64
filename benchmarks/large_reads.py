"""Reads of 1 and 4 MiB, sequential and random, of a file larger than the last-level cache, beside limits and peers.

All in flight have a thread and, beside fs3, a connection each; everything is received into buffers of the same kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.context import REQUEST_BYTES, Context, buffer
from benchmarks.local_files import LocalFile
from benchmarks.peers.grpc_aio import GrpcAio
from benchmarks.peers.iperf3 import Iperf3
from benchmarks.peers.mooncake_tcp import PACKAGE, Mooncake
from benchmarks.peers.nginx import Nginx
from benchmarks.peers.peer import Peers
from benchmarks.rounds import Case, Step, Timed, threads_for_seconds
from benchmarks.rows import Absent, Row, make_row
from fs3.client.connect import Client
from fs3.client.file import OpenFile

BARE, LOCAL, IPERF3 = "bare sendfile -> recv_into", "local preadv", "iperf3"
NGINX, GRPC, MOONCAKE = "nginx", "grpc.aio", "Mooncake over TCP"
REPLICAS = (1, 3)
AT_LEAST_TIMES = {BARE: 0.6, GRPC: 6.0}
UNCHECKED, UNCHECKED_AT_LEAST_TIMES = "checksums off", {BARE: 0.85, NGINX: 0.9}
COST_AT_MOST = 0.45
MOST_IN_FLIGHT = 4
_TURNS = 4_096  # offsets made up beforehand, used in turn
_IPERF3_BYTES_S = 2e9  # about how fast it is, to keep it to its time

Read = Callable[[int, int, memoryview], int]  # slot, offset, where to


@dataclass(frozen=True, slots=True)
class Shape:
    """A way to read. With `peers` those stand beside it too, and it has the targets."""

    size: int
    in_flight: int
    random: bool
    peers: bool

    @property
    def name(self) -> str:
        kind = "random" if self.random else "sequential"
        return f"{kind} read of {self.size >> 20} MiB, {self.in_flight} in flight"


SHAPES = (
    Shape(4 << 20, 1, random=False, peers=False),
    Shape(4 << 20, 4, random=False, peers=False),
    Shape(1 << 20, 4, random=True, peers=True),
    Shape(4 << 20, 1, random=True, peers=True),
    Shape(4 << 20, 4, random=True, peers=True),
)


def measure(context: Context) -> list[Row]:
    """A row for each shape, on 1 and on 3 replicas."""
    files = {replicas: context.remote(replicas) for replicas in REPLICAS}
    for file in files.values():
        check_equal(context, file, buffer(REQUEST_BYTES))
    rows = []
    with LocalFile(context.local_path) as local, context.peers() as peers:
        others = _Others(context, peers)
        for shape in SHAPES:
            rows += _Reads(context, shape, local, others).rows(files)
    return rows


class _Others:
    """What runs beside the random reads, where it can be had."""

    def __init__(self, context: Context, peers: Peers) -> None:
        path, folder = context.local_path, context.folder
        self.iperf3 = peers.start(IPERF3, lambda: Iperf3(folder / "iperf3"))
        self.nginx = peers.start(NGINX, lambda: Nginx(path, folder / "nginx"))
        self.grpc = peers.start(GRPC, lambda: GrpcAio(path, folder / "grpc"))
        self.mooncake = peers.start(MOONCAKE, mooncake_of(context, MOST_IN_FLIGHT * REQUEST_BYTES))
        if self.mooncake is not None:
            check_same(context, self.mooncake.read_into, MOONCAKE)
        if self.nginx is not None:
            check_same(context, self.nginx.connect().read, NGINX)
        if self.grpc is not None:
            check_same(context, self.grpc.read_into, GRPC)
        self.absent = [Absent(name, why) for name, why in peers.absent.items()]


class _Reads:
    """One shape: the cases, and the rows made from them."""

    def __init__(self, context: Context, shape: Shape, local: LocalFile, others: _Others) -> None:
        self.context = context
        self.shape = shape
        self.outs = [buffer(shape.size) for _ in range(shape.in_flight)]
        self.offsets = self._offsets()
        bare = [context.bare.connect() for _ in self.outs]
        length = np.array([shape.size], dtype=np.int64)
        self.limits: dict[str, Case] = {
            BARE: self._case(lambda slot, offset, out: bare[slot].read(np.array([offset]), length, out)),
            LOCAL: self._case(lambda slot, offset, out: local.read(offset, out)),
        }
        self.others: dict[str, Case] = {}
        self.absent: list[Absent] = []
        if shape.peers:
            self._add(others)

    def rows(self, files: Mapping[int, OpenFile]) -> list[Row]:
        """Measured together."""
        ours: dict[str, Case] = {
            count_of(replicas): self._case(reader(self.context.client, file, self.shape.size))
            for replicas, file in files.items()
        }
        if self.shape.peers:
            without = reader(self.context.unchecked, files[1], self.shape.size)
            ours[f"{count_of(1)}, {UNCHECKED}"] = self._case(without)
        runs = self.context.measure(self.shape.name, {**self.limits, **self.others, **ours})
        return [self._row(runs, case) for case in ours]

    def _row(self, runs: dict[str, list[Timed]], ours: str) -> Row:
        aimed = self.shape.peers and ours == count_of(1)
        times = AT_LEAST_TIMES if aimed else UNCHECKED_AT_LEAST_TIMES if ours.endswith(UNCHECKED) else None
        return make_row(
            f"{self.shape.name}, {ours}",
            "GB/s",
            runs,
            ours=ours,
            limits=list(self.limits),
            others=list(self.others),
            at_least_times=times,
            cost_per=("GB", 1e9),
            cost_at_most=COST_AT_MOST if aimed else None,
            absent=self.absent,
        )

    def _add(self, found: _Others) -> None:
        """iperf3 is no other way to read, but a limit."""
        shape, seconds = self.shape, self.context.sizes.seconds
        iperf3, nginx, grpc, mooncake = found.iperf3, found.nginx, found.grpc, found.mooncake
        self.absent = found.absent
        if iperf3 is not None:
            self.limits[IPERF3] = lambda: iperf3.run(shape.in_flight, int(seconds * _IPERF3_BYTES_S))
        if nginx is not None:
            connections = [nginx.connect() for _ in self.outs]
            self.others[NGINX] = self._case(lambda slot, offset, out: connections[slot].read(offset, out))
        if grpc is not None:
            offsets = [offset for slot in self.offsets for offset in slot[: _TURNS // 8]]
            self.others[GRPC] = lambda: _in_bytes(grpc.read(offsets, shape.size, shape.in_flight, seconds), shape.size)

        if mooncake is not None:
            turns = [[offset] for slot in self.offsets for offset in slot[: _TURNS // 8]]
            self.others[MOONCAKE] = lambda: mooncake.read(turns, shape.size, shape.in_flight, seconds)

    def _offsets(self) -> list[list[int]]:
        """For each slot those that it reads in turn: anywhere, or one after the other through its part of the file."""
        shape, requests = self.shape, self.context.sizes.file_bytes // self.shape.size
        if shape.random:
            chosen = np.random.default_rng(5).integers(0, requests, (shape.in_flight, _TURNS))
        else:
            share = requests // shape.in_flight
            chosen = np.arange(share) + np.arange(shape.in_flight)[:, None] * share
        offsets: list[list[int]] = (chosen * shape.size).tolist()
        return offsets

    def _case(self, read: Read) -> Case:
        """Requests one after the other; a thread for each slot."""

        def step_of(slot: int, offsets: list[int], out: memoryview) -> Step:
            return lambda number: read(slot, offsets[number % len(offsets)], out)

        slots = zip(self.offsets, self.outs, strict=True)
        steps = [step_of(slot, offsets, out) for slot, (offsets, out) in enumerate(slots)]
        return lambda: threads_for_seconds(steps, self.context.sizes.seconds)


def mooncake_of(context: Context, room_bytes: int) -> Callable[[], Mooncake]:
    """Both of its processes, to be started."""

    def make() -> Mooncake:
        python = context.python_with("mooncake", PACKAGE)
        return Mooncake(python, context.local_path, context.folder / f"mooncake-{room_bytes >> 20}", room_bytes)

    return make


def reader(client: Client, file: OpenFile, size: int) -> Read:
    """Reads of fs3, one range a call."""
    files = client.files
    first, length = np.zeros(1, dtype=np.int64), np.array([size], dtype=np.int64)

    def read(slot: int, offset: int, out: memoryview) -> int:
        files.read_batch([file], first, np.array([offset], dtype=np.int64), length, out)
        return size

    return read


def check_equal(context: Context, file: OpenFile, out: memoryview) -> None:
    """Read the whole file once and compare it with the local one: figures of wrong bytes are worth nothing."""
    read = reader(context.client, file, REQUEST_BYTES)
    with context.local_path.open("rb") as local:
        for offset in range(0, file.length, REQUEST_BYTES):
            read(0, offset, out)
            if local.read(REQUEST_BYTES) != out[:REQUEST_BYTES]:
                raise AssertionError(f"{file.path} differs from what was written, from byte {offset} on")


def check_same(
    context: Context, read: Callable[[int, memoryview], object], name: str, size: int = REQUEST_BYTES
) -> None:
    """What a peer reads is the same."""
    out = buffer(size)
    offset = context.sizes.file_bytes - size
    read(offset, out)
    with context.local_path.open("rb") as local:
        local.seek(offset)
        if local.read(size) != out:
            raise AssertionError(f"{name} read other bytes than are in the file")


def count_of(replicas: int) -> str:
    """In words."""
    return "1 replica" if replicas == 1 else f"{replicas} replicas"


def _in_bytes(run: Timed, size: int) -> Timed:
    return dataclasses.replace(run, amount=run.amount * size)
