"""`make failover`: what clients feel when a daemon of a cluster with the defaults of `fs3 up` is killed, and what
recovery moves.

    kill      under load from two processes, again and again: one storage daemon, the primary mgmtd of two, one of two
              metas; failed calls, the longest read and write, and the time until every client had a write acknowledged
              that it began after the kill
    recovery  one node is away while some chunks of a quiet cluster change: bytes that recovery sends / bytes of the
              chunks that differ; and what it sends when none do

Loopback, three storage nodes with three replicas. A figure, not a test: it says which targets were missed, and ends
with status 1 if one was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from soak_cluster import deciding
from soak_faults import Fault
from soak_history import CHUNK_HI, lines_of
from soak_report import Felt, felt

from fs3.client.connect import Client, connect
from fs3.client.write_path import ChunkUpdate
from fs3.clock import deadline_after
from fs3.cluster.folder import storage_name
from fs3.cluster.local import LocalCluster
from fs3.pb import storage_pb2
from fs3.transport.connection import Connection
from fs3.transport.frame_core import Kind
from fs3.transport.messages import Op

_BEFORE_S = 2.0
_AFTER_S = 5.0
_READ_STALL_S, _NEXT_WRITE_S, _RATIO = 1.0, 3.0, 1.05
_CHUNKS, _CHANGED, _BYTES = 400, 60, 200_000


class Rounds:
    """Kills under load, and the load's history."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self.cluster = cluster
        self.pause = threading.Event()
        self.begun_ns = time.monotonic_ns()
        self.faults: list[Fault] = []
        self._out = [folder / f"client-{number}.jsonl" for number in (1, 2)]
        self._load = []
        script = str(Path(__file__).parent / "soak_client.py")
        for number, path in enumerate(self._out, start=1):
            said = {"addresses": list(cluster.shape.addresses), "secret": "", "number": number, "seed": number}
            said |= {"replicas": 3, "out": str(path), "begun_ns": self.begun_ns}
            self._load.append(subprocess.Popen([sys.executable, script, json.dumps(said)], stdin=subprocess.DEVNULL))
        until_s = time.monotonic() + 60.0
        while not all(path.exists() and path.stat().st_size for path in self._out):  # the load has begun
            if time.monotonic() > until_s:
                raise SystemExit("failover: the load does not begin")
            self.pause.wait(0.1)
        self.pause.wait(_BEFORE_S)

    def kill(self, kind: str, name: str) -> None:
        """Kill a daemon, wait while its absence is felt, and bring it back."""
        fault = Fault(kind, name, 0.0, lambda: None, lambda: None)
        fault.begun_ns = time.monotonic_ns()
        self.cluster.kill(name)
        self.pause.wait(_AFTER_S)
        # What returning costs is felt too: `felt` looks at some seconds after the end.
        fault.ended_ns = time.monotonic_ns()
        self.cluster.restart(name)
        self.cluster.wait_serving(recovered=True, timeout_s=60.0)
        self.pause.wait(_BEFORE_S)
        self.faults.append(fault)

    def end(self) -> list[Felt]:
        """What the clients felt of each."""
        for process in self._load:
            process.terminate()
        for process in self._load:
            if process.wait(60.0):
                raise SystemExit("failover: a client of the load ended with an error")
        lines = sorted(lines_of(self._out), key=lambda line: int(line["i"]))
        self.calls = len(lines)
        self.failures = [line["e"] for line in lines if line["o"] == "failed" and not line["e"].startswith("NotFound")]
        return felt(self.faults, lines, self.begun_ns, after_s=3.0)


def kills(
    cluster: LocalCluster, folder: Path, times: int, say: Callable[[str], None]
) -> tuple[list[Felt], int, list[str]]:
    """Each kind of daemon killed `times` times."""
    rounds = Rounds(cluster, folder)
    for turn in range(times):
        say(f"kill {turn + 1} of {times}: a storage daemon")
        rounds.kill("storage daemon", storage_name(turn % 3 + 1))
        say(f"kill {turn + 1} of {times}: the primary mgmtd")
        number = deciding(cluster.shape.addresses, "")
        rounds.kill("primary mgmtd", cluster.shape.mgmtd_names[number or 0])
        say(f"kill {turn + 1} of {times}: a meta")
        rounds.kill("one of two metas", cluster.shape.meta_names[turn % 2])
    return rounds.end(), rounds.calls, rounds.failures


def recovered_bytes(client: Client) -> int:
    """What the storage daemons that run have sent to bring others up to date."""
    routing = client.mgmtd.fetch(2.0)
    hello = storage_pb2.Hello(protocol=1, cluster_id=routing.cluster_id, role="client")
    total = 0
    for node in routing.nodes.values():
        if node.alive and node.unix_endpoints:
            connection = Connection.open(node.endpoints[0], hello, timeout_s=5.0)
            connection.send(Kind.STATS, [b""], count=0, deadline_s=deadline_after(5.0))
            _, head = connection.receive_head()
            reply = storage_pb2.StatsReply()
            reply.ParseFromString(bytes(head))
            total += json.loads(reply.json)["writes"]["recovered_bytes"]
            connection.close()
    return total


