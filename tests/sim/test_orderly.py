"""Orderly stops of daemons of production classes: nobody waits for a lease, and no call fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sim_cluster import Cluster, Shape
from sim_history import Outcome
from sim_kernel import Simulation
from sim_operator import SimOperator
from sim_workload import Mix, Workload

LEASE_S = 2.0


def running(seed: int) -> tuple[Simulation, Cluster]:
    sim = Simulation(seed)
    cluster = Cluster(sim, Shape(mgmtds=2, storages=4, replicas=3, clients=2, lease_s=LEASE_S, wipes=True))
    cluster.start()
    cluster.wait_ready()
    return sim, cluster


@pytest.mark.parametrize("seed", [1, 2])
def test_a_restart_of_all_daemons_one_after_the_other_fails_no_call(seed: int) -> None:
    sim, cluster = running(seed)
    mix = replace(Mix.drawn(sim.stream("mix"), operations=300), deadlines_s=(30.0,), pause_s=0.05, workers=3)
    workload = Workload(sim, cluster.clients, cluster.chains, mix)
    workload.start()
    before = {machine.name: machine.incarnation for machine in [*cluster.mgmtds, *cluster.storages]}
    operator = SimOperator(cluster)
    operator.start()
    operator.ask(lambda: operator.restart_all(30.0))
    cluster.run_until(lambda: workload.done and not operator.busy, within_s=120)
    cluster.settle()
    after = {machine.name: machine.incarnation for machine in [*cluster.mgmtds, *cluster.storages]}
    assert after == {name: number + 1 for name, number in before.items()}
    history = workload.history.operations
    assert len(history) == 300 and {one.outcome for one in history} == {Outcome.OK}
    longest_s = max(one.returned_s - one.invoked_s for one in history)
    assert longest_s < LEASE_S / 2, "nobody waited for a lease to end"
    sim.close()


def test_a_stopped_storage_daemon_is_counted_out_at_once_and_ends() -> None:
    sim, cluster = running(3)
    storage = cluster.storages[0]
    storage.stop()
    cluster.run_until(lambda: not cluster.routing.nodes[storage.node_id].alive, within_s=LEASE_S / 10)
    cluster.run_until(lambda: not storage.alive, within_s=LEASE_S)
    sim.close()


def test_another_mgmtd_decides_as_soon_as_one_is_stopped() -> None:
    sim, cluster = running(4)
    mgmtd = next(one for one in cluster.mgmtds if one.primary is not None)
    mgmtd.stop()
    others = [one for one in cluster.mgmtds if one is not mgmtd]
    cluster.run_until(lambda: any(one.primary is not None for one in others), within_s=LEASE_S / 8)
    cluster.run_until(lambda: not mgmtd.alive, within_s=LEASE_S)
    sim.close()
