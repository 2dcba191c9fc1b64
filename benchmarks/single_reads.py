"""Unbatched reads of 4 KiB, 32 in flight: asyncio tasks that the client's AsyncReader coalesces, and threads.

Another way to have many in flight is one more line of `_cases`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.context import Context
from benchmarks.rounds import Case, Timed, percentiles_s, threads_for_seconds
from benchmarks.rows import Row, make_row
from fs3.client.coalesce import AsyncReader
from fs3.client.file import OpenFile

READ_BYTES = 4 << 10
IN_FLIGHT = 32
REPLICAS = 1
TASKS, THREADS = "asyncio tasks", "threads, a blocking call each"
AT_LEAST, P99_AT_MOST_MS = 60_000.0, 1.0
_TURNS = 16_384


def measure(context: Context) -> list[Row]:
    """Reads a second of each way, and how long single reads took."""
    cases = _cases(context, context.remote(REPLICAS))
    runs = context.measure(f"4 KiB reads, {IN_FLIGHT} in flight", cases)
    rows = []
    for way in cases:
        aimed = way == TASKS
        name = f"4 KiB reads, {IN_FLIGHT} in flight, {way}"
        rows.append(
            make_row(
                name,
                "reads/s",
                runs,
                ours=way,
                others=[other for other in cases if other != way] if aimed else [],
                at_least=AT_LEAST if aimed else None,
                cost_per=("GB", 1e9 / READ_BYTES),
            )
        )
        for percentile, at_most in ((50.0, None), (99.0, P99_AT_MOST_MS if aimed else None)):
            took = [Timed(amount=run.percentiles_s[percentile] * 1e3, seconds=1.0) for run in runs[way]]
            rows.append(make_row(f"{name}: p{percentile:g}", "ms", {way: took}, ours=way, at_most=at_most))
    return rows


def _cases(context: Context, file: OpenFile) -> dict[str, Case]:
    offsets = np.random.default_rng(9).integers(0, context.sizes.file_bytes // READ_BYTES, _TURNS) * READ_BYTES
    return {
        TASKS: _tasks(context, file, offsets.tolist()),
        THREADS: _threads(context, file, offsets),
    }


def _tasks(context: Context, file: OpenFile, offsets: list[int]) -> Case:
    """A coroutine for each in flight."""
    seconds = context.sizes.seconds

    async def reads(reader: AsyncReader, took_ns: list[int]) -> float:
        begin_ns = time.perf_counter_ns()
        end_ns = begin_ns + int(seconds * 1e9)

        async def task(slot: int) -> None:
            number, then_ns = slot * 509, time.perf_counter_ns()
            while True:
                await reader.read(file, offsets[number % _TURNS], READ_BYTES)
                now_ns = time.perf_counter_ns()
                took_ns.append(now_ns - then_ns)
                if now_ns >= end_ns:
                    return
                number, then_ns = number + 1, now_ns

        async with asyncio.TaskGroup() as tasks:
            for slot in range(IN_FLIGHT):
                tasks.create_task(task(slot))
        return (time.perf_counter_ns() - begin_ns) / 1e9

    def run() -> Timed:
        reader = AsyncReader(context.client.files)
        took_ns: list[int] = []
        try:
            elapsed_s = asyncio.run(reads(reader, took_ns))
        finally:
            reader.close()
        return Timed(amount=len(took_ns), seconds=elapsed_s, percentiles_s=percentiles_s(took_ns))

    return run


def _threads(context: Context, file: OpenFile, offsets: np.ndarray) -> Case:
    """A thread for each in flight."""
    files = context.client.files
    first, length = np.zeros(1, dtype=np.int64), np.array([READ_BYTES], dtype=np.int64)

    def step_of(slot: int, took_ns: list[int]) -> Callable[[int], float]:
        out = memoryview(bytearray(READ_BYTES))

        def read(number: int) -> float:
            at = (slot * 509 + number) % _TURNS
            begin_ns = time.perf_counter_ns()
            files.read_batch([file], first, offsets[at : at + 1], length, out)
            took_ns.append(time.perf_counter_ns() - begin_ns)
            return 1

        return read

    def run() -> Timed:
        took_ns: list[list[int]] = [[] for _ in range(IN_FLIGHT)]
        timed = threads_for_seconds([step_of(slot, mine) for slot, mine in enumerate(took_ns)], context.sizes.seconds)
        return replace(timed, percentiles_s=percentiles_s([ns for one in took_ns for ns in one]))

    return run
