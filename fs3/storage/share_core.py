"""Which worker of a storage daemon has what of its disks.

    as many disks as workers, or more    disk i is worker i mod N's
    fewer                                every disk is shared: worker w has a chunk engine on disk w mod n
    a worker's engine, once there        stays its own, whatever the numbers are by then

So what has data is never dealt anew: a daemon that gets more workers goes on with its engines in worker 0, and the new
workers begin empty. An engine's folder tells whose it is: worker 0's is the disk's folder itself, the others' are
folders in it. What is on a disk that came back empty, mgmtd knows: `placed` are the places of the targets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Place = tuple[int, int]
"""A worker, and a disk that it has something of."""


@dataclass(frozen=True, slots=True)
class Share:
    """A worker's part of disk number `disk`: the folder of its engine, and how many workers the disk is shared by."""

    disk: int
    folder: Path
    shared_by: int = 1


def engine_folder(disk: Path, worker: int) -> Path:
    """Where a worker's engine on a disk is."""
    return disk / f"worker-{worker}" if worker else disk


def deal(disks: int, workers: int, known: Collection[Place]) -> list[Place]:
    """Every place of each worker below `workers`, in order; `known` are those that have an engine or targets."""
    places = {(worker, disk) for worker, disk in known if worker < workers and disk < disks}
    places |= {(disk % workers, disk) for disk in set(range(disks)) - {disk for _, disk in places}}
    places |= {(worker, worker % disks) for worker in set(range(workers)) - {worker for worker, _ in places}}
    return sorted(places)


def shares(disks: Sequence[Path], workers: int, known: Collection[Place]) -> Iterator[tuple[int, Share]]:
    """Every worker, and a share that it has."""
    places = deal(len(disks), workers, known)
    for worker, disk in places:
        shared_by = sum(other == disk for _, other in places)
        yield worker, Share(disk, engine_folder(disks[disk], worker), shared_by)
