"""An operator's edits: each refusal and its line, then random operators on small clusters that lose and regain daemons.

The walk has mgmtd's own cores and the daemons' own phase table, one record per target of the writes it holds, and an
adversary who crashes, cuts off and revives nodes while an operator drains, replaces, stops, rotates and grows.
After every step: no two replicas of a chain stay on one machine, nobody who answers reads lacks a write that was shown,
an edit itself takes no serving target away, a table version never changes, an id is given out once. In the end, with
everybody up, every chain serves with all its replicas and no daemon keeps a target that no chain names.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from fs3.errors import Exists, Fs3Error, Invalid, NotFound
from fs3.ids import ChainId, NodeId, TargetId, machine_of, worker_node
from fs3.mgmtd import admin_core, grow_core
from fs3.mgmtd.chain_core import Report
from fs3.mgmtd.draft_core import Disks, Draft, Edit
from fs3.mgmtd.intent_core import advance, waits
from fs3.mgmtd.lease_core import LeaseTable
from fs3.mgmtd.placement_core import DiskSlot, plan_tables
from fs3.mgmtd.routing_core import check_edit, next_routing, publish
from fs3.routing import Disk, LocalState, Node, NodeKind, Routing, Target, TargetState, routing_from_pb, routing_to_pb
from fs3.storage.target_core import Phase, Place, Stand, next_stand, prepared, reported, synced

S = TargetState


def storage(node_id: int, *, alive: bool = True) -> Node:
    return Node(node_id=NodeId(node_id), kind=NodeKind.STORAGE, endpoints=(f"n{node_id}:1",), generation=1, alive=alive)


def ids_of(nodes: int, workers: int) -> list[NodeId]:
    return [worker_node(node, worker) for node in range(1, nodes + 1) for worker in range(workers)]


def disks_of(nodes: int, disks: int, workers: int = 1) -> Disks:
    return {
        node: [
            Disk(node_id=node, disk=disk, path=f"/{node}/{disk}", total_bytes=1_000, free_bytes=900)
            for disk in range(disks)
        ]
        for node in ids_of(nodes, workers)
    }


def ready(
    nodes: int = 4, replicas: int = 3, *, disks: int = 1, chains: int = 1, spare: int = 0, workers: int = 1
) -> Routing:
    """A cluster as it is after its bootstrap; the last `spare` nodes came later. Node 100 is a mgmtd."""
    slots = [DiskSlot(node, disk) for node in ids_of(nodes - spare, workers) for disk in range(disks)]
    records = {node: storage(node) for node in ids_of(nodes, workers)}
    records[NodeId(100)] = Node(node_id=NodeId(100), kind=NodeKind.MGMTD, endpoints=("m:1",))
    return publish(Routing(cluster_id="c", nodes=records), plan_tables(slots, replicas, chains))


def with_states(routing: Routing, chain: int, *states: TargetState) -> Routing:
    draft = Draft(routing)
    draft.set_states(ChainId(chain), dict(zip(routing.chains[ChainId(chain)].targets, states, strict=True)))
    return draft.done()[0]


def members(routing: Routing, chain: int) -> list[Target]:
    return [routing.targets[target] for target in routing.chain(chain).targets]


def chain_of(routing: Routing, replicas: int) -> int:
    return routing.table_for_replicas(replicas).chains[0]


# Refusals and their lines


ROUTING = ready()
DISKS = disks_of(4, 1)
WIDE = chain_of(ROUTING, 3)
NARROW = chain_of(ROUTING, 1)
HEAD = ROUTING.chain(WIDE).targets[0]
ONLY = ROUTING.chain(NARROW).targets[0]
LOST = with_states(ROUTING, NARROW, S.LASTSRV)
DEAD = replace(LOST, nodes={**LOST.nodes, NodeId(9): storage(9, alive=False)})
AWAY = with_states(ROUTING, WIDE, S.SERVING, S.SERVING, S.OFFLINE)
GONE = AWAY.chain(WIDE).targets[2]

REFUSALS: list[tuple[Callable[[], Edit], type[Fs3Error], str]] = [
    (lambda: admin_core.drain(ROUTING, DISKS, node=7), NotFound, "no node 7; there are 1-4"),
    (lambda: admin_core.drain(ROUTING, DISKS, node=100), NotFound, "node 100 is a mgmtd daemon; storage nodes are 1-4"),
    (lambda: admin_core.drain(ROUTING, DISKS, node=1, disk=3), NotFound, "node 1 has no disk 3; it has 0"),
    (lambda: admin_core.drain(ROUTING, DISKS, target=999), NotFound, "no target 999; there are 1-"),
    (lambda: admin_core.drain(LOST, DISKS, target=ONLY), Invalid, "fs3 admin rotate-lastsrv URL --chain"),
    (lambda: admin_core.drain(ready(3), disks_of(3, 1), node=1), Invalid, "no other node has a disk for a replica"),
    (lambda: admin_core.replace_targets(ROUTING, target=HEAD), Invalid, "serves; to move it away: fs3 admin drain URL"),
    (lambda: admin_core.replace_targets(LOST, target=ONLY), Invalid, "was the last one that served"),
    (lambda: admin_core.replace_targets(ROUTING, node=1, disk=4), NotFound, "node 1 has no targets on disk 4"),
    (lambda: admin_core.replace_elsewhere(ROUTING, DISKS, target=ONLY), Invalid, "rotate-lastsrv"),
    (lambda: admin_core.remove_target(ROUTING, HEAD), Invalid, "serves; it leaves by itself after: fs3 admin drain"),
    (lambda: admin_core.remove_target(AWAY, GONE), Invalid, f"fs3 admin replace URL --target {GONE} --elsewhere"),
    (lambda: admin_core.remove_node(ROUTING, 1), Invalid, "is alive and would register again"),
    (lambda: admin_core.remove_node(with_node_dead(1), 1), Invalid, "still has"),
    (lambda: admin_core.remove_node(ROUTING, 8), NotFound, "no node 8; there are 1-4, 100"),
    (lambda: admin_core.set_offline(ROUTING, ONLY), Invalid, "is the last one that serves"),
    (lambda: admin_core.set_offline(LOST, ONLY), Invalid, "rotate-lastsrv"),
    (lambda: admin_core.rotate_last_serving(ROUTING, DISKS, chain=WIDE), Invalid, "serves: nothing is lost"),
    (lambda: admin_core.rotate_last_serving(LOST, DISKS, chain=NARROW, to=HEAD), NotFound, "is not of chain"),
    (lambda: admin_core.rotate_last_serving(ROUTING, DISKS, chain=99), NotFound, "no chain 99; there are 1-"),
    (lambda: grow_core.create_replica(ROUTING, DISKS, node=1, disk=0, chain=99), NotFound, "no chain 99"),
    (lambda: grow_core.create_replica(ROUTING, DISKS, node=1, disk=1, chain=1), NotFound, "node 1 has no disk 1"),
    (lambda: grow_core.create_replica(ROUTING, DISKS, node=5, disk=0, chain=1), NotFound, "no node 5"),
    (lambda: grow_core.grow(ROUTING, DISKS), Invalid, "nothing is to be grown"),
    (lambda: grow_core.balance(ROUTING, DISKS), Invalid, "as many targets as the others"),
    (lambda: grow_core.upload_table(ROUTING, table_id=9, replicas=3, chains=[99]), NotFound, "no chain 99"),
    (lambda: grow_core.upload_table(ROUTING, table_id=9, replicas=3, chains=[]), Invalid, "lists no chains"),
    (lambda: grow_core.upload_table(ROUTING, table_id=0, replicas=3, chains=[1]), Invalid, "table_id 0"),
    (lambda: grow_core.upload_table(ROUTING, table_id=9, replicas=2, chains=[WIDE]), Invalid, "has 3 replicas"),
    (lambda: grow_core.upload_table(ROUTING, table_id=9, replicas=3, chains=[WIDE, WIDE]), Invalid, "listed twice"),
    (lambda: grow_core.upload_table(ROUTING, table_id=1, replicas=3, chains=[WIDE]), Invalid, "is of 1 replicas"),
]


def with_node_dead(node: int) -> Routing:
    return replace(ROUTING, nodes={**ROUTING.nodes, NodeId(node): storage(node, alive=False)})


@pytest.mark.parametrize(("edit", "kind", "words"), REFUSALS, ids=[words for _, _, words in REFUSALS])
def test_a_mistake_is_one_clear_line(edit: Callable[[], Edit], kind: type[Fs3Error], words: str) -> None:
    with pytest.raises(kind) as caught:
        edit()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_replica_on_a_node_that_has_one_is_refused() -> None:
    node = ROUTING.targets[HEAD].node_id
    with pytest.raises(Exists, match=f"node {node} has target {HEAD} of chain {WIDE}"):
        grow_core.create_replica(ROUTING, DISKS, node=node, disk=0, chain=WIDE)


def test_wishes_travel_in_the_routing() -> None:
    routing, _ = admin_core.drain(ROUTING, DISKS, node=1)
    routing, _ = admin_core.set_offline(routing, HEAD)
    routing, _ = admin_core.rotate_last_serving(with_states(routing, NARROW, S.LASTSRV), DISKS, chain=NARROW, to=ONLY)
    routing, _ = advance(routing, DISKS)
    assert routing_from_pb(routing_to_pb(routing)) == routing
    assert routing.nodes[NodeId(1)].draining and routing.targets[HEAD].disabled and routing.targets[ONLY].accept_loss


# Edits one by one


def test_a_drain_adds_replacements_on_other_nodes_and_then_asks_the_old_to_step_down() -> None:
    routing, lines = admin_core.drain(ROUTING, DISKS, node=1)
    assert lines == (
        f"node 1 is drained: {sum(t.node_id == 1 for t in ROUTING.targets.values())} targets to be replaced elsewhere",
    )
    routing, _ = advance(routing, DISKS)
    for chain in routing.chains:
        old = [one for one in members(routing, chain) if one.node_id == 1]
        new = [one for one in members(routing, chain) if one.replaces]
        assert [one.replaces for one in new] == [one.target_id for one in old]
        assert all(one.state == S.OFFLINE for one in new) and not routing.stepping_down(chain)
        assert Counter(one.node_id for one in members(routing, chain)).most_common(1)[0][1] == 1
    served = replace(routing, targets={k: replace(t, state=S.SERVING) for k, t in routing.targets.items()})
    for chain in served.chains:
        assert served.stepping_down(chain) == {t.target_id for t in members(served, chain) if t.node_id == 1}
        assert served.spares_others(chain)
    assert advance(served, DISKS)[0] is served, "a target that serves is not taken away"


def test_new_targets_spread_over_the_least_loaded_disks() -> None:
    routing, disks = ready(8, 3, chains=6, spare=1), disks_of(8, 1)
    routing, _ = admin_core.drain(routing, disks, node=1)
    routing, _ = advance(routing, disks)
    counts = Counter(one.node_id for one in routing.targets.values())
    assert counts[NodeId(8)] == 36, "all go to the empty node"
    new = [one for one in routing.targets.values() if one.replaces]
    assert len(new) == 36 and all(one.target_id > 7 * 36 for one in new)
    assert routing.last_target_id == max(routing.targets)


def test_full_and_drained_disks_get_nothing() -> None:
    disks = {
        node: [replace(disk, free_bytes=30 if node == 4 else 900) for disk in there] for node, there in DISKS.items()
    }
    without = next(
        chain for chain in ROUTING.table_for_replicas(3).chains if all(t.node_id != 4 for t in members(ROUTING, chain))
    )
    target = ROUTING.chain(without).targets[0]
    assert advance(admin_core.drain(ROUTING, DISKS, target=target)[0], DISKS)[0].chain(without).targets[3:]
    with pytest.raises(Invalid, match="no other node has a disk"):
        admin_core.drain(ROUTING, disks, target=target)


def test_undrain_cancels_replacements() -> None:
    routing, _ = admin_core.drain(ROUTING, DISKS, node=1)
    routing, _ = advance(routing, DISKS)
    back, lines = admin_core.undrain(routing, node=1)
    assert back.targets.keys() == ROUTING.targets.keys() and not back.nodes[NodeId(1)].draining
    assert "replacements cancelled" in lines[0]
    served = replace(routing, targets={k: replace(t, state=S.SERVING) for k, t in routing.targets.items()})
    back, _ = admin_core.undrain(served, node=1)
    assert all(back.targets[k].draining == bool(t.replaces) for k, t in served.targets.items())
    states = {k: S.LASTSRV if t.replaces else S.OFFLINE for k, t in routing.targets.items()}
    lone = replace(routing, targets={k: replace(t, state=states[k]) for k, t in routing.targets.items()})
    back, _ = admin_core.undrain(lone, node=1)
    assert back.targets.keys() == lone.targets.keys(), "a replacement that alone holds the data stays until others do"


def test_a_dead_disk_is_refilled_in_place_under_new_ids() -> None:
    routing, lines = admin_core.replace_targets(AWAY, target=GONE)
    assert GONE not in routing.targets
    new = routing.targets[TargetId(routing.last_target_id)]
    old = AWAY.targets[GONE]
    assert (new.node_id, new.disk, new.chain_id, new.state) == (old.node_id, old.disk, old.chain_id, S.OFFLINE)
    assert lines == (f"target {GONE}: 1 target to be refilled from the other replicas",)
    again, _ = admin_core.replace_targets(routing, target=new.target_id)
    assert again.last_target_id == routing.last_target_id + 1, "an id is given out once"


def test_a_disk_with_a_last_one_is_replaced_but_for_that() -> None:
    node = LOST.targets[ONLY].node_id
    routing = LOST
    for chain in LOST.chains:
        if (
            chain != NARROW
            and any(t.node_id == node for t in members(LOST, chain))
            and routing.chain(chain).replicas > 1
        ):
            states = [S.OFFLINE if t.node_id == node else S.SERVING for t in members(routing, chain)]
            routing = with_states(routing, chain, *states)
    after, lines = admin_core.replace_targets(routing, node=node, disk=0)
    assert ONLY in after.targets and any(f"rotate-lastsrv URL --chain {NARROW}" in line for line in lines)
    assert sum(t.node_id == node for t in after.targets.values()) == sum(
        t.node_id == node for t in routing.targets.values()
    )


def test_a_replica_too_many_may_be_removed() -> None:
    node = next(n for n in range(1, 5) if all(t.node_id != n for t in members(ROUTING, WIDE)))
    routing, _ = grow_core.create_replica(ROUTING, DISKS, node=node, disk=0, chain=WIDE)
    extra = TargetId(routing.last_target_id)
    routing, _ = admin_core.remove_target(routing, extra)
    assert extra not in routing.targets and routing.chain(WIDE).version == ROUTING.chain(WIDE).version + 1 + 1 - 0
    assert routing.last_target_id == extra, "its id is not used again"


def test_a_dead_node_without_targets_is_removed() -> None:
    routing, lines = admin_core.remove_node(DEAD, 9)
    assert NodeId(9) not in routing.nodes and lines == ("node 9 is removed",)


WORKERS = ready(3, 2, workers=2)
WORKERS_DISKS = disks_of(3, 1, 2)


def test_a_nodes_id_stands_for_all_its_workers_and_a_dot_names_one() -> None:
    one = worker_node(1, 1)
    drained, lines = admin_core.drain(WORKERS, WORKERS_DISKS, node=1)
    assert {node for node, record in drained.nodes.items() if record.draining} == {1, one}
    assert lines[0].startswith("node 1 is drained: ")
    assert not any(record.draining for record in admin_core.undrain(drained, node=1)[0].nodes.values())
    half, _ = admin_core.undrain(drained, node=one)
    assert {node for node, record in half.nodes.items() if record.draining} == {1}
    single, lines = admin_core.drain(WORKERS, WORKERS_DISKS, node=one, disk=0)
    assert single.nodes[one].closed_disks == (0,) and single.nodes[NodeId(1)].closed_disks == ()
    assert lines[0].startswith("node 1.1 disk 0 is drained: ")
    with pytest.raises(NotFound, match=r"node 1 has no worker 2; it has 0-1"):
        admin_core.drain(WORKERS, WORKERS_DISKS, node=worker_node(1, 2))
    with pytest.raises(NotFound, match=r"no node 9\.1; there are 1-3"):
        admin_core.drain(WORKERS, WORKERS_DISKS, node=worker_node(9, 1))


def test_a_node_is_removed_with_its_workers_once_all_are_gone() -> None:
    dead = {node: storage(node, alive=False) for node in (NodeId(9), worker_node(9, 1))}
    routing = replace(WORKERS, nodes={**WORKERS.nodes, **dead})
    assert admin_core.remove_node(routing, 9)[0].nodes.keys() == WORKERS.nodes.keys()
    assert admin_core.remove_node(routing, worker_node(9, 1))[0].nodes.keys() == {*WORKERS.nodes, NodeId(9)}
    half = replace(routing, nodes={**routing.nodes, worker_node(9, 1): storage(worker_node(9, 1))})
    with pytest.raises(Invalid, match=r"node 9\.1 is alive"):
        admin_core.remove_node(half, 9)


def test_a_replica_is_made_by_the_nodes_worker_with_the_fewest() -> None:
    chain = chain_of(WORKERS, 1)
    taken = machine_of(members(WORKERS, chain)[0].node_id)
    with pytest.raises(Exists, match=rf"node {taken}[.1]* has target"):
        grow_core.create_replica(WORKERS, WORKERS_DISKS, node=worker_node(taken, 1), disk=0, chain=chain)
    other = next(node for node in (1, 2, 3) if node != taken)
    made = []
    routing = WORKERS
    for chain in WORKERS.table_for_replicas(1).chains:
        if machine_of(members(WORKERS, chain)[0].node_id) != other:
            routing, _ = grow_core.create_replica(routing, WORKERS_DISKS, node=other, disk=0, chain=chain)
            made.append(members(routing, chain)[-1].node_id)
    assert Counter(made) == {NodeId(other): 2, worker_node(other, 1): 2}


def lone_machine() -> World:
    """One machine of two workers has all the disks there are."""
    world = World(0, 2, 1, disks=1, workers=2)
    world.disks = {node: disks if machine_of(node) == 1 else [] for node, disks in world.disks.items()}
    for chain in [*world.routing.chains]:
        world.write(chain)
    return world


def test_a_drained_worker_leaves_to_the_other_one_where_there_is_no_other_machine() -> None:
    world = lone_machine()
    world.edit(lambda routing: admin_core.drain(routing, world.disks, node=worker_node(1, 1)))
    for _ in range(20):
        world.round()
        for chain in world.routing.chains:
            assert world.routing.serving(chain)
    assert {target.node_id for target in world.routing.targets.values()} == {1}
    assert not world.daemons[worker_node(1, 1)].there, "its daemon has deleted them"


def damaged_world() -> tuple[World, Disked, Daemon, TargetId]:
    """A head that has damaged chunks, and the second target of its chain on a daemon that is not heard of any more."""
    world = World(0, 5, 3, disks=1)
    chain = chain_of(world.routing, 3)
    head, second, _ = members(world.routing, chain)
    damaged = world.daemons[head.node_id].there[head.target_id]
    damaged.damaged = True
    world.round()
    assert world.routing.targets[head.target_id].damaged
    away = world.daemons[second.node_id]
    away.cut_off = True
    world.expire(away)
    return world, damaged, away, second.target_id


def test_who_may_have_the_last_good_copy_of_a_damaged_chunk_does_not_leave() -> None:
    world, damaged, away, leaving = damaged_world()
    chain = world.routing.targets[leaving].chain_id
    world.edit(lambda routing: admin_core.drain(routing, world.disks, target=leaving))
    for _ in range(20):
        world.round()
    assert world.routing.is_full(chain), "its replacement serves"
    (wait,) = waits(world.routing, world.disks)
    assert f"waits for target {leaving} on node {away.node_id}, which may have good copies" in wait.reason
    away.cut_off = False
    for _ in range(20):
        world.round()
    assert world.routing.targets[leaving].state == S.SERVING and not world.routing.stepping_down(chain)
    (wait,) = waits(world.routing, world.disks)
    assert f"keeps target {leaving} until the damaged chunks" in wait.reason
    damaged.damaged = False
    for _ in range(20):
        world.round()
    assert leaving not in world.routing.targets and not waits(world.routing, world.disks)


def test_an_operator_may_give_up_what_a_damaged_chain_waits_for() -> None:
    world, _, _, leaving = damaged_world()
    world.edit(lambda routing: admin_core.drain(routing, world.disks, target=leaving))
    for _ in range(20):
        world.round()
    world.edit(lambda routing: admin_core.remove_target(routing, leaving))
    assert leaving not in world.routing.targets and not waits(world.routing, world.disks)


def test_what_a_daemon_said_of_damage_holds_while_it_is_away() -> None:
    world, damaged, _, _ = damaged_world()
    head = next(target for target in world.routing.targets.values() if target.damaged)
    node = world.daemons[head.node_id]
    node.cut_off = True
    damaged.damaged = False  # which nobody hears of
    world.expire(node)
    world.round()
    found = routing_from_pb(routing_to_pb(world.routing)).targets[head.target_id]
    assert found.state == S.OFFLINE and found.damaged


@pytest.mark.parametrize("rounds", [0, 3, 5])
def test_who_stays_after_all_does_not_keep_a_replacement_on_its_own_machine(rounds: int) -> None:
    world = lone_machine()
    before = {*world.routing.targets}
    world.edit(lambda routing: admin_core.drain(routing, world.disks, node=worker_node(1, 1), disk=0))
    assert len(world.routing.targets) > len(before)
    for _ in range(rounds):
        world.daemons[worker_node(1, 1)].cut_off = True  # and so cannot step down
        world.round()
    world.edit(lambda routing: admin_core.replace_targets(routing, node=worker_node(1, 1), disk=0))
    world.check()
    world.daemons[worker_node(1, 1)].cut_off = False
    for _ in range(20):
        world.round()
    assert {*world.routing.targets} == before


def test_offline_keeps_one_that_serves() -> None:
    first, second, third = ROUTING.chain(WIDE).targets
    routing, _ = admin_core.set_offline(ROUTING, first)
    routing, _ = admin_core.set_offline(routing, second)
    with pytest.raises(Invalid, match="last one that serves"):
        admin_core.set_offline(routing, third)
    assert routing.stepping_down(WIDE) == {first, second}
    alone = with_states(routing, WIDE, S.SERVING, S.SERVING, S.OFFLINE)
    assert len(alone.stepping_down(WIDE)) == 1, "the third has died meanwhile: one of the two goes on"


def test_rotation_makes_the_heir_the_one_that_is_waited_for() -> None:
    routing = with_states(ROUTING, WIDE, S.LASTSRV, S.OFFLINE, S.WAITING)
    last, gone, waiting = ROUTING.chain(WIDE).targets
    with pytest.raises(Invalid, match=f"name with --to who shall serve: {waiting} on node"):
        admin_core.rotate_last_serving(routing, DISKS, chain=WIDE)
    after, lines = admin_core.rotate_last_serving(routing, DISKS, chain=WIDE, to=waiting)
    states = {target.target_id: target.state for target in members(after, WIDE)}
    assert states == {waiting: S.LASTSRV, last: S.OFFLINE, gone: S.OFFLINE}
    assert after.targets[waiting].accept_loss and len(lines) == 2
    fresh, _ = admin_core.rotate_last_serving(LOST, DISKS, chain=NARROW)
    heir = members(fresh, NARROW)[0]
    assert (
        heir.target_id == fresh.last_target_id
        and heir.state == S.LASTSRV
        and heir.node_id != LOST.targets[ONLY].node_id
    )


def test_grown_chains_join_their_tables_once_they_serve() -> None:
    routing, disks = ready(6, 3, chains=2, spare=2), disks_of(6, 1)
    grown, lines = grow_core.grow(routing, disks)
    assert len(lines) == 3 and grown.tables == routing.tables
    new = [chain for chain in grown.chains.values() if chain.chain_id not in routing.chains]
    assert Counter(chain.replicas for chain in new) == {1: 4, 2: 4, 3: 4}
    heads = [members(grown, chain.chain_id)[0] for chain in new]
    assert all(head.state == S.LASTSRV and head.accept_loss and head.node_id in (5, 6) for head in heads)
    assert advance(grown, disks)[0].tables == routing.tables
    with pytest.raises(Invalid, match="nothing is to be grown"):
        grow_core.grow(grown, disks)
    served = replace(grown, targets={k: replace(t, state=S.SERVING) for k, t in grown.targets.items()})
    done, notes = advance(served, disks)
    for replicas in (1, 2, 3):
        table = done.table_for_replicas(replicas)
        assert table.version == 2 and table.chains[:8] == routing.table_for_replicas(replicas).chains
        assert len(table.chains) == 12
    assert not any(chain.joins_table for chain in done.chains.values()) and len(notes) == 3
    assert not any(target.accept_loss for target in done.targets.values())
    assert {key: done.tables[key] for key in routing.tables} == routing.tables


def test_a_table_is_published_under_the_next_version() -> None:
    chains = list(ROUTING.table_for_replicas(3).chains)[1:]
    routing, lines = grow_core.upload_table(ROUTING, table_id=3, replicas=3, chains=chains)
    assert routing.table(3, 2).chains == tuple(chains) and routing.table(3, 1) == ROUTING.table(3, 1)
    assert lines == ("chain table 3 version 2 is published: 3 chains",)
    same, lines = grow_core.upload_table(routing, table_id=3, replicas=3, chains=chains)
    assert same is routing and "nothing was published" in lines[0]


def test_balancing_moves_to_the_empty_node_until_all_are_even() -> None:
    routing, disks = ready(5, 3, chains=4, spare=1), disks_of(5, 1)
    routing, _ = grow_core.balance(routing, disks)
    routing, _ = advance(routing, disks)
    for replicas in (1, 2, 3):
        staying = [t for t in routing.targets.values() if not routing.is_draining(t)]
        after = Counter(t.node_id for t in staying if routing.chain(t.chain_id).replicas == replicas)
        assert len(after) == 5 and max(after.values()) - min(after.values()) <= 1, (replicas, after)
    limited, lines = grow_core.balance(ready(5, 3, chains=4, spare=1), disks, most=3)
    assert sum(t.draining for t in limited.targets.values()) == 3 and lines[0].startswith("3 targets")


# Random operators


@dataclass
class Disked:
    """One target on its daemon's disk: `log` are the writes it holds."""

    chain_id: ChainId
    log: set[int] = field(default_factory=set)
    holds: bool = False
    stand: Stand = field(default_factory=lambda: Stand(Phase.HELD))
    damaged: bool = False


