"""64 callers, 16 in each of four processes, beside 1, 2, 4 and 8: what they get together, and what the slowest gets.

Each reads random ranges of 1 MiB one after the other, over TCP, and its call in flight has a connection of its own. The
processes are this file run as a program (obey.py); they stay for all rounds.

    clients.py URL PATH FILE_BYTES NUMBER
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.context import Context, buffer
from benchmarks.peers.driven import Driven
from benchmarks.peers.obey import obey
from benchmarks.rounds import Case, Timed, for_seconds, threads_for_seconds
from benchmarks.rows import Row, make_row
from fs3.client.connect import connect

READ_BYTES = 1 << 20
PROCESSES = 4
MANY, FEW = 64, (1, 2, 4, 8)
BEST = f"the best of {', '.join(map(str, FEW[:-1]))} and {FEW[-1]} callers"
AT_LEAST_TIMES, SLOWEST_AT_LEAST = 0.75, 0.5


@dataclass(slots=True)
class _Callers:
    """The processes. `slowest`: of each run, the least that one of the callers did over the mean."""

    processes: Sequence[Driven]
    slowest: list[float] = field(default_factory=list)

    def run(self, count: int, seconds: float) -> Timed:
        """So many callers, spread over the processes."""
        shares = [count // len(self.processes) + (place < count % len(self.processes)) for place in range(PROCESSES)]
        asked = [(one, share) for one, share in zip(self.processes, shares, strict=True) if share]
        for one, share in asked:
            one.send(do="run", callers=share, seconds=seconds)
        answers = [one.answer() for one, _ in asked]
        rates = [rate for answer in answers for rate in answer["rates"]]
        self.slowest.append(min(rates) / statistics.fmean(rates))
        return Timed(amount=sum(rates), seconds=1.0)


def measure(context: Context) -> list[Row]:
    """Two rows: of all together, and of the slowest."""
    file = context.remote(1)
    with ExitStack() as stack:
        processes = []
        for number in range(PROCESSES):
            what = [context.cluster.url, file.path, str(file.length), str(number)]
            log = context.folder / f"client-{number}"
            processes.append(stack.enter_context(Driven([sys.executable, __file__, *what], log)))
        callers = _Callers(processes)
        seconds = context.sizes.seconds

        def case(count: int) -> Case:
            return lambda: callers.run(count, seconds)

        counts = (*FEW, MANY)
        runs = context.measure("callers in four processes", {str(count): case(count) for count in counts})
    slowest = callers.slowest[len(counts) - 1 :: len(counts)][1:]
    name = f"{MANY} callers in {PROCESSES} processes, random reads of {READ_BYTES >> 20} MiB"
    best = [max(turn, key=lambda run: run.rate) for turn in zip(*(runs[str(count)] for count in FEW), strict=True)]
    return [
        make_row(
            name,
            "GB/s",
            {"fs3": runs[str(MANY)], BEST: best, **{f"{count} of them": runs[str(count)] for count in FEW}},
            ours="fs3",
            others=[BEST, *(f"{count} of them" for count in FEW)],
            at_least_times={BEST: AT_LEAST_TIMES},
        ),
        make_row(
            f"{name}: the slowest",
            "x the mean",
            {"fs3": [Timed(amount=share, seconds=1.0) for share in slowest]},
            ours="fs3",
            at_least=SLOWEST_AT_LEAST,
        ),
    ]


def main(url: str, path: str, file_bytes: int, number: int) -> None:
    """As one of the processes."""
    files = connect(url, same_host=False).files
    file = files.open_read(path)
    first, length = np.zeros(1, dtype=np.int64), np.array([READ_BYTES], dtype=np.int64)
    outs = [buffer(READ_BYTES) for _ in range(MANY)]

    def run(callers: int, seconds: float) -> dict[str, Any]:
        rates = [0.0] * callers

        def caller(slot: int) -> float:
            offsets = np.random.default_rng([number, slot]).integers(0, file_bytes // READ_BYTES, 4_096) * READ_BYTES

            def read(number: int) -> float:
                at = number % len(offsets)
                files.read_batch([file], first, offsets[at : at + 1], length, outs[slot])
                return READ_BYTES

            rates[slot] = for_seconds(read, seconds).rate
            return 1

        threads_for_seconds([lambda number, slot=slot: caller(slot) for slot in range(callers)], 0.0)
        return {"rates": rates}

    obey({"run": run})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
