"""By how much the memory of meta and of a client grows while a large directory is filled and listed.

That it is bounded shows in two sizes, each with a cluster of its own: ten times the entries, and not more memory. The
peaks are the kernel's (VmHWM), before and after: of a meta daemon that has just started and filled one batch, until it
has filled the last; and after a restart and one page listed, until it has listed the last. The smaller directory is
listed as often as makes as many entries, so that caches have as much time to fill. The client that lists is a process
of its own, this file run as a program:

    memory.py URL PATH N    lists PATH N times; its peak in bytes after the first page and at the end, and the entries
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.context import Context
from benchmarks.rounds import Timed
from benchmarks.rows import Row, make_row
from fs3.client.connect import connect
from fs3.client.meta import Publish
from fs3.cluster.local import LocalCluster

BATCH = 512
PATH = "/large"
AT_MOST_TIMES = 2.0  # what grew with the entries would be 10
_NOISE_BYTES = 1 << 20  # the allocator's, below which peaks are not told apart


@dataclass(frozen=True, slots=True)
class Growth:
    """Of peaks, in bytes."""

    meta_filling: int
    meta_listing: int
    client_listing: int


def measure(context: Context) -> list[Row]:
    """Rows in a full run only: a million files take minutes."""
    if not context.sizes.directories:
        return []
    few, many = context.sizes.directories
    before, after = _growth(context, few, many // few), _growth(context, many, 1)

    def row(what: str, of: Callable[[Growth], int]) -> Row:
        beside = f"with {few:,} entries"
        runs = {"fs3": [_amount(of(after))], beside: [_amount(of(before))]}
        name = f"{what} {many:,} entries: memory grows by"
        return make_row(name, "MiB", runs, ours="fs3", others=[beside], at_most_times={beside: AT_MOST_TIMES})

    return [
        row("meta, filling a directory with", lambda growth: growth.meta_filling),
        row("meta, listing a directory of", lambda growth: growth.meta_listing),
        row("a client, listing a directory of", lambda growth: growth.client_listing),
    ]


def _amount(grown_bytes: int) -> Timed:
    return Timed(amount=max(grown_bytes, _NOISE_BYTES), seconds=1.0)


def _growth(context: Context, entries: int, times: int) -> Growth:
    context.say(f"memory: making {entries:,} files")
    with LocalCluster(context.folder / f"memory-{entries}", nodes=1, replicas=1, port=0) as cluster:
        filling = _fill(cluster, entries)
        cluster.kill("meta")
        cluster.restart("meta")
        cluster.wait_serving()
        context.say(f"memory: listing {entries:,} files")
        with closing(connect(cluster.url)) as client:
            next(client.files.meta.list(PATH))
        before = peak_bytes(cluster.pids["meta"])
        program = [sys.executable, __file__, cluster.url, PATH, str(times)]
        said = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True).stdout
        first, last, seen = map(int, said.split())
        if seen != entries * times:
            raise AssertionError(f"{seen} entries were listed of {entries * times}")
        return Growth(filling, peak_bytes(cluster.pids["meta"]) - before, last - first)


def _fill(cluster: LocalCluster, entries: int) -> int:
    """By how much meta's peak grew after the first batch."""
    before = 0
    with closing(connect(cluster.url)) as client:
        meta = client.files.meta
        meta.mkdir(PATH)
        for begin in range(0, entries, BATCH):
            paths = [f"{PATH}/{number:07}" for number in range(begin, min(begin + BATCH, entries))]
            made = meta.create_files(paths)
            meta.publish_files([Publish(one.inode_id, path, 0) for one, path in zip(made, paths, strict=True)])
            before = before or peak_bytes(cluster.pids["meta"])
    return peak_bytes(cluster.pids["meta"]) - before


def peak_bytes(pid: int | str) -> int:
    """The most memory that a process has had at once."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"process {pid} has ended")


def list_all(url: str, path: str, times: int) -> None:
    """As a client: says its own peaks, and how many entries it has seen."""
    seen, first = 0, 0
    with closing(connect(url)) as client:
        for _ in range(times):
            for page in client.files.meta.list(path):
                seen += len(page)
                first = first or peak_bytes("self")
    print(first, peak_bytes("self"), seen)


if __name__ == "__main__":
    list_all(sys.argv[1], sys.argv[2], int(sys.argv[3]))
