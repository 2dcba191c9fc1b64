"""Two meta services on one store, of which one commits a change and dies before it answers: the client gets the answer.

Each operation is repeated by the client at the other service under its old request id; it must not apply twice, and
must not fail because it finds its own work done. Death is a lost answer here; tests/process kills real daemons.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fs3.client.meta import MetaClient, Publish, Written
from fs3.client.meta_calls import META
from fs3.client.turns_core import SHUN_S, Turns
from fs3.errors import Invalid, NotFound, Unavailable
from fs3.ids import ChainId, ChainTableId, NodeId
from fs3.kv.sqlite import SqliteKV
from fs3.meta.service import MetaService
from fs3.routing import ChainTable, Node, NodeKind, Routing
from fs3.transport import rpc
from fs3.transport.credentials import Credentials
from fs3.transport.door import Door

TABLES = {(ChainTableId(1), 1): ChainTable(table_id=ChainTableId(1), version=1, replicas=1, chains=(ChainId(1),))}
CLUSTER = Routing(cluster_id="c1", version=1, tables=TABLES, ready=True)


class LosesAnswers(MetaService):
    """Loses the answers of the next `lose` calls, after they were worked out; `answered` counts the others."""

    lose = answered = 0


def _lossy(name: str) -> Any:
    answer = getattr(MetaService, name).__wrapped__

    async def handle(self: LosesAnswers, request: Any) -> Any:
        reply = await answer(self, request)
        if self.lose:
            self.lose -= 1
            raise Unavailable("Socket closed")
        self.answered += 1
        return reply

    return rpc.handler(handle)


for _method in META.methods:
    setattr(LosesAnswers, _method.name, _lossy(_method.name))


class Pair:
    """Two services with stores of their own on one file, on one loop in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.doors: list[LosesAnswers] = []
        self.addresses: list[str] = []
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        assert started.wait(30)

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        servers, stores = [], []
        for _ in range(2):
            kv = SqliteKV(self._path)
            service = LosesAnswers(kv, Credentials(), CollectorRegistry())
            service.adopt(CLUSTER)
            self.doors.append(service)
            server = Door("meta", rpc.aio_server())
            await server.open("127.0.0.1", 0)
            self.addresses.append(f"127.0.0.1:{server.port}")
            await server.start([(META, service)])
            servers.append(server)
            stores.append(kv)
        started.set()
        await self._stop.wait()
        for server, kv in zip(servers, stores, strict=True):
            await server.stop(0.0)
            await kv.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def routing(self) -> Routing:
        nodes = [
            Node(node_id=NodeId(number), kind=NodeKind.META, endpoints=(address,))
            for number, address in enumerate(self.addresses, 1)
        ]
        return dataclasses.replace(CLUSTER, nodes={node.node_id: node for node in nodes})

    def client(self, client_id: int) -> MetaClient:
        return MetaClient(lambda: self.routing, Credentials(cluster_id="c1"), client_id, refresh=lambda: None)

    def first_of(self, client_id: int) -> LosesAnswers:
        """The door at which the client knocks first."""
        address, _ = Turns(client_id).order(self.addresses, 0.0)
        return self.doors[self.addresses.index(address)]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    running = Pair(tmp_path / "meta.sqlite")
    yield running
    running.stop()


def write(meta: MetaClient, path: str) -> int:
    (made,) = meta.create_files([path])
    meta.publish_files([Publish(made.inode_id, path, 5)])
    return made.inode_id


def names(meta: MetaClient, path: str = "/") -> list[str]:
    return [entry.name for page in meta.list(path) for entry in page]