@dataclass
class Daemon:
    node_id: NodeId
    up: bool = True
    cut_off: bool = False
    leased: bool = True  # answers: stops before mgmtd calls it offline, begins when a heartbeat is answered
    generation: int = 1
    seen: Routing = field(default_factory=Routing)
    there: dict[TargetId, Disked] = field(default_factory=dict)

    def adopt(self, routing: Routing) -> None:
        self.seen = routing
        known = routing.nodes.get(self.node_id)
        ours = known is not None and known.generation == self.generation
        for target_id, one in self.there.items():
            target = routing.targets.get(target_id)
            place = None
            if target is not None:
                place = Place(
                    target.state,
                    routing.chain(target.chain_id).version,
                    steps_down=target_id in routing.stepping_down(target.chain_id),
                    accept_loss=target.accept_loss,
                )
            one.stand = next_stand(one.stand, place, ours=ours, holds=one.holds)

    def work(self) -> None:
        for one in self.there.values():
            one.stand = prepared(one.stand)
            if one.stand.phase is Phase.COMPLETE:
                one.holds = True
        self.adopt(self.seen)

    def reports(self) -> dict[TargetId, Report]:
        said = {}
        for target_id, one in self.there.items():
            state = reported(one.stand)
            if state is None:
                continue
            if one.stand.phase is Phase.COMPLETE and not one.holds:
                state = LocalState.OFFLINE
            chain = self.seen.chains.get(one.chain_id)
            said[target_id] = Report(state, chain.version if chain is not None else 0, one.damaged)
        return said


