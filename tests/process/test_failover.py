"""A meta or a mgmtd killed with SIGKILL under load from two client processes: no call fails, and nothing is lost.

The clients (failover_client.py) check every answer; a call that fails ends its client. Nothing waits for a time: the
next daemon is killed when each client has done some more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from fs3.client.mgmtd import MgmtdClient
from fs3.cluster.local import LocalCluster
from fs3.url import parse_url

_WAIT_S = 90.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    made = LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=2, replicas=2, mgmtds=2, metas=2, port=0, lease_s=1.5)
    with made as running:
        yield running


@pytest.mark.parametrize("kind", ["meta", "mgmtd"])
def test_killed_under_load_it_costs_no_call(cluster: LocalCluster, clients_of: Any, kind: str) -> None:
    with clients_of(cluster.url, kind) as clients:
        # One after the other: of the mgmtds, one of the two kills ends the one that decides.
        for name in (kind, f"{kind}-2"):
            clients.progress(5)
            cluster.kill(name)
            clients.progress(10)
            cluster.restart(name)
            cluster.wait_serving(recovered=True, timeout_s=_WAIT_S)
    for name in cluster.shape.names:
        assert os.path.exists(f"/proc/{cluster.pids[name]}"), f"{name} has ended"


def test_whichever_mgmtd_a_url_names_the_one_that_decides_is_found(cluster: LocalCluster) -> None:
    addresses, _ = parse_url(cluster.url)
    assert len(addresses) == 2
    for address in addresses:
        client = MgmtdClient.connect([address])
        try:
            assert client.primary() in addresses and set(client.addresses) == set(addresses)
            assert client.routing.ready
        finally:
            client.close()
