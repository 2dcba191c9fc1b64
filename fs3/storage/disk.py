"""What an engine needs of its disk: the folder of a real one, claimed for this process; the simulator has others.

ENGINE      JSON: format, cluster_id; written once
LOCK        flocked while open, holds the process id
BOOT        the boot id of the machine when the folder was last opened; from the first opening on. Another text once a
            sync of a block file has failed
RUN         the number of the daemon's last run (run_number.py)
SYNCED      how far the records are known to be on stable storage (sequence_floor.py)
blocks/     block files
metadata/   RocksDB
worker-N/   the same again: the engine of worker N, where workers of a daemon share the disk (share_core.py)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fs3.errors import Corrupt, Invalid, NoSpace, PermissionDenied, Unavailable
from fs3.ids import node_name
from fs3.storage.metadata import Metadata, MetadataStore
from fs3.storage.raw_file import FileFolder, SystemFolder, sync_folder
from fs3.storage.run_number import last_run, note_run
from fs3.transport.change_counters import ChangeCounters, end

_LOG = logging.getLogger("fs3.storage")

FORMAT = 1
_MARKER, _LOCK, _BOOT, _CHANGES = "ENGINE", "LOCK", "BOOT", "CHANGES"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One disk, open. `lost_power`: what was written without syncs may be gone since the last opening.

    `shared_by` so many engines, each in a process of its own, which take what is free as they need it. `changes` tell
    clients of this host what changes here, where that can be had.
    """

    name: str
    folder: FileFolder
    metadata: MetadataStore
    free_bytes: Callable[[], int]
    lost_power: bool
    shared_by: int = 1
    opened: Callable[[], None]  # everything that may have been lost has been checked
    doubt: Callable[[], None]  # what was written without syncs may be gone, though the power was not; never raises
    last_run: int = 0  # the number of the daemon's last run on it (run_number.py)
    note_run: Callable[[int], None]  # remember that of this one; never raises
    close: Callable[[], None]  # let go of the disk, after its metadata and files were closed
    changes: ChangeCounters | None = None


def has_engine(path: Path) -> bool:
    """Whether the folder was made for a chunk engine."""
    return (path / _MARKER).exists()


def folder_disk(
    path: Path,
    *,
    cluster_id: str,
    node_id: int,
    create: bool,
    write_buffer_bytes: int,
    least_bytes: int = 0,
    shared_by: int = 1,
) -> Disk:
    """The disk in folder `path`; one that is made there must have more than `least_bytes` free.

    Raises: as `Engine.open`.
    """
    if create and least_bytes and not has_engine(path):
        _check_free(path, least_bytes)
    lock = _claim(path, cluster_id=cluster_id, node_id=node_id, create=create)
    try:
        changes = _count_changes(path)  # before anything else is done here, since it ends those of the run before
        _check_metadata(path)
        metadata = Metadata(path / "metadata", write_buffer_bytes=write_buffer_bytes)
    except BaseException:
        os.close(lock)
        raise
    return Disk(
        name=str(path),
        folder=SystemFolder(path / "blocks"),
        metadata=metadata,
        free_bytes=lambda: _free_bytes(path),
        lost_power=_booted_since(path),
        shared_by=shared_by,
        opened=lambda: _note_boot(path, _boot_id()),
        doubt=lambda: _doubt(path),
        last_run=last_run(path),
        note_run=lambda number: note_run(path, number),
        close=lambda: os.close(lock),
        changes=changes,
    )


def _count_changes(path: Path) -> ChangeCounters | None:
    """Raises: Unavailable: those of the run before cannot be ended, and clients might go on relying on them."""
    try:
        end(path / _CHANGES)
    except OSError as error:
        raise Unavailable(f"{path / _CHANGES}: {error.strerror}; see that the daemon may write there") from None
    try:
        return ChangeCounters(path / _CHANGES)
    except (OSError, ValueError) as error:
        _LOG.warning("%s: %s; clients of this host will ask for every read", path / _CHANGES, error)
        return None


