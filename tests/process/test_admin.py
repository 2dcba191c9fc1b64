"""`fs3 admin` on a real cluster with data: drain a node, lose a disk, look at chunks, find orphans, rotate.

One cluster for all, in the order of the file. Nothing waits for a time: each step waits for a routing that shows it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fs3.cli import main
from fs3.client.connect import Client, connect
from fs3.client.inspection import Inspector
from fs3.client.meta import LayoutChoice
from fs3.client.orphans import find_orphans
from fs3.client.storage import ChunkUpdate, Op
from fs3.clock import deadline_after, lease_now_s
from fs3.cluster.folder import MGMTD_NODE
from fs3.cluster.local import LocalCluster
from fs3.errors import PermissionDenied
from fs3.ids import file_chunk
from fs3.routing import Routing, TargetState
from fs3.user import User

CHUNK = 256 << 10
FILES = {f"/data/{number}": np.random.default_rng(number).bytes(CHUNK * 5 + 1 + number) for number in range(4)}
WAIT_S = 60.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=4, replicas=3, port=0, lease_s=1.5) as made:
        yield made


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    made = connect(cluster.url)
    made.meta.mkdir("/data", layout=LayoutChoice(replicas=3, chunk_bytes=CHUNK))
    for path, data in FILES.items():
        with made.files.create_writer(path) as writer:
            writer.write(data)
    yield made
    made.close()


def admin(cluster: LocalCluster, capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> str:
    """What `fs3 admin COMMAND URL ARGUMENTS` prints; it must succeed."""
    capsys.readouterr()
    status = main.run(["admin", command, cluster.url, *arguments])
    shown = capsys.readouterr()
    assert status == 0, shown.err
    return shown.out


def wait_for(client: Client, reached: Callable[[Routing], bool]) -> Routing:
    deadline_s = deadline_after(WAIT_S)
    routing = client.mgmtd.fetch()
    while not reached(routing):
        assert lease_now_s() < deadline_s, routing
        routing = client.mgmtd.refresh(routing.version, 1.0)
    return routing


def check_data(client: Client) -> None:
    """Every file reads as it was written, and its serving replicas hold the same versions and sums."""
    inspector = Inspector(client.mgmtd)
    for path, data in FILES.items():
        assert client.files.read(client.files.open_read(path)) == data
        inode = client.meta.stat_one(path)
        assert inode.layout is not None
        for index in range(6):
            chunk = file_chunk(inode.inode_id, index)
            ((chain,), _) = inspector.find(*chunk)
            copies = inspector.copies([(*chunk, chain)])
            assert len(copies) == 3 and all(copy.there and not copy.pending for copy in copies), copies
            assert len({(copy.version, copy.length, copy.sum) for copy in copies}) == 1, copies
    inspector.close()


def test_drain(cluster: LocalCluster, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    before = {target for target, one in client.mgmtd.fetch().targets.items() if one.node_id == 2}
    out = admin(cluster, capsys, "drain", "--node", "2", "--wait")
    assert out.startswith(f"node 2 is drained: {len(before)} targets to be replaced elsewhere\n")
    routing = client.mgmtd.fetch()
    assert not any(target.node_id == 2 for target in routing.targets.values()) and not before & {*routing.targets}
    assert all(len(routing.serving(chain.chain_id)) == chain.replicas for chain in routing.chains.values())
    check_data(client)
    nodes = json.loads(admin(cluster, capsys, "nodes", "--json"))
    assert next(row for row in nodes if row["node"] == 2)["state"] == "alive, draining"
    assert [(row["node"], row["state"]) for row in nodes if row["primary"]] == [(MGMTD_NODE, "alive")]
    assert admin(cluster, capsys, "nodes").count("primary") == 1
    folder = cluster.folder.log("storage-2")
    lines = folder.read_text()
    assert sum(f"target {target} is deleted" in lines for target in before) >= 1
    admin(cluster, capsys, "undrain", "--node", "2")
    admin(cluster, capsys, "balance", "--wait")
    assert sum(target.node_id == 2 for target in client.mgmtd.fetch().targets.values()) >= len(before) - 3
    check_data(client)


def test_offline_and_online(cluster: LocalCluster, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    routing = client.mgmtd.fetch()
    target = routing.chain(routing.table_for_replicas(3).chains[0]).targets[0]
    admin(cluster, capsys, "offline", "--target", str(target), "--wait")
    assert client.mgmtd.fetch().targets[target].state == TargetState.OFFLINE
    shown = admin(cluster, capsys, "chains", "--degraded")
    assert f"{target}@{routing.targets[target].node_id} offline offline by wish" in shown
    admin(cluster, capsys, "online", "--target", str(target), "--wait")
    assert client.mgmtd.fetch().targets[target].state == TargetState.SERVING


def test_a_disk_that_came_back_empty_is_refilled(
    cluster: LocalCluster, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = next(disk.path for disk in client.mgmtd.fetch().disks if disk.node_id == 3)
    cluster.kill_node(3)
    routing = wait_for(client, lambda routing: not routing.nodes[3].alive)
    alone = [one.chain_id for one in routing.targets.values() if one.state == TargetState.LASTSRV]
    shutil.rmtree(disk)
    cluster.restart_node(3)
    wait_for(client, lambda routing: routing.nodes[3].alive)
    out = admin(cluster, capsys, "replace-disk", "--node", "3", "--disk", "0", "--yes", "--wait")
    assert out.startswith("node 3 disk 0: ")
    routing = client.mgmtd.fetch()
    assert {one.state for one in routing.targets.values() if one.chain_id not in alone} == {TargetState.SERVING}
    check_data(client)
    for chain in alone:
        assert f"rotate-lastsrv URL --chain {chain}\n" in out
    assert main.run(["admin", "rotate-lastsrv", cluster.url, "--chain", str(alone[0])]) == 2
    chains = [argument for chain in alone for argument in ("--chain", str(chain))]
    admin(cluster, capsys, "rotate-lastsrv", *chains, "--accept-data-loss", "--wait")
    cluster.wait_serving(timeout_s=WAIT_S)
    assert admin(cluster, capsys, "chains", "--degraded") == "every chain serves with all its targets\n"


def test_chunks_and_orphans(cluster: LocalCluster, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(admin(cluster, capsys, "chunk", "/data/1", "--index", "5", "--json"))
    assert [(row["length"], row["version"], row["remark"]) for row in rows] == [(2, 1, None)] * 3
    (by_id,) = {row["chunk"] for row in rows}
    assert json.loads(admin(cluster, capsys, "chunk", by_id, "--json")) == rows
    assert main.run(["admin", "chunk", cluster.url, "/data/1", "--index", "6"]) == 1
    assert "numbered from 0; there is no chunk 6" in capsys.readouterr().err
    chain = client.mgmtd.routing.table_for_replicas(3).chains[0]
    hi, lo = file_chunk(1 << 40, 3)
    data = np.arange(1000, dtype=np.uint8).tobytes()
    client.storage.write([ChunkUpdate(hi=hi, lo=lo, chain=chain, op=Op.REPLACE, data=memoryview(data))])
    found = json.loads(admin(cluster, capsys, "orphans", "--json"))
    assert found["orphans"] == [{"inode": 1 << 40, "chunks": 1, "used": 1000, "chains": [chain]}]
    assert found["chunks_seen"] == 25 and found["silent_chains"] == []
    assert main.run(["admin", "orphans", cluster.url, "--remove"]) == 2, "it asks first"
    assert "1 chunks removed" in admin(cluster, capsys, "orphans", "--remove", "--yes")
    assert admin(cluster, capsys, "orphans") == "every one of 24 chunks belongs to a file\n"
    other = connect(cluster.url, user=User(1000, (1000,)))
    with pytest.raises(PermissionDenied, match="not the superuser"):  # what meta says of no chunk is no answer
        find_orphans(other.mgmtd.routing, other.storage, other.meta)
    other.close()
    assert admin(cluster, capsys, "fsck").endswith(": all hangs together\n")
    health = json.loads(admin(cluster, capsys, "fsck", "--json"))
    assert health["inodes"] > 1 and (health["wrong"], health["findings"]) == (0, [])
    check_data(client)


def test_a_node_that_is_down_leaves_the_others_answers(
    cluster: LocalCluster, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = {row["node"] for row in json.loads(admin(cluster, capsys, "chunk", "/data/1", "--json"))}
    gone = min(nodes)
    cluster.kill_node(gone)
    wait_for(client, lambda routing: not routing.nodes[gone].alive)
    said = f"fs3: 1 node was left out: node {gone}: not heard of\n"
    assert main.run(["admin", "chunk", cluster.url, "/data/1", "--json"]) == 1
    shown = capsys.readouterr()
    assert shown.err == said
    assert {row["node"] for row in json.loads(shown.out) if row["version"]} == nodes - {gone}
    for command in (["scrub", "status"], ["damaged"]):
        assert main.run(["admin", *command, cluster.url]) == 1
        shown = capsys.readouterr()
        assert shown.err == said and shown.out, command
    cluster.restart_node(gone)
    cluster.wait_serving(timeout_s=WAIT_S, recovered=True)


def test_tables(cluster: LocalCluster, client: Client, capsys: pytest.CaptureFixture[str], tmp_path) -> None:  # type: ignore[no-untyped-def]
    table = json.loads(admin(cluster, capsys, "tables", "--table", "3"))
    file = tmp_path / "table.json"
    file.write_text(json.dumps({**table, "chains": table["chains"][:3]}))
    assert admin(cluster, capsys, "upload-table", str(file)) == "chain table 3 version 2 is published: 3 chains\n"
    assert len(json.loads(admin(cluster, capsys, "tables", "--json"))) == 4
    check_data(client)
    file.write_text('{"table_id": 3, "replicas": 3, "chain": []}')
    assert main.run(["admin", "upload-table", cluster.url, str(file)]) == 1
    assert 'expected {"table_id": N, "replicas": N, "chains": [N, ...]}' in capsys.readouterr().err
    assert main.run(["admin", "drain", cluster.url, "--node", "9"]) == 1
    assert capsys.readouterr().err == "fs3: no node 9; there are 1-4\n"