class World:
    """A cluster, its mgmtd, an operator, and writes with numbers on every chain."""

    def __init__(self, seed: int, nodes: int, replicas: int, *, disks: int, workers: int = 1) -> None:
        self.rng = random.Random(seed)
        self.note = f"seed {seed}"
        self.disks = disks_of(nodes, disks, workers)
        self.routing = ready(nodes, replicas, disks=disks, spare=1, workers=workers)
        self.leases = LeaseTable(10.0)
        self.known: dict[TargetId, Report] = {}
        self.daemons = {node: Daemon(node) for node in ids_of(nodes, workers)}
        for target in self.routing.targets.values():
            one = Disked(target.chain_id, holds=True, stand=Stand(Phase.SERVING))
            self.daemons[target.node_id].there[target.target_id] = one
            self.known[target.target_id] = Report(LocalState.UPTODATE, 1)
        for daemon in self.daemons.values():
            self.leases.heard(daemon.node_id, 1, 0.0)
            daemon.seen = self.routing
        self.leases.heard(NodeId(100), 0, 0.0)
        self.shown: dict[ChainId, set[int]] = {chain: set() for chain in self.routing.chains}
        self.given = set(self.routing.targets)
        self.tables = dict(self.routing.tables)
        self.number = 0
        self.accepted = 0

    # mgmtd

    def decide(self, edited: Routing | None = None) -> None:
        announced = {
            daemon.node_id: replace(storage(daemon.node_id), generation=self.leases.generation(daemon.node_id) or 0)
            for daemon in self.daemons.values()
        }
        before = self.routing
        decision = next_routing(edited or before, announced, self.leases, self.known, self.disks)
        if decision.routing is not before:
            self.routing = replace(decision.routing, version=before.version + 1)
        fresh = set(self.routing.targets) - set(before.targets)
        assert not fresh & self.given, f"{self.note}: {fresh & self.given} given out twice"
        self.given |= fresh
        for key, table in self.tables.items():
            assert self.routing.tables[key] == table, f"{self.note}: table {key} changed"
        self.tables = dict(self.routing.tables)
        for chain in self.routing.chains:
            self.shown.setdefault(chain, set())

    def beat(self, daemon: Daemon) -> None:
        if not daemon.up or daemon.cut_off:
            return
        self.leases.heard(daemon.node_id, daemon.generation, 0.0)
        started = self.routing.nodes[daemon.node_id].generation != daemon.generation
        for target_id in [one for one, target in self.routing.targets.items() if target.node_id == daemon.node_id]:
            self.known.pop(target_id, None)
        if not started:
            self.known |= daemon.reports()
        known = daemon.seen.version == self.routing.version
        self.decide()
        wanted = [
            target
            for target in self.routing.targets.values()
            if target.node_id == daemon.node_id and (target.state == S.OFFLINE or target.accept_loss)
        ]
        daemon.adopt(self.routing)
        daemon.leased = True
        if known:
            for target in wanted:
                daemon.there.setdefault(target.target_id, Disked(target.chain_id))
        for target_id in [one for one in daemon.there if one not in self.routing.targets]:
            if reported(daemon.there[target_id].stand) is not None:
                del daemon.there[target_id]
        daemon.adopt(self.routing)

    def expire(self, daemon: Daemon) -> None:
        """The lease of a daemon that is not heard runs out; it has stopped answering before."""
        if not daemon.up or daemon.cut_off:
            daemon.leased = False
            self.leases.refused(daemon.node_id, self.leases.generation(daemon.node_id) or 0)
            self.decide()

    # daemons

    def crash(self, daemon: Daemon, *, disk_lost: bool = False) -> None:
        daemon.up = daemon.leased = False
        if disk_lost:
            daemon.there.clear()

    def start(self, daemon: Daemon) -> None:
        daemon.up, daemon.cut_off, daemon.generation = True, False, daemon.generation + 1
        for one in daemon.there.values():
            one.stand = Stand(Phase.HELD)

    def answers(self, target: Target) -> Disked | None:
        """The record of a target that answers reads and takes writes at this moment."""
        daemon = self.daemons[target.node_id]
        one = daemon.there.get(target.target_id)
        return one if one and daemon.leased and one.stand.phase is Phase.SERVING else None

    def write(self, chain: ChainId) -> None:
        """A write reaches all that are in the chain, or nobody, or is cut short before it is acknowledged."""
        route = self.routing.writable(chain)
        if not route or not all(
            self.daemons[one.node_id].seen.chains.get(chain) == self.routing.chains[chain] for one in route
        ):
            return
        records = [self.daemons[one.node_id].there.get(one.target_id) for one in route]
        for target, one in zip(route, records, strict=True):
            if one is None or (self.answers(target) is None) == (target.state == S.SERVING):
                return
        if not all(self.daemons[one.node_id].up and not self.daemons[one.node_id].cut_off for one in route):
            return
        self.number += 1
        for one in records:
            assert one is not None
            one.log.add(self.number)
        self.shown[chain].add(self.number)

    def sync(self) -> None:
        for chain in self.routing.chains:
            syncing = self.routing.targets_in(chain, S.SYNCING)
            serving = self.routing.serving(chain)
            if not syncing or not serving:
                continue
            source = self.answers(serving[-1])
            daemon = self.daemons[syncing[0].node_id]
            there = daemon.there.get(syncing[0].target_id)
            versions = {self.daemons[one.node_id].seen.chains.get(chain) for one in (serving[-1], syncing[0])}
            if source is None or there is None or versions != {self.routing.chains[chain]}:
                continue
            if daemon.up and not daemon.cut_off and there.stand.phase is Phase.STALE:
                there.log = set(source.log)
                there.holds = True
                there.stand = synced(there.stand, self.routing.chain(chain).version)

    # the operator

    def operate(self) -> None:
        node = self.rng.choice([*self.daemons])
        target = self.rng.choice([*self.routing.targets])
        chain = self.rng.choice([*self.routing.chains])
        disk = self.rng.choice([None, *range(len(self.disks[node]))])
        edits: list[Callable[[Routing], Edit]] = [
            lambda r: admin_core.drain(r, self.disks, node=node, disk=disk),
            lambda r: admin_core.drain(r, self.disks, target=target),
            lambda r: admin_core.undrain(r, node=node, disk=disk),
            lambda r: admin_core.undrain(r, target=target),
            lambda r: admin_core.replace_targets(r, node=node, disk=disk or 0),
            lambda r: admin_core.replace_targets(r, target=target),
            lambda r: admin_core.replace_elsewhere(r, self.disks, target=target),
            lambda r: admin_core.remove_target(r, target),
            lambda r: admin_core.set_offline(r, target),
            lambda r: admin_core.set_online(r, target),
            lambda r: admin_core.rotate_last_serving(r, self.disks, chain=chain, to=self.rng.choice([0, target])),
            lambda r: grow_core.create_replica(r, self.disks, node=node, disk=disk or 0, chain=chain),
            lambda r: grow_core.grow(r, self.disks),
            lambda r: grow_core.balance(r, self.disks),
        ]
        self.edit(self.rng.choice(edits))

    def edit(self, edit: Callable[[Routing], Edit]) -> None:
        before = self.routing
        try:
            edited, lines = edit(before)
        except Fs3Error as error:
            assert "\n" not in str(error)
            return
        assert lines
        check_edit(before, edited)
        for chain in before.chains:
            serving = {one.target_id for one in before.serving(chain)}
            assert serving <= {one.target_id for one in edited.serving(chain)}, f"{self.note}: {lines}"
        self.decide(edited)
        for target in self.routing.targets.values():
            if target.accept_loss and target.state == S.LASTSRV:
                self.shown[target.chain_id] = set()  # the operator has given up what it lacks
                self.accepted += 1

    # the story

    def act(self) -> None:
        daemon = self.rng.choice([*self.daemons.values()])
        match self.rng.randrange(16):
            case 0 if daemon.up:
                self.crash(daemon, disk_lost=self.rng.random() < 0.2)
            case 1 | 2 if not daemon.up:
                self.start(daemon)
            case 3:
                daemon.cut_off = self.rng.random() < 0.3
            case 4:
                self.expire(daemon)
            case 5:
                self.operate()
            case 6 | 7:
                self.sync()
            case 8 | 9:
                daemon.work()
            case 10 | 11 | 12:
                self.write(self.rng.choice([*self.routing.chains]))
            case _:
                self.beat(daemon)

    def check(self) -> None:
        for chain in self.routing.chains:
            nodes = [one.node_id for one in members(self.routing, chain)]
            assert len(set(nodes)) == len(nodes), f"{self.note}: chain {chain} is on {nodes}"
            staying = [one for one in members(self.routing, chain) if not self.routing.is_draining(one)]
            machines = [machine_of(one.node_id) for one in staying]
            assert len(set(machines)) == len(machines), f"{self.note}: chain {chain} stays on {staying}"
        for daemon in self.daemons.values():
            if daemon.leased:
                for target_id, one in daemon.there.items():
                    lacks = self.shown[one.chain_id] - one.log
                    assert one.stand.phase is not Phase.SERVING or not lacks, f"{self.note}: {target_id} lacks {lacks}"
                    assert one.stand.phase is not Phase.REFUSED, f"{self.note}: {target_id} was asked too much"

    def round(self) -> None:
        """Every daemon that is up speaks to mgmtd and does its work, and recovery goes on."""
        for daemon in self.daemons.values():
            self.beat(daemon)
            daemon.work()
            self.check()
        self.sync()
        self.check()

    def heal(self) -> None:
        """Everybody up, every wish withdrawn; what is lost for good is accepted."""
        for daemon in self.daemons.values():
            if not daemon.up:
                self.start(daemon)
            daemon.cut_off = False
        for node in self.daemons:
            self.edit(lambda r, node=node: admin_core.undrain(r, node=node))
        for target in [*self.routing.targets]:
            self.edit(lambda r, target=target: admin_core.set_online(r, target))
        for rounds in range(60):
            self.round()
            if rounds % 10 == 9:
                for chain in self.routing.chains:
                    lost = self.routing.targets_in(chain, S.LASTSRV)
                    if lost and not self.routing.serving(chain):
                        heir = lost[0].target_id
                        self.edit(
                            lambda r, c=chain, t=heir: admin_core.rotate_last_serving(r, self.disks, chain=c, to=t)
                        )
        for chain in self.routing.chains.values():
            states = [one.state for one in members(self.routing, chain.chain_id)]
            stuck = f"{self.note}: chain {chain} {states}, waits {waits(self.routing, self.disks)}"
            assert states.count(S.SERVING) >= chain.replicas and set(states) == {S.SERVING}, stuck
        assert not any(chain.joins_table for chain in self.routing.chains.values()), self.note
        for daemon in self.daemons.values():
            assert {*daemon.there} <= {*self.routing.targets}, f"{self.note}: {daemon.there.keys()}"