def _check_free(path: Path, least_bytes: int) -> None:
    """Before anything is made there. Raises: NoSpace."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = _free_bytes(there)
    if free <= least_bytes:
        raise NoSpace(
            f"{path}: its disk has {free >> 20} MiB free, and {least_bytes >> 20} MiB are kept for the metadata "
            f"(reserve_bytes): there is no room for chunks; name a folder on a larger disk"
        )


def _free_bytes(path: Path) -> int:
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def _check_metadata(path: Path) -> None:
    """RocksDB would begin anew where its files are gone, and the chunks with it. Raises: Corrupt."""
    if (path / _BOOT).exists() and not (path / "metadata" / "CURRENT").exists():
        raise Corrupt(
            f"metadata in {path / 'metadata'} is gone (no file CURRENT there), though the disk was in use; nothing was"
            " changed. Its chunks are on the other replicas: move this disk's folder away and start again, and recovery"
            " refills it"
        )


def _claim(path: Path, *, cluster_id: str, node_id: int, create: bool) -> int:
    """Make or recognise the folder and lock it; the lock is a descriptor to keep open.

    Raises: NotFound-like `Invalid` (no such folder, or not an engine's), PermissionDenied (another cluster's,
        or another node's), Unavailable (in use).
    """
    marker = path / _MARKER
    if not marker.exists() and not create:
        raise Invalid(f"{path}: no chunk engine here; check the disk is mounted, or format it")
    path.mkdir(parents=True, exist_ok=True)
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise Unavailable(f"{path}: in use by process {owner}; stop that daemon first") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        if marker.exists():
            _check_marker(path, marker, cluster_id, node_id)
        else:
            _make_folder(path)
            _write_marker(marker, cluster_id, node_id)
            _LOG.warning("%s: nothing is there: taken as a new disk; if it is not one, is the disk mounted?", path)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _check_marker(path: Path, marker: Path, cluster_id: str, node_id: int) -> None:
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
        version, owner, node = found["format"], found["cluster_id"], int(found.get("node_id", 0))
    except (ValueError, KeyError, TypeError):
        raise Corrupt(f"{marker}: damaged; restore the file, or empty the folder to refill it") from None
    if version != FORMAT:
        raise Invalid(f"{path}: chunk engine format {version}; this fs3 reads format {FORMAT}")
    if owner != cluster_id:
        raise PermissionDenied(f"{path}: belongs to cluster {owner!r}, not to {cluster_id!r}; give each its own folder")
    if node and node_id and node != node_id:
        raise PermissionDenied(
            f"{path}: the disk of node {node_name(node)}, and this daemon has node_id {node_name(node_id)}; give it"
            " that node_id, or a disk of its own"
        )
    if node_id and not node:
        _write_marker(marker, cluster_id, node_id)


def _make_folder(path: Path) -> None:
    ours = (_LOCK, _MARKER + ".new", "blocks")
    strangers = sorted(
        entry.name for entry in path.iterdir() if entry.name not in ours and not entry.name.startswith("worker-")
    )
    if strangers:
        raise Invalid(f"{path}: not empty ({strangers[0]} is there); give the chunk engine a folder of its own")
    (path / "blocks").mkdir(exist_ok=True)


def _write_marker(marker: Path, cluster_id: str, node_id: int) -> None:
    draft = marker.with_suffix(".new")
    with draft.open("w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "cluster_id": cluster_id, "node_id": node_id}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(marker)
    sync_folder(marker.parent)


def _booted_since(path: Path) -> bool:
    """Whether the machine has (or may have) booted since the folder was last opened."""
    with contextlib.suppress(OSError, ValueError):
        return (path / _BOOT).read_text(encoding="ascii") != _boot_id()
    return True


def _note_boot(path: Path, boot: str) -> None:
    """Remember this boot, once what it may have lost has been checked."""
    draft = path / (_BOOT + ".new")
    draft.write_text(boot, encoding="ascii")
    draft.rename(path / _BOOT)


def _doubt(path: Path) -> None:
    """Have the next opening check as after a power loss: a sync that fails has the kernel drop pages (fsyncgate)."""
    try:
        _note_boot(path, "none: a sync of a block file has failed")
    except OSError as error:
        _LOG.warning("%s: %s; what was written without syncs may be taken for whole", path / _BOOT, error.strerror)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"unknown {os.urandom(8).hex()}"
