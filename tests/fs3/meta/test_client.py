"""MetaClient against a real meta service over gRPC: results, errors by class, retries, deadlines, forks, secrets."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from fs3 import errors
from fs3.client.control import ControlChannel
from fs3.client.meta import Health, LayoutChoice, MetaClient, Publish, Space, Usage, Written
from fs3.client.meta_calls import META
from fs3.ids import ChainId, ChainTableId, NodeId
from fs3.inode import InodeType
from fs3.kv import keys
from fs3.kv.api import Transaction, transact
from fs3.kv.sqlite import SqliteKV
from fs3.layout import Durability
from fs3.meta.service import MetaService
from fs3.pb import meta_pb2, meta_pb2_grpc
from fs3.routing import ChainTable, Disk, Node, NodeKind, Routing
from fs3.transport import rpc
from fs3.transport.credentials import Credentials
from fs3.transport.door import Door

TABLES = {
    (ChainTableId(r), 1): ChainTable(table_id=ChainTableId(r), version=1, replicas=r, chains=(ChainId(1),))
    for r in (1, 2)
}
CLUSTER = Routing(cluster_id="c1", version=1, tables=TABLES, ready=True)


class Daemon:
    """A meta service on a loop and thread of its own, which can be stopped and started again on the same port."""

    def __init__(self, path: Path, secret: str = "", check_permissions: bool = True) -> None:
        self._path = path
        self._secret = secret
        self._check_permissions = check_permissions
        self._port = 0
        self.registry = CollectorRegistry()
        self.start()

    def start(self, routing: Routing = CLUSTER) -> None:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started, routing)))
        self._thread.start()
        started.wait(30)

    async def _serve(self, started: threading.Event, routing: Routing) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        kv = SqliteKV(self._path)
        self.registry = CollectorRegistry()
        self.service = MetaService(
            kv, Credentials(secret=self._secret), self.registry, check_permissions=self._check_permissions
        )
        self.service.adopt(routing)
        server = rpc.aio_server()
        meta_pb2_grpc.add_MetaServicer_to_server(self.service, server)
        door = Door("meta", server)
        await door.open("127.0.0.1", self._port)
        self._port = door.port
        await door.start([(META, self.service)])
        started.set()
        await self._stop.wait()
        await door.stop(0.0)
        await kv.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def routing(self) -> Routing:
        node = Node(node_id=NodeId(9), kind=NodeKind.META, endpoints=(f"127.0.0.1:{self._port}",))
        return dataclasses.replace(CLUSTER, nodes={node.node_id: node})

    def client(self, **options) -> MetaClient:
        shown = Credentials(
            cluster_id=options.pop("cluster_id", "c1"),
            secret=options.pop("secret", self._secret),
            user=options.pop("user", ""),
        )
        options.setdefault("refresh", lambda: None)
        return MetaClient(lambda: self.routing, shown, options.pop("client_id", 5), **options)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    running = Daemon(tmp_path / "meta.sqlite")
    yield running
    running.stop()


@pytest.fixture
def meta(daemon: Daemon) -> Iterator[MetaClient]:
    client = daemon.client()
    yield client
    client.close()


def write(meta: MetaClient, *paths: str, length: int = 5) -> None:
    made = meta.create_files(paths)
    meta.publish_files([Publish(one.inode_id, path, length) for one, path in zip(made, paths, strict=True)])


def test_every_call_once(meta: MetaClient) -> None:
    choice = LayoutChoice(replicas=1, chunk_bytes=1 << 20, durability=Durability.OS)
    made = meta.mkdir("/d/e", parents=True, mode=0o700, layout=choice)
    assert (made.mode, made.layout.chain_table, made.layout.durability) == (0o700, 1, Durability.OS)
    write(meta, *(f"/d/f{number:04}" for number in range(512)))
    choice = LayoutChoice(replicas=1, stripe=3)
    (empty,) = meta.publish_files([Publish(0, "/empty", 0)], layout=choice, mode=0o600)
    assert meta.stat_one("/empty") == empty and (empty.mode, empty.layout.stripe, empty.nlink) == (0o600, 3, 1)
    meta.remove("/empty")
    (late,) = meta.create_files(["/d/late"], layout=LayoutChoice(stripe=4))
    assert meta.renew({late.inode_id: Written(), 999: Written()}) == [999]
    meta.abandon([late.inode_id])
    with pytest.raises(errors.NotFound, match="/d/late: the write session"):
        meta.publish_files([Publish(late.inode_id, "/d/late", 1)])
    pages = list(meta.list("/d", page=200))
    assert [len(page) for page in pages] == [200, 200, 113]
    assert [entry.name for page in pages for entry in page] == ["e", *(f"f{number:04}" for number in range(512))]
    assert meta.usage("/d") == Usage(files=512, directories=2, bytes=5 * 512)
    moved = meta.rename("/d/f0000", "/g")
    found = meta.stat(["/g", "/d/f0000", "/d", "relative"] * 500)
    assert found[0] == moved and found[2].is_directory and len(found) == 2_000
    assert [type(error) for error in found[1::2][:2]] == [errors.NotFound, errors.Invalid]
    with pytest.raises(errors.Exists):
        meta.rename("/g", "/d/f0001", replace=False)
    with pytest.raises(errors.NotEmpty):
        meta.remove("/d")
    with pytest.raises(errors.IsADirectory):
        meta.remove("/d", recursive=True, must_be=InodeType.FILE)
    meta.remove("/d", recursive=True)
    assert meta.stat_one("/g") == moved
    with pytest.raises(errors.NotFound, match="/d: no such file"):
        meta.stat_one("/d")
    for call in (lambda: meta.stat(["/\udc80"]), lambda: meta.mkdir("/\udc80"), lambda: meta.create_files(["/\udc80"])):
        with pytest.raises(errors.Invalid, match="not valid UTF-8"):
            call()


def test_links_and_attributes(meta: MetaClient) -> None:
    meta.mkdir("/d")
    write(meta, "/g")
    moved = meta.stat_one("/g")
    meta.symlink("/d/way", "../g")
    assert meta.readlink("/d/way") == "../g" and meta.stat_one("/d/way") == moved
    with pytest.raises(errors.Invalid, match="/g: is a file, not a symlink"):
        meta.readlink("/g")
    assert (meta.realpath("/d/way"), meta.realpath("/")) == ("/g", "/")
    assert meta.link("/g", "/d/twin").nlink == 2
    meta.remove("/d/way", must_be=InodeType.FILE)
    with pytest.raises(errors.NotPermitted):
        meta.link("/d", "/d2")
    changed = meta.set_attributes("/d/twin", mode=0o600, uid=0, gid=7)
    assert (changed.mode, changed.uid, changed.gid) == (0o600, 0, 7) and meta.stat_one("/g") == changed
    changed = meta.set_times("/g", (None, 5))
    assert (changed.atime_ns, changed.mtime_ns) == (moved.atime_ns, 5)
    assert meta.set_times("/g").mtime_ns == meta.stat_one("/g").atime_ns > 5
    with pytest.raises(errors.Invalid, match="from 0 to"):
        meta.set_attributes("/g", uid=-1)
    meta.set_xattr("/d/twin", "user.a", b"\0" * 1_000, create=True)
    assert meta.list_xattrs("/g") == ["user.a"] and meta.get_xattr("/g", "user.a") == b"\0" * 1_000
    with pytest.raises(errors.Exists):
        meta.set_xattr("/g", "user.a", b"", create=True)
    meta.remove_xattr("/g", "user.a")
    with pytest.raises(errors.NoAttribute):
        meta.get_xattr("/g", "user.a")
    meta.remove("/d/twin")


def test_space_is_that_of_the_disks_in_the_routing() -> None:
    disks = tuple(
        Disk(node_id=NodeId(node), disk=0, path="/x", total_bytes=100 * node, free_bytes=30 * node) for node in (1, 2)
    )
    routing = dataclasses.replace(CLUSTER, disks=disks)
    meta = MetaClient(lambda: routing, Credentials(), 5, refresh=lambda: None)
    assert meta.space() == Space(total=300, used=210, free=90)
    meta.close()


def test_errors_about_the_longest_paths_arrive(meta: MetaClient) -> None:
    for path in ("/" + "/".join(["n" * 255] * 64), "/" + "/".join(["ü" * 127] * 64)):
        with pytest.raises(errors.NotFound, match=r"\.\.\. .*no such file or directory"):
            meta.remove(path)


def test_many_threads_share_a_client(daemon: Daemon, meta: MetaClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write(meta, f"/f{number}"), range(64)))
        counted = list(pool.map(lambda _: len(meta.stat(["/f1", "/f2"])), range(16)))
    assert counted == [2] * 16 and meta.usage("/").files == 64
    assert daemon.registry.get_sample_value("fs3_meta_calls_total", {"op": "publish_files"}) == 64
    with pytest.raises(errors.NotFound):
        meta.rename("/no", "/yes")
    labels = {"op": "rename", "error": "NotFound"}
    assert daemon.registry.get_sample_value("fs3_meta_errors_total", labels) == 1


def test_a_call_lives_through_a_restart_of_the_daemon(daemon: Daemon) -> None:
    restarted = []

    def refresh() -> None:
        """The client asks for a newer routing once it was refused: the moment the daemon comes back."""
        if not restarted:
            restarted.append(True)
            daemon.start()

    meta = daemon.client(refresh=refresh)
    write(meta, "/f")
    daemon.stop()
    meta.rename("/f", "/g")
    assert restarted and [entry.name for page in meta.list("/") for entry in page] == ["g"]
    meta.close()


def test_deadlines_and_unready_clusters_end_in_one_error(daemon: Daemon) -> None:
    asked = []
    meta = daemon.client(timeout_s=0.2, refresh=lambda: asked.append(1))
    daemon.stop()
    with pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1:\d+"):
        meta.stat_one("/")
    assert asked
    daemon.start(Routing(cluster_id="c1"))
    with pytest.raises(errors.Unavailable, match=r"no chain tables yet|did not answer|cannot be reached"):
        meta.stat_one("/")
    daemon.service.adopt(CLUSTER)
    assert meta.stat_one("/", timeout_s=20.0).is_directory
    nobody = MetaClient(lambda: CLUSTER, Credentials(), 5, timeout_s=0.05, refresh=lambda: None)
    with pytest.raises(errors.Unavailable, match="no meta daemon"):
        nobody.stat_one("/")


def test_strangers_are_refused(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "meta.sqlite", secret="s3cret")
    assert daemon.client().stat_one("/").is_directory
    with pytest.raises(errors.PermissionDenied, match="secret"):
        daemon.client(secret="guess").stat_one("/")
    with pytest.raises(errors.PermissionDenied, match="cluster c1, the caller belongs to cluster c2"):
        daemon.client(cluster_id="c2").stat_one("/")
    daemon.stop()


def test_sessions_belong_to_their_client(daemon: Daemon, meta: MetaClient) -> None:
    (made,) = meta.create_files(["/f"])
    other = daemon.client(client_id=6)
    with pytest.raises(errors.PermissionDenied, match="another client"):
        other.publish_files([Publish(made.inode_id, "/f", 1)])
    other.close()
    meta.publish_files([Publish(made.inode_id, "/f", 1)])


def test_a_forked_child_and_its_parent_both_go_on(meta: MetaClient) -> None:
    write(meta, "/before")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            write(meta, "/child")
            status = 0
        finally:
            os._exit(status)
    write(meta, "/parent")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [entry.name for page in meta.list("/") for entry in page] == ["before", "child", "parent"]


class BreaksOff(ControlChannel):
    """Its connections break off after each call that is begun, and whose number of those is among `at`."""

    at: frozenset[int] = frozenset()
    begun = 0

    def begin(self, *args, **options):
        sent = super().begin(*args, **options)
        if self.begun in self.at:
            for connection in self._lent:
                connection.interrupt()
        self.begun += 1
        return sent

    def lent(self) -> int:
        return len(self._lent) + sum(sum(pool._lent.values()) for pool in self._pools.values())


@pytest.mark.parametrize("at", [(), (0,), (1,), (0, 1), (2, 4), range(99)])
def test_what_was_asked_ahead_and_breaks_off_is_asked_again(daemon: Daemon, at: tuple[int, ...]) -> None:
    channels: list[BreaksOff] = []

    def opened(address: str) -> BreaksOff:
        channels.append(BreaksOff(address, META))
        channels[-1].at = frozenset(at)
        return channels[-1]

    meta = daemon.client(open_channel=opened)
    names = [f"f{number:04}" for number in range(700)]
    write(meta, *(f"/{name}" for name in names[:350]))
    write(meta, *(f"/{name}" for name in names[350:]))
    asked = [f"/{name}" if number % 3 else f"/{name}/x" for number, name in enumerate(names * 2)]
    found = meta.stat(asked)
    assert [isinstance(one, errors.NotADirectory) for one in found] == [not number % 3 for number in range(1_400)]
    inodes = [one.inode.inode_id for page in meta.list("/", page=100) for one in page]
    assert all(one.inode_id == inodes[number % 700] for number, one in enumerate(found) if number % 3)
    assert [one.name for page in meta.list("/", page=99) for one in page] == names
    (channel,) = channels
    assert channel.begun > 10 and channel.lent() == 0
    meta.close()


def test_a_listing_that_nobody_reads_on_gives_its_connection_back(daemon: Daemon) -> None:
    channels: list[BreaksOff] = []

    def opened(address: str) -> BreaksOff:
        channels.append(BreaksOff(address, META))
        return channels[-1]

    meta = daemon.client(open_channel=opened)
    write(meta, *(f"/f{number:04}" for number in range(30)))
    pages = meta.list("/", page=10)
    assert len(next(pages)) == 10 and channels[0].lent() > 0
    pages.close()
    assert channels[0].lent() == 0
    pages = meta.list("/", page=10)
    first = [entry.name for entry in next(pages)]
    daemon.stop()
    daemon.start()
    assert first + [entry.name for page in pages for entry in page] == [f"f{number:04}" for number in range(30)]
    meta.close()


def test_a_fork_in_the_middle_of_a_listing(meta: MetaClient) -> None:
    write(meta, *(f"/f{number:04}" for number in range(50)))
    pages = meta.list("/", page=10)
    first = [entry.name for entry in next(pages)]
    child = os.fork()
    names = first + [entry.name for page in pages for entry in page]
    if child == 0:
        os._exit(len(names))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 50
    assert names == [f"f{number:04}" for number in range(50)]


def test_more_threads_than_connections_stat_more_than_a_batch(meta: MetaClient) -> None:
    write(meta, "/f")
    with ThreadPoolExecutor(80) as pool:
        counted = list(pool.map(lambda _: len(meta.stat(["/f"] * 600)), range(160)))
    assert counted == [600] * 160


def test_fsck_says_what_is_wrong(daemon: Daemon, meta: MetaClient) -> None:
    write(meta, "/a", "/b")
    assert meta.fsck() == Health(inodes=3, dead=0, wrong=0, findings=())
    lost = meta.stat_one("/b").inode_id
    daemon.stop()

    async def lose() -> None:
        kv = SqliteKV(daemon._path)
        await transact(kv, lambda txn: forget(txn, lost))
        await kv.close()

    async def forget(txn: Transaction, inode_id: int) -> None:
        txn.delete(keys.inode(inode_id))

    asyncio.run(lose())
    daemon.start()
    said = f"inode {lost}: does not exist, and is named by entry 'b' of directory 1"
    assert meta.fsck() == Health(inodes=2, dead=0, wrong=1, findings=(said,))


def test_users_are_told_apart_over_frames_and_grpc(daemon: Daemon, meta: MetaClient) -> None:
    meta.mkdir("/hers", mode=0o777)
    anna, bert = daemon.client(user="1000:1000,27"), daemon.client(user="2000:2000", client_id=6)
    made = anna.mkdir("/hers/a", mode=0o750)
    assert (made.uid, made.gid) == (1_000, 1_000)
    write(anna, "/hers/a/f")
    for refused in (
        lambda: bert.stat_one("/hers/a/f"),
        lambda: list(bert.list("/hers/a")),
        lambda: bert.create_files(["/hers/a/g"]),
        lambda: bert.usage("/hers"),
    ):
        with pytest.raises(errors.PermissionDenied, match=r"uid 2000 may not .* \(mode 0750, owner 1000:1000\)"):
            refused()
    for refused in (lambda: bert.set_attributes("/hers/a", mode=0o777), bert.fsck, bert.backup, lambda: bert.find([1])):
        with pytest.raises(errors.NotPermitted, match="uid 2000 is n"):
            refused()
    anna.set_attributes("/hers/a/f", mode=0o640)
    anna.set_attributes("/hers/a", gid=27, mode=0o2751)
    assert bert.stat(["/hers/a/f"], access=0)[0].uid == 1_000
    (denied,) = bert.stat(["/hers/a/f"], access=os.R_OK)
    assert isinstance(denied, errors.PermissionDenied)
    assert meta.stat(["/hers/a/f"], access=os.R_OK | os.W_OK)[0].gid == 1_000
    assert isinstance(meta.stat(["/hers/a/f"], access=os.X_OK)[0], errors.PermissionDenied)  # not even the superuser
    with grpc.insecure_channel(daemon.routing.nodes[NodeId(9)].endpoints[0]) as channel:
        stub = meta_pb2_grpc.MetaStub(channel)
        for user, gid in (("1000:1000", 27), ("2000:2000", None), ("", 27)):
            request = meta_pb2.ListRequest(path="/hers/a")
            shown = Credentials(cluster_id="c1", user=user).metadata()
            if gid is None:
                with pytest.raises(grpc.RpcError, match="uid 2000 may not read here"):
                    stub.List(request, timeout=10, metadata=shown)
            else:
                assert [one.name for one in stub.List(request, timeout=10, metadata=shown).entries] == ["f"]
    for client in (anna, bert):
        client.close()


def test_the_user_that_meta_runs_as_is_the_superuser(daemon: Daemon, meta: MetaClient) -> None:
    daemon.service._owner_uid = 1_000
    anna = daemon.client(user="1000:1000")
    assert anna.mkdir("/a").uid == 1_000
    assert anna.set_attributes("/a", uid=2_000).uid == 2_000
    assert anna.fsck().wrong == 0
    anna.close()


def test_permissions_can_be_left_unchecked(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "meta.sqlite", check_permissions=False)
    anna = daemon.client(user="1000:1000")
    made = anna.mkdir("/a", mode=0o700)
    assert (made.uid, made.gid) == (1_000, 1_000)
    bert = daemon.client(user="2000:2000")
    write(bert, "/a/f")
    assert bert.stat_one("/a/f").uid == 2_000
    for client in (anna, bert):
        client.close()
    daemon.stop()
