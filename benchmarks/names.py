"""Metadata: calls of one client on one meta with SQLite, single and in batches, beside a local folder through fsspec.

The local folder's calls promise less: what fs3 answers is on stable storage, what the local file system answers is in
the page cache.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from benchmarks.context import Context
from benchmarks.rounds import Case, Step, Timed, for_seconds
from benchmarks.rows import Row, make_row
from fs3.client.meta import MetaClient, Publish
from fs3.filesystem.spec import Fs3FileSystem

BATCH = 256
STATS = 1_000
RANGES, RANGE_BYTES = 1_024, 16 << 10
DATA_BYTES = 4 << 10
MOOSEFS = {"create": 385.0, "stat": 7_200.0}  # a second, by another run on a machine like this; not installed here
LOCAL = "local folder, fsspec"
OURS = "fs3"


def measure(context: Context) -> list[Row]:
    """All rows of metadata."""
    names = _Names(context)
    rows = [
        names.row(
            "create and publish, one at a time", "files/s", names.create, _local_touch, at_least=3 * MOOSEFS["create"]
        ),
        names.row("stat, one at a time", "calls/s", names.stat, _local_stat, at_least=3 * MOOSEFS["stat"]),
        names.row("open, one at a time", "calls/s", names.open, _local_open),
        names.row("rename, one at a time", "calls/s", names.rename, _local_rename),
        names.row("unlink, one at a time", "calls/s", names.unlink, _local_unlink),
        names.row(
            f"create and publish, batches of {BATCH}", "files/s", names.create_batch, _local_touch, at_least=5_000
        ),
        names.row(
            f"create with 4 KiB each, batches of {BATCH}", "files/s", names.create_data, _local_write, at_least=1_500
        ),
        names.row(f"stat of {STATS} names", "names/s", names.stat_batch, _local_stat, at_least=50_000),
    ]
    rows += names.large_directory()
    rows.append(names.ranges())
    return rows


class _Names:
    def __init__(self, context: Context) -> None:
        self.context = context
        self.meta: MetaClient = context.client.files.meta
        self.folder = "/names"
        self.local = LocalFileSystem()
        self.local_folder = context.folder / "names"
        self.number: Iterator[int] = itertools.count()
        self._doomed: list[str] = []
        self.meta.mkdir(self.folder)
        self.local_folder.mkdir()
        self.there = [f"{self.folder}/there-{number:04}" for number in range(STATS)]
        for begin in range(0, STATS, BATCH):
            self._publish(self.there[begin : begin + BATCH])
        for number in range(STATS):
            (self.local_folder / f"there-{number:04}").touch()

    def row(
        self,
        name: str,
        unit: str,
        ours: Callable[[int], float],
        theirs: Callable[[_Names], Step],
        *,
        at_least: float | None = None,
    ) -> Row:
        seconds = self.context.sizes.seconds
        cases: dict[str, Case] = {
            OURS: lambda: for_seconds(ours, seconds),
            LOCAL: lambda: for_seconds(theirs(self), seconds),
        }
        runs = self.context.measure(name, cases)
        return make_row(name, unit, runs, ours=OURS, others=[LOCAL], at_least=at_least)

    # What fs3 does

    def create(self, _: int) -> float:
        self._publish([self._fresh()])
        return 1

    def create_batch(self, _: int) -> float:
        self._publish([self._fresh() for _ in range(BATCH)])
        return BATCH

    def create_data(self, _: int) -> float:
        self.context.client.files.create_batch([self._fresh() for _ in range(BATCH)], [bytes(DATA_BYTES)] * BATCH)
        return BATCH

    def stat(self, number: int) -> float:
        self.meta.stat_one(self.there[number % STATS])
        return 1

    def stat_batch(self, _: int) -> float:
        self.meta.stat(self.there)
        return STATS

    def open(self, number: int) -> float:
        self.context.client.files.open_read(self.there[number % STATS])
        return 1

    def rename(self, number: int) -> float:
        """There and back again."""
        path, other = self.there[number % STATS], f"{self.folder}/moved"
        self.meta.rename(path, other)
        self.meta.rename(other, path)
        return 2

    def unlink(self, _: int) -> float:
        """Those are made in batches, which is not what is measured, and takes little of the time."""
        if not self._doomed:
            self._doomed = [self._fresh() for _ in range(BATCH)]
            self._publish(self._doomed)
        self.meta.remove(self._doomed.pop())
        return 1

    def large_directory(self) -> list[Row]:
        """Listing of many entries with attributes, and how soon their removal is answered."""
        entries = self.context.sizes.entries
        path, local = f"{self.folder}/large", self.local_folder / "large"
        self.context.say(f"making {entries:,} files")
        self.meta.mkdir(path)
        local.mkdir()
        for begin in range(0, entries, BATCH):
            numbers = range(begin, min(begin + BATCH, entries))
            self._publish([f"{path}/{number:06}" for number in numbers])
            for number in numbers:
                (local / f"{number:06}").touch()

        def listed(_: int) -> float:
            return sum(len(page) for page in self.meta.list(path))

        def listed_locally(_: int) -> float:
            return len(self.local.ls(str(local), detail=True))

        cases: dict[str, Case] = {
            OURS: lambda: for_seconds(listed, 0.0),
            LOCAL: lambda: for_seconds(listed_locally, 0.0),
        }
        runs = self.context.measure("listing", cases)
        listing = make_row(
            f"listing of {entries:,} entries with attributes",
            "entries/s",
            runs,
            ours=OURS,
            others=[LOCAL],
            at_least=50_000,
        )

        def removed(_: int) -> float:
            self.meta.remove(path, recursive=True)
            return 1

        def removed_locally(_: int) -> float:
            shutil.rmtree(local)
            return 1

        once: dict[str, list[Timed]] = {
            OURS: [for_seconds(removed, 0.0)],
            LOCAL: [for_seconds(removed_locally, 0.0)],
        }
        removal = make_row(
            f"recursive removal of {entries:,} entries, once", "calls/s", once, ours=OURS, others=[LOCAL], at_least=10
        )
        return [listing, removal]

    def ranges(self) -> Row:
        """Through fsspec: one batch, beside a `cat_file` for each range, which is what fsspec does by itself."""
        self.context.remote(3)
        fs = Fs3FileSystem(**Fs3FileSystem._get_kwargs_from_urls(self.context.cluster.url))
        path = f"{self.context.cluster.url}/noise-3"
        chance = np.random.default_rng(3)
        starts = (chance.integers(0, self.context.sizes.file_bytes // RANGE_BYTES, RANGES) * RANGE_BYTES).tolist()
        ends = [start + RANGE_BYTES for start in starts]
        paths = [path] * RANGES

        def batched(_: int) -> float:
            fs.cat_ranges(paths, starts, ends, on_error="raise")
            return RANGES

        def one_by_one(_: int) -> float:
            AbstractFileSystem.cat_ranges(fs, paths, starts, ends, on_error="raise")
            return RANGES

        expected = AbstractFileSystem.cat_ranges(fs, paths[:64], starts[:64], ends[:64])
        if fs.cat_ranges(paths[:64], starts[:64], ends[:64]) != expected:
            raise AssertionError(f"cat_ranges of {path} gives other bytes than cat_file")
        seconds = self.context.sizes.seconds
        default = "fsspec's default, a cat_file each"
        cases: dict[str, Case] = {
            OURS: lambda: for_seconds(batched, seconds),
            default: lambda: for_seconds(one_by_one, seconds),
        }
        runs = self.context.measure("cat_ranges", cases)
        name = f"cat_ranges of {RANGES:,} x 16 KiB"
        return make_row(name, "ranges/s", runs, ours=OURS, others=[default], at_least_times={default: 5.0})

    def _publish(self, paths: list[str]) -> None:
        made = self.meta.create_files(paths)
        self.meta.publish_files([Publish(one.inode_id, path, 0) for one, path in zip(made, paths, strict=True)])

    def _fresh(self) -> str:
        return f"{self.folder}/new-{next(self.number)}"

    def fresh_local(self) -> Path:
        return self.local_folder / f"new-{next(self.number)}"


# What the local file system does


def _local_touch(names: _Names) -> Step:
    def step(_: int) -> float:
        names.local.touch(str(names.fresh_local()))
        return 1

    return step


def _local_write(names: _Names) -> Step:
    data = bytes(DATA_BYTES)

    def step(_: int) -> float:
        names.local.pipe_file(str(names.fresh_local()), data)
        return 1

    return step


def _local_stat(names: _Names) -> Step:
    paths = [str(names.local_folder / f"there-{number:04}") for number in range(STATS)]

    def step(number: int) -> float:
        names.local.info(paths[number % STATS])
        return 1

    return step


def _local_open(names: _Names) -> Step:
    paths = [str(names.local_folder / f"there-{number:04}") for number in range(STATS)]

    def step(number: int) -> float:
        names.local.open(paths[number % STATS], "rb").close()
        return 1

    return step


def _local_rename(names: _Names) -> Step:
    path, other = str(names.local_folder / "there-0000"), str(names.local_folder / "moved")

    def there_and_back(_: int) -> float:
        names.local.mv(path, other)
        names.local.mv(other, path)
        return 2

    return there_and_back


def _local_unlink(names: _Names) -> Step:
    doomed: list[Path] = []

    def step(_: int) -> float:
        if not doomed:
            doomed.extend(names.fresh_local() for _ in range(BATCH))
            for path in doomed:
                path.touch()
        names.local.rm_file(str(doomed.pop()))
        return 1

    return step
