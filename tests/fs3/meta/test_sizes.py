"""A store that takes little in one transaction: what need not be done at once is done in parts, what must says so."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import threading
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry

from fs3.client.meta import MetaClient, Publish, Written
from fs3.client.meta_calls import META
from fs3.cluster.etcd import LocalEtcd
from fs3.errors import NotFound, TooLarge
from fs3.ids import ChainId, ChainTableId, NodeId
from fs3.inode import Inode
from fs3.kv import keys
from fs3.kv.api import KVEngine, Limits
from fs3.kv.etcd import EtcdKV
from fs3.kv.memory import MemoryKV
from fs3.layout import LayoutChoice
from fs3.meta.gc import Collector
from fs3.meta.service import MetaService
from fs3.meta.sizes import page_of
from fs3.routing import ChainTable, Node, NodeKind, Routing
from fs3.transport import rpc
from fs3.transport.credentials import Credentials
from fs3.transport.door import Door

LIMITS = Limits(max_operations=128, max_transaction_bytes=1_500_000)
TABLE = ChainTable(table_id=ChainTableId(1), version=1, replicas=1, chains=(ChainId(1),))


class Remover:
    """Of files without chunks."""

    async def remove_file(self, inode: Inode) -> None:
        pass


class Running:
    """A meta service on a store of its own, in a thread, and a client of it."""

    def __init__(self, open_kv: Callable[[], KVEngine]) -> None:
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(open_kv)))
        self._thread.start()
        assert self._started.wait(30)
        node = Node(node_id=NodeId(9), kind=NodeKind.META, endpoints=(f"127.0.0.1:{self.port}",))
        routing = dataclasses.replace(self.routing, nodes={node.node_id: node})
        self.meta = MetaClient(lambda: routing, Credentials(cluster_id="c1"), 5, refresh=lambda: None)

    async def _serve(self, open_kv: Callable[[], KVEngine]) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.kv = open_kv()
        self.registry = CollectorRegistry()
        service = MetaService(self.kv, Credentials(), self.registry)
        self.routing = Routing(cluster_id="c1", version=1, tables={(TABLE.table_id, 1): TABLE}, ready=True)
        service.adopt(self.routing)
        door = Door("meta", rpc.aio_server())
        await door.open("127.0.0.1", 0)
        self.port = door.port
        await door.start([(META, service)])
        self._started.set()
        await self._stop.wait()
        await door.stop(0.0)
        await self.kv.close()

    def collect(self) -> None:
        """Until nothing is left."""

        async def body() -> None:
            gc = Collector(self.kv, Remover(), session_lease_s=60.0, delay_s=0.0, interval_s=1.0)
            while (await gc.round(1.0)).productive:
                pass

        asyncio.run_coroutine_threadsafe(body(), self.loop).result(60)

    def count(self, kind: bytes) -> int:
        async def body() -> int:
            return len(await self.kv.begin().range(*keys.whole(kind), limit=10_000))

        return asyncio.run_coroutine_threadsafe(body(), self.loop).result(60)

    def failed(self, op: str) -> float:
        """How often an operation did not fit."""
        value = self.registry.get_sample_value("fs3_meta_errors_total", {"op": op, "error": "TooLarge"})
        return value or 0.0

    def close(self) -> None:
        self.meta.close()
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.fixture(params=["memory", "etcd"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    if request.param == "memory":
        one = Running(lambda: MemoryKV(LIMITS))
    else:
        etcd: LocalEtcd = request.getfixturevalue("etcd")
        name = f"test-{secrets.token_hex(4)}"
        one = Running(lambda: EtcdKV(etcd.endpoints, name, grouping=keys.group))
    yield one
    one.close()


def test_files_are_made_published_replaced_and_removed_in_parts(running: Running) -> None:
    meta = running.meta
    meta.mkdir("/d")
    paths = [f"/d/f{number:03}" for number in range(300)]
    for _ in range(2):  # the second time they are replaced
        made = meta.create_files(paths)
        assert len({one.inode_id for one in made}) == 300
        done = meta.publish_files(
            [Publish(one.inode_id, path, 3) for one, path in zip(made, paths, strict=True)], together=False
        )
        assert [one.inode_id for one in done] == [one.inode_id for one in made]
    assert meta.usage("/d").files == 300
    asked = running.failed("create_files") + running.failed("publish_files")
    assert asked < 8, "once it is known what fits, nothing is tried in vain"
    for path in paths[:30]:
        meta.set_xattr(path, "user.x", b"1")
    meta.remove("/d", recursive=True)
    running.collect()
    for kind in (keys.GC_QUEUE, keys.SESSION, keys.STAMP):
        assert running.count(kind) == (1 if kind == keys.STAMP else 0), kind  # the root's
    assert running.count(keys.INODE) == 1


def test_sessions_are_renewed_and_abandoned_in_parts(running: Running) -> None:
    made = [one.inode_id for one in running.meta.create_files([f"/{number}" for number in range(200)])]
    assert running.meta.renew(dict.fromkeys(made, Written())) == []
    running.meta.abandon(made)
    assert running.count(keys.SESSION) == 0 and running.count(keys.GC_QUEUE) == 200
    running.meta.abandon([])


def test_the_trash_is_emptied_in_parts(running: Running) -> None:
    meta = running.meta
    paths = [f"/f{number:02}" for number in range(50)]
    made = meta.create_files(paths)
    meta.publish_files([Publish(one.inode_id, path, 3) for one, path in zip(made, paths, strict=True)], together=False)
    for path in paths:
        meta.set_xattr(path, "user.x", b"1")
    thrown = [meta.trash(path, keep_s=60) for path in paths]
    assert all(one.expires_ns - one.removed_ns > 59 * 10**9 for one in thrown)
    assert [one for page in meta.list_trash(page=9) for one in page] == thrown
    assert meta.restore_trash(thrown[0].name) == paths[0] and meta.restore_trash(thrown[1].name, "/new") == "/new"
    assert meta.empty_trash(removed_before_ns=thrown[30].removed_ns) == 28
    assert meta.empty_trash(thrown[30].name) == 1 and meta.empty_trash() == 19
    assert running.failed("empty_trash") == 0
    running.collect()
    assert running.count(keys.INODE) == 4 and running.count(keys.TRASH) == 0
    assert meta.fsck().wrong == 0


def test_deep_directories_are_made_from_the_top(running: Running) -> None:
    path = "/" + "/".join(f"level{number}" for number in range(64))
    made = running.meta.mkdir(path, parents=True, mode=0o700, layout=LayoutChoice(stripe=2))
    assert running.meta.mkdir(path, parents=True, layout=LayoutChoice(stripe=2)).inode_id == made.inode_id
    (found, above) = running.meta.stat([path, path.rpartition("/")[0]])
    assert isinstance(found, Inode) and isinstance(above, Inode) and found.layout is not None
    assert (found.mode, above.mode, found.layout.stripe) == (0o700, 0o755, 2)
    assert running.failed("mkdir") > 0 and running.meta.fsck().wrong == 0


@pytest.mark.parametrize("count", [100, 42])  # one says so from the request alone, the other at the commit
def test_what_must_be_done_at_once_and_does_not_fit_changes_nothing(running: Running, count: int) -> None:
    paths = [f"/{number}" for number in range(count)]
    made = running.meta.create_files(paths)
    files = [Publish(one.inode_id, path, 3) for one, path in zip(made, paths, strict=True)]
    with pytest.raises(TooLarge):
        running.meta.publish_files(files)
    assert all(isinstance(found, NotFound) for found in running.meta.stat(paths))
    assert running.count(keys.SESSION) == count
    running.meta.publish_files(files[:8])


def test_pages() -> None:
    assert page_of(LIMITS) == 22
    assert page_of(Limits(max_operations=100_000, max_transaction_bytes=1)) == 512
    assert page_of(Limits(max_operations=3, max_transaction_bytes=1)) == 1
