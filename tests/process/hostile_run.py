"""Hostile bytes against a running cluster: `make hostile CASES=1000000 SEED=1`.

Attackers, processes of their own, send cases (hostile_frames.py, hostile_rpc.py) to the data ports of a storage
daemon, TCP and Unix, and to the ports of mgmtd and meta. Meanwhile a well-behaved client, the witness, writes and reads
back and verifies, without an end. At the end

    the daemons are the processes they were, and no log has a traceback
    no connection that the daemon had to close stayed open, no call of the witness failed
    memory is within a bound of what it was after the first tenth, descriptors and threads are back
    everything written before the attack is as it was

Daemons' memory is anonymous memory: mapped block files are the page cache's.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import grpc
from hostile_frames import Attack, Role, Source, Target
from hostile_rpc import RpcSource

from fs3.client.connect import Client, connect
from fs3.cluster.folder import storage_name
from fs3.cluster.local import LocalCluster
from fs3.routing import NodeKind
from fs3.transport.frame_core import HEADER_BYTES

GROWTH_BYTES = 192 << 20  # replies that nobody takes may fill half of `max_inflight_bytes`, and malloc keeps it
_MORE_SOCKETS = 64  # what two nodes' pools of connections to each other may open later; a leak opens thousands
_LOITER_EVERY = 40
_ROUND = 2_000  # cases between two looks at the clock, and of one task of an attacker
_PATIENCE_S = 20.0  # for an end that the daemon owes
_DRIPS = 15
_LONG_POLL = "/GetRouting"  # may be asked to wait, and then does
_SYNC_ID = (1 << 62) + 1
_SIZES = struct.Struct("<IQ")
_REQUEST = struct.Struct("<Q")
_WORDS_OF_A_DEFECT = (b"Traceback", b"failed: ", b"closed the connection of", b"could not be queued")
_PATIENT = b"it took too long"


@dataclass(slots=True)
class Tally:
    """What one attacker has done. `hung`: connections that stayed open though their end was due."""

    cases: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    answers: int = 0
    refused: int = 0
    hung: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.cases.update(other.cases)
        self.connections += other.connections
        self.answers += other.answers
        self.refused += other.refused
        self.hung += other.hung


# The data port


def attack_data(target: Target, endpoints: tuple[str, ...], seed: int, cases: int) -> Tally:
    """Send at least `cases` cases to a storage daemon, one connection after the other."""
    source, tally = Source(target, seed), Tally()
    rng = random.Random(seed ^ 0x5EED)
    while tally.cases.total() < cases:
        attack = source.attack(cases - tally.cases.total())
        try:
            with _dial(rng.choice(endpoints)) as sock:
                tally.connections += 1
                _strike(sock, source, attack, tally)
        except OSError as error:
            if isinstance(error, TimeoutError):
                tally.hung.append(
                    f"seed {seed}, connection {tally.connections}: {attack.role.value}, {attack.cases} cases"
                )
            tally.refused += 1
        tally.cases[attack.role.value] += attack.cases
    return tally


def _dial(endpoint: str) -> socket.socket:
    if endpoint.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(_PATIENCE_S)
        sock.connect(endpoint.removeprefix("unix:"))
        return sock
    host, _, port = endpoint.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=_PATIENCE_S)


def _strike(sock: socket.socket, source: Source, attack: Attack, tally: Tally) -> None:
    stream = attack.stream
    if attack.role is not Role.NOBODY:
        stream = source.hello(attack.role) + stream
    if attack.abrupt:
        with contextlib.suppress(OSError):
            sock.sendall(stream)
            if len(stream) % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return
    try:
        sock.sendall(stream if attack.fatal else stream + source.query(_SYNC_ID))
        if attack.fatal:
            sock.shutdown(socket.SHUT_WR)
    except TimeoutError:
        raise
    except OSError:
        return  # the daemon had seen enough
    tally.answers += _listen(sock, None if attack.fatal else _SYNC_ID)


def _listen(sock: socket.socket, last_id: int | None) -> int:
    """Take answers until that to `last_id`, or the daemon's end; how many. Raises: TimeoutError."""
    answers = 0
    buffer = bytearray()
    while True:
        try:
            got = sock.recv(1 << 18)
        except TimeoutError:
            raise
        except OSError:
            return answers
        if not got:
            return answers
        buffer += got
        at = 0
        while len(buffer) - at >= HEADER_BYTES:
            head, body = _SIZES.unpack_from(buffer, at + 20)
            size = HEADER_BYTES + head + body + (16 if buffer[at + 6] & 2 else 0)
            if len(buffer) - at < size:
                break
            answers += 1
            if last_id is not None and _REQUEST.unpack_from(buffer, at + 8)[0] == last_id:
                return answers
            at += size
        del buffer[:at]


