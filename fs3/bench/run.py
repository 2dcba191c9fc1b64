"""Runs a job: starts its processes, lets them begin together, and adds up what they report."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from fs3.bench.job import Job
from fs3.bench.worker import REPORT_S, Report, Seen, work
from fs3.errors import Unavailable

_START_S = 60.0
_SILENT_S = 120.0  # longer than any call's deadline


@dataclass(slots=True)
class Outcome:
    """Of all clients together. `timeline`: bytes read and written in each stretch of `step_s`."""

    seen: Seen = field(default_factory=Seen)
    seconds: float = 0.0
    cpu_s: float = 0.0
    timeline: list[tuple[int, int]] = field(default_factory=list)
    step_s: float = 1.0


def run(
    addresses: tuple[str, ...],
    secret: str,
    job: Job,
    paths: list[str],
    directory: str,
    heard: Callable[[Outcome], None],
) -> Outcome:
    """Have `job` done on the files at `paths`; new files go into `directory`. `heard` is told now and then.

    Raises: Unavailable: a client could not go on, and why.
    """
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pipes: list[Connection] = []
        for number in range(job.clients):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=work,
                args=(theirs, addresses, secret, job, paths, number),
                name=f"fs3-bench-{number}",
                daemon=True,
            )
            process.start()
            theirs.close()
            stack.callback(_end, process, ours)
            pipes.append(ours)
        for pipe in pipes:
            if not pipe.poll(_START_S):
                raise Unavailable(f"a client process was not ready within {_START_S:.0f} s")
            _received(pipe)
        for pipe in pipes:
            pipe.send(directory)
        return _listen(pipes, heard)


def _listen(pipes: list[Connection], heard: Callable[[Outcome], None]) -> Outcome:
    outcome = Outcome()
    begun_s = time.monotonic()
    cpu_s: dict[Connection, float] = {}
    left = list(pipes)
    while left:
        ready = wait(left, timeout=_SILENT_S)
        if not ready:
            raise Unavailable(f"no client has reported for {_SILENT_S:.0f} s")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            report = _received(pipe)
            if report.seen is not None:
                _add(outcome, report.seen, time.monotonic() - begun_s)
            cpu_s[pipe] = report.cpu_s
            if report.done:
                left.remove(pipe)
        outcome.seconds, outcome.cpu_s = time.monotonic() - begun_s, sum(cpu_s.values())
        heard(outcome)
    return outcome


def _add(outcome: Outcome, seen: Seen, now_s: float) -> None:
    outcome.seen += seen
    step = int(max(now_s - REPORT_S / 2, 0.0) / outcome.step_s)
    outcome.timeline += [(0, 0)] * (step + 1 - len(outcome.timeline))
    read, written = outcome.timeline[step]
    outcome.timeline[step] = read + seen.read_bytes, written + seen.written_bytes


def _received(pipe: Connection) -> Report:
    """Raises: Unavailable: the client has failed."""
    try:
        report = pipe.recv()
    except EOFError:
        raise Unavailable("a client process has ended by itself") from None
    assert isinstance(report, Report)
    if report.error:
        raise Unavailable(f"a client could not go on: {report.error}")
    return report


def _end(process: SpawnProcess, pipe: Connection) -> None:
    pipe.close()
    process.join(1.0)
    if process.is_alive():
        process.kill()
        process.join()
