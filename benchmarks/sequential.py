"""Reading and writing one file from end to end in 4 MiB requests, with 1 and 3 replicas; every write durable."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks.context import REQUEST_BYTES, Context, buffer
from benchmarks.local_files import LocalFile, LocalWrites
from benchmarks.rounds import Case, Step, Timed, threads_for_seconds
from benchmarks.rows import Row, make_row
from fs3.client.file import OpenFile
from fs3.layout import LayoutChoice

IN_FLIGHT = (1, 4)
BARE, LOCAL_READ = "bare sendfile -> recv_into", "local preadv"
ONE_SYNC, SYNC_EACH = "local write + fdatasync", "local, fdatasync per 4 MiB"


def measure_reads(context: Context) -> list[Row]:
    """Reads with one request in flight, and with four, a thread each."""
    rows = []
    files = {replicas: context.remote(replicas) for replicas in (1, 3)}
    with LocalFile(context.local_path) as local:
        for in_flight in IN_FLIGHT:
            outs = [buffer(REQUEST_BYTES) for _ in range(in_flight)]
            bare = [context.bare.connect() for _ in outs]
            length = np.array([REQUEST_BYTES], dtype=np.int64)

            def read_bare(
                slot: int, offset: int, out: memoryview, bare: list = bare, length: np.ndarray = length
            ) -> int:
                return bare[slot].read(np.array([offset]), length, out)

            def read_local(slot: int, offset: int, out: memoryview) -> int:
                return local.read(offset, out)

            cases: dict[str, Case] = {
                BARE: _case(context, outs, read_bare),
                LOCAL_READ: _case(context, outs, read_local),
            }
            for replicas, file in files.items():
                check_equal(context, file, outs[0])
                cases[f"fs3 {replicas}"] = _case(context, outs, _reader(context, file))
            runs = context.measure(f"sequential read, {in_flight} in flight", cases)
            rows += [
                make_row(
                    f"sequential read, {in_flight} in flight, {_count(replicas)}",
                    "GB/s",
                    runs,
                    ours=f"fs3 {replicas}",
                    limits=[BARE, LOCAL_READ],
                    cost_per=("GB", 1e9),
                )
                for replicas in files
            ]
    return rows


def measure_writes(context: Context) -> list[Row]:
    """A new file each time, from its creation to its publication, all of it on stable storage then."""
    rows = []
    piece = buffer(REQUEST_BYTES)
    piece[:] = np.random.default_rng(1).bytes(REQUEST_BYTES)
    count = context.sizes.write_bytes // REQUEST_BYTES
    for replicas in (1, 3):
        with LocalWrites(context.folder) as local:

            def write_local(sync_each: bool, local: LocalWrites = local, copies: int = replicas) -> Case:
                return lambda: local.write(piece, count, copies=copies, sync_each=sync_each)

            runs = context.measure(
                f"sequential write, {_count(replicas)}",
                {
                    "fs3": _writer(context, piece, count, replicas),
                    ONE_SYNC: write_local(False),
                    SYNC_EACH: write_local(True),
                },
                writes=True,
            )
        rows.append(
            make_row(
                f"sequential write, durable, {_count(replicas)}",
                "GB/s",
                runs,
                ours="fs3",
                limits=[ONE_SYNC, SYNC_EACH],
                cost_per=("GB", 1e9),
            )
        )
        context.client.meta.remove(f"/written-{replicas}", recursive=True)
    return rows


def check_equal(context: Context, file: OpenFile, out: memoryview) -> None:
    """Read the whole file once and compare it with the local one: figures of wrong bytes are worth nothing."""
    read = _reader(context, file)
    with context.local_path.open("rb") as local:
        for offset in range(0, file.length, REQUEST_BYTES):
            read(0, offset, out)
            if local.read(REQUEST_BYTES) != out[:REQUEST_BYTES]:
                raise AssertionError(f"{file.path} differs from what was written, from byte {offset} on")


def _reader(context: Context, file: OpenFile) -> Callable[[int, int, memoryview], int]:
    files = context.client.files
    first, length = np.zeros(1, dtype=np.int64), np.array([REQUEST_BYTES], dtype=np.int64)

    def read(slot: int, offset: int, out: memoryview) -> int:
        files.read_batch([file], first, np.array([offset], dtype=np.int64), length, out)
        return REQUEST_BYTES

    return read


def _case(context: Context, outs: list[memoryview], read: Callable[[int, int, memoryview], int]) -> Case:
    """Requests one after the other through the file, again and again; a thread for each buffer, each in its part."""
    requests = context.sizes.file_bytes // REQUEST_BYTES
    share = requests // len(outs)

    def step_of(slot: int, out: memoryview) -> Step:
        return lambda number: read(slot, (slot * share + number % share) * REQUEST_BYTES, out)

    steps = [step_of(slot, out) for slot, out in enumerate(outs)]
    return lambda: threads_for_seconds(steps, context.sizes.seconds)


def _writer(context: Context, piece: memoryview, count: int, replicas: int) -> Case:
    folder = f"/written-{replicas}"
    choice = LayoutChoice(replicas=replicas, chunk_bytes=REQUEST_BYTES)
    context.client.meta.mkdir(folder, layout=choice)
    number = 0

    def run() -> Timed:
        nonlocal number
        number += 1
        begin_s = time.perf_counter()
        with context.client.files.create_writer(f"{folder}/{number}") as writer:
            for _ in range(count):
                writer.write(piece)
        return Timed(amount=count * len(piece), seconds=time.perf_counter() - begin_s)

    return run


def _count(replicas: int) -> str:
    return "1 replica" if replicas == 1 else f"{replicas} replicas"