def loiter(target: Target, endpoints: tuple[str, ...], seed: int, connections: int) -> Tally:
    """Hold many connections open at once, each in its own way, for a few seconds; every one counts as a case.

    Silence before HELLO and after it, half a frame and then nothing, a byte now and then, bodies of which next to
    nothing comes, and requests for large replies that nobody takes.
    """
    source, tally, rng = Source(target, seed), Tally(), random.Random(seed)
    pause = threading.Event()
    with contextlib.ExitStack() as stack:
        dripping: list[socket.socket] = []
        for number in range(connections):
            try:
                sock = stack.enter_context(_dial(rng.choice(endpoints)))
                sock.settimeout(0.5)
                tally.connections += 1
                said = source.loitering(number)
                sock.sendall(said)
                dripping.append(sock)
            except OSError:
                tally.refused += 1  # turned away, or already too many of them
        for _ in range(_DRIPS):
            pause.wait(0.2)
            for sock in list(dripping):
                try:
                    sock.send(b"\0", socket.MSG_DONTWAIT)
                except BlockingIOError:
                    continue
                except OSError:
                    dripping.remove(sock)
    tally.cases["loitering"] += connections
    return tally


# The control ports


def attack_control(service: str, address: str, seed: int, cases: int) -> Tally:
    """Send at least `cases` cases to mgmtd or meta: of three one is a call, one raw bytes, one frames."""
    source, tally = RpcSource(service, seed), Tally()
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        while tally.cases.total() < cases:
            waiting: list[tuple[str, Any]] = []
            for _ in range(32):
                call = source.call()
                invoke = channel.unary_unary(call.method, request_serializer=None, response_deserializer=None)
                polls = call.method.endswith(_LONG_POLL)
                waiting.append((call.method, invoke.future(call.request, timeout=1.0 if polls else _PATIENCE_S)))
            for _ in range(32):
                _bytes_to(address, source.raw(), tally, seed)
                _bytes_to(address, source.framed(), tally, seed)
            for method, future in waiting:
                error = future.exception()
                late = error is not None and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                if late and not method.endswith(_LONG_POLL):
                    tally.hung.append(f"seed {seed}: a call of {method} was not answered")
                tally.answers += 1
            tally.cases[f"{service}, calls"] += 32
            tally.cases[f"{service}, raw"] += 32
            tally.cases[f"{service}, frames"] += 32
    return tally


def _bytes_to(address: str, stream: bytes, tally: Tally, seed: int) -> None:
    tally.connections += 1
    try:
        with _dial(address) as sock:
            sock.sendall(stream)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                tally.answers += 1
    except TimeoutError:
        tally.hung.append(f"seed {seed}: a raw connection to {address} stayed open")
    except OSError:
        tally.refused += 1


# The witness and the daemons' vital signs


class Witness:
    """A well-behaved client: writes, reads back and verifies until told to stop."""

    def __init__(self, client: Client, seed: int) -> None:
        self._files = client.files
        self._rng = random.Random(seed)
        self.before: dict[str, bytes] = {
            f"/before-{at}": self._rng.randbytes(size) for at, size in enumerate((1, 4_096, 70_001, 300_000, 2_000_003))
        }
        self._files.create_batch(list(self.before), list(self.before.values()))
        self._handles = self._files.open_many(list(self.before))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="witness")
        self.turns = 0
        self.longest_s = 0.0
        self.trouble = ""

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def verify(self, handles: Any) -> None:
        """Raises: AssertionError, Fs3Error."""
        for handle, data in zip(handles, self.before.values(), strict=True):
            assert self._files.read(handle) == data, "bytes written before the attack have changed"

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                begun_s = time.monotonic()
                data = self._rng.randbytes(self._rng.randrange(1, 400_000))
                path = f"/during-{self.turns % 6}"
                self._files.create_batch([path], [data])
                assert self._files.read(self._files.open_many([path])[0]) == data, f"{path} is not what was written"
                self.verify(self._handles)
                self.longest_s = max(self.longest_s, time.monotonic() - begun_s)
                self.turns += 1
                self._stop.wait(0.02)
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is told, and fails the run
            self.trouble = f"after {self.turns} turns: {type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True)
