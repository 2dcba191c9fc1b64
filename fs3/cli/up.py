"""`fs3 up` and `fs3 down`: a cluster in one folder, in the foreground or detached.

A detached cluster is the same command in a session of its own, which reports through a pipe until it is ready. Whoever
supervises leaves its pid in DIR/run/up.json, so that `fs3 down` can ask it to stop.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import click
import psutil
from rich.console import Console
from rich.markup import escape

from fs3.cluster.folder import Folder
from fs3.cluster.local import Exit, LocalCluster
from fs3.cluster.stopping import stop_folder
from fs3.errors import Fs3Error, Unavailable, line_of

_log = logging.getLogger(__name__)
_READY = "ready"
_FAILED = "failed"
_RECORD = "up.json"
_LOOK_S = 0.2
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path), help="Folder of the cluster.")
@click.option("--nodes", type=click.IntRange(1, 1000), help="Storage daemons. [default: as before, else 3]")
@click.option("--replicas", type=click.IntRange(1), help="Copies of each chunk, at most. [default: as before, else 3]")
@click.option(
    "--workers", type=click.IntRange(1, 64), help="Processes of each storage daemon. [default: as before, else 1]"
)
@click.option("--mgmtds", type=click.IntRange(1, 9), help="Cluster managers. [default: as before, else 1, on etcd 2]")
@click.option("--metas", type=click.IntRange(1, 9), help="Metadata daemons. [default: as before, else 1, on etcd 2]")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="First mgmtd's port. [default: as before, else 7300 if free]"
)
@click.option("--lease", type=click.FloatRange(0.5, 600), help="Lease in seconds. [default: as before, else 3]")
@click.option(
    "--kv", type=click.Choice(["sqlite", "etcd"]), help="Where metadata lies. [default: as before, else sqlite]"
)
@click.option("--restart", is_flag=True, help="Start daemons again that die.")
@click.option("--detach", is_flag=True, help="Return once the cluster is ready; stop it with `fs3 down DIR`.")
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds to wait until it is ready.")
@click.option("--announce", type=int, hidden=True, help="Descriptor to report to; used by --detach.")
def up(
    directory: Path,
    nodes: int | None,
    replicas: int | None,
    workers: int | None,
    mgmtds: int | None,
    metas: int | None,
    port: int | None,
    lease: float | None,
    kv: str | None,
    restart: bool,
    detach: bool,
    timeout_s: float,
    announce: int | None,
) -> int:
    """Start mgmtd, meta and storage daemons on this machine; Ctrl-C stops them, a second start finds all data."""
    if detach:
        chosen = {
            "nodes": nodes,
            "replicas": replicas,
            "workers": workers,
            "mgmtds": mgmtds,
            "metas": metas,
            "port": port,
            "lease": lease,
            "kv": kv,
        }
        return _detach(directory, chosen, restart=restart, timeout_s=timeout_s)
    cluster = LocalCluster(
        directory,
        nodes=nodes,
        replicas=replicas,
        workers=workers,
        mgmtds=mgmtds,
        metas=metas,
        port=port,
        lease_s=lease,
        kv=kv,
    )
    if announce is not None:
        return _run_detached(cluster, announce, restart=restart, timeout_s=timeout_s)
    console = Console(highlight=False)

    def start() -> None:
        with console.status(escape(f"starting in {cluster.folder.path}")) as status:
            cluster.start(timeout_s=timeout_s, on_progress=status.update)

    def ready() -> None:
        _print_ready(console, cluster, how_to_stop=f"Ctrl-C, or: fs3 down {cluster.folder.path}")

    _supervise(
        cluster, start, ready, restart=restart, say=lambda line: console.print(line, soft_wrap=True, markup=False)
    )
    console.print("stopped")
    return 0


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds to wait until all has stopped.")
def down(directory: Path, timeout_s: float) -> int:
    """Stop the cluster in DIRECTORY and wait until all its daemons have ended; its data stays."""
    if stop_folder(directory, supervisor=_supervisor(Folder(directory)), timeout_s=timeout_s):
        print(f"stopped; start it again with: fs3 up --dir {directory}")
    else:
        print(f"no cluster is running in {directory}")
    return 0


def _supervise(
    cluster: LocalCluster,
    start: Callable[[], None],
    ready: Callable[[], None],
    *,
    restart: bool,
    say: Callable[[str], None],
) -> None:
    """Start, watch until interrupted, stop all; a daemon that dies is reported, and stays dead unless `restart`.

    However it ends, and wherever a signal comes, no daemon is left behind.

    Raises:
        KeyboardInterrupt: it came before the cluster was ready.
    """
    pause = threading.Event()
    started = False
    with _signals_interrupt():
        try:
            start()
            started = True
            _record_supervisor(cluster.folder)
            ready()
            while not pause.wait(_LOOK_S):
                for ended in cluster.reap():
                    say(_story(ended, cluster, restart=restart))
                    if restart:
                        cluster.restart(ended.name)
        except KeyboardInterrupt:
            if not started:
                raise
            say("stopping")
        finally:
            for number in _ENDING:
                signal.signal(number, signal.SIG_IGN)  # asked once is enough, and stopping has its own limit
            cluster.stop()


def _story(ended: Exit, cluster: LocalCluster, *, restart: bool) -> str:
    then = "it is started again" if restart else "it stays down (--restart would start it again)"
    return f"{ended}; {then}; log: {cluster.folder.log(ended.name)}"


def _print_ready(console: Console, cluster: LocalCluster, *, how_to_stop: str) -> None:
    url, shape = cluster.url, cluster.shape
    console.print(
        f"[bold]{url}[/bold] is ready: {shape.nodes} storage nodes, up to {shape.replicas} replicas", soft_wrap=True
    )
    for label, text in (
        ("logs", str(cluster.folder.log_dir)),
        ("stop", how_to_stop),
        ("try", f"fs3 status {url}"),
        ("", f"fs3 mkdir --replicas {min(2, shape.replicas)} {url}/data"),
        ("", f"fs3 cp -r SOMEWHERE {url}/data"),
        ("", f"python -c \"import fsspec; print(fsspec.open('{url}/data/FILE').open().read(80))\""),
    ):
        console.print(f"  {label:5} {text}", soft_wrap=True, markup=False)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Inside, SIGTERM and a terminal that goes away do what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _detach(directory: Path, chosen: dict[str, int | float | str | None], *, restart: bool, timeout_s: float) -> int:
    """Start the supervisor in a session of its own and follow its report until it is ready or has failed."""
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "fs3.cli.main", "up", "--dir", str(directory.absolute())]
    for name, value in chosen.items():
        command += [f"--{name}", str(value)] if value is not None else []
    command += ["--restart"] if restart else []
    command += ["--timeout", str(timeout_s), "--announce", str(write_end)]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(write_end,),
        )
    finally:
        os.close(write_end)
    console = Console(highlight=False)
    with open(read_end, encoding="utf-8") as report, console.status(escape(f"starting in {directory}")) as status:
        try:
            word, text = "", ""
            for line in report:
                word, _, text = line.rstrip("\n").partition(" ")
                if word in (_READY, _FAILED):
                    break
                status.update(text)
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
    if word == _FAILED:
        raise Fs3Error(text)
    if word != _READY:
        raise Unavailable(f"the cluster's supervisor ended without a word (status {child.wait()})")
    cluster = LocalCluster(directory)
    cluster.recall()
    _print_ready(console, cluster, how_to_stop=f"fs3 down {cluster.folder.path}")
    return 0


def _run_detached(cluster: LocalCluster, announce: int, *, restart: bool, timeout_s: float) -> int:
    """The supervisor of a detached cluster; after it has reported, it writes to DIR/log/up.log.

    Nobody sees its standard error: why it ends is said in one of the two.
    """
    report = open(announce, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed once it has reported

    def start() -> None:
        cluster.start(timeout_s=timeout_s, on_progress=lambda line: print("progress", line, file=report))

    def ready() -> None:
        logging.basicConfig(filename=cluster.folder.log("up"), format="%(asctime)s %(message)s", level=logging.INFO)
        print(_READY, file=report)
        report.close()

    try:
        _supervise(cluster, start, ready, restart=restart, say=lambda line: _log.info("%s", line))
    except (Fs3Error, OSError, KeyboardInterrupt) as error:
        text = "it was stopped before it was ready" if isinstance(error, KeyboardInterrupt) else line_of(error)
        if report.closed:
            _log.error("ended: %s", text)
        else:
            print(_FAILED, text, file=report)
        return 1
    return 0


def _record_supervisor(folder: Folder) -> None:
    record = {"pid": os.getpid(), "started": psutil.Process().create_time()}
    (folder.path / "run" / _RECORD).write_text(json.dumps(record), encoding="utf-8")


def _supervisor(folder: Folder) -> int | None:
    """The pid of the `fs3 up` that supervises the folder, if it still runs."""
    try:
        record = json.loads((folder.path / "run" / _RECORD).read_text(encoding="utf-8"))
        process = psutil.Process(int(record["pid"]))
        same = abs(process.create_time() - record["started"]) < 1.0
        return process.pid if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