@pytest.mark.parametrize(
    ("nodes", "replicas", "disks", "workers"),
    [(3, 2, 1, 1), (4, 3, 1, 1), (4, 2, 2, 1), (5, 3, 2, 1), (3, 2, 1, 2), (2, 1, 1, 3), (4, 3, 2, 2)],
)
def test_random_operators_lose_nothing(nodes: int, replicas: int, disks: int, workers: int) -> None:
    accepted = 0
    for seed in range(8):
        world = World(seed, nodes, replicas, disks=disks, workers=workers)
        for _ in range(200):
            world.act()
            world.check()
        world.heal()
        accepted += world.accepted
    assert accepted, "no seed came to a rotation"


def test_a_drained_node_is_emptied_while_every_chain_serves_with_all_replicas() -> None:
    world = World(0, 5, 3, disks=1)
    for chain in [*world.routing.chains]:
        world.write(chain)
    world.edit(lambda routing: admin_core.drain(routing, world.disks, node=1))
    for _ in range(20):
        world.round()
        for chain in world.routing.chains.values():
            assert len(world.routing.serving(chain.chain_id)) >= chain.replicas
    assert all(target.node_id != 1 for target in world.routing.targets.values())
    assert not world.daemons[NodeId(1)].there, "its daemon has deleted them"
    assert waits(world.routing, world.disks) == []
    world.edit(lambda routing: admin_core.undrain(routing, node=1))
    world.heal()


