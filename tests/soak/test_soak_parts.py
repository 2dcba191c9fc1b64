"""The parts of a soak that need no cluster: histories survive being written down, wrong ones are found, faults are the
seed's, and a cut link is cut one way. `make soak` is the whole of it."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from soak_faults import Nemesis
from soak_history import bytes_of, check, content, operations_of, runs_of
from soak_network import Network, missing


def _line(number: int, kind: str, begun: int, ended: int, **more: Any) -> dict[str, Any]:
    base = {"n": number, "lo": 3, "k": kind, "c": 1, "i": begun, "r": ended, "o": "ok", "off": 0, "len": 0, "chain": 1}
    return {**base, **more}


def test_what_a_read_saw_survives_being_told_as_runs() -> None:
    rng = random.Random(1)
    for _ in range(200):
        offset = rng.randrange(0, 10_000, 8)
        data = b""
        while len(data) < rng.randrange(1, 20_000):
            size = rng.randrange(8, 5_000, 8)
            data += rng.choice((bytes(size), content(rng.randrange(1, 1 << 30), offset + len(data), size)))
        runs = runs_of(data, offset)
        assert isinstance(runs, list) and bytes_of(runs) == data
    damaged = bytearray(content(7, 0, 800))
    damaged[80] ^= 1
    assert isinstance(runs_of(bytes(damaged), 0), str) and bytes_of(runs_of(bytes(damaged), 0)) == damaged
    assert runs_of(b"", 8) == [] and bytes_of([]) == b""


@pytest.mark.parametrize(
    ("seen_by_last", "version", "fine"), [(2, 2, True), (1, 1, False), (2, 1, False), (9, 2, False)]
)
def test_a_history_that_forgets_an_acknowledged_write_is_found(seen_by_last: int, version: int, fine: bool) -> None:
    lines = [
        _line(1, "replace", 10, 20, len=80, v=1, cl=80),
        _line(2, "replace", 30, 40, len=80, v=2, cl=80),
        _line(3, "read", 50, 60, len=80, v=version, cl=80, seen=[[0, 80, seen_by_last]]),
    ]
    (operations,) = operations_of(lines).values()
    assert check(operations).ok is fine


def test_an_uncertain_write_may_be_seen_or_not() -> None:
    for seen, version in ((1, 1), (2, 2)):
        lines = [
            _line(1, "replace", 10, 20, len=80, v=1, cl=80),
            _line(2, "replace", 30, 40, len=80, o="unknown"),
            _line(3, "read", 50, 60, len=80, v=version, cl=80, seen=[[0, 80, seen]]),
        ]
        assert check(operations_of(lines)[3]).ok


class _Cluster:
    """What a Nemesis asks of a cluster when it draws."""

    names = ("mgmtd-1", "mgmtd-2", "meta-1", "meta-2", "storage-1", "storage-2", "storage-3")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def primary(self) -> str:
        return "mgmtd-2"

    def runs(self, name: str) -> bool:
        return True


class _Wires:
    def __init__(self) -> None:
        self.cannot = {"delay": "no netem"}


def test_faults_are_the_seeds_and_leave_a_replica(tmp_path: Path) -> None:
    def drawn(seed: int) -> list[str]:
        nemesis = Nemesis(_Cluster(tmp_path), _Wires(), ["client-1"], random.Random(seed))  # type: ignore[arg-type]
        faults = [nemesis.draw(frozenset({"storage-1", "storage-2"})) for _ in range(200)]
        assert all(not fault.storage for fault in faults), "two of three are out: the third must stay"
        faults = [nemesis.draw(frozenset()) for _ in range(200)]
        nemesis.close()
        return [f"{fault} {fault.lasts_s}" for fault in faults]

    assert drawn(1) == drawn(1) != drawn(2)
    kinds = {line.partition(":")[0] for line in drawn(1)}
    assert {"kill-storage", "freeze-storage", "cut-one-way", "partition", "kill-mgmtd", "kill-meta", "loss"} <= kinds
    assert "delay" not in kinds


@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
def test_a_cut_link_is_cut_one_way_and_mended() -> None:
    network = Network(["a", "b", "c"])
    listen = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 9)); print('up', flush=True)\n"
        "while True: print(s.recv(9).decode(), flush=True)"
    )
    try:
        heard = {}
        for name in ("a", "b"):
            command = network.command(name, [sys.executable, "-c", listen, network.address(name)])
            heard[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert heard[name].stdout is not None and heard[name].stdout.readline() == "up\n"

        def send(sender: str, receiver: str, text: str) -> None:
            said = (
                "import socket, sys\n"
                "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(sys.argv[2].encode(), (sys.argv[1], 9))"
            )
            command = network.command(sender, [sys.executable, "-c", said, network.address(receiver), text])
            subprocess.run(command, check=True)

        def hears(name: str) -> str:
            assert heard[name].stdout is not None
            return heard[name].stdout.readline().strip()

        network.cut("a", "b")
        send("a", "b", "lost")
        send("c", "b", "third")
        assert hears("b") == "third", "a's word must be lost"
        send("b", "a", "back")
        assert hears("a") == "back", "the other way must stay"
        network.heal()
        send("a", "b", "again")
        assert hears("b") == "again"
    finally:
        for process in heard.values():
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        network.close()
