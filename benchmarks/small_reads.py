"""256 random 4 KiB reads as one batch, checksums verified, beside one-range requests of the same client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.context import Context, buffer
from benchmarks.local_files import LocalFile
from benchmarks.profiling import profile
from benchmarks.rounds import Case, Step, Timed, for_seconds, threads_for_seconds
from benchmarks.rows import Row, make_row
from benchmarks.sequential import check_equal
from fs3.client.coalesce import AsyncReader
from fs3.client.file import OpenFile

READ_BYTES = 4 << 10
BATCH = 256
IN_FLIGHT = 32
AT_LEAST = 150_000.0
AT_LEAST_TIMES = 4.0
UNBATCHED_AT_LEAST = 60_000.0
BARE, LOCAL = "bare pair, 256 gathered", "local preadv"
THREADS, TASKS = "one-range, 32 threads", "one-range, 32 tasks coalesced"
_TURNS = 64  # batches of offsets, used in turn, so that making them up is not measured


def measure(context: Context) -> list[Row]:
    """Batches of one caller, on 1 and on 3 replicas; the target concerns both."""
    out = buffer(BATCH * READ_BYTES)
    offsets = _offsets(context)
    lengths = np.full(BATCH, READ_BYTES, dtype=np.int64)
    files = {replicas: context.remote(replicas) for replicas in (1, 3)}
    bare = context.bare.connect()
    with LocalFile(context.local_path) as local:

        def read_bare(number: int) -> float:
            bare.read(offsets[number % _TURNS], lengths, out)
            return BATCH

        def read_local(number: int) -> float:
            for place, offset in enumerate(offsets[number % _TURNS].tolist()):
                local.read(offset, out[place * READ_BYTES : (place + 1) * READ_BYTES])
            return BATCH

        seconds = context.sizes.seconds
        cases: dict[str, Case] = {
            BARE: lambda: for_seconds(read_bare, seconds),
            LOCAL: lambda: for_seconds(read_local, seconds),
        }
        for replicas, file in files.items():
            _check(context, file, offsets[0], lengths, out)
            cases[f"batched {replicas}"] = _timed(_batched(context, file, offsets, lengths, out), seconds)
            cases[f"{THREADS} {replicas}"] = _one_range(context, file, offsets)
            cases[f"{TASKS} {replicas}"] = _coalesced(context, file, offsets)
        runs = context.measure("4 KiB reads", cases)
    return [make(runs, replicas) for make in (_row, _unbatched_row) for replicas in files]


def profile_client(context: Context) -> list[str]:
    """Where the calling thread spends the time of a batch on 3 replicas."""
    offsets, lengths = _offsets(context), np.full(BATCH, READ_BYTES, dtype=np.int64)
    return profile(_batched(context, context.remote(3), offsets, lengths, buffer(BATCH * READ_BYTES)), 200)


def _offsets(context: Context) -> NDArray[np.int64]:
    """Of 4 KiB blocks, seeded: [_TURNS, BATCH]."""
    return np.random.default_rng(7).integers(0, context.sizes.file_bytes // READ_BYTES, (_TURNS, BATCH)) * READ_BYTES


def _row(runs: dict[str, list[Timed]], replicas: int) -> Row:
    named = {name.removesuffix(f" {replicas}"): run for name, run in runs.items()}
    return make_row(
        f"4 KiB x 256 batched reads, {'1 replica' if replicas == 1 else f'{replicas} replicas'}",
        "reads/s",
        named,
        ours="batched",
        limits=[BARE, LOCAL],
        others=[THREADS],
        at_least=AT_LEAST,
        at_least_times={THREADS: AT_LEAST_TIMES},
        cost_per=("GB", 1e9 / READ_BYTES),
    )


def _unbatched_row(runs: dict[str, list[Timed]], replicas: int) -> Row:
    named = {name.removesuffix(f" {replicas}"): run for name, run in runs.items()}
    return make_row(
        f"4 KiB reads, 32 in flight, {'1 replica' if replicas == 1 else f'{replicas} replicas'}",
        "reads/s",
        named,
        ours=TASKS,
        limits=[LOCAL],
        others=[THREADS],
        at_least=UNBATCHED_AT_LEAST,
        cost_per=("GB", 1e9 / READ_BYTES),
    )


def _timed(step: Step, seconds: float) -> Case:
    return lambda: for_seconds(step, seconds)


def _batched(
    context: Context, file: OpenFile, offsets: NDArray[np.int64], lengths: NDArray[np.int64], out: memoryview
) -> Step:
    files = context.client.files
    first = np.zeros(BATCH, dtype=np.int64)

    def read(number: int) -> float:
        files.read_batch([file], first, offsets[number % _TURNS], lengths, out)
        return BATCH

    return read


def _one_range(context: Context, file: OpenFile, offsets: NDArray[np.int64]) -> Case:
    """A blocking call per range, from 32 threads."""
    files = context.client.files
    flat = offsets.reshape(-1)
    first, length = np.zeros(1, dtype=np.int64), np.array([READ_BYTES], dtype=np.int64)

    def step_of(slot: int) -> Callable[[int], float]:
        out = memoryview(bytearray(READ_BYTES))

        def read(number: int) -> float:
            at = (slot * 1_009 + number) % len(flat)
            files.read_batch([file], first, flat[at : at + 1], length, out)
            return 1

        return read

    steps = [step_of(slot) for slot in range(IN_FLIGHT)]
    return lambda: threads_for_seconds(steps, context.sizes.seconds)


def _coalesced(context: Context, file: OpenFile, offsets: NDArray[np.int64]) -> Case:
    """A coroutine per range, 32 at a time, which the client's AsyncReader gathers into batches."""
    flat = offsets.reshape(-1).tolist()

    async def burst(reader: AsyncReader, number: int) -> None:
        """256 reads of 32 tasks."""

        async def task(slot: int) -> None:
            for turn in range(BATCH // IN_FLIGHT):
                await reader.read(file, flat[(number * BATCH + slot * 8 + turn) % len(flat)], READ_BYTES)

        async with asyncio.TaskGroup() as tasks:
            for slot in range(IN_FLIGHT):
                tasks.create_task(task(slot))

    def run() -> Timed:
        reader = AsyncReader(context.client.files)
        loop = asyncio.new_event_loop()
        try:

            def step(number: int) -> float:
                loop.run_until_complete(burst(reader, number))
                return BATCH

            return for_seconds(step, context.sizes.seconds)
        finally:
            loop.close()
            reader.close()

    return run


def _check(
    context: Context, file: OpenFile, offsets: NDArray[np.int64], lengths: NDArray[np.int64], out: memoryview
) -> None:
    check_equal(context, file, buffer(4 << 20))
    _batched(context, file, offsets.reshape(1, -1).repeat(_TURNS, axis=0), lengths, out)(0)
    with context.local_path.open("rb") as local:
        for place, offset in enumerate(offsets.tolist()):
            local.seek(offset)
            if local.read(READ_BYTES) != out[place * READ_BYTES : (place + 1) * READ_BYTES]:
                raise AssertionError(f"{file.path} differs from what was written, at byte {offset}")
