"""Finds the processes of a cluster's daemons: each runs with its own configuration file on its command line."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from fs3.cluster.folder import Folder
from fs3_trainer.demo.outcome import FellShort


def daemon_pid(folder: Folder, name: str) -> int:
    """The process id of daemon `name`. Raises: FellShort if it does not run."""
    wanted = str(folder.config(name))
    found: list[int] = [process.pid for process in _with_argument(wanted)]
    if not found:
        raise FellShort(f"{name} does not run; its log is {folder.log(name)}")
    return min(found)


def processes_below(folder: Path) -> list[str]:
    """Those processes that have a path below `folder` on their command line, in words."""
    return [f"{process.pid} {' '.join(process.info['cmdline'])}" for process in _with_argument(f"{folder}/", part=True)]


def _with_argument(text: str, *, part: bool = False) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            arguments = process.info["cmdline"] or []
            if process.pid != psutil.Process().pid and any(text in a if part else text == a for a in arguments):
                found.append(process)
    return found