def recovery(cluster: LocalCluster, client: Client, turn: int) -> tuple[int, int, int]:
    """(bytes of the chunks that differ, bytes sent for them, bytes sent when none differ)."""
    chains = [int(chain) for chain in client.mgmtd.routing.table_for_replicas(3).chains]
    rng = np.random.default_rng(turn)

    def write(los: Sequence[int], size: int, op: Op = Op.REPLACE, offset: int = 0) -> None:
        for at in range(0, len(los), 40):
            client.storage.write(
                [
                    ChunkUpdate(
                        hi=CHUNK_HI + 1,
                        lo=lo,
                        chain=chains[lo % len(chains)],
                        op=op,
                        offset=offset,
                        data=rng.bytes(size),
                    )
                    for lo in los[at : at + 40]
                ]
            )

    write(range(_CHUNKS), _BYTES)
    node = turn % 3 + 1
    cluster.kill_node(node)
    changed = rng.choice(_CHUNKS, _CHANGED, replace=False).tolist()
    write(changed[: _CHANGED // 2], _BYTES)
    write(changed[_CHANGED // 2 :], 4_096, Op.WRITE, 8_192)
    sent = recovered_bytes(client)
    cluster.restart_node(node)
    cluster.wait_serving(recovered=True, timeout_s=60.0)
    differing = recovered_bytes(client) - sent
    cluster.kill_node(node)
    cluster.wait_serving(timeout_s=60.0)
    # Nothing is written, so mgmtd must notice by itself that the node is away before it may come back.
    sent = _offline(cluster, client, node)
    cluster.restart_node(node)
    cluster.wait_serving(recovered=True, timeout_s=60.0)
    return _CHANGED * _BYTES, differing, recovered_bytes(client) - sent


def _offline(cluster: LocalCluster, client: Client, node: int) -> int:
    pause = threading.Event()
    while client.mgmtd.fetch(2.0).nodes[node].alive:  # type: ignore[index]
        pause.wait(0.05)
    return recovered_bytes(client)


def summary(all_felt: Sequence[Felt], moved: Sequence[tuple[int, int, int]]) -> tuple[list[str], list[str]]:
    """The table, and the targets that were missed."""
    lines = [
        f"{'killed':18s} {'times':>5s} {'failed':>7s} {'read stall':>18s} {'longest write':>18s} {'next write':>18s}"
    ]
    missed = []
    for kind in dict.fromkeys(one.kind for one in all_felt):
        some = [one for one in all_felt if one.kind == kind]
        failed = sum(one.failed_calls for one in some)
        reads, writes = [one.read_stall_s for one in some], [one.write_stall_s for one in some]
        nexts = [one.next_write_s if one.next_write_s is not None else float("inf") for one in some]
        lines.append(f"{kind:18s} {len(some):5d} {failed:7d} {_both(reads)} {_both(writes)} {_both(nexts)}")
        if failed:
            missed.append(f"{kind}: {failed} failed calls, target 0")
        if kind == "storage daemon" and max(reads) > _READ_STALL_S:
            missed.append(f"{kind}: a read stalled {max(reads):.2f} s, target {_READ_STALL_S:g}")
        if kind == "storage daemon" and max(*nexts, *writes) > _NEXT_WRITE_S:
            missed.append(f"{kind}: a write took {max(*nexts, *writes):.2f} s, target {_NEXT_WRITE_S:g}")
    lines.append(
        "seconds: median, worst. next write: the slowest client's first acknowledged write that began after it"
    )
    if moved:
        ratios = [sent / differ for differ, sent, _ in moved]
        idle = [nothing for _, _, nothing in moved]
        lines.append(
            f"recovery of {_CHANGED} of {_CHUNKS} chunks: {statistics.median(ratios):.3f} (median), {max(ratios):.3f}"
            f" (worst) times the bytes of the chunks that differ; when none differ: {max(idle)} bytes"
        )
        if max(ratios) > _RATIO:
            missed.append(f"recovery moved {max(ratios):.3f} times what differs, target {_RATIO}")
        if max(idle):
            missed.append(f"recovery moved {max(idle)} bytes though nothing differed")
    return lines, missed


def _both(values: Sequence[float]) -> str:
    return f"{statistics.median(values):8.2f} {max(values):8.2f} "


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="What clients feel when a daemon is killed, and what recovery moves.")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("soak-out"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    live = sys.stderr.isatty()

    def say(line: str) -> None:
        print(f"\r{line}\x1b[K" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="fs3-failover-") as folder:
        shape = {"nodes": 3, "replicas": 3, "mgmtds": 2, "metas": 2}
        with LocalCluster(Path(folder) / "cluster", port=0, **shape) as cluster:
            all_felt, calls, failures = kills(cluster, Path(folder), asked.times, say)
            client = connect(cluster.shape.addresses)
            moved = []
            for turn in range(asked.times):
                say(f"recovery {turn + 1} of {asked.times}")
                moved.append(recovery(cluster, client, turn))
            client.close()
    lines, missed = summary(all_felt, moved)
    lines += [f"{calls:,} calls under load"]
    lines += [f"failed: {text}" for text in dict.fromkeys(failures)]
    lines += [f"MISSED: {text}" for text in missed] or ["every target is met"]
    document = {"kills": [asdict(one) for one in all_felt], "recovery": moved, "calls": calls, "missed": missed}
    (asked.out / "failover.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (asked.out / "failover.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n" + "\n".join(lines))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
