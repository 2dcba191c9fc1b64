"""MooseFS as a peer for metadata: its master and its mount, from the distribution's packages, with nothing left behind.

They run in namespaces of their own, which `unshare` makes: a network with one address (MooseFS refuses 127.0.0.1), a
mount table, in which alone it is mounted, and a process table, whose first process is this file run as a program. That
ends when its standard input does, and so with whoever started it, however that ended; the kernel then ends all that
runs there and takes the mount and the network with it.

The calls that are compared make and name empty files, which is the master's work alone: there is no chunkserver.

Run as a program, in such namespaces: `moosefs.py FOLDER SYNCED`, "ready" on standard output, until stdin ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.peer import Missing

_ADDRESS = "10.83.0.1"
_EMPTY = Path("/var/lib/mfs/metadata.mfs.empty")
_PROGRAMS = {"mfsmaster": "moosefs-master", "mfsmount": "moosefs-client", "unshare": "util-linux", "ip": "iproute2"}
_NAMESPACES = ("--net", "--mount", "--pid", "--fork", "--kill-child")
_PATIENCE_S = 10.0
_CHANGELOG_IN_BACKGROUND, _CHANGELOG_SYNCED = 0, 2  # mfsmaster.cfg(5), CHANGELOG_SAVE_MODE


def missing() -> str:
    """What keeps MooseFS from running here, or ""."""
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            return f"not installed (package {package})"
    if not _EMPTY.exists():
        return f"not installed ({_EMPTY} of package moosefs-master)"
    if os.geteuid() != 0:
        return "its mount needs root"
    if not Path("/dev/fuse").exists():
        return "its mount needs /dev/fuse"
    return ""


def version() -> str:
    """Of the installed master, or ""."""
    if shutil.which("mfsmaster") is None:
        return ""
    said = subprocess.run(["mfsmaster", "-v"], capture_output=True, text=True, check=False).stdout
    return said.removeprefix("version:").partition(";")[0].strip()


class MooseFS:
    """One master with its mount, at the priority of this process. Use it as a context manager."""

    def __init__(self, folder: Path, *, synced: bool) -> None:
        """`folder`: to be made, for what it stores. `synced`: the master answers once its changelog is on disk."""
        self._folder = folder.resolve()
        self._synced = synced
        self._stack = contextlib.ExitStack()
        self.root = -1  # a descriptor of the mounted directory

    def __enter__(self) -> MooseFS:
        """Raises: Missing."""
        why = missing()
        if why:
            raise Missing(why)
        self._folder.mkdir(parents=True)
        log = self._folder / "log"
        command = ["unshare", *_NAMESPACES, sys.executable, __file__, str(self._folder), str(int(self._synced))]
        with self._stack, log.open("wb") as errors:
            server = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for us, who then end it
            )
            self._stack.callback(_end, server)
            assert server.stdout is not None
            if server.stdout.readline() != b"ready\n":
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise Missing(f"it does not start here: {said[-1] if said else 'no word of why'}")
            # `unshare` itself is in the new mount table, and its root leads there.
            self.root = os.open(f"/proc/{server.pid}/root{self._folder}/mount", os.O_RDONLY | os.O_DIRECTORY)
            self._stack.callback(os.close, self.root)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _end(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.close()
    server.stdout.close()
    try:
        server.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        server.kill()  # and with it, by --kill-child, the first process there
        server.wait()


def serve(folder: Path, synced: bool) -> None:
    """Master and mount in these namespaces, until standard input ends; they end with this process, the first here."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    store, mount = folder / "master", folder / "mount"
    store.mkdir()
    mount.mkdir()
    shutil.copy(_EMPTY, store / "metadata.mfs")
    (folder / "exports").write_text("* / rw,alldirs,maproot=0:0\n", encoding="ascii")
    (folder / "topology").write_text("", encoding="ascii")
    settings = {
        "WORKING_USER": "root",
        "WORKING_GROUP": "root",
        "NICE_LEVEL": nice,  # its own is -19
        "DISABLE_OOM_KILLER": 0,
        "DATA_PATH": store,
        "EXPORTS_FILENAME": folder / "exports",
        "TOPOLOGY_FILENAME": folder / "topology",
        "CHANGELOG_SAVE_MODE": _CHANGELOG_SYNCED if synced else _CHANGELOG_IN_BACKGROUND,
    }
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    (folder / "mfsmaster.cfg").write_text(lines, encoding="utf-8")
    _run("ip", "address", "add", f"{_ADDRESS}/32", "dev", "lo")
    _run("ip", "link", "set", "lo", "up")
    # Not BBR, which fs3 avoids within a host too; by the route, as these programs do not ask for anything themselves.
    congestion = ("ip", "route", "change", "local", _ADDRESS, "dev", "lo", "table", "local", "congctl", "cubic")
    subprocess.run(congestion, stdout=sys.stderr, check=False)
    # Both return once they serve, from processes of their own.
    _run("mfsmaster", "-c", str(folder / "mfsmaster.cfg"), "start")
    _run("mfsmount", str(mount), "-H", _ADDRESS, "-o", f"mfsnice={nice},mfsallowoomkiller")
    print("ready", flush=True)
    sys.stdin.buffer.read()


def _run(*command: str) -> None:
    """Or end, so that what `command` said is the last word."""
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if ended.returncode:
        sys.exit(1)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2] == "1")
