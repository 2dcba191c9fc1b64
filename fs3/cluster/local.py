"""A whole cluster on this machine: one process per daemon, started, watched and stopped from here.

`fs3 up` is a thin layer over `LocalCluster`; tests and the demo use it directly, to kill daemons and bring them back.

A port that was free when it was chosen may be taken when its daemon starts, by another cluster that chose it at the
same instant. So at the first start a daemon gets another port instead, and the others wait until each mgmtd has its
own: they would take whoever answers there for theirs, and make their disks part of another cluster.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import psutil

from fs3.client.mgmtd import MgmtdClient
from fs3.clock import lease_now_s
from fs3.cluster.etcd import LocalEtcd
from fs3.cluster.folder import (
    ETCD,
    SQLITE,
    Folder,
    Shape,
    choose_ports,
    port_is_free,
    storage_name,
    without_taken_ports,
)
from fs3.cluster.readiness import what_is_missing
from fs3.cluster.stopping import kind_of, patience_s, record, waves
from fs3.errors import Invalid, Unavailable
from fs3.routing import Routing
from fs3.url import make_url

_LOOK_S = 0.1
_MOST_MOVES = 5  # to other ports, of one daemon


@dataclass(frozen=True, slots=True)
class Exit:
    """A daemon that ended without being asked to."""

    name: str
    status: int
    last_line: str

    def __str__(self) -> str:
        if self.status < 0:
            return f"{self.name} was killed by signal {-self.status} ({signal.Signals(-self.status).name})"
        return f"{self.name} ended with status {self.status}" + (f": {self.last_line}" if self.last_line else "")


class LocalCluster:
    """The cluster in one folder. Storage nodes are numbered from 1. Not thread-safe.

    What is not given is what the folder remembers, else 3 storage nodes and replicas, one mgmtd and one meta; `port` is
    the first mgmtd's (0: any free one). Mgmtds and metas may be more or fewer at a later start, and the workers of each
    storage daemon may be more. With `kv` "etcd" there
    are three members of etcd too, and by default two mgmtds and two metas, which have their stores in it.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        nodes: int | None = None,
        replicas: int | None = None,
        workers: int | None = None,
        mgmtds: int | None = None,
        metas: int | None = None,
        port: int | None = None,
        lease_s: float | None = None,
        kv: str | None = None,
    ) -> None:
        self.folder = Folder(directory)
        self._nodes = nodes
        self._replicas = replicas
        self._workers = workers
        self._mgmtds = mgmtds
        self._metas = metas
        self._port = port
        self._lease_s = lease_s
        self._kv = kv
        self.etcd = LocalEtcd(self.folder.path / ETCD)  # started only if the shape says so
        self._shape: Shape | None = None
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._moves: Counter[str] = Counter()  # how often a daemon may still get other ports than were chosen
        self._pause = threading.Event()

    @property
    def shape(self) -> Shape:
        """Nodes, replicas and ports; known once started."""
        assert self._shape is not None, "the cluster was not started"
        return self._shape

    @property
    def url(self) -> str:
        """`fs3://HOST:PORT[,HOST:PORT...]`, every mgmtd."""
        return make_url(self.shape.addresses)

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the daemons that were started and not reaped, by name."""
        return {name: process.pid for name, process in self._running.items()}

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *, timeout_s: float = 60.0, on_progress: Callable[[str], None] = lambda line: None) -> None:
        """Start every daemon and wait until every chain serves and meta answers; stops everything if that fails.

        What the folder remembered it then remembers again: options that do not work are not the next start's.

        Raises:
            Invalid: the folder, its options or a port cannot be used.
            Unavailable: a daemon ended, or it took longer than `timeout_s`.
        """
        self.folder.hold()
        before: Shape | None = None
        try:
            before = self.folder.remembered()
            self._shape = self._decide_shape(before)
            if self._shape.kv == ETCD:
                self.etcd.prepare()
            self.folder.remember(self._shape)
            deadline_s = lease_now_s() + timeout_s
            if self._shape.kv == ETCD:
                self._start_etcd(deadline_s, timeout_s)
            self._write_configs()
            for name in self._shape.mgmtd_names:
                self._spawn(name)
            self._wait_for_mgmtds(deadline_s, timeout_s)
            for name in self._shape.names:
                if name not in self._running:
                    self._spawn(name)
            self.wait_serving(timeout_s=max(deadline_s - lease_now_s(), 0.1), on_progress=on_progress)
        except BaseException:
            try:
                if before is not None:
                    self.folder.remember(before)
            finally:
                self.stop()
            raise
        finally:
            self._moves.clear()

    def stop(self) -> None:
        """Stop every daemon, in the order that `waves` gives, and release the folder; again is fine."""
        if not self.folder.held:
            return
        for wave in waves(self._running):
            self._terminate(wave)
        self._record()
        self.folder.release()

    def recall(self) -> None:
        """Learn the shape, and with it the URL, of a cluster that somebody else runs. Raises: Invalid."""
        self.folder.check_is_ours()
        self._shape = self.folder.remembered()

    def kill(self, name: str) -> None:
        """End a daemon, by its name in `pids`, with SIGKILL, as a crash would, and reap it."""
        process = self._running.pop(name)
        process.kill()
        process.wait()
        self._record()

    def kill_node(self, node: int) -> None:
        """`kill` storage daemon `node`."""
        self.kill(storage_name(node))

    def restart_node(self, node: int) -> None:
        """Start storage daemon `node` again on its old port and disks; returns at once."""
        assert storage_name(node) not in self._running, f"storage {node} runs"
        self._spawn(storage_name(node))

    def restart(self, name: str) -> None:
        """Start a daemon that has ended, by its name in `pids`; returns at once."""
        assert name not in self._running, f"{name} runs"
        self._spawn(name)

    def reap(self) -> list[Exit]:
        """The daemons that have ended since the last look."""
        ended = []
        for name, process in list(self._running.items()):
            status = process.poll()
            if status is not None:
                del self._running[name]
                ended.append(Exit(name, status, last_line(self.folder.log(name))))
        if ended:
            self._record()
        return ended

    def wait_serving(
        self,
        *,
        timeout_s: float = 60.0,
        recovered: bool = False,
        on_progress: Callable[[str], None] = lambda line: None,
    ) -> Routing:
        """Wait until every chain has a serving target (with `recovered`: only serving targets), and all that runs here
        of mgmtds and metas is registered.

        Raises:
            Unavailable: a daemon ended, or it took longer than `timeout_s`; the message says what was missing.
        """
        deadline_s = lease_now_s() + timeout_s
        said = ""
        with contextlib.ExitStack() as stack:
            client: MgmtdClient | None = None
            while True:
                self._check_ended()
                try:
                    if client is None:
                        client = MgmtdClient.connect(self.shape.addresses, timeout_s=1.0)
                        stack.callback(client.close)
                    routing = client.fetch(1.0)
                    missing = what_is_missing(routing, self.shape, running=self._running, recovered=recovered)
                except Unavailable:
                    missing = "mgmtd does not answer yet"
                if not missing:
                    return routing
                if missing != said:
                    said = missing
                    on_progress(missing)
                if lease_now_s() >= deadline_s:
                    raise Unavailable(
                        f"the cluster is not ready after {timeout_s:.3g} s: {missing};"
                        f" the logs are in {self.folder.log_dir}"
                    )
                self._pause.wait(_LOOK_S)

    def _start_etcd(self, deadline_s: float, timeout_s: float) -> None:
        """Start its members, and wait until each has a leader. Raises: Unavailable."""
        self.folder.log_dir.mkdir(exist_ok=True)
        (self.folder.path / "run").mkdir(exist_ok=True)
        for member in self.etcd.members:
            self._spawn(f"{ETCD}-{member}")
        for member in self.etcd.members:
            while not self.etcd.healthy(member):
                self._check_ended()
                if lease_now_s() >= deadline_s:
                    raise Unavailable(f"etcd is not ready after {timeout_s:g} s; its logs are in {self.folder.log_dir}")
                self._pause.wait(_LOOK_S)

    def _write_configs(self) -> None:
        self.folder.write_configs(self.shape, self.etcd.endpoints)

    def _wait_for_mgmtds(self, deadline_s: float, timeout_s: float) -> None:
        """Until each has the port that its configuration names. Raises: Unavailable."""
        while True:
            self._check_ended()
            waiting = [name for name in self.shape.mgmtd_names if not self._listens(name)]
            if not waiting:
                return
            if lease_now_s() >= deadline_s:
                raise Unavailable(
                    f"{waiting[0]} does not listen after {timeout_s:g} s; its log is {self.folder.log(waiting[0])}"
                )
            self._pause.wait(_LOOK_S)

    def _listens(self, name: str) -> bool:
        try:
            sockets = psutil.Process(self._running[name].pid).net_connections("tcp")
        except psutil.AccessDenied:
            return True  # nobody can tell
        except psutil.Error:
            return False
        port = self.shape.ports[name][0]
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets)

    def _check_ended(self) -> None:
        """Raises: Unavailable: a daemon ended, and not because another process was faster to take its port."""
        for ended in self.reap():
            if not self._move(ended.name):
                raise Unavailable(f"{ended}; its log is {self.folder.log(ended.name)}")

    def _move(self, name: str) -> bool:
        """Start a daemon again on other ports if those that were chosen for it are taken; whether that was so."""
        named = self._port if name == self.shape.mgmtd_names[0] else None
        if self._moves[name] <= 0 or (named and not port_is_free(named)):
            return False
        if all(port_is_free(port) for port in self.shape.ports_of(name)):
            return False
        self._moves[name] -= 1
        self._shape = replace(self.shape, ports=without_taken_ports(self.shape, name))
        self.folder.remember(self._shape)
        self._write_configs()
        self._spawn(name)
        return True

    def _decide_shape(self, before: Shape | None) -> Shape:
        """What is started, in a folder that remembers `before`. Raises: Invalid."""
        if before is not None:
            for option, asked, known in (
                ("--nodes", self._nodes, before.nodes),
                ("--replicas", self._replicas, before.replicas),
                ("--kv", self._kv, before.kv),
            ):
                if asked is not None and asked != known:
                    raise Invalid(
                        f"{self.folder.path} was made with {option} {known}, not {asked}; leave {option} out, or use"
                        " another folder"
                    )
        nodes = before.nodes if before else self._nodes or 3
        kv = before.kv if before else self._kv or SQLITE
        few = 2 if kv == ETCD else 1
        workers = self._workers or (before.workers if before else 1)
        ports = dict(before.ports) if before else {}
        if before and workers != before.workers:  # a storage daemon's ports are in a row: it needs others
            ports = {name: pair for name, pair in ports.items() if kind_of(name) != "storage"}
        shape = Shape(
            nodes=nodes,
            replicas=before.replicas if before else self._replicas or min(3, nodes),
            workers=workers,
            mgmtds=self._mgmtds or (before.mgmtds if before else few),
            metas=self._metas or (before.metas if before else few),
            lease_s=self._lease_s or (before.lease_s if before else 3.0),
            kv=kv,
            ports=ports,
        )
        self._moves.update({name: _MOST_MOVES for name in shape.names if name not in shape.ports})
        return replace(shape, ports=choose_ports(shape, self._port))

    def _spawn(self, name: str) -> None:
        command = [sys.executable, "-m", "fs3.cli.main", kind_of(name), "--config", str(self.folder.config(name))]
        if kind_of(name) == ETCD:
            command = self.etcd.command(_number(name))
        with self.folder.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, who then stop the daemons in order
                pass_fds=(self.folder.lock_fd,),
            )
        self._record()

    def _terminate(self, names: list[str]) -> None:
        for name in names:
            self._running[name].terminate()
        deadline_s = lease_now_s() + patience_s(names)
        for name in names:
            process = self._running.pop(name)
            try:
                process.wait(max(deadline_s - lease_now_s(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _record(self) -> None:
        record(self.folder, self.pids)


def _number(name: str) -> int:
    """The member of etcd that has this name."""
    return int(name.rpartition("-")[2])


def last_line(log: Path) -> str:
    """The last line of a daemon's log, which says why it ended."""
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4_096, 0))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""
