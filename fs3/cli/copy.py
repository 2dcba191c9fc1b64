"""Copying trees between local disks and clusters: `fs3 cp`, and `fs3 mv` between filesystems.

A copy is planned first (what goes where, how many bytes), so that the progress bar knows its end. Small files travel in
batches: a cluster reads and creates them many at a time. A local file is written under a temporary name and moved into
place (a device or a pipe is written itself), a cluster's file gets its name when it is whole, so an interrupted copy
leaves no file that looks complete.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fs3.cli.places import Failures, Place, walk
from fs3.client.trash import TRASH
from fs3.errors import Unavailable

SMALL_BYTES = 256 << 10
BATCH_FILES = 256
BATCH_BYTES = 16 << 20
PIECE_BYTES = 16 << 20
_TRASH = posixpath.basename(TRASH)


@dataclass(slots=True)
class Plan:
    """What to do: directories to make, then files to copy as (source, target, bytes)."""

    directories: list[Place] = field(default_factory=list)
    files: list[tuple[Place, Place, int]] = field(default_factory=list)


def plan_tree(source: Place, target: Place, *, recursive: bool, failures: Failures, plan: Plan) -> None:
    """Add `source` to the plan, as exactly `target`. What cannot be read of it is a failure, and left out.

    The trash of a cluster does not go along when all of the cluster is copied; /.trash itself can be named.
    """
    with failures.of("cannot stat", source.text):
        info = source.info()
        if info["type"] != "directory":
            plan.files.append((source, target, int(info["size"] or 0)))
            return
        if not recursive:
            failures.say(f"-r not specified; omitting directory '{source.text}'")
            return
        inside_it = (target.path + "/").startswith(source.path.rstrip("/") + "/")
        if inside_it and source.shares_filesystem(target):
            failures.say(f"cannot copy a directory, '{source.text}', into itself, '{target.text}'")
            return
        plan.directories.append(target)
        whole = source.path == "/" and not source.is_local
        for inside, entry in walk(source, failures, without=_TRASH if whole else ""):
            if entry["type"] == "directory":
                plan.directories.append(target.child(inside))
            elif entry["type"] == "file":
                plan.files.append((source.child(inside), target.child(inside), int(entry["size"] or 0)))
            else:
                failures.say(f"'{source.child(inside).text}' is neither a file nor a directory; skipped")


def run(plan: Plan, failures: Failures, *, quiet: bool = False) -> None:
    """Carry out the plan with a progress bar on a terminal."""
    files = _make_directories(plan, failures)
    if not files:
        return
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    with bar:
        total = sum(size for _, _, size in files)
        task = bar.add_task(f"{len(files)} files" if len(files) != 1 else files[0][0].name, total=total)

        def advance(count: int) -> None:
            bar.advance(task, count)

        for batch in _batches(files):
            if len(batch) > 1:
                _copy_small(batch, failures)
                advance(sum(size for _, _, size in batch))
            else:
                source, target, _ = batch[0]
                with failures.of("cannot copy", f"{source.text}' to '{target.text}"):
                    copy_file(source, target, advance)


def _make_directories(plan: Plan, failures: Failures) -> list[tuple[Place, Place, int]]:
    """Make the plan's directories; the files that have somewhere to go. What goes below a failure is not tried."""
    lost: list[Place] = []

    def is_lost(place: Place) -> bool:
        return any(place.fs is above.fs and place.path.startswith(above.path + "/") for above in lost)

    for directory in plan.directories:
        if is_lost(directory):
            continue
        before = failures.count
        with failures.of("cannot create directory", directory.text):
            directory.fs.makedirs(directory.path, exist_ok=True)
        if failures.count > before:
            lost.append(directory)
    return [entry for entry in plan.files if not is_lost(entry[1])]


