"""The folder of a local cluster: what it remembers, who is using it, and the daemons' configurations.

DIR/fs3-cluster.json      marks the folder as fs3's and remembers its shape and ports
DIR/LOCK                  locked by whoever runs the cluster and by each of its daemons, which inherit the lock
DIR/config/NAME.toml      one per daemon, written anew at every start
DIR/log/NAME.log          DIR/mgmtd, DIR/meta, DIR/storage-N/disk    data        DIR/run    pids and sockets
DIR/etcd                  with --kv etcd: its members' data (etcd.py), in which mgmtds and metas have their stores

The first mgmtd is called mgmtd, the others mgmtd-2 and so on; so with metas. All mgmtds share the store in DIR/mgmtd,
all metas that in DIR/meta, unless etcd holds both. etcd's members are called etcd-1 and so on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fs3.config import from_mapping
from fs3.errors import Invalid
from fs3.ids import MAX_WORKERS

MARKER = "fs3-cluster.json"
FORMAT = 4
HOST = "127.0.0.1"
FAVOURITE_PORT = 7300
_PORTS = range(10_000, 32_000)  # below the kernel's ephemeral ports, so that they are free again at the next start
_LONGEST_SOCKET_PATH = 80
_READABLE = (1, 2, 3, FORMAT)  # 1 had one mgmtd and one meta, 2 no etcd, 3 no workers
_STORAGE = "storage-"
_MOST = 9  # mgmtds, or metas, of one machine

SQLITE = "sqlite"
ETCD = "etcd"

META_NODE = 1_001
MGMTD_NODE = 2_001


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a cluster was made as; `ports` holds a service and a metrics port for each daemon's name.

    Each of a storage daemon's `workers` has both, higher than those by its number.
    """

    nodes: int
    replicas: int
    mgmtds: int = 1
    metas: int = 1
    workers: int = 1
    lease_s: float = 3.0
    kv: str = SQLITE
    format: int = FORMAT
    ports: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= 1_000:
            raise Invalid(f"--nodes {self.nodes}: must be between 1 and 1000")
        if not 1 <= self.replicas <= self.nodes:
            raise Invalid(f"--replicas {self.replicas}: must be between 1 and the number of nodes ({self.nodes})")
        if not 1 <= self.workers <= MAX_WORKERS:
            raise Invalid(f"--workers {self.workers}: must be between 1 and {MAX_WORKERS}")
        if self.kv not in (SQLITE, ETCD):
            raise Invalid(f"--kv {self.kv}: must be {SQLITE} or {ETCD}")
        for option, count in (("--mgmtds", self.mgmtds), ("--metas", self.metas)):
            if not 1 <= count <= _MOST:
                raise Invalid(f"{option} {count}: must be between 1 and {_MOST}")

    @property
    def mgmtd_names(self) -> tuple[str, ...]:
        return numbered("mgmtd", self.mgmtds)

    @property
    def meta_names(self) -> tuple[str, ...]:
        return numbered("meta", self.metas)

    @property
    def names(self) -> tuple[str, ...]:
        """The daemons in the order in which they start."""
        return (*self.mgmtd_names, *self.meta_names, *(storage_name(node) for node in range(1, self.nodes + 1)))

    def workers_of(self, name: str) -> int:
        """How many processes the daemon of this name has that listen."""
        return self.workers if name.startswith(_STORAGE) else 1

    def ports_of(self, name: str) -> list[int]:
        """All ports of a daemon that has some."""
        return [first + worker for first in self.ports.get(name, ()) for worker in range(self.workers_of(name))]

    @property
    def address(self) -> str:
        """The first mgmtd's "host:port"."""
        return self.addresses[0]

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every mgmtd's "host:port"."""
        return tuple(f"{HOST}:{self.ports[name][0]}" for name in self.mgmtd_names)


def numbered(kind: str, count: int) -> tuple[str, ...]:
    """The names of the daemons of a kind: the first has no number."""
    return (kind, *(f"{kind}-{number}" for number in range(2, count + 1)))


def storage_name(node: int) -> str:
    """The name of storage daemon `node` (from 1)."""
    return f"{_STORAGE}{node}"


