"""Writing files in pieces of 4 MiB, on stable storage when it is over, on 1 and on 3 replicas, beside the local disk.

All replicas share this machine's disk, so a file with three is compared with three local files.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.context import REQUEST_BYTES, Context, buffer
from benchmarks.large_reads import count_of
from benchmarks.local_files import LocalWrites, Sync
from benchmarks.rounds import Case, Timed
from benchmarks.rows import Row, make_row
from fs3.layout import LayoutChoice

REPLICAS = (1, 3)
LIMITS = {
    "local write + fdatasync": Sync.ONCE,
    "local, fdatasync per 4 MiB": Sync.EACH,
    "local O_DIRECT + fdatasync": Sync.DIRECT,
}
AT_LEAST_TIMES = dict(zip(LIMITS, (1.0, None, 0.5), strict=True))
ONE_REPLICA, AT_LEAST_OF_ONE = "fs3, 1 replica", 0.25


def measure(context: Context) -> list[Row]:
    """A new file each time, from its creation to its publication. All cases take turns, so that 3 replicas can be
    compared with 1."""
    piece = buffer(REQUEST_BYTES)
    piece[:] = np.random.default_rng(1).bytes(REQUEST_BYTES)
    count = context.sizes.write_bytes // REQUEST_BYTES
    with LocalWrites(context.folder) as local:

        def write_local(sync: Sync, copies: int) -> Case:
            return lambda: local.write(piece, count, copies=copies, sync=sync)

        cases: dict[str, Case] = {}
        for replicas in REPLICAS:
            cases[f"fs3 {replicas}"] = _writer(context, piece, count, replicas)
            cases |= {f"{name} {replicas}": write_local(sync, replicas) for name, sync in LIMITS.items()}
        runs = context.measure("durable write of 4 MiB pieces", cases, writes=True)
    for replicas in REPLICAS:
        context.client.meta.remove(f"/written-{replicas}", recursive=True)
    return [_row(runs, replicas) for replicas in REPLICAS]


def _row(runs: dict[str, list[Timed]], replicas: int) -> Row:
    named = {name: runs[f"{name} {replicas}"] for name in ("fs3", *LIMITS)} | {ONE_REPLICA: runs["fs3 1"]}
    targets = {name: times for name, times in AT_LEAST_TIMES.items() if times is not None}
    return make_row(
        f"durable write, pieces of 4 MiB, {count_of(replicas)}",
        "GB/s",
        named,
        ours="fs3",
        limits=list(LIMITS),
        others=[ONE_REPLICA] if replicas > 1 else [],
        at_least_times={ONE_REPLICA: AT_LEAST_OF_ONE} if replicas > 1 else targets,
        cost_per=("GB", 1e9),
    )


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