@pytest.mark.parametrize("client_id", [6, 7])
def test_a_change_whose_answer_is_lost_is_answered_by_the_other_and_applied_once(pair: Pair, client_id: int) -> None:
    watcher = pair.client(1)
    write(watcher, "/old")

    def lost(change: Callable[[MetaClient], Any]) -> Any:
        """What a client of its own gets, which has not met a dead daemon before."""
        meta = pair.client(client_id)
        door = pair.first_of(client_id)
        other = pair.doors[1 - pair.doors.index(door)]
        door.lose, before = 1, other.answered
        result = change(meta)
        assert door.lose == 0 and other.answered > before
        meta.close()
        return result

    made = lost(lambda meta: meta.mkdir("/d"))
    assert names(watcher) == ["d", "old"] and watcher.stat_one("/d") == made
    lost(lambda meta: meta.mkdir("/d/e/f", parents=True))
    assert names(watcher, "/d/e") == ["f"]
    files = lost(lambda meta: meta.create_files(["/d/a", "/d/b"]))
    lost(lambda meta: meta.renew({file.inode_id: Written() for file in files}))
    published = lost(lambda meta: meta.publish_files([Publish(files[0].inode_id, "/d/a", 7, replace=False)]))
    assert published == [watcher.stat_one("/d/a")] and published[0].version == files[0].version + 1
    lost(lambda meta: meta.abandon([files[1].inode_id]))
    with pytest.raises(NotFound, match="write session"):
        pair.client(client_id).publish_files([Publish(files[1].inode_id, "/d/b", 1)])
    moved = lost(lambda meta: meta.rename("/d/a", "/d/g"))
    assert names(watcher, "/d") == ["e", "g"] and watcher.stat_one("/d/g") == moved
    moved = lost(lambda meta: meta.rename("/d/g", "/old"))
    assert names(watcher) == ["d", "old"] and watcher.stat_one("/old").inode_id == files[0].inode_id
    lost(lambda meta: meta.remove("/old"))
    lost(lambda meta: meta.remove("/d", recursive=True))
    assert names(watcher) == []
    found = watcher.find([file.inode_id for file in files])
    assert [one.dead for one in found] == [True, True]
    watcher.close()


def test_what_one_service_did_the_other_knows_at_once(pair: Pair) -> None:
    even, odd = pair.client(2), pair.client(3)
    assert pair.first_of(2) is not pair.first_of(3)
    made = set()
    for turn in range(20):
        made.add(write(even, f"/f{turn}"))
        assert odd.stat_one(f"/f{turn}").inode_id in made
        made.add(write(odd, f"/g{turn}"))
        odd.remove(f"/f{turn}")
        assert len(names(even)) == turn + 1
    assert len(made) == 40, "no inode id is given out twice"
    assert all(door.answered >= 60 for door in pair.doors)
    even.close()
    odd.close()


def test_a_client_stays_with_the_one_that_answers_and_comes_back() -> None:
    turns, addresses = Turns(1), ("a", "b", "c")
    assert turns.order(addresses, 0.0) == ["b", "c", "a"]
    turns.failed("b", 0.0)
    assert turns.order(addresses, 0.1) == ["c", "a", "b"]
    turns.failed("c", 0.2)
    turns.failed("a", 0.3)
    assert turns.order(addresses, 0.4) == ["b", "c", "a"], (
        "all failed: the one whose failure is longest ago comes first"
    )
    turns.answered("c")
    assert turns.order(addresses, 0.5) == ["c", "b", "a"]
    assert turns.order(addresses, SHUN_S) == ["b", "c", "a"]
    assert turns.order(("a", "c", "d", "e"), SHUN_S) == ["c", "d", "e", "a"], "who is gone is not asked, who is new is"
    assert {Turns(client).order(addresses, 0.0)[0] for client in range(3)} == set(addresses)
    assert turns.order((), 0.0) == []


def test_a_store_belongs_to_one_cluster(tmp_path: Path) -> None:
    async def run() -> None:
        for cluster, refused in (("", Unavailable), ("c1", None), ("c2", Invalid), ("c1", None)):
            kv = SqliteKV(tmp_path / "meta.sqlite")
            service = MetaService(kv, Credentials(), CollectorRegistry())
            service.adopt(Routing(cluster_id=cluster, version=1, ready=True, tables=TABLES))
            if refused is None:
                await service.join()
            else:
                with pytest.raises(refused, match=r"cluster c1, and mgmtd is of cluster c2|not heard from mgmtd"):
                    await service.join()
            await kv.close()

    asyncio.run(run())
