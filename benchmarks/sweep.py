"""fs3 alone, over many ways to use it: a star of points around one, and what each gives in rate, latency and CPU.

The point in the middle: random reads of 1 MiB over TCP, 1 client, 1 replica, from the page cache. Along each ray one
thing changes: the size, for all kinds of access; the number of clients; the replicas; and whether the daemons' disk or
the page cache has the bytes. The load is that of `fs3 bench` (fs3/bench): n clients are up to four processes, with as
many threads as it takes. Only cold reads are made here, since they must not read anything twice.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.context import REQUEST_BYTES, Context, buffer
from fs3.bench.dataset import Dataset
from fs3.bench.job import Job, Op
from fs3.bench.latency_core import Latencies
from fs3.bench.run import run
from fs3.client.file import OpenFile
from fs3.layout import LayoutChoice

KIB, MIB = 1 << 10, 1 << 20
SIZES = (512, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB)
BATCHED, BATCH = (512, 4 * KIB, 16 * KIB, 64 * KIB), 256
CLIENTS = (1, 2, 4, 8, 16, 64)
REPLICAS = (1, 2, 3)
COLD_SIZES = (4 * KIB, MIB)
PROCESSES = 4
KINDS = {Op.READ: "sequential read", Op.RANDREAD: "random read", Op.WRITE: "write", Op.RANDRW: "70% read, 30% write"}
PERCENTILES = (50.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Point:
    """One way to use it. `ray`: what is changed there; `cold`: nothing of what is read lies in the page cache.
    `same_host`: clients read the daemons' block files themselves, instead of over TCP."""

    ray: str
    op: Op = Op.RANDREAD
    size: int = MIB
    batch: int = 1
    clients: int = 1
    replicas: int = 1
    cold: bool = False
    same_host: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a point gave. Latencies are those of calls, reads and writes together; CPU seconds are for each GB.

    `from_disk`: of the bytes read, the share that daemons fetched from the disk meanwhile.
    """

    point: Point
    bytes_s: float
    calls: int
    percentiles_s: Mapping[float, float]
    client_cpu: float
    servers_cpu: float
    from_disk: float

    def to_json(self) -> dict[str, Any]:
        """What bench.json holds of it."""
        point = {**dataclasses.asdict(self.point), "op": self.point.op.value}
        named = {f"{percent:g}": value for percent, value in self.percentiles_s.items()}
        rest = ("bytes_s", "calls", "client_cpu", "servers_cpu", "from_disk")
        return {"point": point, "percentiles_s": named, **{name: getattr(self, name) for name in rest}}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Found:
        """The inverse of `to_json`. Raises: KeyError, if it is none."""
        point = Point(**{**table["point"], "op": Op(table["point"]["op"])})
        percentiles = {float(percent): value for percent, value in table["percentiles_s"].items()}
        rest = ("client_cpu", "servers_cpu", "from_disk")
        return cls(point, table["bytes_s"], table["calls"], percentiles, *(table[name] for name in rest))


def points() -> Iterator[Point]:
    """All but the cold ones, ray by ray."""
    for op in (Op.RANDREAD, Op.READ, Op.WRITE):
        yield from (Point("size", op=op, size=size) for size in SIZES)
    yield from (Point("size", size=size, same_host=True) for size in SIZES)
    yield from (Point("size", size=size, batch=BATCH) for size in BATCHED)
    for size in (4 * KIB, MIB):
        yield from (Point("clients", size=size, clients=clients) for clients in CLIENTS)
    yield from (Point("clients", op=Op.WRITE, clients=clients) for clients in CLIENTS)
    for op in (Op.RANDREAD, Op.WRITE, Op.RANDRW):
        yield from (Point("replicas", op=op, clients=PROCESSES, replicas=replicas) for replicas in REPLICAS)


def cold_points() -> Iterator[Point]:
    """In pairs: the same ranges from the disk, then again."""
    for size in COLD_SIZES:
        for op in (Op.RANDREAD, Op.READ):
            yield from (Point("cache", op=op, size=size, cold=cold) for cold in (True, False))


def measure(context: Context) -> list[Found]:
    """Every point once: the sweep shows shapes, the rows of the table show what counts."""
    chosen = [point for point in points() if point.size <= context.sizes.sweep_bytes]
    if context.sizes.sweep_points:
        chosen = chosen[:: len(chosen) // context.sizes.sweep_points]
    found = _cold(context)
    with _Data(context) as data:
        for number, point in enumerate(chosen, 1):
            context.say(f"sweep: {label(point)} ({number}/{len(chosen)})")
            found.append(data.found(point))
    return found


def label(point: Point) -> str:
    """In words."""
    parts = [f"{KINDS[point.op]}, {size_of(point.size)}{f' x {point.batch}' if point.batch > 1 else ''}"]
    parts.append(f"{point.clients} client{'s' if point.clients > 1 else ''}")
    parts.append(f"{point.replicas} replica{'s' if point.replicas > 1 else ''}")
    if point.same_host:
        parts.append("same host")
    if point.ray == "cache":
        parts.append("cold" if point.cold else "warm")
    return ", ".join(parts)


def size_of(size: int) -> str:
    """512 B, 4 KiB, 64 MiB."""
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


class _Data:
    """The files that are read, on as many replicas as there are points for. Use it as a context manager."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._sets: dict[int, Dataset] = {}

    def __enter__(self) -> _Data:
        return self

    def __exit__(self, *error: object) -> None:
        for data in self._sets.values():
            data.remove()

    def found(self, point: Point) -> Found:
        """Measure it, after a moment that is not counted."""
        context, data = self._context, self._set(point.replicas)
        processes = min(point.clients, PROCESSES)
        job = replace(
            self._job, op=point.op, size=point.size, batch=point.batch, clients=processes, seconds=context.sizes.sweep_s
        )
        job = replace(job, threads=point.clients // processes, same_host=point.same_host)
        job.check()
        meter = _Meter(context)
        outcome = run(context.client.addresses, "", job, data.paths if job.reads else [], data.path, lambda _: None)
        seen = outcome.seen
        took = Latencies()
        took += seen.reads
        took += seen.writes
        return meter.found(point, seen.read_bytes + seen.written_bytes, outcome.seconds, took, outcome.cpu_s)

    @property
    def _job(self) -> Job:
        size = self._context.sizes.sweep_bytes
        return Job(Op.RANDREAD, MIB, data_bytes=4 * size, file_bytes=size)

    def _set(self, replicas: int) -> Dataset:
        if replicas not in self._sets:
            client = self._context.client
            layout = LayoutChoice(replicas=replicas, chunk_bytes=REQUEST_BYTES)
            data = self._sets[replicas] = Dataset(client, "/", self._job, layout)
            data.lay_out(lambda _: None)
        return self._sets[replicas]


class _Meter:
    """CPU seconds and disk reads of the daemons, from when it was made."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._cpu_s = context.servers_cpu_s()
        self._disk = self._disk_bytes()

    def found(self, point: Point, moved: int, seconds: float, took: Latencies, client_cpu_s: float) -> Found:
        """What was measured until now."""
        giga = max(moved, 1) / 1e9
        return Found(
            point=point,
            bytes_s=moved / seconds,
            calls=len(took),
            percentiles_s={percent: took.percentile_ns(percent) / 1e9 for percent in PERCENTILES},
            client_cpu=client_cpu_s / giga,
            servers_cpu=(self._context.servers_cpu_s() - self._cpu_s) / giga,
            from_disk=(self._disk_bytes() - self._disk) / max(moved, 1),
        )

    def _disk_bytes(self) -> int:
        return sum(daemon.io_counters().read_bytes for daemon in self._context.daemons)


def _cold(context: Context) -> list[Found]:
    """Each pair in a file of its own, before anything else is read: what a daemon has mapped the kernel does not let
    go of, and blocks of removed files are used again."""
    found: list[Found] = []
    context.client  # noqa: B018 - started here
    todo = list(cold_points())
    for number, (cold, warm) in enumerate(zip(todo[::2], todo[1::2], strict=True)):
        path = f"/sweep-cold-{number}"
        file = context.copy(path, 1)
        offsets = _once_through(cold, file.length, context.sizes.cold_calls)
        forget(context.cluster.folder.path)
        for point in (cold, warm):
            context.say(f"sweep: {label(point)}")
            found.append(_pass(context, point, file, offsets))
    return found


def _once_through(point: Point, length: int, calls: int) -> list[int]:
    """Where to read, nothing twice, at most so many times."""
    places = np.arange(length // point.size)
    if point.op is Op.RANDREAD:
        np.random.default_rng(11).shuffle(places)
    offsets: list[int] = (places[:calls] * point.size).tolist()
    return offsets


def _pass(context: Context, point: Point, file: OpenFile, offsets: list[int]) -> Found:
    files, out, took = context.client.files, buffer(point.size), Latencies()
    first, length = np.zeros(1, dtype=np.int64), np.array([point.size], dtype=np.int64)
    meter = _Meter(context)
    cpu_s, begin_s = time.process_time(), time.perf_counter()
    for offset in offsets:
        then_ns = time.perf_counter_ns()
        files.read_batch([file], first, np.array([offset], dtype=np.int64), length, out)
        took.note(time.perf_counter_ns() - then_ns)
    seconds = time.perf_counter() - begin_s
    return meter.found(point, len(offsets) * point.size, seconds, took, time.process_time() - cpu_s)


def forget(folder: Path) -> None:
    """Take what the block files below `folder` hold out of the page cache, once it is on the disk."""
    os.sync()
    for path in folder.rglob("*.blk"):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
