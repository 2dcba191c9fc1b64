"""Writes through USRBIO while a storage node is killed: each ends without error, and is there on whoever is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fs3 import usrbio
from fs3.client.connect import connect
from fs3.cluster.local import LocalCluster
from fs3.layout import LayoutChoice

CHUNK_BYTES = 64 << 10
SIZE, BATCHES = 40_000, 60


@pytest.mark.usefixtures("runtime_directory")
def test_a_node_is_killed_while_a_ring_writes(tmp_path: Path) -> None:
    expected = bytearray(np.random.default_rng(1).bytes(SIZE * 16))
    zero = np.zeros(1, dtype=np.int64)
    with LocalCluster(tmp_path / "cluster", nodes=3, replicas=2, port=0, lease_s=1.5) as cluster:
        client = connect(cluster.url)
        client.files.create_batch(
            ["/f"], [bytes(expected)], layout_choice=LayoutChoice(chunk_bytes=CHUNK_BYTES, stripe=3)
        )
        with (
            usrbio.open(cluster.url) as io,
            io.iov(8 * SIZE) as iov,
            io.ior(depth=8) as ring,
            io.open_for_writing(["/f"]) as files,
        ):
            free, used = list(range(8)), dict[int, int]()
            for batch in range(BATCHES):
                if batch == BATCHES // 3:
                    cluster.kill_node(2)
                if not free or batch % 16 == 0:  # no two batches under way write the same bytes
                    free += [used.pop(done.check().number) for done in ring.wait(at_least=ring.under_way)]
                slot, begin = free.pop(), batch % 16 * SIZE
                data = np.random.default_rng(100 + batch).bytes(SIZE)
                iov.view[slot * SIZE : (slot + 1) * SIZE] = expected[begin : begin + SIZE] = data
                used[ring.write(files, zero, zero + begin, zero + SIZE, iov, zero + slot * SIZE)] = slot
            assert all(done.check() for done in ring.wait(at_least=ring.under_way))
        assert client.files.read(client.files.open_read("/f")) == expected
        client.close()
