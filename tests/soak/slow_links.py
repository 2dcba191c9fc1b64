"""`make slow-links`: what large writes cost where links are slower than memory: one chunk at a time down chains of
three replicas, with its bytes ahead of its update (fs3/storage/ahead.py) and without, by turns.

Each daemon and the client have a network namespace of their own, whose link sends no more than `--megabits` (tbf). With
a link slower than the disks a chunk should take little longer than it takes to cross one link, and without its bytes
ahead as long as it takes to cross three. Needs root, and `ip` and `tc` (iproute2).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from soak_cluster import SECRET, Cluster, daemon_names
from soak_network import Missing, Network

from fs3.client.connect import Client, connect
from fs3.client.meta import LayoutChoice

_CLIENT = "client"
_WARM = 3
_NEVER = 1 << 30
_REPLICAS = 3


def measure(client: Client, megabytes: int, times: int, progress: Progress) -> dict[str, list[float]]:
    """Seconds of each write: a new file of one chunk, closed, so that it is durable on all replicas and has a name."""
    data = np.random.default_rng(1).bytes(megabytes << 20)
    peers, ahead = client.storage.peers, client.storage.peers.piece_bytes
    choice = LayoutChoice(replicas=_REPLICAS, chunk_bytes=max(megabytes, 1) << 20)
    found: dict[str, list[float]] = {"with its update": [], "ahead of its update": []}
    for turn in progress.track(range(_WARM + times), description=f"{megabytes} MiB"):
        for name, piece_bytes in (("with its update", _NEVER), ("ahead of its update", ahead)):
            peers.piece_bytes = piece_bytes
            begun_s = time.perf_counter()
            with client.files.create_writer(f"/{megabytes}-{turn}-{name}", layout_choice=choice) as writer:
                writer.write(data)
            if turn >= _WARM:
                found[name].append(time.perf_counter() - begun_s)
    return found


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabits", type=int, default=1_000, help="what each link sends a second; 0: all it can")
    parser.add_argument("--mib", type=int, nargs="*", default=[4, 16], help="sizes of the chunks")
    parser.add_argument("--times", type=int, default=15)
    options = parser.parse_args()
    console = Console()
    try:
        network = Network([*daemon_names(_REPLICAS), _CLIENT])
    except Missing as error:
        console.print(f"[red]{error}[/red]")
        return 2
    with tempfile.TemporaryDirectory(prefix="fs3-links-") as folder:
        network.enter(_CLIENT)
        cluster = Cluster(Path(folder), network, nodes=_REPLICAS, replicas=_REPLICAS)
        try:
            for name in cluster.names:
                cluster.start(name)
            if why := cluster.wait(60.0, recovered=True):
                console.print(f"[red]{why}[/red]")
                return 1
            if "throttle" in network.cannot:
                console.print(f"[red]no slow links here: {network.cannot['throttle']}[/red]")
                return 2
            for name in (_CLIENT, *(f"storage-{node}" for node in range(1, _REPLICAS + 1))):
                if options.megabits:
                    network.throttle(name, options.megabits)
            table = Table("chunk", "the bytes go", "median", "of one link's time", "least", "most")
            client = connect(f"fs3://{','.join(cluster.mgmtds)}", secret=SECRET)
            with Progress(console=console, transient=True) as progress:
                for mib in options.mib:
                    link_s = (mib << 20) * 8 / options.megabits / 1e6 if options.megabits else 0.0
                    for name, seconds in measure(client, mib, options.times, progress).items():
                        middle = statistics.median(seconds)
                        table.add_row(
                            f"{mib} MiB",
                            name,
                            f"{1e3 * middle:.0f} ms",
                            f"{middle / link_s:.2f}" if link_s else "",
                            f"{1e3 * min(seconds):.0f} ms",
                            f"{1e3 * max(seconds):.0f} ms",
                        )
            client.close()
            links = f"links of {options.megabits} Mbit/s" if options.megabits else "links as fast as they are"
            console.print(f"{links}, {_REPLICAS} replicas, one chunk at a time")
            console.print(table)
        finally:
            cluster.stop()
            network.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
