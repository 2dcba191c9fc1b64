"""An operator's questions to single daemons: each process is asked for what is its own, and those that are down cost
nobody else's answer."""

from __future__ import annotations

import dataclasses

import pytest

from fs3.client.inspection import Inspector, silent
from fs3.client.scrub import scrub
from fs3.client.storage import ChunkUpdate, StorageClient
from fs3.ids import NodeId, file_chunk
from fs3.transport.frame_core import Kind

CHUNK = file_chunk(7, 0)
CHAIN = 1


@pytest.fixture
def two_workers(cluster):
    """Servers 1 and 2 are the processes of node 1, server 3 is node 3; every one has a replica of the chunk."""
    client = StorageClient(cluster.mgmtd, client_id=1)
    client.write([ChunkUpdate(hi=CHUNK[0], lo=CHUNK[1], chain=CHAIN, data=b"data")])
    client.close()
    routing = cluster.mgmtd.routing
    first, second, _ = (server.endpoint for server in cluster.servers)
    one, three = routing.nodes[NodeId(1)], routing.nodes[NodeId(3)]
    nodes = {NodeId(1): dataclasses.replace(one, endpoints=(first, second)), NodeId(3): three}
    targets = {
        target_id: dataclasses.replace(target, node_id=NodeId(1), worker=1) if target.node_id == 2 else target
        for target_id, target in routing.targets.items()
    }
    cluster.mgmtd.routing = dataclasses.replace(routing, nodes=nodes, targets=targets)
    return cluster


def inspected(cluster) -> list[tuple[int, int, bool, str]]:
    """(node, worker, whether the chunk is there, error) of each replica."""
    inspector = Inspector(cluster.mgmtd)
    copies = inspector.copies([(*CHUNK, CHAIN)])
    inspector.close()
    return sorted((int(copy.target.node_id), copy.target.worker, copy.there, copy.error) for copy in copies)


def test_each_process_is_asked_for_its_own_targets(two_workers) -> None:
    assert inspected(two_workers) == [(1, 0, True, ""), (1, 1, True, ""), (3, 0, True, "")]
    assert [sum(one.kind == Kind.INSPECT for one in server.asked) for server in two_workers.servers] == [1, 1, 1]
    report = scrub(two_workers.mgmtd)
    assert {(one.node_id, one.path) for one in report.targets} == {
        (1, two_workers.servers[0].endpoint),
        (1, two_workers.servers[1].endpoint),
        (3, two_workers.servers[2].endpoint),
    }
    assert not report.errors


@pytest.mark.parametrize("down", [0, 1])
def test_a_process_that_is_down_leaves_the_others_answers(two_workers, down: int) -> None:
    gone = two_workers.servers[down]
    gone.stop()
    told = [(node, worker, there) for node, worker, there, _ in inspected(two_workers)]
    assert told == [(1, 0, down != 0), (1, 1, down != 1), (3, 0, True)]
    inspector = Inspector(two_workers.mgmtd)
    chains, errors = inspector.find(*CHUNK)
    assert chains == [CHAIN] and errors.keys() == {1} and gone.endpoint in errors[1]
    assert silent(inspector.copies([(*CHUNK, CHAIN)])) == errors
    inspector.close()
    report = scrub(two_workers.mgmtd)
    assert len({one.path for one in report.targets}) == 2 and report.errors.keys() == {1}


def test_a_node_that_is_not_heard_of_is_not_waited_for(two_workers) -> None:
    routing = two_workers.mgmtd.routing
    nodes = {**routing.nodes, NodeId(3): dataclasses.replace(routing.nodes[NodeId(3)], alive=False)}
    two_workers.mgmtd.routing = dataclasses.replace(routing, nodes=nodes)
    assert inspected(two_workers)[-1] == (3, 0, False, "not heard of")
    assert scrub(two_workers.mgmtd).errors == {3: "not heard of"}
