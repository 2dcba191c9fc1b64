"""A real cluster for the tests that want one: three storage nodes, three replicas, one per test process.

It is started by the first test that asks for it. Tests keep to a directory of their own (`home`), and those that kill
daemons start clusters of their own (tests/process).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from fs3.cluster.local import LocalCluster

_number = itertools.count()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=3, replicas=3, port=0) as running:
        yield running


@pytest.fixture(scope="session")
def cluster_url(cluster: LocalCluster) -> str:
    """`fs3://host:port`, without a slash at the end."""
    return cluster.url.rstrip("/")


@pytest.fixture
def fs(cluster_url: str) -> Any:
    """The fsspec filesystem of the test cluster."""
    return fsspec.url_to_fs(cluster_url + "/")[0]


@pytest.fixture
def home(fs: Any) -> str:
    """The path of a fresh directory on the test cluster."""
    path = f"/test-{os.getpid()}-{next(_number)}"
    fs.mkdir(path)
    return path