def test_a_dead_node_is_drained_from_the_other_replicas_and_removed() -> None:
    world = World(0, 5, 3, disks=1)
    wide = [chain for chain in world.routing.chains if world.routing.chain(chain).replicas > 1]
    world.crash(world.daemons[NodeId(1)], disk_lost=True)
    world.expire(world.daemons[NodeId(1)])
    world.edit(lambda routing: admin_core.drain(routing, world.disks, node=1))
    for _ in range(20):
        world.round()
    assert all(target.node_id != 1 for chain in wide for target in members(world.routing, chain))
    (narrow,) = (target.chain_id for target in world.routing.targets.values() if target.node_id == 1)
    with pytest.raises(Invalid, match="still has 1 target"):
        admin_core.remove_node(world.routing, 1)
    world.edit(lambda routing: admin_core.rotate_last_serving(routing, world.disks, chain=narrow))
    for _ in range(20):
        world.round()
    assert [target.state for target in members(world.routing, narrow)] == [S.SERVING]
    routing, _ = admin_core.remove_node(world.routing, 1)
    assert NodeId(1) not in routing.nodes


def test_a_target_that_is_put_out_of_service_stays_so_until_it_is_put_back() -> None:
    world = World(0, 4, 3, disks=1)
    chain = ChainId(chain_of(world.routing, 3))
    head = world.routing.chain(chain).targets[0]
    world.edit(lambda routing: admin_core.set_offline(routing, head))
    for _ in range(10):
        world.round()
        world.write(chain)
    daemon = world.daemons[world.routing.targets[head].node_id]
    assert world.routing.targets[head].state == S.OFFLINE and daemon.there[head].stand.phase is Phase.STALE
    world.crash(daemon)
    world.expire(daemon)
    world.start(daemon)
    for _ in range(10):
        world.round()
    assert world.routing.targets[head].state == S.OFFLINE, "also after its daemon was started again"
    world.edit(lambda routing: admin_core.set_online(routing, head))
    for _ in range(10):
        world.round()
    assert world.routing.targets[head].state == S.SERVING and daemon.there[head].log == world.shown[chain] != set()


