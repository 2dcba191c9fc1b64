"""256 random reads of 4, 16 or 64 KiB as one batch, checksums verified, beside limits and peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.context import REQUEST_BYTES, Context, buffer
from benchmarks.large_reads import (
    GRPC,
    MOONCAKE,
    UNCHECKED,
    check_equal,
    check_same,
    count_of,
    mooncake_of,
)
from benchmarks.local_files import LocalFile
from benchmarks.peers import redis_py
from benchmarks.peers.driven import Driven
from benchmarks.peers.grpc_aio import GrpcAio
from benchmarks.peers.peer import Peers
from benchmarks.peers.redis_server import Redis
from benchmarks.rounds import Case, Step, Timed, for_seconds
from benchmarks.rows import Absent, Row, make_row
from benchmarks.single_reads import IN_FLIGHT, READ_BYTES
from fs3.client.connect import Client
from fs3.client.file import OpenFile

BATCH = 256
REPLICAS = (1, 3)
BARE, LOCAL = "bare pair, 256 gathered", "local preadv"
RESP = "Redis, MGET by a raw RESP client"
GRPC_CALLS = f"{GRPC}, {IN_FLIGHT} calls in flight"
PACKAGES = {
    "redis-py, pipeline of GETs": ("pipeline", "redis==8.1.0"),
    "redis-py with hiredis, MGET": ("mget", "redis==8.1.0", "hiredis==3.5.0"),
}
(PIPELINE, _) = PACKAGES
TURNS = 64  # batches of offsets, used in turn, so that making them up is not measured


@dataclass(frozen=True, slots=True)
class Shape:
    """A size of ranges, and what is wanted of it: reads a second, ratios, the same without checksums, CPU s/GB."""

    size: int
    at_least: float | None
    at_least_times: Mapping[str, float]
    unchecked_at_least: float | None
    cost: float | None


SHAPES = (
    Shape(READ_BYTES, 400_000.0, {RESP: 1.8, PIPELINE: 4.0, GRPC_CALLS: 100.0}, None, 0.9),
    Shape(16 << 10, None, {BARE: 0.55}, 0.75, None),
    Shape(64 << 10, None, {BARE: 0.55}, 0.75, None),
)


def measure(context: Context) -> list[Row]:
    """Batches of one caller, on 1 and on 3 replicas."""
    files = {replicas: context.remote(replicas) for replicas in REPLICAS}
    for file in files.values():
        check_equal(context, file, buffer(REQUEST_BYTES))
    rows = []
    for shape in SHAPES:
        with LocalFile(context.local_path) as local, context.peers() as peers:
            others = _others(context, peers) if shape.size == READ_BYTES else {}
            absent = [Absent(name, why) for name, why in peers.absent.items()]
            ours = {
                count_of(replicas): batched(context, context.client, file, shape.size)
                for replicas, file in files.items()
            }
            if shape.unchecked_at_least is not None:
                ours[f"{count_of(1)}, {UNCHECKED}"] = batched(context, context.unchecked, files[1], shape.size)
            cases = {**_limits(context, local, shape.size), **others, **_timed(ours, context)}
            runs = context.measure(f"{shape.size >> 10} KiB x {BATCH} batched reads", cases)
        rows += [_row(shape, runs, list(others), absent, case) for case in ours]
    return rows


def offsets_of(context: Context, size: int) -> NDArray[np.int64]:
    """Of blocks of `size`, seeded: [TURNS, BATCH]."""
    return np.random.default_rng(7).integers(0, context.sizes.file_bytes // size, (TURNS, BATCH)) * size


def batched(context: Context, client: Client, file: OpenFile, size: int) -> Step:
    """Batches of fs3, the first of them compared with the local file."""
    files, offsets, out = client.files, offsets_of(context, size), buffer(BATCH * size)
    first, lengths = np.zeros(BATCH, dtype=np.int64), np.full(BATCH, size, dtype=np.int64)

    def read(number: int) -> float:
        files.read_batch([file], first, offsets[number % TURNS], lengths, out)
        return BATCH

    read(0)
    _check(context, offsets[0], out, file.path)
    return read


def _row(shape: Shape, runs: dict[str, list[Timed]], others: list[str], absent: list[Absent], ours: str) -> Row:
    aimed = ours == count_of(1)
    times = shape.at_least_times if aimed else None
    if ours.endswith(UNCHECKED) and shape.unchecked_at_least is not None:
        times = {BARE: shape.unchecked_at_least}
    return make_row(
        f"{shape.size >> 10} KiB x {BATCH} batched reads, {ours}",
        "reads/s",
        runs,
        ours=ours,
        limits=[BARE, LOCAL],
        others=others,
        at_least=shape.at_least if aimed else None,
        at_least_times=times,
        cost_per=("GB", 1e9 / shape.size),
        cost_at_most=shape.cost if aimed else None,
        absent=absent,
    )


def _timed(steps: Mapping[str, Step], context: Context) -> dict[str, Case]:
    def case(step: Step) -> Case:
        return lambda: for_seconds(step, context.sizes.seconds)

    return {name: case(step) for name, step in steps.items()}


def _limits(context: Context, local: LocalFile, size: int) -> dict[str, Case]:
    offsets, out, bare = offsets_of(context, size), buffer(BATCH * size), context.bare.connect()
    lengths = np.full(BATCH, size, dtype=np.int64)

    def read_bare(number: int) -> float:
        bare.read(offsets[number % TURNS], lengths, out)
        return BATCH

    def read_local(number: int) -> float:
        for place, offset in enumerate(offsets[number % TURNS].tolist()):
            local.read(offset, out[place * size : (place + 1) * size])
        return BATCH

    return _timed({BARE: read_bare, LOCAL: read_local}, context)


def _others(context: Context, peers: Peers) -> dict[str, Case]:
    """Those that are there, each compared with the local file once."""
    offsets, seconds = offsets_of(context, READ_BYTES), context.sizes.seconds
    cases: dict[str, Case] = {}
    redis = peers.start(RESP, lambda: Redis(context.local_path, READ_BYTES, context.folder / "redis"))
    if redis is not None:
        connection, keys = redis.connect(), (offsets // READ_BYTES).tolist()
        out = buffer(BATCH * READ_BYTES)

        def read(number: int) -> float:
            connection.read(keys[number % TURNS], out)
            return BATCH

        read(0)
        _check(context, offsets[0], out, RESP)
        cases |= _timed({RESP: read}, context)
    for name, (how, *packages) in PACKAGES.items():
        if redis is None:
            peers.absent[name] = peers.absent[RESP]
            continue
        client = peers.start(name, _redis_py(context, redis, how, packages))
        if client is not None:
            out = memoryview(bytearray.fromhex(client.ask(do="load", wanted=keys, block_bytes=READ_BYTES)["hex"]))
            _check(context, offsets[0], out, name)
            cases[name] = _told(client, seconds)
    mooncake = peers.start(MOONCAKE, mooncake_of(context, BATCH * READ_BYTES))
    if mooncake is not None:
        check_same(context, mooncake.read_into, MOONCAKE, BATCH * READ_BYTES)
        cases[MOONCAKE] = lambda: _in_reads(mooncake.read(offsets.tolist(), READ_BYTES, 1, seconds))
    grpc = peers.start(GRPC_CALLS, lambda: GrpcAio(context.local_path, context.folder / "grpc-small"))
    if grpc is not None:
        check_same(context, grpc.read_into, GRPC)
        cases[GRPC_CALLS] = lambda: grpc.read(offsets.reshape(-1).tolist(), READ_BYTES, IN_FLIGHT, seconds)
    return cases


def _redis_py(context: Context, redis: Redis, how: str, packages: list[str]) -> Callable[[], Driven]:
    def make() -> Driven:
        python = context.python_with("-".join(one.partition("==")[0] for one in packages), *packages)
        program = Path(redis_py.__file__)
        return Driven([str(python), str(program), str(redis.port), how], context.folder / f"{program.stem}-{how}")

    return make


def _in_reads(run: Timed) -> Timed:
    return replace(run, amount=run.amount / READ_BYTES)


def _told(client: Driven, seconds: float) -> Case:
    return lambda: Timed(**client.ask(do="run", seconds=seconds))


def _check(context: Context, offsets: NDArray[np.int64], out: memoryview, name: str) -> None:
    size = len(out) // len(offsets)
    with context.local_path.open("rb") as local:
        for place, offset in enumerate(offsets.tolist()):
            local.seek(offset)
            if local.read(size) != out[place * size : (place + 1) * size]:
                raise AssertionError(f"{name} differs from what was written, at byte {offset}")
