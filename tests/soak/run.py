"""`make soak MINUTES=30 SEED=1`: a real cluster in network namespaces, under load, with faults at random, then a check.

Two mgmtds, two metas, four storage nodes with three replicas, three client processes, each in a namespace of its own.
The seed draws the faults and the load; what the machine does with them is its own affair, so a run cannot be repeated
exactly (tests/sim can). Ends with status 1 if anything was lost or is wrong, 2 if a soak cannot run here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from soak_check import Findings, check_all
from soak_cluster import SECRET, Cluster, daemon_names
from soak_faults import Fault, Missing, Nemesis
from soak_history import lines_of
from soak_network import Network
from soak_report import felt, plot, table, write_json

from fs3.client.connect import connect
from fs3.errors import Fs3Error

_EVERY_S = 20.0  # from one fault to the next, on average
_QUIET_S = 5.0  # of load before the first fault
_HEAL_S = 120.0
_RECOVER_S = 12.0  # how long the next fault may wait for recovery from the last


class Soak:
    """One run."""

    def __init__(self, folder: Path, *, minutes: float, seed: int, nodes: int, replicas: int, clients: int) -> None:
        self.seconds = minutes * 60
        self.seed = seed
        self.folder = folder
        self.replicas = replicas
        self.rng = random.Random(seed)
        self.clients = [f"client-{number}" for number in range(1, clients + 1)]
        self.network = Network([*daemon_names(nodes), *self.clients, "ops"])
        self.network.enter("ops")
        self.cluster = Cluster(folder, self.network, nodes=nodes, replicas=replicas)
        self.nemesis = Nemesis(self.cluster, self.network, self.clients, self.rng)
        self.faults: list[Fault] = []
        self.notes: list[str] = []
        self._active: list[tuple[float, Fault]] = []
        self._load: list[subprocess.Popen[bytes]] = []
        self._pause = threading.Event()
        self._asked_to_stop = False
        self.begun_ns = 0

    def run(self) -> Findings:
        """Start, spoil, heal, check."""
        signal.signal(signal.SIGINT, lambda *_: setattr(self, "_asked_to_stop", True))
        for name in self.cluster.names:
            self.cluster.start(name)
        why = self.cluster.wait(60.0, recovered=True)
        if why:
            raise Missing(f"the cluster does not come up: {why}; its logs are in {self.folder / 'log'}")
        self.begun_ns = time.monotonic_ns()
        self._start_load()
        self._spoil()
        self._heal()
        self._end_load()
        _say("checking")
        client = connect(self.cluster.mgmtds, secret=SECRET, same_host=False)
        try:
            files = [Path(f"{path}.files") for path in self._histories()]
            return check_all(self.lines(), client, self.replicas, files, time.monotonic_ns())
        finally:
            client.close()

    def lines(self) -> list[dict[str, Any]]:
        """The history, in order of time."""
        return sorted(lines_of(self._histories()), key=lambda line: int(line["i"]))

    def close(self) -> None:
        """End every process and delete the namespaces."""
        for process in self._load:
            process.kill()
            process.wait()
        self.cluster.stop()
        self.nemesis.close()
        self.network.close()

    def _histories(self) -> list[Path]:
        return [self.folder / f"{name}.jsonl" for name in self.clients]

    def _start_load(self) -> None:
        script = str(Path(__file__).parent / "soak_client.py")
        for number, name in enumerate(self.clients, start=1):
            said = {
                "addresses": list(self.cluster.mgmtds),
                "secret": SECRET,
                "number": number,
                "seed": self.seed * 100 + number,
                "replicas": self.replicas,
                "out": str(self.folder / f"{name}.jsonl"),
                "begun_ns": self.begun_ns,
            }
            with (self.folder / "log" / f"{name}.log").open("ab") as log:
                command = self.network.command(name, [sys.executable, script, json.dumps(said)])
                self._load.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def _end_load(self) -> None:
        for process in self._load:
            process.terminate()
        for name, process in zip(self.clients, self._load, strict=True):
            try:
                status = process.wait(60.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise Missing(f"{name} hangs: a call did not end within 60 s of a cluster without faults") from None
            if status:
                raise Missing(f"{name} ended with status {status}; see {self.folder / 'log' / f'{name}.log'}")

    def _elapsed_s(self) -> float:
        return (time.monotonic_ns() - self.begun_ns) / 1e9

    def _spoil(self) -> None:
        next_s = _QUIET_S
        while self._elapsed_s() < self.seconds and not self._asked_to_stop:
            now_s = self._elapsed_s()
            for due in [pair for pair in self._active if pair[0] <= now_s]:
                self._end(due)
            # The last ones must have time to end.
            if now_s >= next_s and now_s < self.seconds - 10.0 and len(self._active) < 2:
                self._begin(now_s)
                next_s = self._next(now_s)
            self._watch(now_s)
            self._pause.wait(0.2)
        for pair in list(self._active):
            self._end(pair)

    def _next(self, now_s: float) -> float:
        """When the next fault comes: often while this one lasts, or while recovery from it runs."""
        lasts_s = self._active[-1][0] - now_s
        if self.rng.random() < 0.25:
            return now_s + lasts_s * self.rng.random()
        return now_s + lasts_s + self.rng.uniform(0.5, 2 * (_EVERY_S - lasts_s) - 4.0 if lasts_s < 15 else 3.0)

    def _begin(self, now_s: float) -> None:
        fault = self.nemesis.draw(frozenset().union(*(active.storage for _, active in self._active)))
        fault.begun_ns = time.monotonic_ns()
        fault.begin()
        self.faults.append(fault)
        self._active.append((now_s + fault.lasts_s, fault))

    def _end(self, pair: tuple[float, Fault]) -> None:
        self._active.remove(pair)
        pair[1].end()
        pair[1].ended_ns = time.monotonic_ns()

    def _watch(self, now_s: float) -> None:
        for text in self.cluster.died():
            self.notes.append(f"after {now_s:.0f} s {text}")
        for name, process in zip(self.clients, self._load, strict=True):
            if process.poll() is not None:
                raise Missing(f"{name} ended; see {self.folder / 'log' / f'{name}.log'}")
        now = ", ".join(str(fault) for _, fault in self._active) or "no fault"
        _say(f"{now_s:6.0f} of {self.seconds:.0f} s  {len(self.faults):3d} faults  {now}")

    def _heal(self) -> None:
        self.network.heal()
        _say("healing")
        begun_s = time.monotonic()
        why = self.cluster.wait(_HEAL_S, recovered=True)
        if why:
            raise Missing(f"not healed {_HEAL_S:.0f} s after the last fault: {why}")
        self.notes.append(f"whole again {time.monotonic() - begun_s:.1f} s after the last fault")
        self._pause.wait(2.0)  # of load on the whole cluster


_live = sys.stderr.isatty()
_said_s = 0.0


def _say(line: str) -> None:
    global _said_s
    if _live:
        print(f"\r{line[:150]}\x1b[K", end="", file=sys.stderr, flush=True)
    elif time.monotonic() - _said_s > 10.0:
        _said_s = time.monotonic()
        print(line, file=sys.stderr, flush=True)


def tracebacks(folder: Path) -> list[str]:
    """What in the daemons' logs should not be there."""
    out = []
    for log in sorted((folder / "log").glob("*.log")):
        text = log.read_bytes().decode(errors="replace")
        count = text.count("Traceback (most recent call last)")
        if count:
            last = [line for line in text.partition("Traceback")[2].splitlines() if line and not line.startswith(" ")]
            out.append(f"{log.name}: {count} tracebacks, the first: {last[1] if len(last) > 1 else '?'}"[:300])
    return out


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="A real cluster under load and faults.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("soak-out"))
    parser.add_argument("--folder", type=Path, help="where the cluster lives; kept (default: a temporary one)")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = asked.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fs3-soak-")))
        shape = {"nodes": asked.nodes, "replicas": asked.replicas, "clients": asked.clients}
        try:
            soak = Soak(folder, minutes=asked.minutes, seed=asked.seed, **shape)
        except Missing as error:
            print(f"fs3: no soak here: {error}", file=sys.stderr)
            return 2
        stack.callback(soak.close)
        try:
            findings = soak.run()
        except (Missing, Fs3Error, AssertionError) as error:
            findings = Findings(wrong=[f"{type(error).__name__}: {error}"])
        lines = soak.lines()
        all_felt = felt([fault for fault in soak.faults if fault.ended_ns], lines, soak.begun_ns)
        notes = [*soak.notes, *tracebacks(folder)]
        missing_plot = (
            plot(asked.out / "soak.png", all_felt, lines, soak.begun_ns) if lines else "no picture: no history"
        )
        text = table(all_felt, findings, soak.nemesis.cannot, [*notes, *([missing_plot] if missing_plot else [])])
        said = {"minutes": asked.minutes, "seed": asked.seed, **shape, "left_out": soak.nemesis.cannot, "notes": notes}
        write_json(asked.out / "soak.json", all_felt, findings, said)
        (asked.out / "soak.txt").write_text(text + "\n", encoding="utf-8")
        print(f"\n{text}\n{asked.out}/soak.txt, soak.json, soak.png", flush=True)
        if findings.wrong and asked.folder is None:
            print(f"SEED={asked.seed}; say --folder DIR to keep the daemons' logs and the histories")
        return 1 if findings.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
