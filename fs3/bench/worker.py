"""One client process of a benchmark: threads that make calls until the time is over, and tell what they saw."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import numpy as np

from fs3.bench.job import Job, Op
from fs3.bench.latency_core import Latencies
from fs3.client.connect import Client, connect
from fs3.client.file import OpenFile
from fs3.errors import Fs3Error

REPORT_S = 0.25
NAMES = 16  # a thread's files, which it replaces in turn


@dataclass(slots=True)
class Seen:
    """What was done since the report before, of reads and of writes."""

    read_bytes: int = 0
    written_bytes: int = 0
    reads: Latencies = field(default_factory=Latencies)
    writes: Latencies = field(default_factory=Latencies)

    def __iadd__(self, other: Seen) -> Seen:
        self.read_bytes += other.read_bytes
        self.written_bytes += other.written_bytes
        self.reads += other.reads
        self.writes += other.writes
        return self


@dataclass(slots=True)
class Report:
    """From a worker: it is ready; what was seen; or why it ended. `cpu_s`: of the process, since it began to work."""

    ready: bool = False
    seen: Seen | None = None
    cpu_s: float = 0.0
    done: bool = False
    error: str = ""


def work(pipe: Connection, addresses: tuple[str, ...], secret: str, job: Job, paths: list[str], number: int) -> None:
    """The process's main function: says that it is ready, waits for a word, works, and reports."""
    try:
        client = connect(addresses, secret=secret, same_host=job.same_host)
        client.mgmtd.wait_ready(10.0)
        handles = client.files.open_many(paths) if paths else []
        directory = paths[0].rpartition("/")[0] if paths else ""
        pipe.send(Report(ready=True))
        directory = pipe.recv() or directory
        _run(pipe, client, job, handles, directory, number)
    except (Fs3Error, OSError, MemoryError) as error:
        pipe.send(Report(done=True, error=f"{type(error).__name__}: {error}"))
    except (EOFError, KeyboardInterrupt):
        pass  # whoever began it has gone


def _run(pipe: Connection, client: Client, job: Job, handles: list[OpenFile], directory: str, number: int) -> None:
    begun_cpu_s = time.process_time()
    until_s = time.monotonic() + job.seconds
    threads = [_Thread(client, job, handles, directory, number * job.threads + n, until_s) for n in range(job.threads)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(REPORT_S)
        pipe.send(Report(seen=_taken(threads), cpu_s=time.process_time() - begun_cpu_s))
        if any(thread.error for thread in threads):
            break
    error = next((thread.error for thread in threads if thread.error), "")
    for thread in threads:
        thread.until_s = 0.0
    for thread in threads:
        thread.join()
    pipe.send(Report(seen=_taken(threads), cpu_s=time.process_time() - begun_cpu_s, done=True, error=error))


def _taken(threads: list[_Thread]) -> Seen:
    total = Seen()
    for thread in threads:
        total += thread.take()
    return total


class _Thread(threading.Thread):
    """Makes one call after the other."""

    def __init__(
        self, client: Client, job: Job, handles: list[OpenFile], directory: str, number: int, until_s: float
    ) -> None:
        super().__init__(name=f"fs3-bench-{number}", daemon=True)
        self.until_s = until_s
        self.error = ""
        self._client = client
        self._job = job
        self._handles = handles
        self._seen = Seen()
        self._seeing = threading.Lock()
        self._random = np.random.default_rng(number)
        self._chance = random.Random(number)
        ranges = job.files * job.per_file
        self._at = number * ranges // max(job.clients * job.threads, 1)
        self._buffer = bytearray(job.size * job.batch)
        self._names = [f"{directory}/w{number}-{at}-" for at in range(NAMES)]
        self._turn = 0

    def take(self) -> Seen:
        """What was seen since the last time."""
        with self._seeing:
            seen, self._seen = self._seen, Seen()
        return seen

    def run(self) -> None:
        op, share = self._job.op, self._job.read_share
        if op is not Op.READ and op is not Op.RANDREAD:
            self._buffer[:] = self._chance.randbytes(len(self._buffer))
        try:
            while time.monotonic() < self.until_s:
                reads = op in (Op.READ, Op.RANDREAD) or (op is Op.RANDRW and self._chance.random() < share)
                begun_ns = time.perf_counter_ns()
                (self._read if reads else self._write)()
                self._note(reads, time.perf_counter_ns() - begun_ns)
        except Fs3Error as error:
            self.error = f"{type(error).__name__}: {error}"

    def _note(self, reads: bool, ns: int) -> None:
        size = self._job.size * self._job.batch
        with self._seeing:
            if reads:
                self._seen.read_bytes += size
                self._seen.reads.note(ns)
            else:
                self._seen.written_bytes += size
                self._seen.writes.note(ns)

    def _read(self) -> None:
        job = self._job
        ranges = job.files * job.per_file
        if job.op is Op.READ:
            chosen = np.arange(self._at, self._at + job.batch, dtype=np.int64) % ranges
            self._at = (self._at + job.batch) % ranges
        else:
            chosen = self._random.integers(0, ranges, job.batch)
        lengths = np.full(job.batch, job.size, dtype=np.int64)
        self._client.files.read_batch(
            self._handles, chosen // job.per_file, chosen % job.per_file * job.size, lengths, self._buffer
        )

    def _write(self) -> None:
        job, name = self._job, self._names[self._turn % NAMES]
        self._turn += 1
        view = memoryview(self._buffer)
        datas = [view[at : at + job.size] for at in range(0, len(view), job.size)]
        self._client.files.create_batch([f"{name}{at}" for at in range(job.batch)], datas)