@pytest.mark.parametrize("lost", [False, True])
def test_who_served_last_comes_back_stale_after_a_rotation(lost: bool) -> None:
    """Two of three die one after the other, the last one too; the operator accepts what the second had."""
    world = World(0, 4, 3, disks=1)
    chain = ChainId(chain_of(world.routing, 3))
    first, second, last = (world.daemons[target.node_id] for target in members(world.routing, chain))
    heir, holder = (
        next(one.target_id for one in members(world.routing, chain) if one.node_id == daemon.node_id)
        for daemon in (second, last)
    )
    for daemon in (first, second, last):
        world.write(chain)
        world.crash(daemon, disk_lost=lost and daemon is last)
        world.expire(daemon)
        for _ in range(3):
            world.round()
    assert world.routing.targets[holder].state == S.LASTSRV
    world.start(second)
    for _ in range(5):
        world.round()
    assert world.routing.targets[heir].state == S.WAITING, "it lacks a write, and waits for the one that has it"
    world.edit(lambda routing: admin_core.rotate_last_serving(routing, world.disks, chain=chain, to=heir))
    for _ in range(5):
        world.round()
    assert world.routing.targets[heir].state == S.SERVING and not world.routing.targets[heir].accept_loss
    assert second.there[heir].log == {1, 2}
    world.write(chain)
    world.start(last)
    seen = set()
    for _ in range(10):
        seen.add(world.routing.targets[holder].state)
        world.round()
    assert seen >= {S.OFFLINE} and S.LASTSRV not in seen
    assert world.routing.targets[holder].state == S.SERVING
    assert last.there[holder].log == second.there[heir].log == {1, 2, 4}, (
        "the write that was given up is gone everywhere"
    )
