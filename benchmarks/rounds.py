"""Timing in rounds: A B C A B C ..., so that whatever else the machine does meets every case alike.

A case runs for a fixed time and says how much it did. Rates of one round are compared with each other, and the median
of these ratios is what counts: on a shared machine rates drift by a factor of three within minutes, ratios do not.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import psutil

PERCENTILES = (50.0, 99.0)

Step = Callable[[int], float]  # does the step of this number; how much that was


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One run of a case: `amount` of work in `seconds`, and the CPU seconds it cost this process and the servers."""

    amount: float
    seconds: float
    client_cpu_s: float = 0.0
    servers_cpu_s: float = 0.0
    percentiles_s: Mapping[float, float] = field(default_factory=dict)
    """latencies of single calls, where they were taken: the percentile (99.0) to the seconds"""

    @property
    def rate(self) -> float:
        """Work per second."""
        return self.amount / max(self.seconds, 1e-9)


Case = Callable[[], Timed]


@dataclass(frozen=True, slots=True)
class Spread:
    """What the rounds gave, in their order."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


def rates(runs: Sequence[Timed]) -> Spread:
    """The rate of each round."""
    return Spread(tuple(run.rate for run in runs))


def ratios(ours: Spread, other: Spread) -> Spread:
    """Ours over the other's, round by round."""
    return Spread(tuple(mine / theirs for mine, theirs in zip(ours.values, other.values, strict=True)))


def interleave(
    cases: Mapping[str, Case],
    rounds: int,
    on_step: Callable[[str], None] = lambda name: None,
    *,
    warm: Collection[str] = (),
) -> dict[str, list[Timed]]:
    """Every case once unmeasured, then `rounds` times in turn; what each run gave, by the case's name.

    Cases in `warm` need no unmeasured run: they warm up by themselves.
    """
    assert rounds >= 1, rounds
    runs: dict[str, list[Timed]] = {name: [] for name in cases}
    for round_ in range(rounds + 1):
        for name, case in cases.items():
            if not round_ and name in warm:
                continue
            on_step(name)
            run = case()
            if round_:
                runs[name].append(run)
    return runs


def for_seconds(step: Step, seconds: float) -> Timed:
    """`step(0)`, `step(1)`, ... until `seconds` have passed; at least once."""
    begin_s = time.perf_counter()
    done, number = 0.0, 0
    while True:
        done += step(number)
        number += 1
        now_s = time.perf_counter()
        if now_s - begin_s >= seconds:
            return Timed(amount=done, seconds=now_s - begin_s)


def prepared_for_seconds(prepare: Callable[[], object], work: Callable[[], float], seconds: float) -> Timed:
    """`prepare()`, then `work()`, again and again until the work alone has taken `seconds`; only it is timed."""
    done, elapsed_s = 0.0, 0.0
    while not elapsed_s or elapsed_s < seconds:
        prepare()
        begin_s = time.perf_counter()
        done += work()
        elapsed_s += time.perf_counter() - begin_s
    return Timed(amount=done, seconds=elapsed_s)


def threads_for_seconds(steps: Sequence[Step], seconds: float) -> Timed:
    """As `for_seconds`, each of `steps` in a thread of its own, all starting together; until the last has ended.

    Raises: what a step raised.
    """
    if len(steps) == 1:
        return for_seconds(steps[0], seconds)
    done = [0.0] * len(steps)
    failures: list[BaseException] = []
    start = threading.Barrier(len(steps) + 1)

    def work(index: int) -> None:
        try:
            start.wait()
            done[index] = for_seconds(steps[index], seconds).amount
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(steps))]
    for thread in threads:
        thread.start()
    start.wait()
    begin_s = time.perf_counter()
    for thread in threads:
        thread.join()
    elapsed_s = time.perf_counter() - begin_s
    if failures:
        raise failures[0]
    return Timed(amount=sum(done), seconds=elapsed_s)


def percentiles_s(took_ns: Sequence[int]) -> dict[float, float]:
    """Those of PERCENTILES of what calls took, in seconds."""
    found = np.percentile(np.array(took_ns, dtype=np.float64), PERCENTILES) / 1e9
    return dict(zip(PERCENTILES, found.tolist(), strict=True))


def with_cpu(case: Case, servers_cpu_s: Callable[[], float]) -> Case:
    """The case, its CPU seconds counted: those of this process, what the case itself says that processes beside it
    used for the client, and what `servers_cpu_s` grows by."""
    me = psutil.Process()

    def measured() -> Timed:
        mine, theirs = cpu_s(me), servers_cpu_s()
        run = case()
        return replace(
            run,
            client_cpu_s=run.client_cpu_s + cpu_s(me) - mine,
            servers_cpu_s=servers_cpu_s() - theirs,
        )

    return measured


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds that a process has used, in user and kernel mode."""
    times = process.cpu_times()
    return float(times.user + times.system)
