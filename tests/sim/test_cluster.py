"""Clusters of production classes in the simulator: they come up, serve, survive each kind of fault, and repeat."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sim_cluster import Cluster, Shape, SimClient
from sim_faults import KINDS, Nemesis
from sim_kernel import Simulation
from sim_names import Names

from fs3.client.storage import RANGE, ChunkUpdate, Op
from fs3.errors import MaybeApplied, NoSpace
from fs3.ids import file_chunk

HERE = Path(__file__).parent
CHUNKS = 3


def chain_of(cluster: Cluster) -> int:
    return next(chain.chain_id for chain in cluster.routing.chains.values() if chain.replicas == cluster.shape.replicas)


def write(client: SimClient, chain: int, lo: int, data: bytes) -> None:
    hi, lo = file_chunk(7, lo)
    update = ChunkUpdate(hi=hi, lo=lo, chain=chain, op=Op.REPLACE, data=memoryview(data), chunk_bytes=64 << 10)
    assert client.storage is not None
    client.storage.write([update], deadline_s=client.runtime.now_s() + 60)


def read(client: SimClient, chain: int, lo: int, length: int) -> bytes:
    ranges = np.zeros(1, dtype=RANGE)
    ranges["hi"], ranges["lo"] = file_chunk(7, lo)
    ranges["chain"], ranges["length"] = chain, length
    out = bytearray(length)
    assert client.storage is not None
    where = np.zeros(1, dtype=np.int64)
    client.storage.read(ranges, memoryview(out), where, deadline_s=client.runtime.now_s() + 60)
    return bytes(out)


def keep_writing(cluster: Cluster, nemesis: Nemesis, chain: int, lo: int, last: dict[int, bytes]) -> None:
    """Write chunk `lo` again and again while faults strike; `last` has what was acknowledged last."""
    number = 0
    while not nemesis.done:
        number += 1
        data = f"{lo} {number} ".encode() * 1_000
        client = cluster.clients[-1]
        try:
            write(client, chain, lo, data)
        except MaybeApplied:
            last.pop(lo, None)
            return
        except NoSpace:
            pass
        else:
            last[lo] = data
        client.runtime.sleep(0.05)


def survives(seed: int, kind: str) -> Simulation:
    """Clients write and read while one kind of fault strikes; afterwards all is well and every last write is there."""
    sim = Simulation(seed)
    metas = 2 if "meta" in kind else 0
    cluster = Cluster(sim, Shape(mgmtds=2, metas=metas, storages=4, replicas=3, clients=2, lease_s=1.0, wipes=True))
    cluster.start()
    cluster.wait_ready()
    chain = chain_of(cluster)
    nemesis = Nemesis(sim, cluster)
    nemesis.kinds, nemesis.every_s = [kind], 0.5
    nemesis.start(for_s=3.0)
    names = Names(sim, cluster, operations=60, pause_s=0.08)
    if metas:
        names.start()
    last: dict[int, bytes] = {}

    for lo in range(CHUNKS):
        cluster.clients[-1].spawn(lambda lo=lo: keep_writing(cluster, nemesis, chain, lo, last), name=f"writer {lo}")
    cluster.run_until(lambda: nemesis.done, within_s=60)
    cluster.settle(within_s=60)
    if "bytes" in kind:
        assert any("is changed" in line for line in sim.transcript)
        cluster.scrub()
        cluster.run_until(lambda: not cluster.damaged(), within_s=60, what="the repair of every chunk")
    cluster.run_until(lambda: cluster.clients[0].storage is not None, within_s=60)
    checked: list[int] = []

    def check() -> None:
        for lo, data in last.items():
            assert read(cluster.clients[0], chain, lo, len(data)) == data
            checked.append(lo)

    if "client" not in kind:
        cluster.run_until(
            lambda: not any("writer" in thread.name for thread in cluster.clients[-1].process.threads), within_s=90
        )
        thread = cluster.clients[0].spawn(check, name="check")
        cluster.run_until(lambda: not thread.is_alive(), within_s=60)
        assert checked
    if metas:
        cluster.run_until(lambda: names.done, within_s=60)
        assert (names.done_operations, names.unknown) == (60, 0)  # no call failed
        thread = cluster.clients[0].spawn(lambda: names.check(cluster.clients[0]), name="check names")
        cluster.run_until(lambda: not thread.is_alive(), within_s=60)
    sim.close()
    return sim


@pytest.mark.parametrize("kind", KINDS)
def test_a_cluster_survives_each_kind_of_fault(kind: str) -> None:
    survives(KINDS.index(kind), kind)


def test_a_seed_repeats_exactly_under_any_hash_seed() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\nimport test_cluster\n"
        "sim = test_cluster.survives(3, 'storage power loss'); print(sim.trace_hash, sim.steps)"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in (1, 2)
    }
    sim = survives(3, "storage power loss")
    assert seen == {f"{sim.trace_hash} {sim.steps}\n"}
