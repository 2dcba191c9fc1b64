"""What the supervisor does with workers that end: real processes, which play a part for each of their starts."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fs3.errors import Unavailable
from fs3.storage import supervisor
from fs3.storage.config import StorageConfig

# A worker: it counts its starts in a file, and acts out the line of the part that has this number.
_PLAYER = """
import os, pathlib, signal, sys, time
worker, report, folder, *parts = sys.argv[1:]
starts = pathlib.Path(folder, worker)
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
say = lambda text: os.write(int(report), (text + "\\n").encode())
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(folder, worker + "-stopped").touch(), sys.exit(0)))
for act in parts[min(len(starts.read_text()), len(parts)) - 1].split(", "):
    word, _, rest = act.partition(" ")
    if word in ("ready", "failed"):
        say(act)
    elif word == "exit":
        os._exit(int(rest))
    elif word == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "stop":
        os.kill(os.getppid(), signal.SIGTERM)
    elif word == "serve":
        signal.pause()
"""


def players(folder: Path, *parts: tuple[str, ...]) -> Callable[[int, int], list[str]]:
    """The command of workers whose n-th starts are as the n-th of their parts says, and later ones as the last."""
    return lambda worker, report: [
        *(sys.executable, "-c", _PLAYER, str(worker), str(report), str(folder)),
        *parts[worker],
    ]


def config(workers: int) -> StorageConfig:
    return StorageConfig(node_id=3, mgmtd=("h:1",), disks=(Path("/unused"),), workers=workers)


def test_a_worker_that_has_served_is_started_again_however_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = ("ready, exit 3", "failed the disk is gone, exit 1", "crash", "ready, stop, serve")
    assert supervisor.run(config(2), players(tmp_path, ("ready, serve",), parts)) == 0
    assert (tmp_path / "0").read_text() == "x" and (tmp_path / "1").read_text() == "xxxx"
    assert (tmp_path / "0-stopped").exists() and (tmp_path / "1-stopped").exists()
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "storage 3.1: ended with status 3; it is started again in 0.25 s",
        "storage 3.1: the disk is gone; it is started again in 0.5 s",
        "storage 3.1: killed by signal 9; it is started again in 1 s",
    ]


def test_a_worker_that_never_served_and_says_why_ends_the_daemon(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"^storage 3\.1: no such disk$"):
        supervisor.run(config(2), players(tmp_path, ("ready, serve",), ("failed no such disk, exit 1",)))
    assert (tmp_path / "1").read_text() == "x"


def test_a_worker_that_cannot_be_run_at_all_ends_the_daemon(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"^storage 3: cannot be started: No such file or directory$"):
        supervisor.run(config(1), lambda worker, report: [str(tmp_path / "no-such-program")])


def test_one_that_crashes_before_it_served_is_tried_again(tmp_path: Path) -> None:
    assert supervisor.run(config(1), players(tmp_path, ("crash", "ready, stop, serve"))) == 0
    assert (tmp_path / "0").read_text() == "xx"


def test_a_worker_whose_supervisor_is_gone_already_does_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    toml = tmp_path / "storage.toml"
    toml.write_text(f'node_id = 3\nmgmtd = ["127.0.0.1:1"]\ndisks = ["{tmp_path}/disk"]\nworkers = 2\n')
    command = [sys.executable, "-m", "fs3.cli.main", "storage", "--config", str(toml), "--worker=1"]
    done = subprocess.run(
        [*command, f"--report={writing}"], pass_fds=(writing,), capture_output=True, text=True, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert not (tmp_path / "disk").exists()
