"""The deciding mgmtd, on a clock that the test sets: bootstrap, loss and return of daemons, its own restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from fs3.errors import Conflict, Invalid, MaybeApplied, NoSpace, Unavailable
from fs3.ids import machine_of, node_name, worker_node
from fs3.kv.memory import MemoryKV
from fs3.mgmtd.store import MgmtdStore
from fs3.routing import LocalState, NodeKind, Routing, TargetState

SERVING, LASTSRV, SYNCING, WAITING, OFFLINE = (
    TargetState.SERVING,
    TargetState.LASTSRV,
    TargetState.SYNCING,
    TargetState.WAITING,
    TargetState.OFFLINE,
)


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(_awaited(body), 30))


async def _awaited(body: Callable[[], Awaitable[None]]) -> None:
    await body()


async def expire(primary: Any, clock: Any, by_s: float) -> None:
    """Let time pass and the lease clock look once."""
    clock.now_s += by_s
    ticking = asyncio.create_task(primary.run())
    before = primary.routing.version
    await primary.newer_than(before, 5.0)
    ticking.cancel()
    await asyncio.gather(ticking, return_exceptions=True)


def test_nothing_is_planned_before_enough_nodes_have_come(cluster: Any) -> None:
    async def body() -> None:
        primary = await cluster.make(MemoryKV(), cluster.clock())
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        for daemon in daemons[:2]:
            await daemon.beat(primary)
            await daemon.beat(primary)
            assert daemon.wanted == []
        await daemons[2].beat(primary)
        assert len(daemons[2].wanted) == 12 and not primary.routing.ready
        assert not primary.routing.targets, "a plan is not shown"

    run(body)


def test_bootstrap_publishes_when_all_targets_exist(cluster: Any) -> None:
    async def body() -> None:
        primary = await cluster.make(MemoryKV(), cluster.clock())
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        routing = primary.routing
        assert {chain.version for chain in routing.chains.values()} == {1}
        assert {target.state for target in routing.targets.values()} == {SERVING}
        assert [routing.table_for_replicas(replicas).replicas for replicas in (1, 2, 3)] == [1, 2, 3]
        assert all(daemon.wanted == [] for daemon in daemons)
        shown = primary.with_figures()
        assert shown.version == routing.version
        assert {target.used_bytes for target in shown.targets.values()} == {7}
        assert sum(disk.free_bytes for disk in shown.disks) == 180

    run(body)


def test_the_first_chains_wait_for_every_worker_of_enough_nodes(cluster: Any) -> None:
    async def body() -> None:
        primary = await cluster.make(MemoryKV(), cluster.clock(), nodes=2, replicas=2)
        daemons = [cluster.daemon(worker_node(node, worker)) for node in (1, 2) for worker in (0, 1)]
        for daemon in daemons:
            daemon.node = replace(daemon.node, endpoints=(f"n{node_name(daemon.node.node_id)}:1",), workers=2)
        for daemon in daemons[:3] * 3:
            await daemon.beat(primary)
            assert daemon.wanted == []
        await cluster.boot(primary, daemons)
        assert all(daemon.states for daemon in daemons)
        for chain in primary.routing.chains:
            machines = [machine_of(target.node_id) for target in primary.routing.serving(chain)]
            assert len(set(machines)) == len(machines)

    run(body)


def test_a_mgmtd_that_has_just_taken_over_plans_with_whom_it_has_heard_itself(cluster: Any) -> None:
    async def body() -> None:
        kv, clock = MemoryKV(), cluster.clock()
        primary = await cluster.make(kv, clock, nodes=3, replicas=2)
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        for daemon in daemons[:2]:
            await daemon.beat(primary)
        primary = await cluster.make(kv, clock, nodes=3, replicas=2)
        assert {node.node_id for node in primary.routing.nodes.values() if node.alive} >= {1, 2}
        for daemon in daemons[1:]:
            await daemon.beat(primary)  # nothing is known of the disks of the first
        await cluster.boot(primary, daemons)
        assert {target.node_id for target in primary.routing.targets.values()} == {1, 2, 3}

    run(body)


def test_too_few_disks_for_the_replicas_are_said_once(cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        primary = await cluster.make(MemoryKV(), cluster.clock(), nodes=2, replicas=2)
        daemons = [cluster.daemon(1), cluster.daemon(2, disks=0)]
        for daemon in daemons * 3:
            await daemon.beat(primary)
        assert not primary.routing.ready

    run(body)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "no chain tables can be made: 2 replicas need as many storage nodes with a disk each; there are 1"
    ]


def test_a_silent_node_is_offline_at_t_and_recovers(cluster: Any) -> None:
    async def body() -> None:
        clock = cluster.clock()
        primary = await cluster.make(MemoryKV(), clock)
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        version = primary.routing.version
        clock.now_s += 6.0
        for daemon in daemons[:2]:
            await daemon.beat(primary)
        assert primary.routing.version == version, "heartbeats without news publish nothing"
        await expire(primary, clock, 4.0)
        assert not primary.routing.nodes[3].alive and primary.routing.nodes[1].alive
        assert cluster.states(primary, 3) == {OFFLINE, LASTSRV}, "its only copies wait for it"
        assert cluster.states(primary, 1) == {SERVING}

        lost = daemons[2]
        await lost.beat(primary)  # still believes that it serves: only what it alone has comes back
        assert cluster.states(primary, 3) == {OFFLINE, SERVING}
        lost.states = {
            target: LocalState.ONLINE if primary.routing.targets[target].state == OFFLINE else LocalState.UPTODATE
            for target in lost.states
        }
        await lost.beat(primary)
        assert cluster.states(primary, 3) == {SYNCING, SERVING}
        lost.states = dict.fromkeys(lost.states, LocalState.UPTODATE)
        await lost.beat(primary)
        assert cluster.states(primary, 3) == {SERVING}

    run(body)


def test_a_restart_counts_as_an_absence(cluster: Any) -> None:
    async def body() -> None:
        primary = await cluster.make(MemoryKV(), cluster.clock())
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        reborn = cluster.daemon(2, generation=99)
        reborn.states = dict.fromkeys(daemons[1].states, LocalState.UPTODATE)  # hasty: speaks before it has seen
        await reborn.beat(primary)
        assert cluster.states(primary, 2) == {OFFLINE, LASTSRV}
        assert primary.routing.nodes[2].generation == 99
        await reborn.beat(primary)
        assert cluster.states(primary, 2) == {WAITING, SERVING}, "UPTODATE does not start a sync"
        reborn.states = dict.fromkeys(reborn.states, LocalState.ONLINE)
        await reborn.beat(primary)
        assert cluster.states(primary, 2) == {SYNCING, SERVING}
        with pytest.raises(Conflict, match="started later"):
            await daemons[1].beat(primary)

    run(body)


def test_a_second_daemon_elsewhere_waits_for_the_lease_of_the_first(cluster: Any) -> None:
    async def body() -> None:
        clock = cluster.clock()
        primary = await cluster.make(MemoryKV(), clock)
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        twin = cluster.daemon(2, generation=99)
        twin.node = replace(twin.node, endpoints=("127.0.0.1:77",))
        with pytest.raises(Unavailable, match=r"another daemon with this node_id is alive at 127\.0\.0\.1:2; give"):
            await twin.beat(primary)
        await daemons[1].beat(primary)
        assert cluster.states(primary, 2) == {SERVING} and primary.routing.nodes[2].generation == 1
        await expire(primary, clock, 10.0)
        await twin.beat(primary)
        assert primary.routing.nodes[2].endpoints == ("127.0.0.1:77",)
        with pytest.raises(Conflict, match="started later"):
            await daemons[1].beat(primary)

    run(body)


def test_a_target_is_complete_as_of_its_last_recovery(cluster: Any) -> None:
    async def body() -> None:
        primary = await cluster.make(MemoryKV(), cluster.clock())
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        reborn = cluster.daemon(2, generation=99)
        reborn.states = dict.fromkeys(daemons[1].states, LocalState.ONLINE)
        await reborn.beat(primary)
        await reborn.beat(primary)
        syncing = {key: target for key, target in primary.routing.targets.items() if target.state == SYNCING}
        assert syncing and {target.complete_at for target in primary.routing.targets.values()} == {0}
        versions = {key: primary.routing.chain(target.chain_id).version for key, target in syncing.items()}
        reborn.states = dict.fromkeys(reborn.states, LocalState.UPTODATE)
        await reborn.beat(primary)
        after = primary.routing.targets
        assert {key: (after[key].state, after[key].complete_at) for key in syncing} == {
            key: (SERVING, version) for key, version in versions.items()
        }

    run(body)


def test_goodbye_and_refusal_do_not_wait_for_t(cluster: Any) -> None:
    async def body() -> None:
        primary = await cluster.make(MemoryKV(), cluster.clock())
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        await primary.goodbye(1, 42)
        assert primary.routing.nodes[1].alive, "of another generation"
        await primary.goodbye(1, 1)
        assert not primary.routing.nodes[1].alive
        assert primary.suspect(1, 1) is None and primary.suspect(2, 7) is None
        assert primary.suspect(2, 1) is not None
        await primary.refused(2, 1)
        assert cluster.states(primary, 2) == {OFFLINE, LASTSRV}
        await primary.refused(3, 1)
        assert all(len(primary.routing.targets_in(chain, LASTSRV)) == 1 for chain in primary.routing.chains)

    run(body)


def test_all_die_and_the_last_one_brings_the_data_back(cluster: Any) -> None:
    async def body() -> None:
        kv, clock = MemoryKV(), cluster.clock()
        primary = await cluster.make(kv, clock)
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        for node in (1, 2, 3):
            await primary.goodbye(node, 1)
        primary = await cluster.make(kv, clock)
        reborn = [cluster.daemon(node, generation=2) for node in (1, 2, 3)]
        for daemon, before in zip(reborn, daemons, strict=True):
            await daemon.beat(primary)
            daemon.states = dict.fromkeys(before.states, LocalState.ONLINE)
        for daemon in reborn:
            await daemon.beat(primary)
        for _ in range(3):
            for daemon in reborn:
                daemon.states = dict.fromkeys(daemon.states, LocalState.UPTODATE)
                for target in primary.routing.targets.values():
                    if target.node_id == daemon.node.node_id and target.state == WAITING:
                        daemon.states[target.target_id] = LocalState.ONLINE
                await daemon.beat(primary, routing=primary.routing)
        assert {target.state for target in primary.routing.targets.values()} == {SERVING}

    run(body)


def test_a_restarted_mgmtd_changes_nothing_until_t(cluster: Any) -> None:
    async def body() -> None:
        kv, clock = MemoryKV(), cluster.clock()
        primary = await cluster.make(kv, clock)
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        chains = primary.routing.chains
        clock.now_s += 1_000.0
        primary = await cluster.make(kv, clock)
        await daemons[0].beat(primary)
        assert primary.routing.chains == chains
        clock.now_s += 9.0
        await daemons[1].beat(primary)
        await expire(primary, clock, 1.0)
        assert not primary.routing.nodes[3].alive, "counted from the new mgmtd's start"
        assert cluster.states(primary, 2) == {SERVING}

    run(body)


def test_a_lost_disk_is_made_anew_but_never_the_last_holder(cluster: Any) -> None:
    async def body() -> None:
        primary = await cluster.make(MemoryKV(), cluster.clock())
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        empty = cluster.daemon(1, generation=2)
        await empty.beat(primary)
        assert empty.wanted == [], "it has not been told yet that its targets are off duty"
        await empty.beat(primary)
        routing = primary.routing
        expected = [t.target_id for t in routing.targets.values() if t.node_id == 1 and t.state == OFFLINE]
        assert sorted(empty.wanted) == sorted(expected)
        held = [t.target_id for t in routing.targets.values() if t.node_id == 1 and t.state == LASTSRV]
        assert held and not set(held) & set(empty.wanted)

    run(body)


def test_a_foreign_or_senseless_record_is_refused(cluster: Any) -> None:
    async def body() -> None:
        primary = await cluster.make(MemoryKV(), cluster.clock())
        await cluster.daemon(1).beat(primary)
        with pytest.raises(Invalid, match=r"node_id 1 belongs to a storage daemon at 127\.0\.0\.1:1"):
            await cluster.daemon(1, generation=5, kind=NodeKind.META).beat(primary)
        with pytest.raises(Invalid, match="belongs to a mgmtd daemon"):
            await cluster.daemon(100).beat(primary)
        with pytest.raises(Invalid, match="needs node_id"):
            await cluster.daemon(0).beat(primary)
        for endpoint in ("", "\n\t", "nowhere", ":80", "host:", "host:http", "host:70000", "host:-1"):
            with pytest.raises(Invalid, match="is not host:port"):
                stranger = cluster.daemon(7)
                stranger.node = replace(stranger.node, endpoints=(endpoint,))
                await stranger.beat(primary)

    run(body)


class FullDisk(MemoryKV):
    """A store that refuses commits while `full`."""

    full = False

    async def commit(self, *args: Any) -> None:
        if self.full:
            raise NoSpace("disk full")
        await super().commit(*args)


def test_what_was_not_committed_is_not_shown_and_is_decided_again(cluster: Any) -> None:
    async def body() -> None:
        kv = FullDisk()
        primary = await cluster.make(kv, cluster.clock())
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        version = primary.routing.version
        kv.full = True
        with pytest.raises(NoSpace):
            await primary.goodbye(3, 1)
        assert primary.routing.version == version and primary.routing.nodes[3].alive
        kv.full = False
        ticking = asyncio.create_task(primary.run())
        assert await primary.newer_than(version, 5.0) is not None
        ticking.cancel()
        assert not primary.routing.nodes[3].alive
        reloaded = (await MgmtdStore(kv).take_over()).routing
        assert reloaded.chains == primary.routing.chains

    run(body)


def test_a_replaced_primary_stops_deciding(cluster: Any) -> None:
    async def body() -> None:
        kv, clock = MemoryKV(), cluster.clock()
        old = await cluster.make(kv, clock)
        await cluster.daemon(1).beat(old)
        version = old.routing.version
        await cluster.make(kv, clock)
        ticking = asyncio.create_task(old.run())
        with pytest.raises(Unavailable, match="no longer decides"):
            await cluster.daemon(2).beat(old)
        with pytest.raises(Conflict, match="another mgmtd has taken over"):
            await ticking
        assert old.routing.version <= version + 1

    run(body)


def test_an_operator_s_change_is_one_decision_and_what_follows_from_it_is_part_of_it(cluster: Any) -> None:
    async def body() -> None:
        kv = FullDisk()
        primary = await cluster.make(kv, cluster.clock())
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        before = primary.routing
        chain = next(chain for chain in before.chains.values() if chain.replicas == 3)
        tail = before.targets[chain.targets[-1]]

        def offline(routing: Routing) -> tuple[Routing, tuple[str, ...]]:
            changed = replace(tail, state=OFFLINE)
            raised = replace(chain, version=chain.version + 1)
            targets = {**routing.targets, tail.target_id: changed}
            return replace(routing, targets=targets, chains={**routing.chains, chain.chain_id: raised}), ("offline",)

        def refused(routing: Routing) -> tuple[Routing, tuple[str, ...]]:
            raise Invalid("no such target")

        with pytest.raises(Invalid, match="no such target"):
            await primary.change(refused)
        kv.full = True
        with pytest.raises(NoSpace):
            await primary.change(offline)
        assert primary.routing is before
        kv.full = False
        after = await primary.change(offline)
        assert after is primary.routing and after.version == before.version + 1
        assert after.targets[tail.target_id].state == OFFLINE, "its daemon has not seen it yet"
        assert await primary.change(lambda routing: (routing, ())) is after
        for daemon in daemons:
            await daemon.beat(primary)  # having seen it: back, to be synced
            daemon.states[tail.target_id] = LocalState.ONLINE
        owner = next(daemon for daemon in daemons if daemon.node.node_id == tail.node_id)
        await owner.beat(primary)
        assert primary.routing.targets[tail.target_id].state == SYNCING

    run(body)


def test_removed_nodes_targets_and_chains_stay_removed(cluster: Any) -> None:
    async def body() -> None:
        kv, clock = MemoryKV(), cluster.clock()
        primary = await cluster.make(kv, clock)
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        await primary.goodbye(3, 1)

        def remove(routing: Routing) -> tuple[Routing, tuple[str, ...]]:
            lost = {target.chain_id for target in routing.targets.values() if target.node_id == 3}
            return (
                replace(
                    routing,
                    nodes={key: node for key, node in routing.nodes.items() if key != 3},
                    targets={key: t for key, t in routing.targets.items() if t.chain_id not in lost},
                    chains={key: chain for key, chain in routing.chains.items() if key not in lost},
                    tables={key: t for key, t in routing.tables.items() if not lost & set(t.chains)},
                ),
                ("node 3 is removed",),
            )

        after = await primary.change(remove)
        assert 3 not in after.nodes and 0 < len(after.chains) == len({t.chain_id for t in after.targets.values()})
        again = await cluster.make(kv, clock)
        assert again.routing.nodes.keys() == after.nodes.keys()
        assert again.routing.targets.keys() == after.targets.keys() and again.routing.chains == after.chains
        assert again.routing.tables == after.tables
        with pytest.raises(AssertionError, match="kept its version"):
            await again.change(_swap_first_chain)
        await cluster.daemon(3, generation=9).beat(again)
        assert again.routing.nodes[3].alive, "one that is heard again comes as a new one"

    run(body)


def _swap_first_chain(routing: Routing) -> tuple[Routing, tuple[str, ...]]:
    chain = next(chain for chain in routing.chains.values() if len(chain.targets) > 1)
    swapped = replace(chain, targets=tuple(reversed(chain.targets)))
    return replace(routing, chains={**routing.chains, chain.chain_id: swapped}), ("swapped",)


class LostAnswers(MemoryKV):
    """A store that loses answers: the next commits are applied, or dropped, as `fate` says, and nobody is told."""

    def __init__(self) -> None:
        super().__init__()
        self.fate: list[bool] = []

    async def commit(self, *args: Any) -> None:
        if not self.fate:
            return await super().commit(*args)
        if self.fate.pop(0):
            await super().commit(*args)
        raise MaybeApplied("the answer was lost")


@pytest.mark.parametrize("fate", [[True], [False], [True, True], [False, True], [True, False], [False, False]])
def test_after_a_lost_answer_what_is_stored_holds(cluster: Any, fate: list[bool]) -> None:
    async def body() -> None:
        kv = LostAnswers()
        primary = await cluster.make(kv, cluster.clock())
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        shown = primary.routing
        lost = len(fate)
        kv.fate = list(fate)
        for node in (3, 2)[:lost]:
            with pytest.raises(MaybeApplied):
                await primary.goodbye(node, 1)
            assert primary.routing.version <= shown.version + 1
        await primary.goodbye(1, 1)
        assert [primary.routing.nodes[node].alive for node in (1, 2, 3)] == [False, lost < 2, False]
        assert (await MgmtdStore(kv).take_over()).routing == primary.routing

    run(body)


def test_a_late_heartbeat_takes_no_target_out_of_service(cluster: Any) -> None:
    """One from before the daemon spoke for its targets, or said OFFLINE of them, under an older routing."""

    async def body() -> None:
        kv, clock = MemoryKV(), cluster.clock()
        primary = await cluster.make(kv, clock)
        daemons = [cluster.daemon(node) for node in (1, 2, 3)]
        await cluster.boot(primary, daemons)
        for decides in (primary, await cluster.make(kv, clock)):
            for word in ({}, dict.fromkeys(daemons[0].states, LocalState.OFFLINE)):
                late = cluster.daemon(1)
                late.states = word
                await late.beat(decides)
                assert cluster.states(decides, 1) == {SERVING}
                chains = decides.routing.chains
                await daemons[0].beat(decides)
                assert decides.routing.chains == chains
        silent = cluster.daemon(1)
        await silent.beat(decides, routing=decides.routing)
        assert cluster.states(decides, 1) == {OFFLINE, LASTSRV}, "under the newest routing silence counts"

    run(body)
