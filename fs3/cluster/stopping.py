"""Stopping the cluster in a folder, whoever started it: the order of its daemons, and who they are.

Whoever runs a cluster leaves the pids of its daemons in DIR/run/daemons.json, should it be gone by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from fs3.clock import lease_now_s
from fs3.cluster.etcd import STOP_S as ETCD_STOP_S
from fs3.cluster.etcd import data_dir
from fs3.cluster.folder import Folder
from fs3.errors import Unavailable

_STOP_S = 15.0
_LOOK_S = 0.1
_DAEMONS = "daemons.json"
_ETCD = "etcd"
_LAST = ("mgmtd", _ETCD)  # that the others' goodbyes arrive, and can be written down


def stop_folder(directory: Path | str, *, supervisor: int | None = None, timeout_s: float = 60.0) -> bool:
    """Stop the cluster that runs in `directory`, whoever started it, and wait; False if none was running.

    A running `fs3 up` (its pid in `supervisor`) is asked to stop; daemons without one are ended here, and so are those
    that were started by hand.

    Raises:
        Invalid: it is not a cluster's folder.
        Unavailable: something still holds the folder after `timeout_s`.
    """
    folder = Folder(directory)
    folder.check_is_ours()
    if not folder.in_use():
        return _end_started_by_hand(folder)
    deadline_s = lease_now_s() + timeout_s
    if supervisor is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGTERM)
    else:
        _end_daemons(folder)
    pause = threading.Event()
    while folder.in_use() or (supervisor is not None and _runs(supervisor)):
        if lease_now_s() >= deadline_s:
            raise Unavailable(f"{folder.path} is still in use after {timeout_s:g} s")
        pause.wait(_LOOK_S)
    _end_started_by_hand(folder)
    return True


def _runs(pid: int) -> bool:
    """Also while it ends: it lets go of the folder a moment before."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _end_daemons(folder: Folder) -> None:
    try:
        pids: dict[str, int] = json.loads(_record(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unavailable(f"{folder.path} is in use, but its daemons are not recorded ({error})") from None
    processes = {name: process for name, pid in pids.items() if (process := _daemon(folder, name, pid)) is not None}
    for wave in waves(processes):
        _end([processes[name] for name in wave], patience_s(wave))


def waves(names: Iterable[str]) -> list[list[str]]:
    """In which order daemons are stopped: mgmtds last but for etcd."""
    found: dict[str, list[str]] = {kind: [] for kind in ("", *_LAST)}
    for name in names:
        kind = kind_of(name)
        found[kind if kind in _LAST else ""].append(name)
    return [wave for wave in found.values() if wave]


def patience_s(wave: list[str]) -> float:
    """How long the daemons of one wave have to end by themselves."""
    return ETCD_STOP_S if kind_of(wave[0]) == _ETCD else _STOP_S


def kind_of(name: str) -> str:
    """What kind of daemon it is that has this name."""
    return name.partition("-")[0]


def record(folder: Folder, pids: Mapping[str, int]) -> None:
    """Leave the pids of the daemons where `stop_folder` finds them."""
    with contextlib.suppress(OSError):
        _record(folder).write_text(json.dumps(dict(pids)), encoding="utf-8")


def _record(folder: Folder) -> Path:
    return folder.path / "run" / _DAEMONS


def _end(processes: list[psutil.Process], limit_s: float) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=limit_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _end_started_by_hand(folder: Folder) -> bool:
    """End daemons that run on a config of the folder and are nobody's (`fs3 storage --config`); whether there were."""
    configs = os.path.realpath(folder.config("x").parent)
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            config = Path(_config_of(process))
            if config.suffix == ".toml" and str(config.parent) == configs:
                found.setdefault(config.stem, []).append(process)
    for wave in waves(found):
        _end([process for name in wave for process in found[name]], _STOP_S)
    return bool(found)


def _config_of(process: psutil.Process) -> str:
    """What a process was given as --config, in full; "" if nothing. Raises: psutil.Error."""
    arguments = process.cmdline()
    for place, argument in enumerate(arguments):
        flag, _, given = argument.partition("=")
        if flag == "--config":
            given = given or "".join(arguments[place + 1 : place + 2])
            return os.path.realpath(os.path.join(process.cwd(), given))
    return ""


def _daemon(folder: Folder, name: str, pid: int) -> psutil.Process | None:
    """The process, if `pid` is still the daemon and not somebody who got its number later."""
    sign = str(folder.config(name))
    if kind_of(name) == _ETCD:
        sign = f"--data-dir={data_dir(folder.path / _ETCD, int(name.rpartition('-')[2]))}"
    try:
        process = psutil.Process(pid)
        return process if sign in process.cmdline() else None
    except psutil.Error:
        return None
