"""MooseFS as a peer: it serves, its mount is nobody else's, and nothing of it outlives its user, however that ended.

Where its packages are not installed, what remains to be checked is that the benchmark says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.peers import moosefs
from benchmarks.peers.moosefs import MooseFS
from benchmarks.peers.peer import Missing

ROOT = Path(__file__).resolve().parents[2]
needs_moosefs = pytest.mark.skipif(bool(moosefs.missing()), reason=f"MooseFS: {moosefs.missing()}")

USER = """
import sys
from pathlib import Path
from benchmarks.peers.moosefs import MooseFS
with MooseFS(Path(sys.argv[1]), synced=False):
    print("ready", flush=True)
    sys.stdin.read()
"""


def of_moosefs(folder: Path) -> list[psutil.Process]:
    """The processes that were started for `folder`."""
    return [
        one
        for one in psutil.process_iter(["cmdline"])
        if any(str(folder) in part for part in one.info["cmdline"] or ())
    ]


@needs_moosefs
@pytest.mark.parametrize("synced", [False, True])
def test_it_serves_in_a_world_of_its_own(tmp_path: Path, synced: bool) -> None:
    folder = tmp_path / "moosefs"
    with MooseFS(folder, synced=synced) as peer:
        os.mkdir("directory", dir_fd=peer.root)
        os.close(os.open("directory/file", os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=peer.root))
        assert os.listdir(peer.root) == ["directory"]
        assert os.stat("directory/file", dir_fd=peer.root).st_nlink == 1
        assert os.fstat(peer.root).st_dev != tmp_path.stat().st_dev, "not mounted"
        assert not os.path.ismount(folder / "mount") and not list((folder / "mount").iterdir())
        started = of_moosefs(folder)
        assert started
    psutil.wait_procs(started, timeout=20)
    assert not of_moosefs(folder)
    assert str(folder) not in Path("/proc/mounts").read_text(encoding="utf-8")


@needs_moosefs
def test_it_ends_with_a_user_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "moosefs"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    user = subprocess.Popen(
        [sys.executable, "-c", USER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    with user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"ready\n"
        started = of_moosefs(folder)
        assert len(started) > 1
        user.kill()
    psutil.wait_procs(started, timeout=20)
    assert not of_moosefs(folder)


@needs_moosefs
def test_what_does_not_start_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is the last that its programs said, and the rest of them is gone."""
    mount = tmp_path / "mfsmount"
    mount.write_text("#!/bin/sh\necho no mount today\nexit 1\n")
    mount.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(Missing, match="does not start here: no mount today"), MooseFS(tmp_path / "it", synced=False):
        raise AssertionError("it has no mount")
    assert not of_moosefs(tmp_path)


def test_without_its_packages_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert moosefs.missing() == "not installed (package moosefs-master)"
    assert moosefs.version() == ""
    with pytest.raises(Missing, match="not installed"), MooseFS(tmp_path / "moosefs", synced=False):
        raise AssertionError("nothing can have started")
    assert not list(tmp_path.iterdir())
