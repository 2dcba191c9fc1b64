"""What goes wrong in a soak, drawn from its seed, and put right again.

A fault has a beginning, a length and an end, after which whatever it spoiled is as before. Storage nodes lose at most
as many of their number at once as leaves one; often the next fault comes while recovery from the last still runs.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from soak_cluster import Cluster
from soak_network import Missing, Network

_DEVICE_FILE = "blkio.throttle.write_bps_device"


@dataclass(slots=True)
class Fault:
    """One fault; times are CLOCK_MONOTONIC, `end` undoes it."""

    kind: str
    what: str
    lasts_s: float
    begin: Callable[[], None]
    end: Callable[[], None]
    begun_ns: int = 0
    ended_ns: int = 0
    storage: frozenset[str] = field(default_factory=frozenset)  # nodes that it takes out

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


class Nemesis:
    """Draws faults for a cluster and its clients. `cannot` says what is left out, and why."""

    def __init__(self, cluster: Cluster, network: Network, clients: list[str], rng: random.Random) -> None:
        self._cluster = cluster
        self._network = network
        self._clients = clients
        self._rng = rng
        self._storage = [name for name in cluster.names if name.startswith("storage-")]
        self._disks = SlowDisks(cluster.folder)
        self.cannot = dict(network.cannot)
        if self._disks.why_not:
            self.cannot["slow-disk"] = self._disks.why_not
        kinds: dict[str, tuple[int, Callable[[], Fault]]] = {
            "kill-storage": (6, self._kill_storage),
            "freeze-storage": (4, self._freeze_storage),
            "cut-one-way": (4, self._cut_one_way),
            "partition": (4, self._partition),
            "loss": (2, self._loss),
            "delay": (2, self._delay),
            "throttle": (1, self._throttle),
            "slow-disk": (2, self._slow_disk),
            "kill-mgmtd": (2, self._kill_primary),
            "freeze-mgmtd": (1, self._freeze_primary),
            "kill-meta": (2, self._kill_meta),
        }
        self._kinds = {kind: pair for kind, pair in kinds.items() if kind not in self.cannot}
        self._due: list[str] = []

    def draw(self, out: frozenset[str]) -> Fault:
        """The next fault, while the storage nodes `out` are out of order already. Every kind comes before the first
        comes often."""
        if not self._due:
            self._due = list(self._kinds)
            self._rng.shuffle(self._due)
        if self._rng.random() < 0.5:
            kind = self._due.pop()
        else:
            kind = self._rng.choices(list(self._kinds), [weight for weight, _ in self._kinds.values()])[0]
        for _ in range(20):
            fault = self._kinds[kind][1]()
            if len(out | fault.storage) < len(self._storage) and not out & fault.storage:
                return fault
            kind = self._rng.choice(list(self._kinds))
        return self._kill_meta()

    def _lasts(self, least: float = 1.0, most: float = 9.0) -> float:
        return round(self._rng.uniform(least, most), 1)

    def _killed(self, kind: str, name: str, lasts_s: float, storage: frozenset[str]) -> Fault:
        cluster = self._cluster
        return Fault(kind, name, lasts_s, lambda: cluster.kill(name), lambda: cluster.start(name), storage=storage)

    def _kill_storage(self) -> Fault:
        name = self._rng.choice(self._storage)
        return self._killed("kill-storage", name, self._lasts(0.5), frozenset({name}))

    def _kill_primary(self) -> Fault:
        return self._killed("kill-mgmtd", self._cluster.primary(), self._lasts(), frozenset())

    def _kill_meta(self) -> Fault:
        return self._killed("kill-meta", self._rng.choice(["meta-1", "meta-2"]), self._lasts(), frozenset())

    def _frozen(self, kind: str, name: str, storage: frozenset[str]) -> Fault:
        cluster = self._cluster
        return Fault(
            kind, name, self._lasts(0.3), lambda: cluster.freeze(name), lambda: cluster.thaw(name), storage=storage
        )

    def _freeze_storage(self) -> Fault:
        name = self._rng.choice(self._storage)
        return self._frozen("freeze-storage", name, frozenset({name}))

    def _freeze_primary(self) -> Fault:
        return self._frozen("freeze-mgmtd", self._cluster.primary(), frozenset())

    def _cuts(self, kind: str, what: str, links: list[tuple[str, str]], storage: frozenset[str]) -> Fault:
        network = self._network

        def begin() -> None:
            for link in links:
                network.cut(*link)

        def end() -> None:
            for link in links:
                network.mend(*link)

        return Fault(kind, what, self._lasts(), begin, end, storage=storage)

    def _cut_one_way(self) -> Fault:
        everybody = [*self._cluster.names, *self._clients]
        sender = self._rng.choice(self._storage)
        receiver = self._rng.choice([name for name in everybody if name != sender])
        if self._rng.random() < 0.5:
            sender, receiver = receiver, sender
        storage = frozenset(name for name in (sender, receiver) if name in self._storage)
        return self._cuts(
            "cut-one-way", f"{sender} -> {receiver}", [(sender, receiver)], frozenset(sorted(storage)[:1])
        )

    def _partition(self) -> Fault:
        """One daemon from all others, or one from one."""
        everybody = [*self._cluster.names, *self._clients]
        name = self._rng.choice([*self._storage, *self._storage, self._cluster.primary(), *self._clients])
        others = [other for other in everybody if other != name]
        if self._rng.random() < 0.5:
            others = [self._rng.choice(others)]
        links = [link for other in others for link in ((name, other), (other, name))]
        what = f"{name} | {others[0] if len(others) == 1 else 'all'}"
        return self._cuts("partition", what, links, frozenset({name} & set(self._storage)))

    def _spoiled(self, kind: str, name: str, say: str, begin: Callable[[], None]) -> Fault:
        return Fault(kind, f"{name}, {say}", self._lasts(2.0), begin, lambda: self._network.clear(name))

    def _loss(self) -> Fault:
        name, percent = self._rng.choice([*self._storage, *self._clients]), self._rng.choice((2, 10, 30))
        return self._spoiled("loss", name, f"{percent}%", lambda: self._network.lose(name, percent))

    def _delay(self) -> Fault:
        name, by_ms = self._rng.choice([*self._storage, *self._clients]), self._rng.choice((20, 100, 400))
        return self._spoiled("delay", name, f"{by_ms} ms", lambda: self._network.delay(name, by_ms))

    def _throttle(self) -> Fault:
        name, megabits = self._rng.choice(self._storage), self._rng.choice((2, 10))
        return self._spoiled("throttle", name, f"{megabits} Mbit/s", lambda: self._network.throttle(name, megabits))

    def _slow_disk(self) -> Fault:
        name = self._rng.choice([name for name in self._storage if self._cluster.runs(name)])
        rate = self._rng.choice((64 << 10, 512 << 10))
        return Fault(
            "slow-disk",
            f"{name}, {rate >> 10} KiB/s",
            self._lasts(2.0),
            lambda: self._disks.slow(name, self._cluster.pid(name), rate),
            lambda: self._disks.undo(name),
        )

    def close(self) -> None:
        """Leave nothing behind."""
        self._disks.close()


class SlowDisks:
    """Writes of a process to the disk under `folder`, throttled by a control group. `why_not`: why that cannot be."""

    def __init__(self, folder: Path) -> None:
        self.why_not = ""
        self._made: dict[str, Path] = {}
        self._root = Path("/sys/fs/cgroup/blkio")
        self._file = _DEVICE_FILE
        self._line = "{device} {rate}\n"
        if not (self._root / _DEVICE_FILE).exists():
            self._root = next(
                (one for one in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")) if _has_io(one)), Path()
            )
            self._file, self._line = "io.max", "{device} wbps={rate}\n"
        if self._root == Path():
            self.why_not = "no control group here throttles disks (blkio of version 1, or io of version 2)"
            return
        number = os.stat(folder).st_dev
        device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        if not device.exists():
            self.why_not = f"{folder} is on no block device"
            return
        if (device / "partition").exists():
            device = device.resolve().parent
        self._device = (device / "dev").read_text().strip()
        try:
            self._group("probe")
        except OSError as error:
            self.why_not = f"{self._root} cannot be written: {error.strerror}"

    def slow(self, name: str, pid: int, rate: int) -> None:
        """Throttle what a process writes to `rate` bytes/s."""
        group = self._group(name)
        (group / self._file).write_text(self._line.format(device=self._device, rate=rate))
        (group / "cgroup.procs").write_text(str(pid))

    def undo(self, name: str) -> None:
        """Let it write again."""
        group = self._made.get(name)
        if group is not None:
            rate = 0 if self._file == _DEVICE_FILE else "max"
            (group / self._file).write_text(self._line.format(device=self._device, rate=rate))

    def close(self) -> None:
        """Remove the groups; their processes have ended."""
        for group in self._made.values():
            try:
                group.rmdir()
            except OSError:
                continue  # somebody still runs in it: an empty limit stays behind
        self._made.clear()

    def _group(self, name: str) -> Path:
        group = self._root / f"fs3-soak-{os.getpid()}-{name}"
        group.mkdir(exist_ok=True)
        self._made[name] = group
        return group


def _has_io(root: Path) -> bool:
    try:
        return "io" in (root / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


__all__ = ["Fault", "Missing", "Nemesis", "SlowDisks"]
