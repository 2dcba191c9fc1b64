"""An operator's questions to single daemons: each is asked for what is its own, and those that are down cost nobody
else's answer."""

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
def written(cluster):
    """Three nodes, and every one has a replica of the chunk."""
    client = StorageClient(cluster.mgmtd, client_id=1)
    client.write([ChunkUpdate(hi=CHUNK[0], lo=CHUNK[1], chain=CHAIN, data=b"data")])
    client.close()
    return cluster


def inspected(cluster) -> list[tuple[int, bool, str]]:
    """(node, whether the chunk is there, error) of each replica."""
    inspector = Inspector(cluster.mgmtd)
    copies = inspector.copies([(*CHUNK, CHAIN)])
    inspector.close()
    return sorted((int(copy.target.node_id), copy.there, copy.error) for copy in copies)


def test_each_node_is_asked_for_its_own_targets(written) -> None:
    assert inspected(written) == [(1, True, ""), (2, True, ""), (3, True, "")]
    assert [sum(one.kind == Kind.INSPECT for one in server.asked) for server in written.servers] == [1, 1, 1]
    report = scrub(written.mgmtd)
    assert {(one.node_id, one.path) for one in report.targets} == {
        (number, server.endpoint) for number, server in enumerate(written.servers, 1)
    }
    assert not report.errors


@pytest.mark.parametrize("down", [0, 1])
def test_a_node_that_is_down_leaves_the_others_answers(written, down: int) -> None:
    gone = written.servers[down]
    gone.stop()
    told = [(node, there) for node, there, _ in inspected(written)]
    assert told == [(1, down != 0), (2, down != 1), (3, True)]
    inspector = Inspector(written.mgmtd)
    chains, errors = inspector.find(*CHUNK)
    assert chains == [CHAIN] and errors.keys() == {down + 1} and gone.endpoint in errors[down + 1]
    assert silent(inspector.copies([(*CHUNK, CHAIN)])) == errors
    inspector.close()
    report = scrub(written.mgmtd)
    assert len({one.path for one in report.targets}) == 2 and report.errors.keys() == {down + 1}


def test_a_node_that_is_not_heard_of_is_not_waited_for(written) -> None:
    routing = written.mgmtd.routing
    nodes = {**routing.nodes, NodeId(3): dataclasses.replace(routing.nodes[NodeId(3)], alive=False)}
    written.mgmtd.routing = dataclasses.replace(routing, nodes=nodes)
    assert inspected(written)[-1] == (3, False, "not heard of")
    assert scrub(written.mgmtd).errors == {3: "not heard of"}
