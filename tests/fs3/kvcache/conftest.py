"""A real cluster on loopback, and stores of small pages in directories of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest

from fs3.client.connect import Client, connect
from fs3.cluster.local import LocalCluster
from fs3.kvcache import KVStore, Namespace, page_keys

PAGE_BYTES = 20_000
_names = count()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=3, replicas=2, port=0, lease_s=1.5) as made:
        yield made


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    made = connect(cluster.url)
    yield made
    made.close()


@pytest.fixture
def url(cluster: LocalCluster, client: Client) -> str:
    """A cache's directory that is not there yet."""
    return f"{cluster.url}/caches/{next(_names)}"


@pytest.fixture(params=["client", "usrbio"])
def open_store(request: pytest.FixtureRequest, url: str) -> Iterator[Callable[..., KVStore]]:
    """A store in `url`, of a namespace that no other test has; `weights` tells namespaces of one test apart."""
    usrbio = request.param == "usrbio"
    if usrbio:
        request.getfixturevalue("runtime_directory")
    opened = []

    def make(weights: str = "w", where: str = url, kind: type[KVStore] = KVStore) -> KVStore:
        name = f"{weights} for {url}"
        space = Namespace(weights=name, dtype="u8", layout="noise", page_tokens=4, layers=1, shape=(PAGE_BYTES,))
        opened.append(kind.open(where, space, page_bytes=PAGE_BYTES, usrbio=usrbio))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., KVStore]) -> KVStore:
    return open_store()


@pytest.fixture
def keys_of() -> Callable[..., list[bytes]]:
    """The keys of a chain of `pages` pages in the store's namespace; one chain for each `seed`."""

    def make(store: KVStore, pages: int, seed: int = 0) -> list[bytes]:
        return page_keys(store.namespace.digest(), [seed] * 4 * pages, 4)

    return make


@pytest.fixture
def noise() -> Callable[[int], bytes]:
    """A page's bytes."""
    return lambda seed: np.random.default_rng(seed).bytes(PAGE_BYTES)
