"""An etcd cluster on this machine: so many members in one folder, started, watched and stopped from here.

DIR/etcd.json     the members' ports        DIR/etcd-N     data of member N, from 1        DIR/etcd-N.log     its log
"""

from __future__ import annotations

import http.client
import json
import secrets
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from fs3.clock import deadline_after, lease_now_s
from fs3.cluster.folder import HOST, free_port
from fs3.errors import Invalid, Unavailable

_FORMAT = 1
_SAVED = "etcd.json"
STOP_S = 1.0  # the last ones look in vain for somebody to lead; killed, they lose nothing that they acknowledged
_LOOK_S = 0.05
_ASK_S = 1.0


class LocalEtcd:
    """The members in one folder, numbered from 1. Not thread-safe.

    Needs the program `etcd` (3.4 or newer; Debian: etcd-server). A folder that was used before is started with the same
    members and ports.
    """

    def __init__(self, directory: Path | str, *, members: int = 3, max_operations: int = 128) -> None:
        """`max_operations` is what one transaction may hold (etcd's --max-txn-ops)."""
        self.path = Path(directory).absolute()
        self._members = members
        self._max_operations = max_operations
        self._ports: list[tuple[int, int]] = []  # for clients, for members
        self._token = ""
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._pause = threading.Event()

    @property
    def endpoints(self) -> list[str]:
        """Where the members serve clients, "host:port" each; known once started."""
        return [f"{HOST}:{port}" for port, _ in self._ports]

    @property
    def members(self) -> list[int]:
        """The numbers of all members, whether they run or not."""
        return list(range(1, len(self._ports) + 1))

    def __enter__(self) -> LocalEtcd:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *, timeout_s: float = 30.0) -> None:
        """Start every member and wait until each answers and has a leader; stops them all if that fails.

        Raises:
            Invalid: there is no `etcd` on this machine, or the folder cannot be used.
            Unavailable: a member ended, or it took longer than `timeout_s`.
        """
        self.prepare()
        try:
            for member in self.members:
                self.restart(member)
            self.wait_healthy(timeout_s=timeout_s)
        except BaseException:
            self.stop()
            raise

    def prepare(self) -> None:
        """Know the members, as the folder remembers them; for who starts them by `command`. Raises: Invalid."""
        if shutil.which("etcd") is None:
            raise Invalid("there is no `etcd` on this machine; on Debian: apt-get install etcd-server")
        self.path.mkdir(parents=True, exist_ok=True)
        self._remember()

    def stop(self) -> None:
        """Stop every member; again is fine."""
        for process in self._running.values():
            process.send_signal(signal.SIGCONT)  # a stopped one would not hear the other signal
            process.terminate()
        deadline_s = deadline_after(STOP_S)
        for process in self._running.values():
            try:
                process.wait(max(deadline_s - lease_now_s(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def runs(self, member: int) -> bool:
        """Whether a member was started, and not killed since."""
        return member in self._running

    def kill(self, member: int) -> None:
        """End a member with SIGKILL, as a crash would, and reap it."""
        process = self._running.pop(member)
        process.kill()
        process.wait()

    def send(self, member: int, number: signal.Signals) -> None:
        """Send a running member a signal, such as SIGSTOP."""
        self._running[member].send_signal(number)

    def restart(self, member: int) -> None:
        """Start a member that does not run, on its old ports and data; returns at once."""
        assert member not in self._running, f"member {member} runs"
        with self._log(member).open("ab") as log:
            self._running[member] = subprocess.Popen(
                self.command(member), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait_healthy(self, *, timeout_s: float = 30.0) -> None:
        """Wait until every member that runs answers and has a leader. Raises: Unavailable."""
        deadline_s = deadline_after(timeout_s)
        for member, process in self._running.items():
            while not self.healthy(member):
                if process.poll() is not None:
                    raise Unavailable(f"etcd member {member} ended; its log is {self._log(member)}")
                if lease_now_s() >= deadline_s:
                    raise Unavailable(f"etcd is not ready after {timeout_s:g} s; its logs are in {self.path}")
                self._pause.wait(_LOOK_S)

    def leader(self) -> int:
        """The number of the member that leads, by the word of the first that answers. Raises: Unavailable."""
        ids: dict[str, int] = {}
        leader = "0"
        for member in self.members:
            try:
                status = self._ask(member, "/v3/maintenance/status", {})
            except OSError:
                continue
            ids[status["header"]["member_id"]] = member
            leader = status.get("leader", leader)
        if leader not in ids:
            raise Unavailable("etcd has no leader that answers")
        return ids[leader]

    def move_leader(self, member: int) -> None:
        """Let the member that leads now hand over to `member`. Raises: Unavailable."""
        try:
            target = self._ask(member, "/v3/maintenance/status", {})["header"]["member_id"]
            self._ask(self.leader(), "/v3/maintenance/transfer-leadership", {"targetID": target})
        except OSError as error:
            raise Unavailable(f"etcd's leader could not be moved to member {member}: {error}") from None

    def _remember(self) -> None:
        """Take the ports from the folder, or choose them if it is new. Raises: Invalid."""
        saved = self.path / _SAVED
        try:
            found = json.loads(saved.read_text(encoding="utf-8"))
        except FileNotFoundError:
            taken: set[int] = set()
            ports = [(free_port(taken), free_port(taken)) for _ in range(self._members)]
            found = {"format": _FORMAT, "token": secrets.token_hex(8), "ports": ports}
            draft = saved.with_suffix(".new")
            draft.write_text(json.dumps(found) + "\n", encoding="utf-8")
            draft.replace(saved)
        except (OSError, ValueError) as error:
            raise Invalid(f"{saved}: {error}") from None
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            known = found.get("format") if isinstance(found, dict) else found
            raise Invalid(f"{saved}: format {known!r}, this fs3 reads format {_FORMAT}")
        try:
            self._ports = [(int(client), int(peer)) for client, peer in found["ports"]]
            self._token = str(found["token"])
        except (KeyError, TypeError, ValueError):
            raise Invalid(f"{saved}: expected a token, and the ports of each member, found {found!r}") from None

    def _log(self, member: int) -> Path:
        return self.path / f"{_name(member)}.log"

    def command(self, member: int) -> list[str]:
        """What starts a member, in the foreground."""
        client, peer = (f"http://{HOST}:{port}" for port in self._ports[member - 1])
        everybody = ",".join(f"{_name(other)}=http://{HOST}:{self._ports[other - 1][1]}" for other in self.members)
        options = {
            "name": _name(member),
            "data-dir": data_dir(self.path, member),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": everybody,
            "initial-cluster-token": self._token,
            "initial-cluster-state": "new",
            "max-txn-ops": self._max_operations,
            "logger": "zap",
            "log-outputs": "stderr",
        }
        return ["etcd", *(f"--{option}={value}" for option, value in options.items())]

    def healthy(self, member: int) -> bool:
        """Whether a member answers and has a leader."""
        try:
            return bool(self._ask(member, "/health")["health"] == "true")
        except (OSError, ValueError, KeyError):
            return False

    def _ask(self, member: int, path: str, body: dict[str, str] | None = None) -> Any:
        """Ask a member over HTTP. Raises: OSError."""
        connection = http.client.HTTPConnection(HOST, self._ports[member - 1][0], timeout=_ASK_S)
        try:
            connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from None
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise OSError(f"{path}: status {answer.status}: {text.decode(errors='replace').strip()}")
        return json.loads(text)


def data_dir(folder: Path, member: int) -> Path:
    """Where a member's data lies."""
    return folder / _name(member)


def _name(member: int) -> str:
    return f"etcd-{member}"