class Folder:
    """A cluster's folder, held by one process at a time."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self._lock: int | None = None

    @property
    def log_dir(self) -> Path:
        return self.path / "log"

    @property
    def held(self) -> bool:
        """Whether this object holds the folder."""
        return self._lock is not None

    @property
    def lock_fd(self) -> int:
        """The descriptor that daemons inherit, so that the folder is in use as long as one of them runs."""
        assert self._lock is not None, "the folder is not held"
        return self._lock

    def log(self, name: str) -> Path:
        """The log file of a daemon."""
        return self.log_dir / f"{name}.log"

    def config(self, name: str) -> Path:
        """The configuration file of a daemon."""
        return self.path / "config" / f"{name}.toml"

    def check_is_ours(self) -> None:
        """Raises: Invalid if this is not the folder of a cluster."""
        if not (self.path / MARKER).is_file():
            raise Invalid(f"{self.path} is not the folder of an fs3 cluster (it has no {MARKER})")

    def hold(self) -> None:
        """Make the folder if it is new, and lock it.

        Raises:
            Invalid: it is somebody else's, cannot be written, or is in use.
        """
        assert self._lock is None
        try:
            if self.path.exists() and not self.path.is_dir():
                raise Invalid(f"{self.path} is a file; name a new folder, or one that fs3 made")
            ours = {MARKER, "LOCK"}  # a start that failed early may have left the lock file alone
            if self.path.is_dir() and not (self.path / MARKER).is_file() and not ours.issuperset(os.listdir(self.path)):
                raise Invalid(
                    f"{self.path} is not empty and is not the folder of an fs3 cluster; name a new or an empty folder"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Invalid(f"{self.path}: {error.strerror}; name a folder that can be written") from None
        if not _try_lock(descriptor):
            os.close(descriptor)
            raise Invalid(f"{self.path} is in use by a running cluster; stop it with: fs3 down {self.path}")
        self._lock = descriptor

    def release(self) -> None:
        """Give the folder back; daemons that still run keep it locked. One that was never used is removed."""
        if self._lock is None:
            return
        if os.listdir(self.path) == ["LOCK"]:
            (self.path / "LOCK").unlink()
            with contextlib.suppress(OSError):
                self.path.rmdir()
        os.close(self._lock)
        self._lock = None

    def in_use(self) -> bool:
        """Whether some process holds the folder."""
        try:
            descriptor = os.open(self.path / "LOCK", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def remembered(self) -> Shape | None:
        """The shape that was saved here. Raises: Invalid: the marker is damaged, or of a newer fs3."""
        marker = self.path / MARKER
        try:
            saved = json.loads(marker.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Invalid(f"{marker}: {error}") from None
        if not isinstance(saved, dict) or saved.get("format") not in _READABLE:
            found = saved.get("format") if isinstance(saved, dict) else saved
            raise Invalid(f"{marker}: format {found!r}, this fs3 reads format {FORMAT}; use the fs3 that made it")
        ports = saved.pop("ports", {})
        if not isinstance(ports, dict) or not all(map(_is_pair_of_ports, ports.values())):
            raise Invalid(f"{marker}: ports: expected a service and a metrics port by each name, found {ports!r}")
        shape = from_mapping(saved, Shape, where=str(marker))
        return replace(shape, format=FORMAT, ports={name: tuple(pair) for name, pair in ports.items()})

    def remember(self, shape: Shape) -> None:
        """Save `shape`, whole or not at all."""
        draft = self.path / f"{MARKER}.new"
        draft.write_text(json.dumps(asdict(shape), indent=2) + "\n", encoding="utf-8")
        draft.replace(self.path / MARKER)

    def write_configs(self, shape: Shape, etcd: Sequence[str] = ()) -> None:
        """Write every daemon's TOML file for `shape`; `etcd` is where its members serve clients, if it has any."""
        for folder in ("config", "log", "run"):
            (self.path / folder).mkdir(exist_ok=True)
        if shape.mgmtds > 1:
            (self.path / "mgmtd").mkdir(exist_ok=True)  # any of them may be the first to open the store
        for name, values in self._configs(shape, etcd):
            text = "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
            self.config(name).write_text(f"# Written by `fs3 up` at every start.\n{text}", encoding="utf-8")

    def _configs(self, shape: Shape, etcd: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        def listens(name: str) -> dict[str, Any]:
            port, metrics_port = shape.ports[name]
            return {"listen_host": HOST, "listen_port": port, "metrics_port": metrics_port}

        for number, name in enumerate(shape.mgmtd_names):
            values: dict[str, Any] = {
                "node_id": MGMTD_NODE + number,
                "data_dir": self.path / name,
                **listens(name),
                "lease_s": shape.lease_s,
                "bootstrap_nodes": shape.nodes,
                "bootstrap_replicas": shape.replicas,
            }
            if shape.kv == ETCD:
                values["kv"] = f"etcd://{','.join(etcd)}/mgmtd"
            elif shape.mgmtds > 1:
                values["kv"] = self.path / "mgmtd" / "mgmtd.sqlite"
            yield name, values
        mgmtd = list(shape.addresses)
        for number, name in enumerate(shape.meta_names):
            values = {"node_id": META_NODE + number, "mgmtd": mgmtd, **listens(name)}
            if shape.kv == ETCD:
                values["kv"] = f"etcd://{','.join(etcd)}/meta"
            else:
                values["data_dir"] = self.path / "meta"
            yield name, values
        for node in range(1, shape.nodes + 1):
            name = storage_name(node)
            values = {"node_id": node, "mgmtd": mgmtd, "disks": [self.path / name / "disk"], **listens(name)}
            if shape.workers > 1:
                values["workers"] = shape.workers
            if len(str(self.path / "run")) <= _LONGEST_SOCKET_PATH:
                values["unix_dir"] = self.path / "run"
            yield name, values


def choose_ports(shape: Shape, wanted: int | None) -> dict[str, tuple[int, ...]]:
    """Free ports for the daemons of `shape`; mgmtd gets `wanted` (0: any), else the favourite one if it is free.

    Raises:
        Invalid: the wanted port is taken, or another daemon's here, or a remembered one is taken.
    """
    taken = {port for name in shape.ports for port in shape.ports_of(name)}
    if wanted in taken and wanted != shape.ports.get("mgmtd", (0,))[0]:
        owner = next(name for name in shape.ports if wanted in shape.ports_of(name))
        raise Invalid(f"port {wanted} (for mgmtd) is a port of {owner}; choose another with --port")
    taken |= {wanted} if wanted else set()
    ports: dict[str, tuple[int, ...]] = {}
    for name in shape.names:
        run = shape.workers_of(name)
        pair = shape.ports.get(name) or (free_port(taken, run), free_port(taken, run))
        if name == "mgmtd":
            if wanted:
                pair = (wanted, pair[1])
            elif wanted is None and not shape.ports and port_is_free(FAVOURITE_PORT):
                pair = (FAVOURITE_PORT, pair[1])
        for port in [first + worker for first in pair for worker in range(run)]:
            if not port_is_free(port):
                hint = "choose another with --port" if name == "mgmtd" else "stop what uses it"
                raise Invalid(f"port {port} (for {name}) is taken by another process; {hint}")
        ports[name] = tuple(pair)
    return ports


def without_taken_ports(shape: Shape, name: str) -> dict[str, tuple[int, ...]]:
    """The ports of `shape`, with free ones for the daemon `name` in place of those that are taken. Raises: Invalid."""
    used = {port for other in shape.ports for port in shape.ports_of(other)}
    run = shape.workers_of(name)
    pair = tuple(first if _all_free(first, run) else free_port(used, run) for first in shape.ports[name])
    return {**shape.ports, name: pair}


def port_is_free(port: int) -> bool:
    """Whether a daemon could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _all_free(first: int, run: int) -> bool:
    return all(port_is_free(port) for port in range(first, first + run))


def free_port(taken: set[int], run: int = 1) -> int:
    """The first of `run` ports in a row that are free now and not in `taken`, to which they are added.

    Raises: Invalid if none is found.
    """
    for port in random.SystemRandom().sample(_PORTS, k=1_000):
        wanted = range(port, port + run)
        if taken.isdisjoint(wanted) and _all_free(port, run):
            taken.update(wanted)
            return port
    raise Invalid(f"no free port between {_PORTS.start} and {_PORTS.stop} on {HOST}")


def _is_pair_of_ports(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(port) is int and 0 < port < 1 << 16 for port in value)
    )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Path):
        return json.dumps(str(value), ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)
