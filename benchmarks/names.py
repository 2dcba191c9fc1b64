"""Metadata: calls of one client on one meta with SQLite, single and in batches, beside other file systems' folders.

MooseFS (peers/moosefs.py) is run twice: as it comes, when its master answers before its changelog is on disk, and with
the changelog synced, which is what fs3 promises. A local folder is the machine's limit: through plain calls, synced as
well wherever something was changed, and through fsspec, which syncs nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from fsspec.spec import AbstractFileSystem

from benchmarks.context import Context
from benchmarks.folders import MOVED, THERE, Folder, FsspecFolder, MountedFolder, fresh_names, there_name
from benchmarks.peers.moosefs import MooseFS
from benchmarks.peers.peer import Missing
from benchmarks.rounds import Case, Step, Timed, for_seconds, prepared_for_seconds
from benchmarks.rows import Absent, Row, make_row
from fs3.client.connect import Client
from fs3.client.meta import Publish
from fs3.filesystem.spec import Fs3FileSystem

BATCH = 256
UNLINKS = 64  # at once, of files made beforehand
RANGES, RANGE_BYTES = 1_024, 16 << 10
DATA_BYTES = 4 << 10
OURS = "fs3"
MOOSEFS, MOOSEFS_SYNCED = "MooseFS", "MooseFS, changelog synced"
OS, OS_SYNCED, OS_SYNCED_ONCE = "local folder", "local folder, synced each", "local folder, synced once"
FSSPEC = "local folder, fsspec"
LIMITS = (OS, OS_SYNCED, OS_SYNCED_ONCE)
AT_LEAST_TIMES = 3.0
READS, CHANGES = (OS, MOOSEFS, FSSPEC), (OS_SYNCED, MOOSEFS_SYNCED, MOOSEFS, FSSPEC)


def measure(context: Context) -> list[Row]:
    """All rows of metadata."""
    with contextlib.ExitStack() as stack:
        names = _Names(context, stack)
        seconds = context.sizes.seconds
        create = {MOOSEFS_SYNCED: AT_LEAST_TIMES}
        stat = {MOOSEFS: AT_LEAST_TIMES}
        rows = [
            names.row("create, one at a time", "files/s", lambda folder: folder.create, CHANGES, create),
            names.row_of(
                "create as if to be written, then publish, one at a time",
                "files/s",
                lambda folder: functools.partial(
                    for_seconds, names.ours.create_to_write if folder is names.ours else folder.create, seconds
                ),
                [OS_SYNCED],
            ),
            names.row("stat, one at a time", "calls/s", lambda folder: folder.stat, READS, stat),
            names.row("open, one at a time", "calls/s", lambda folder: folder.open, READS),
            names.row("rename, one at a time", "calls/s", lambda folder: folder.rename, CHANGES),
            names.row_of("unlink, one at a time", "calls/s", lambda folder: _unlinks(folder, seconds), CHANGES),
            *names.batches(),
        ]
        rows.append(names.ranges())
        rows += names.large_directory()  # last: what was removed is collected meanwhile
    return rows


def _unlinks(folder: Folder, seconds: float) -> Case:
    def unlink() -> float:
        return sum(folder.unlink(number) for number in range(UNLINKS))

    return lambda: prepared_for_seconds(lambda: folder.doom(UNLINKS), unlink, seconds)


class _Fs3Folder:
    """A folder of fs3, by the calls of one client."""

    def __init__(self, client: Client, path: str) -> None:
        self.client, self.meta, self.path = client, client.files.meta, path
        self.there = [f"{path}/{there_name(number)}" for number in range(THERE)]
        self.fresh = (f"{path}/{name}" for name in fresh_names())
        self._doomed: list[str] = []
        self.meta.mkdir(path)
        for begin in range(0, THERE, BATCH):
            self.publish(self.there[begin : begin + BATCH])

    def create(self, _: int) -> float:
        """An empty file, as the others make them: one call."""
        self.meta.publish_files([Publish(0, next(self.fresh), 0)])
        return 1

    def create_to_write(self, _: int) -> float:
        self.publish([next(self.fresh)])
        return 1

    def create_batch(self, _: int) -> float:
        self.publish([next(self.fresh) for _ in range(BATCH)])
        return BATCH

    def create_data(self, _: int) -> float:
        paths = [next(self.fresh) for _ in range(BATCH)]
        self.client.files.create_batch(paths, [bytes(DATA_BYTES)] * BATCH)
        return BATCH

    def stat(self, number: int) -> float:
        self.meta.stat_one(self.there[number % THERE])
        return 1

    def stat_all(self, _: int) -> float:
        self.meta.stat(self.there)
        return THERE

    def open(self, number: int) -> float:
        self.client.files.open_read(self.there[number % THERE])
        return 1

    def rename(self, number: int) -> float:
        path, other = self.there[number % THERE], f"{self.path}/{MOVED}"
        self.meta.rename(path, other)
        self.meta.rename(other, path)
        return 2

    def unlink(self, _: int) -> float:
        self.meta.remove(self._doomed.pop())
        return 1

    def doom(self, count: int) -> None:
        self._doomed += [next(self.fresh) for _ in range(count)]
        self.publish(self._doomed[-count:])

    def publish(self, paths: list[str]) -> None:
        """New files by the two calls that one with content takes."""
        made = self.meta.create_files(paths)
        self.meta.publish_files([Publish(one.inode_id, path, 0) for one, path in zip(made, paths, strict=True)])


class _Names:
    """The folders that are compared, and the rows made from them."""

    def __init__(self, context: Context, stack: contextlib.ExitStack) -> None:
        self.context = context
        self.ours = _Fs3Folder(context.client, "/names")
        self.local = FsspecFolder(context.folder / "names")
        local = os.open(context.folder, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, local)
        self.parents = {OS: local}  # descriptors of directories that are mounted
        self.absent: dict[str, str] = {}
        for name, folder, synced in ((MOOSEFS, "moosefs", False), (MOOSEFS_SYNCED, "moosefs-synced", True)):
            try:
                self.parents[name] = stack.enter_context(MooseFS(context.folder / folder, synced=synced)).root
            except Missing as missing:
                self.absent[name] = str(missing)
        mounted = {name: stack.enter_context(MountedFolder(parent, "plain")) for name, parent in self.parents.items()}
        self.plain = mounted[OS]
        self.synced = stack.enter_context(MountedFolder(local, "synced", synced=True))
        self.folders: dict[str, Folder] = {OURS: self.ours, FSSPEC: self.local, OS_SYNCED: self.synced, **mounted}

    def row(
        self,
        name: str,
        unit: str,
        call: Callable[[Folder], Step],
        others: Sequence[str],
        at_least_times: Mapping[str, float] | None = None,
    ) -> Row:
        """One call again and again, in each folder."""
        seconds = self.context.sizes.seconds
        return self.row_of(
            name, unit, lambda folder: lambda: for_seconds(call(folder), seconds), others, at_least_times
        )

    def row_of(
        self,
        name: str,
        unit: str,
        case: Callable[[Folder], Case],
        others: Sequence[str],
        at_least_times: Mapping[str, float] | None = None,
    ) -> Row:
        cases = {other: case(self.folders[other]) for other in (OURS, *others) if other in self.folders}
        runs = self.context.measure(name, cases, writes=OS_SYNCED in others)
        return self.made(name, unit, runs, others, at_least_times)

    def made(
        self,
        name: str,
        unit: str,
        runs: Mapping[str, Sequence[Timed]],
        others: Sequence[str],
        at_least_times: Mapping[str, float] | None = None,
        at_least: float | None = None,
    ) -> Row:
        """The row; what could not be run stands in it by name."""
        wanted = at_least_times or {}
        return make_row(
            name,
            unit,
            runs,
            ours=OURS,
            limits=[other for other in others if other in LIMITS],
            others=[other for other in others if other in runs and other not in LIMITS],
            at_least=at_least,
            at_least_times={other: times for other, times in wanted.items() if other in runs},
            absent=[Absent(other, self.absent[other], wanted.get(other)) for other in others if other in self.absent],
        )

    def batches(self) -> list[Row]:
        """What fs3 does at once, beside single calls of the local folder, which are synced once where they are."""
        ours, local, seconds = self.ours, self.local, self.context.sizes.seconds
        plain, synced = self.plain, self.synced
        data = bytes(DATA_BYTES)
        create: dict[str, Step] = {
            OURS: ours.create_batch,
            OS_SYNCED_ONCE: lambda number: synced.create_many(BATCH),
            FSSPEC: local.create,
        }
        write: dict[str, Step] = {OURS: ours.create_data, FSSPEC: lambda number: local.write(data)}
        stat: dict[str, Step] = {OURS: ours.stat_all, OS: plain.stat, FSSPEC: local.stat}
        rows = []
        for name, unit, steps, at_least in (
            (f"create and publish, batches of {BATCH}", "files/s", create, 5_000),
            (f"create with 4 KiB each, batches of {BATCH}", "files/s", write, 1_500),
            (f"stat of {THERE} names", "names/s", stat, 50_000),
        ):
            cases = {case: functools.partial(for_seconds, step, seconds) for case, step in steps.items()}
            runs = self.context.measure(name, cases, writes=steps is not stat)
            others = [other for other in steps if other != OURS]
            rows.append(self.made(name, unit, runs, others, at_least=at_least))
        return rows

    def large_directory(self) -> list[Row]:
        """Listing of many entries with attributes, and how soon their removal is answered."""
        entries = self.context.sizes.entries
        path, local = f"{self.ours.path}/large", self.local.path / "large"
        self.context.say(f"making {entries:,} files")
        self.ours.meta.mkdir(path)
        local.mkdir()
        for begin in range(0, entries, BATCH):
            names = [there_name(number) for number in range(begin, min(begin + BATCH, entries))]
            self.ours.publish([f"{path}/{name}" for name in names])
            for name in names:
                (local / name).touch()

        def listed(_: int) -> float:
            return sum(len(page) for page in self.ours.meta.list(path))

        def listed_by_fsspec(_: int) -> float:
            return len(self.local.local.ls(str(local), detail=True))

        cases: dict[str, Case] = {
            OURS: lambda: for_seconds(listed, 0.0),
            FSSPEC: lambda: for_seconds(listed_by_fsspec, 0.0),
        }
        with contextlib.ExitStack() as stack:
            for other in (OS, MOOSEFS):
                if other in self.parents:
                    self.context.say(f"making {entries:,} files, {other}")
                    folder = stack.enter_context(MountedFolder(self.parents[other], "large", files=entries))
                    cases[other] = functools.partial(for_seconds, folder.list, 0.0)
            runs = self.context.measure("listing", cases)
        name = f"listing of {entries:,} entries with attributes"
        listing = self.made(name, "entries/s", runs, READS, at_least=50_000)

        def removed(_: int) -> float:
            self.ours.meta.remove(path, recursive=True)
            return 1

        def removed_locally(_: int) -> float:
            shutil.rmtree(local)
            return 1

        once: dict[str, list[Timed]] = {
            OURS: [for_seconds(removed, 0.0)],
            FSSPEC: [for_seconds(removed_locally, 0.0)],
        }
        removal = self.made(f"recursive removal of {entries:,} entries, once", "calls/s", once, [FSSPEC], at_least=10)
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