def _batches(files: list[tuple[Place, Place, int]]) -> Iterator[list[tuple[Place, Place, int]]]:
    """Runs of small files between the same two filesystems together, others alone."""
    batch: list[tuple[Place, Place, int]] = []
    held = 0
    for entry in files:
        source, target, size = entry
        same = not batch or (batch[0][0].fs is source.fs and batch[0][1].fs is target.fs)
        if batch and (size > SMALL_BYTES or not same or len(batch) >= BATCH_FILES or held + size > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        if size > SMALL_BYTES:
            yield [entry]
        else:
            batch.append(entry)
            held += size
    if batch:
        yield batch


def _copy_small(batch: list[tuple[Place, Place, int]], failures: Failures) -> None:
    """Copy many small files in one read and one write; those that cannot be read or written fail alone."""
    source_fs = batch[0][0].fs
    found = source_fs.cat_ranges([source.path for source, _, _ in batch], None, None, on_error="return")
    good: list[tuple[Place, Place, bytes]] = []
    for (source, target, _), data in zip(batch, found, strict=True):
        with failures.of("cannot read", source.text):
            if isinstance(data, Exception):
                raise data
            good.append((source, target, data))
    if good and not _written_together(good, failures):
        for source, target, data in good:
            with failures.of("cannot copy", f"{source.text}' to '{target.text}"):
                _write_small(target, data)


def _written_together(files: list[tuple[Place, Place, bytes]], failures: Failures) -> bool:
    """Whether they need not be written one by one: all are written, or none can be."""
    target = files[0][1]
    if target.is_local:
        return False
    with failures.of(f"cannot write {len(files)} files to", target.text.rpartition("/")[0]):
        try:
            target.fs.pipe({target.path: data for _, target, data in files})
        except OSError as error:
            if error.errno != Unavailable.errno:
                return False  # one of them is the reason
            raise
    return True


def _write_small(target: Place, data: bytes) -> None:
    if target.is_local:
        with _local_target(target.path) as temporary, open(temporary, "wb") as out:
            out.write(data)
    else:
        target.fs.pipe_file(target.path, data)


def copy_file(source: Place, target: Place, advance: Callable[[int], None]) -> None:
    """Copy one file in pieces. Raises: OSError; the target is then what it was before."""
    with source.fs.open(source.path, "rb") as reader:
        if target.is_local:
            with _local_target(target.path) as temporary, open(temporary, "wb") as writer:
                _pump(reader, writer, advance)
        else:
            with target.fs.open(target.path, "wb") as writer:
                _pump(reader, writer, advance)


def _pump(reader: object, writer: object, advance: Callable[[int], None]) -> None:
    buffer = memoryview(bytearray(PIECE_BYTES))
    while count := reader.readinto(buffer):  # type: ignore[attr-defined]
        writer.write(buffer[:count])  # type: ignore[attr-defined]
        advance(count)


class _local_target:  # noqa: N801 - a context manager, named as one reads
    """A temporary file beside `path` that takes its place when the block ends well, and goes when it does not.

    What the file was allowed stays; of a symlink, what it leads to is replaced. What is no regular file, such as a
    device or a pipe, is itself what is to be written.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> str:
        before = os.stat(self.path).st_mode if os.path.exists(self.path) else None
        if before is not None and stat.S_ISDIR(before):
            raise IsADirectoryError(21, "Is a directory", self.path)
        self.temporary = ""
        if before is not None and not stat.S_ISREG(before):
            return self.path
        self.mode = None if before is None else stat.S_IMODE(before)
        self.path = os.path.realpath(self.path)
        folder, name = os.path.split(self.path)
        handle, self.temporary = tempfile.mkstemp(prefix=f".{name[:100]}.", suffix=".fs3-partial", dir=folder)
        os.close(handle)
        return self.temporary

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self.temporary:
            return
        if kind is not None:
            os.unlink(self.temporary)
            return
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(self.temporary, 0o666 & ~umask if self.mode is None else self.mode)
        os.replace(self.temporary, self.path)
