"""A listing that a client keeps, and has confirmed by its validator, is what a fresh one shows, whatever happened.

Random operations by one client on a small tree, some between two pages of a listing; times are set to what stamps have
been before, so that a stamp alone would repeat. After each step every directory is listed with what is kept and afresh,
all of each inode compared. On each engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fs3.client.meta import Page
from fs3.cluster.etcd import LocalEtcd
from fs3.errors import Fs3Error
from fs3.filesystem.listings import Listings
from fs3.inode import Entry, inode_from_pb
from fs3.kv import keys
from fs3.kv.api import KVEngine, transact
from fs3.kv.etcd import EtcdKV
from fs3.kv.memory import MemoryKV
from fs3.kv.sqlite import SqliteKV
from fs3.meta.gc import detach_page
from fs3.meta.ops import stat, update
from fs3.pb import meta_pb2

T = TypeVar("T")

NAMES = "abc"
DIRECTORIES = ["/", "/a", "/b", "/a/a", "/a/b", "/a/c"]
BEGIN: list[tuple[Any, ...]] = [
    ("mkdir", "/a"),
    ("mkdir", "/b"),
    ("write", "/a/a", 3),
    ("write", "/a/b", 4),
    ("symlink", "/a/c", "../b"),
    ("set_xattr", "/a/a", "user.a", b"there"),
]

names = st.sampled_from(NAMES)
paths = st.lists(names, min_size=1, max_size=2).map(lambda parts: "/" + "/".join(parts)) | st.sampled_from(
    ["/a/a", "/a/b", "/a"]
)
times = st.integers(1_000, 1_030)
changes = st.one_of(
    st.tuples(st.just("mkdir"), paths),
    st.tuples(st.just("write"), paths, st.integers(0, 9)),
    st.tuples(st.just("symlink"), paths, st.sampled_from(["a", "../b", "/a/b"])),
    st.tuples(st.just("link"), paths, paths),
    st.tuples(st.just("rename"), paths, paths),
    st.tuples(st.just("chmod"), paths, st.integers(0, 0o777)),
    st.tuples(st.just("chown"), paths, st.integers(0, 9)),
    st.tuples(st.just("utime"), paths, times),
    st.tuples(st.just("utime"), st.sampled_from(["/a", "/b", "/"]), times),
    st.tuples(st.just("set_xattr"), paths, st.sampled_from(["user.a", "user.b"]), st.binary(max_size=3)),
    st.tuples(st.just("remove_xattr"), st.sampled_from(["/a/a", "/a/b"]), st.just("user.a")),
    st.tuples(st.just("remove"), paths, st.booleans()),
    st.tuples(st.just("create"), paths),
    st.tuples(st.just("make_empty"), paths),
    st.tuples(st.just("open_for_writing"), paths),
    st.tuples(st.just("grow"), st.booleans()),
    st.tuples(st.just("collect")),
)
slowly = st.tuples(st.just("while listing"), st.sampled_from(["/a", "/a", "/b", "/"]), changes)
steps = st.one_of(changes, slowly, slowly, slowly, slowly)


class Changes:
    """Each change by name; those that are refused change nothing."""

    def __init__(self, ns: Any) -> None:
        self._ns = ns
        self._opened: list[int] = []
        self._length = 100

    async def make(self, name: str, arguments: list[Any]) -> None:
        with contextlib.suppress(Fs3Error):
            await getattr(self, name, getattr(self._ns, name, None))(*arguments)

    async def write(self, path: str, length: int) -> None:
        await self._ns.write(path, length=length)

    async def chmod(self, path: str, mode: int) -> None:
        await self._ns.set_attributes(path, mode=mode)

    async def chown(self, path: str, uid: int) -> None:
        await self._ns.set_attributes(path, uid=uid, nofollow=True)

    async def utime(self, path: str, mtime_ns: int) -> None:
        await self._ns.set_attributes(path, mtime_ns=mtime_ns, atime_now=True)

    async def open_for_writing(self, path: str) -> None:
        request = meta_pb2.OpenForWritingRequest(id=self._ns.request_id(), paths=[path])
        reply = await self._ns.change(update.open_for_writing, request)
        self._opened.append(reply.inodes[0].inode_id)

    async def grow(self, close: bool) -> None:
        """What was opened last is one byte longer."""
        if self._opened:
            number, self._length = self._opened[-1], self._length + 1
            file = meta_pb2.FileSync(inode_id=number, length=self._length, written=True, close=close)
            if close:
                self._opened.pop()
            await self._ns.change(update.sync_files, meta_pb2.SyncFilesRequest(id=self._ns.request_id(), files=[file]))

    async def collect(self) -> None:
        """What was removed with all that is in it is taken apart."""
        for number in await self._ns.queued():
            value = await self._ns.kv.begin().get(keys.gc_queue(number))
            if value is not None:
                await transact(self._ns.kv, lambda txn, number=number: detach_page(txn, number, 100))


class Lister:
    """Lists by pages of two, and remembers the inodes of what is kept."""

    def __init__(self, ns: Any, run: Callable[[Any], Any]) -> None:
        self._ns = ns
        self._run = run
        self._entries: dict[str, list[Entry]] = {}
        self.kept = Listings()
        self.same = 0
        self.between: Callable[[], None] = lambda: None

    def pages(self, path: str, *, validator: bytes = b"") -> Iterator[Page]:
        after = ""
        while True:
            request = meta_pb2.ListRequest(path=path, after=after, limit=2, validator=validator)
            reply = self._run(self._ns.read(stat.list_page, request))
            yield Page([Entry(one.name, inode_from_pb(one.inode)) for one in reply.entries], *self._told(reply))
            if not reply.more:
                return
            after, validator = reply.entries[-1].name, b""
            self.between()

    def _told(self, reply: meta_pb2.ListReply) -> tuple[bytes, bool]:
        return reply.validator, reply.same

    def listed(self, path: str, *, refresh: bool) -> Any:
        """What fsspec and what meta tell of each entry, or the error."""
        seen: list[Entry] = []

        def recorded(path: str, *, validator: bytes) -> Iterator[Page]:
            for page in self.pages(path, validator=validator):
                assert not (page.same and (refresh or not validator))
                seen.extend(self._entries[path] if page.same else page.entries)
                self.same += page.same
                yield page

        try:
            told, _ = (Listings() if refresh else self.kept).listed(path, recorded, refresh=refresh)
        except Fs3Error as error:
            return error.code
        if not refresh:
            self._entries[path] = seen
        return told, seen


def play(kv: KVEngine, ns: Any, run: Callable[[Any], Any], script: list[tuple[Any, ...]]) -> int:
    """Run the steps; how often a listing was confirmed."""
    ns.kv = kv
    run(ns.make_root())
    changes, lister = Changes(ns), Lister(ns, run)
    for name, *arguments in BEGIN + script:
        if name == "while listing":
            path, (inner, *its) = arguments
            lister.between = lambda inner=inner, its=its: run(changes.make(inner, its))
            lister.kept.forget(path)
            lister.listed(path, refresh=False)
            lister.between = lambda: None
        else:
            run(changes.make(name, arguments))
        for path in DIRECTORIES:
            assert lister.listed(path, refresh=False) == lister.listed(path, refresh=True), (path, name, arguments)
    return lister.same


def checked(examples: int, length: int) -> Callable[[Any], Any]:
    def wrap(test: Any) -> Any:
        with_script = given(script=st.lists(steps, min_size=length // 2, max_size=length))(test)
        return settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(with_script)

    return wrap


@checked(examples=60, length=30)
def test_what_is_kept_is_right_in_memory(namespace_in_memory: Callable[[], Any], script: list[tuple[Any, ...]]) -> None:
    assert play(MemoryKV(), namespace_in_memory(), at_once, script)


@checked(examples=4, length=24)
def test_what_is_kept_is_right_in_sqlite(
    namespace_in_memory: Callable[[], Any],
    tmp_path_factory: pytest.TempPathFactory,
    script: list[tuple[Any, ...]],
) -> None:
    _with(lambda: SqliteKV(tmp_path_factory.mktemp("listing") / "meta.db"), namespace_in_memory(), script)


@checked(examples=2, length=16)
def test_what_is_kept_is_right_in_etcd(
    namespace_in_memory: Callable[[], Any],
    etcd: LocalEtcd,
    script: list[tuple[Any, ...]],
) -> None:
    name = f"listing-{secrets.token_hex(8)}"
    _with(lambda: EtcdKV(etcd.endpoints, name, grouping=keys.group), namespace_in_memory(), script)


def at_once(made: Coroutine[Any, Any, T]) -> T:
    """The result of what never waits."""
    try:
        made.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError(made)


def _with(open_kv: Callable[[], KVEngine], ns: Any, script: list[tuple[Any, ...]]) -> None:
    with asyncio.Runner() as runner:

        async def opened() -> KVEngine:
            return open_kv()

        kv = runner.run(opened())
        try:
            assert play(kv, ns, runner.run, script)
        finally:
            runner.run(kv.close())


def test_only_who_shows_the_newest_validator_is_sent_nothing(drive: Any) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/d")
        await ns.write("/d/a", "/d/b", "/d/c")

        async def listed(**fields: Any) -> meta_pb2.ListReply:
            return await ns.read(stat.list_page, meta_pb2.ListRequest(path="/d", limit=2, **fields))

        first = await listed()
        again = await listed(validator=first.validator)
        assert again == meta_pb2.ListReply(validator=first.validator, same=True)
        more = await listed(validator=first.validator, after="b")
        assert [one.name for one in more.entries] == ["c"] and more.validator == first.validator and not more.same
        await ns.set_attributes("/d/a", mode=0o600)
        assert [one.inode.mode for one in (await listed(validator=first.validator)).entries] == [0o600, 0o644]
        await ns.set_attributes("/d", mode=0o700)
        newest = (await listed()).validator
        await ns.rename("/d", "/e")
        await ns.mkdir("/d")
        assert not (await listed(validator=newest)).same, "another directory"

    drive(body)


def test_a_time_that_was_before_does_not_bring_a_validator_back(drive: Any) -> None:
    """As `cp -p` does it: make the directory, write the files, set its time."""

    async def body(ns: Any) -> None:
        await ns.mkdir("/d")
        seen = set()
        for name in "abc":
            await ns.write(f"/d/{name}")
            await ns.set_attributes("/d", mtime_ns=5)
            seen.add((await ns.read(stat.list_page, meta_pb2.ListRequest(path="/d"))).validator)
        assert len(seen) == 3

    drive(body)