class Vitals:
    """What a daemon holds."""

    anonymous_bytes: int
    sockets: int
    threads: int

    def __str__(self) -> str:
        return f"{self.anonymous_bytes / 1e6:7.1f} MB {self.sockets:5d} sockets {self.threads:4d} threads"


def vitals(pid: int) -> Vitals:
    """Of process `pid` now."""
    said = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    sockets = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets += link.readlink().name.startswith("socket:")
    return Vitals(int(said["RssAnon"].split()[0]) << 10, sockets, int(said["Threads"]))


def settled(pid: int, like: Vitals, within_s: float = 90.0) -> Vitals:
    """The vitals once the sockets are back to about `like`, or after `within_s`."""
    until_s = time.monotonic() + within_s
    pause = threading.Event()
    while (now := vitals(pid)).sockets > like.sockets + _MORE_SOCKETS and time.monotonic() < until_s:
        pause.wait(0.05)
    return now


# The run


@dataclass(slots=True)
class Outcome:
    """What a run has found; `problems` is empty if all is well."""

    tally: Tally = field(default_factory=Tally)
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Siege:
    """A cluster of two nodes, two replicas, and what must hold of it."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        self.cluster = cluster
        self.client = connect(cluster.url)
        self.pids = dict(cluster.pids)
        self.witness = Witness(self.client, seed)
        routing = self.client.mgmtd.routing
        node = next(one for one in routing.nodes.values() if one.node_id == 1)
        self.endpoints = (node.endpoints[0], *(f"unix:{path}" for path in node.unix_endpoints))
        self.target = Target(
            cluster_id=routing.cluster_id,
            chains=tuple((chain.chain_id, chain.version) for chain in routing.chains.values()),
            nodes=tuple(int(one.node_id) for one in routing.nodes.values() if one.kind == NodeKind.STORAGE),
            max_ranges=4_096,
            max_body_bytes=64 << 20,
        )
        self.control = {"mgmtd": cluster.shape.address, "meta": f"127.0.0.1:{cluster.shape.ports['meta'][0]}"}

    @property
    def storage_pid(self) -> int:
        """The daemon that is attacked."""
        return self.pids[storage_name(1)]

    def vitals(self) -> dict[str, Vitals]:
        """Of every daemon."""
        return {name: vitals(pid) for name, pid in self.pids.items()}

    def check(self, warm: dict[str, Vitals], outcome: Outcome) -> None:
        """Add to `outcome` what must hold once the attackers have gone, and does not."""
        problems = outcome.problems
        problems += [f"{exit_}" for exit_ in self.cluster.reap()]
        if problems:
            return
        for name, pid in self.pids.items():
            now = settled(pid, warm[name])
            grown = now.anonymous_bytes - warm[name].anonymous_bytes
            outcome.lines.append(f"{name:10s} warm {warm[name]}   now {now}   memory {grown / 1e6:+.1f} MB")
            if grown > GROWTH_BYTES:
                problems.append(f"{name}: memory has grown by {grown / 1e6:.0f} MB")
            if now.sockets > warm[name].sockets + _MORE_SOCKETS:
                problems.append(f"{name}: {now.sockets} sockets, {warm[name].sockets} after the warm-up")
            if now.threads > warm[name].threads + 48:
                problems.append(f"{name}: {now.threads} threads, {warm[name].threads} after the warm-up")
            log = self.cluster.folder.log(name)
            problems += [f"{name}'s log: {line}" for line in _defects(log)]
            if story := _story(log):
                outcome.lines.append(f"{name}: {story}")
        if self.witness.trouble:
            problems.append(f"the well-behaved client failed {self.witness.trouble}")
        else:
            self.witness.verify(self.client.files.open_many(list(self.witness.before)))
        problems += outcome.tally.hung[:10]


def _defects(log: Path) -> list[str]:
    lines = log.read_bytes().splitlines()
    bad = [line for line in lines if any(word in line for word in _WORDS_OF_A_DEFECT) and _PATIENT not in line]
    return [line.decode(errors="replace")[:300] for line in bad[:3]]


def _story(log: Path) -> str:
    """The first traceback in a log, without its beginning."""
    text = log.read_bytes().decode(errors="replace")
    _, found, after = text.partition("Traceback")
    return found + after[:3_000]


def besiege(siege: Siege, cases: int, seed: int, *, processes: int, say: Any = lambda line: None) -> Outcome:
    """The whole run on a cluster that serves: nine tenths of the cases to the data port, the rest to mgmtd and meta."""
    outcome = Outcome()
    kinds = ["data"] * 9 + ["mgmtd"] + ["data"] * 9 + ["meta"]
    size = min(_ROUND, max(cases // 40, 50))
    begun_s = time.monotonic()
    context = get_context("spawn")
    warm: dict[str, Vitals] = {}
    with siege.witness, ProcessPoolExecutor(processes, mp_context=context) as pool:
        running: list[Future[Tally]] = []
        number = sent = rested = 0
        while sent < cases or running:
            while sent < cases and len(running) < processes * 2:
                kind = kinds[number % len(kinds)]
                task_seed = seed * 1_000_003 + number
                many = 0
                if number % _LOITER_EVERY == 2:
                    # Once in a while more of them than the daemon takes.
                    many = min(3_000 if number % (4 * _LOITER_EVERY) == 2 else 200, max(size, 60))
                    running.append(pool.submit(loiter, siege.target, siege.endpoints, task_seed, many))
                elif kind == "data":
                    running.append(pool.submit(attack_data, siege.target, siege.endpoints, task_seed, size))
                else:
                    running.append(pool.submit(attack_control, kind, siege.control[kind], task_seed, size))
                number, sent = number + 1, sent + (many or size)
            done = running.pop(0).result()
            outcome.tally.add(done)
            if done.cases["loitering"]:
                rested = 0
            rested += 1
            total = outcome.tally.cases.total()
            if not warm and total >= cases // 10 and rested > 4:
                warm = siege.vitals()
            elapsed_s = time.monotonic() - begun_s
            say(
                f"{total:9,} of {cases:,} cases  {total / elapsed_s:7,.0f}/s  witness {siege.witness.turns} turns,"
                f" longest {siege.witness.longest_s:.2f} s  storage {vitals(siege.storage_pid)}"
            )
            if siege.witness.trouble or siege.cluster.reap():
                break
    outcome.lines.append(
        f"{outcome.tally.cases.total():,} cases in {time.monotonic() - begun_s:.0f} s: {dict(outcome.tally.cases)}"
    )
    outcome.lines.append(
        f"{outcome.tally.connections:,} connections, {outcome.tally.answers:,} answers, {outcome.tally.refused} broken"
        f" off; witness: {siege.witness.turns} turns, the longest {siege.witness.longest_s:.2f} s"
    )
    siege.check(warm or siege.vitals(), outcome)
    return outcome


def main() -> int:
    """Run from the command line; 1 if something was wrong."""
    parser = argparse.ArgumentParser(description="Hostile bytes against every port of a cluster.")
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", help="a folder for the cluster, which stays there")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    live = sys.stderr.isatty()

    def say(line: str) -> None:
        print(f"\r{line}\x1b[K" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        folder = asked.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="fs3-hostile-"))
        with LocalCluster(Path(folder) / "cluster", nodes=2, replicas=2, port=0) as cluster:
            siege = Siege(cluster, asked.seed)
            outcome = besiege(siege, asked.cases, asked.seed, processes=asked.processes, say=say)
            siege.client.close()
    print("\n" + "\n".join(outcome.lines))
    for problem in outcome.problems:
        print(f"PROBLEM: {problem}")
    print("all is well" if not outcome.problems else f"seed {asked.seed} found problems")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
