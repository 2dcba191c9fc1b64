"""Errors, ids, layout, routing: codes are unique, ids pack both ways, layouts tile files, routing survives the wire."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3 import errors, ids, layout, routing
from fs3.ids import ChainId, ChainTableId, NodeId, TargetId


def test_every_error_class_has_a_code_of_its_own() -> None:
    everything = vars(errors).values()
    classes = {one for one in everything if isinstance(one, type) and issubclass(one, errors.Fs3Error)}
    assert {cls.code: cls for cls in classes} == errors.BY_CODE
    for code, cls in errors.BY_CODE.items():
        assert type(errors.from_code(code, "m")) is cls
    assert "99" in str(errors.from_code(99, "m"))


def test_errors_become_the_standard_librarys() -> None:
    assert isinstance(errors.to_os_error(errors.NotFound("x"), "/p"), FileNotFoundError)
    assert isinstance(errors.to_os_error(errors.IsADirectory("x")), IsADirectoryError)
    assert isinstance(errors.to_os_error(errors.PermissionDenied("x")), PermissionError)
    assert errors.to_os_error(errors.NoSpace("x"), "/p").errno == errno.ENOSPC


@given(st.integers(1, ids.MAX_INODE), st.integers(0, ids.MAX_CHUNK_INDEX))
def test_chunk_ids_pack_both_ways_and_sort_by_file(inode: int, index: int) -> None:
    hi, lo = ids.file_chunk(inode, index)
    assert ids.chunk_from_bytes(ids.chunk_bytes(hi, lo)) == (hi, lo)
    assert ids.chunk_kind(hi) == ids.KIND_FILE
    if inode < ids.MAX_INODE:
        assert ids.chunk_bytes(hi, lo) < ids.chunk_bytes(*ids.file_chunk(inode + 1, 0))


@given(st.integers(1, ids.MAX_NODE), st.integers(0, ids.MAX_WORKERS - 1))
def test_a_workers_node_id_has_its_machine_and_number(machine: int, worker: int) -> None:
    node = ids.worker_node(machine, worker)
    assert node < 1 << 32 and (ids.machine_of(node), ids.worker_of(node)) == (machine, worker)
    assert ids.node_name(node) == (f"{machine}.{worker}" if worker else str(machine))
    assert ids.node_from_name(ids.node_name(node)) == ids.node_from_name(f"{machine}.{worker}") == node
    assert ids.node_from_name(str(node)) == node and (worker or node == machine)


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "3.", ".1", "3.256", "16777216.1", "4294967296", "1.1.1"])
def test_what_is_no_node_id_is_said_so(text: str) -> None:
    with pytest.raises(errors.Invalid, match=r"expected a node id such as 3, or 3\.1 for worker 1 of node 3"):
        ids.node_from_name(text)


def table_of(chains: int) -> routing.ChainTable:
    return routing.ChainTable(
        table_id=ChainTableId(1), version=1, replicas=1, chains=tuple(ChainId(100 + i) for i in range(chains))
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(0, 1 << 63), st.integers(0, 10**9), st.integers(0, 10**7))
def test_ranges_tile_the_file(chains: int, stripe: int, seed: int, offset: int, length: int) -> None:
    chosen = layout.Layout(chain_table=1, chain_table_version=1, chunk_bytes=1 << 20, stripe=stripe, seed=seed)
    stripe_chains = layout.stripe_chains(chosen, table_of(chains))
    assert len(set(stripe_chains.tolist())) == len(stripe_chains) == min(chains, stripe)
    parts = layout.split_range(1 << 20, stripe_chains, offset, length)
    assert int(parts.length.sum()) == length
    assert np.all(parts.length > 0) and np.all(parts.offset + parts.length <= 1 << 20)
    starts = parts.chunk * (1 << 20) + parts.offset
    assert np.array_equal(starts[1:], (starts + parts.length)[:-1])
    assert length == 0 or starts[0] == offset
    assert np.array_equal(parts.chain, stripe_chains[parts.chunk % len(stripe_chains)])


def test_files_spread_over_chains() -> None:
    """Stripe 1 over 12 chains, 1,200 files: no chain gets less than half or more than twice its share."""
    table = table_of(12)
    counts = np.zeros(12, dtype=int)
    for seed in range(1_200):
        chosen = layout.Layout(chain_table=1, chain_table_version=1, stripe=1, seed=seed)
        counts[int(layout.stripe_chains(chosen, table)[0]) - 100] += 1
    assert counts.min() > 50 and counts.max() < 200, counts


@pytest.mark.parametrize("chunk_bytes", [0, 1, 4096, (1 << 20) + 1, 128 << 20])
def test_impossible_chunk_sizes_are_named(chunk_bytes: int) -> None:
    with pytest.raises(errors.Invalid, match=str(chunk_bytes)):
        layout.check_choice(chunk_bytes=chunk_bytes, stripe=1)


def test_routing_survives_the_wire() -> None:
    node = routing.Node(
        node_id=NodeId(1), kind=routing.NodeKind.STORAGE, endpoints=("h:1",), host="m", generation=9, workers=2
    )
    target = routing.Target(
        target_id=TargetId(11),
        node_id=NodeId(1),
        disk=0,
        chain_id=ChainId(5),
        state=routing.TargetState.SERVING,
        local_state=routing.LocalState.UPTODATE,
        used_bytes=3,
        chunks=2,
    )
    syncing = routing.Target(
        target_id=TargetId(12),
        node_id=NodeId(1),
        disk=1,
        chain_id=ChainId(5),
        state=routing.TargetState.SYNCING,
    )
    whole = routing.Routing(
        cluster_id="c",
        version=4,
        nodes={node.node_id: node},
        targets={target.target_id: target, syncing.target_id: syncing},
        chains={
            ChainId(5): routing.Chain(chain_id=ChainId(5), version=7, targets=(TargetId(11), TargetId(12)), replicas=2)
        },
        tables={
            (ChainTableId(1), 1): routing.ChainTable(
                table_id=ChainTableId(1), version=1, replicas=2, chains=(ChainId(5),)
            )
        },
        disks=(routing.Disk(node_id=NodeId(1), disk=0, path="/d", total_bytes=10, free_bytes=4),),
        ready=True,
    )
    assert routing.routing_from_pb(routing.routing_to_pb(whole)) == whole
    assert [t.target_id for t in whole.serving(5)] == [11]
    assert [t.target_id for t in whole.writable(5)] == [11, 12]
    assert whole.endpoint(target) == "h:1"
    with pytest.raises(errors.NotFound, match="3 replicas"):
        whole.table_for_replicas(3)


def test_a_state_of_newer_software_is_refused_each_time() -> None:
    message = routing.routing_to_pb(routing.Routing())
    message.targets.add(target_id=1, state=77, local_state=1)  # type: ignore[arg-type]  # enums of proto3 are open
    for _ in range(2):
        with pytest.raises(errors.Invalid, match="TargetState 77 is unknown here"):
            routing.routing_from_pb(message)


def test_a_revised_record_is_itself_where_it_has_the_fields_already() -> None:
    node = routing.Node(node_id=NodeId(1), kind=routing.NodeKind.STORAGE, endpoints=("h:1",))
    assert routing.revised(node, alive=True, draining=False) is node
    gone = routing.revised(node, alive=False, draining=False)
    assert not gone.alive and gone.endpoints == node.endpoints and node.alive
