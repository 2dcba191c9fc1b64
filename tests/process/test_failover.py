"""A meta or a mgmtd killed with SIGKILL under load from two client processes: no call fails, and nothing is lost.

The clients (failover_client.py) check every answer; a call that fails ends its client. Nothing waits for a time: the
next daemon is killed when each client has done some more.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fs3.client.mgmtd import MgmtdClient
from fs3.cluster.local import LocalCluster
from fs3.url import parse_url

_CLIENT = Path(__file__).with_name("failover_client.py")
_WAIT_S = 90.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    made = LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=2, replicas=2, mgmtds=2, metas=2, port=0, lease_s=1.5)
    with made as running:
        yield running


class Clients:
    """Two client processes at work; leaving the context ends them and sees that all went well."""

    def __init__(self, url: str, name: str) -> None:
        self._children = [
            subprocess.Popen(
                [sys.executable, str(_CLIENT), url, f"/{name}-{number}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]

    def progress(self, rounds: int) -> None:
        """Wait until each has done so many rounds more."""
        for child in self._children:
            assert child.stdout is not None and child.stderr is not None
            for _ in range(rounds):
                assert child.stdout.readline(), child.stderr.read()

    def __enter__(self) -> Clients:
        self.progress(1)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for child in self._children:
            if kind is not None:
                child.kill()
            _, said = child.communicate(timeout=_WAIT_S)
            assert kind is not None or child.returncode == 0, said


@pytest.mark.parametrize("kind", ["meta", "mgmtd"])
def test_killed_under_load_it_costs_no_call(cluster: LocalCluster, kind: str) -> None:
    with Clients(cluster.url, kind) as clients:
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
