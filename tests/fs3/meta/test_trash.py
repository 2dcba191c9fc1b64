"""The trash: what goes there comes back as it was, or goes for good when it is due, and nothing else does either."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from fs3 import errors
from fs3.cluster.etcd import LocalEtcd
from fs3.inode import Inode, InodeType
from fs3.kv import keys
from fs3.kv.api import KVEngine, transact
from fs3.kv.etcd import EtcdKV
from fs3.kv.memory import MemoryKV
from fs3.kv.occ_core import encode_counter
from fs3.meta import trashed
from fs3.meta.fsck import fsck
from fs3.meta.gc import Collector
from fs3.meta.ops import trash, update
from fs3.meta.sizes import page_of
from fs3.pb import meta_pb2

DAY_S = 86_400
GRACE_S = 600.0
NOW_NS = 1_800_000_000 * 10**9


class Clocks:
    """A collector that counts what it removes, and the clocks that it goes by."""

    def __init__(self, ns: Any) -> None:
        self.mono_s, self.wall_s = 100.0, ns.now_ns / 1e9
        self.registry = CollectorRegistry()
        self.gc = Collector(
            ns.kv,
            self,
            session_lease_s=1e9,
            delay_s=0.0,
            interval_s=1.0,
            trash_grace_s=GRACE_S,
            registry=self.registry,
            wall_ns=lambda: int(self.wall_s * 1e9),
        )
        self.removed: list[int] = []

    async def remove_file(self, inode: Inode) -> None:
        self.removed.append(inode.inode_id)

    async def passes(self, seconds: float, *, rounds: int = 4, jump_s: float = 0.0) -> int:
        """Time goes by, with so many rounds at its end; how many entries of the trash went."""
        self.mono_s += seconds
        self.wall_s += seconds + jump_s
        return sum([(await self.gc.round(self.mono_s)).trash_expired for _ in range(rounds)])


async def healthy(ns: Any) -> None:
    """Nothing is wrong with the store; the ids of this namespace are not drawn from its counter."""

    async def count(txn: Any) -> None:
        txn.put(keys.NEXT_INODE, encode_counter(1 << 32))

    await transact(ns.kv, count)
    assert (await fsck(ns.kv)).findings() == []


def paths(found: list[meta_pb2.Trashed]) -> list[str]:
    return [one.record.path for one in found]


def test_a_tree_goes_to_the_trash_and_comes_back_as_it_was(drive) -> None:
    async def body(ns) -> None:
        ns.now_ns = NOW_NS
        await ns.mkdir("/a/b", parents=True)
        await ns.write("/a/b/f", length=7)
        await ns.set_xattr("/a/b", "user.x", b"1")
        (before,) = await ns.stat("/a/b/f")
        thrown = await ns.trash("/a/b", keep_s=DAY_S)
        assert await ns.stat("/a/b", "/a/b/f") == [errors.NotFound.code] * 2 and await ns.names("/a") == []
        (bin_,) = await ns.stat("/.trash")
        assert bin_.is_directory and bin_.mode == 0o1777
        assert (bin_.mtime_ns, (await ns.stat("/a"))[0].mtime_ns) == (ns.now_ns, ns.now_ns)
        assert await ns.names("/.trash") == [thrown.name] and thrown.name.endswith("-b")
        assert await ns.stat(f"/.trash/{thrown.name}/f") == [before]
        (listed,) = await ns.trashed()
        assert (listed.record.path, listed.record.removed_ns, listed.record.client_id) == ("/a/b", ns.now_ns, 7)
        assert listed.expires_ns == (NOW_NS // 10**9 + DAY_S) * 10**9 and listed.inode.type == InodeType.DIRECTORY
        await healthy(ns)
        assert await ns.restore(thrown.name) == "/a/b"
        assert await ns.stat("/a/b/f") == [before] and await ns.xattrs("/a/b") == {"user.x": b"1"}
        assert (await ns.stat("/a"))[0].mtime_ns == ns.now_ns
        assert await ns.trashed() == [] and await ns.names("/.trash") == [] and await ns.count(keys.TRASH) == 0
        await healthy(ns)

    drive(body)


def test_names_are_kept_as_far_as_they_fit_and_never_clash(drive) -> None:
    async def body(ns) -> None:
        ns.now_ns = NOW_NS
        long, odd = "x" * 255, "a-1-2-\n\t'"
        wide = ["ü" * 127 + "y", "y" + "ü" * 127]  # one of them is cut inside a character
        thrown = [long, *wide, odd, long]
        for name in thrown:
            await ns.write(f"/{name}")
            ns.now_ns = NOW_NS  # all at once
            await ns.trash(f"/{name}")
        names = await ns.names("/.trash")
        assert len(set(names)) == 5 and {len(name.encode()) for name in names if name.endswith("x")} == {255}
        assert sorted(len(name.encode()) for name in names if "ü" in name) == [254, 255]
        assert sorted(paths(await ns.trashed(page=1))) == sorted(f"/{name}" for name in thrown)
        first, second = (one for one in await ns.trashed() if one.record.path == f"/{long}")
        assert await ns.restore(first.name) == f"/{long}"
        with pytest.raises(errors.Exists, match="restore to another path"):
            await ns.restore(second.name)
        assert await ns.restore(second.name, "/other") == "/other"
        for one in await ns.trashed():
            assert await ns.restore(one.name) == one.record.path
        assert await ns.names("/") == sorted([".trash", long, *wide, odd, "other"], key=str.encode)
        await healthy(ns)

    drive(body)


def test_hard_links_and_symlinks_are_names_of_their_own(drive) -> None:
    async def body(ns) -> None:
        ns.now_ns = NOW_NS
        (made,) = await ns.write("/f")
        for name in ("/g", "/h"):
            await ns.link("/f", name)
        await ns.symlink("/s", "f")
        for name in ("/f", "/g", "/s"):
            ns.now_ns = NOW_NS
            await ns.trash(name)
        (left,) = await ns.stat("/h")
        assert left.nlink == 3 and await ns.queued() == set() and len(await ns.names("/.trash")) == 3
        one, two, link = await ns.trashed()
        assert link.inode.type == InodeType.SYMLINK and one.inode.inode_id == two.inode.inode_id == made.inode_id
        await healthy(ns)
        assert await ns.empty_trash(name=two.name) == 1
        assert (await ns.stat("/h"))[0].nlink == 2
        assert await ns.restore(one.name) == "/f" and await ns.restore(link.name) == "/s"
        assert (await ns.stat("/s"))[0].inode_id == made.inode_id
        for name in ("/f", "/h"):
            await ns.trash(name)
        assert await ns.queued() == set()
        assert await ns.empty_trash() == 2 and await ns.queued() == {made.inode_id}
        await healthy(ns)

    drive(body)


@pytest.mark.parametrize(
    ("path", "keep_s", "error", "said"),
    [
        ("/nothing", 0, errors.NotFound, "no such file"),
        ("/f/x", 0, errors.NotADirectory, "is a file"),
        ("/", 0, errors.Invalid, "root"),
        ("/.trash", 0, errors.NotPermitted, "is the trash"),
        ("/.trash/mine", 0, errors.Invalid, "in the trash already"),
        ("/way/mine", 0, errors.Invalid, "in the trash already"),
        ("/f", 367 * DAY_S, errors.Invalid, "too long"),
    ],
)
def test_what_cannot_be_thrown_away(drive, path: str, keep_s: int, error: type[Exception], said: str) -> None:
    async def body(ns) -> None:
        await ns.write("/f", "/g")
        await ns.trash("/g")
        await ns.write("/.trash/mine")
        await ns.symlink("/way", "/.trash")
        with pytest.raises(error, match=said):
            await ns.trash(path, keep_s)
        assert len(await ns.trashed()) == 1 and await ns.names("/") == [".trash", "f", "way"]

    drive(body)


def test_where_something_cannot_come_back_to(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/a/b", parents=True)
        await ns.write("/a/b/f", "/x")
        name = (await ns.trash("/a/b/f")).name
        await ns.remove("/a", recursive=True)
        with pytest.raises(errors.NotFound, match="/a/b/f: the directory a in its path does not exist; make it first"):
            await ns.restore(name)
        for target, error in [
            ("/x", errors.Exists),
            ("/x/y", errors.NotADirectory),
            ("/", errors.Exists),
            ("/.trash/z", errors.Invalid),
            ("/a/x", errors.NotFound),
            ("relative", errors.Invalid),
        ]:
            with pytest.raises(error):
                await ns.restore(name, target)
        for wrong in ("nothing", "1-2-nothing", f"{name}x", name[:-1], f"{name}/..", ""):
            with pytest.raises(errors.NotFound, match="fs3 trash list"):
                await ns.restore(wrong)
            if wrong:
                with pytest.raises(errors.NotFound):
                    await ns.empty_trash(name=wrong)
        assert paths(await ns.trashed()) == ["/a/b/f"]
        await ns.mkdir("/a/b", parents=True)
        assert await ns.restore(name) == "/a/b/f"

    drive(body)


def test_a_file_named_like_the_trash_is_in_the_way_until_it_is_moved(drive) -> None:
    async def body(ns) -> None:
        await ns.write("/.trash", "/f")
        with pytest.raises(errors.NotADirectory, match="move it away"):
            await ns.trash("/f")
        await ns.rename("/.trash", "/elsewhere")
        await ns.trash("/f")
        assert paths(await ns.trashed()) == ["/f"]

    drive(body)


def test_by_hand_entries_come_and_go_as_in_any_directory_and_the_trash_itself_stays(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d/e", parents=True)
        await ns.write("/1", "/2", "/3", "/4", "/new")
        await ns.mkdir("/empty")
        one, two, three, four, tree = [(await ns.trash(path)).name for path in ("/1", "/2", "/3", "/4", "/d")]
        for wrong in (
            lambda: ns.remove("/.trash", recursive=True),
            lambda: ns.remove("/.trash"),
            lambda: ns.rename("/.trash", "/x"),
            lambda: ns.rename("/empty", "/.trash"),
        ):
            with pytest.raises(errors.NotPermitted, match="is the trash, and stays"):
                await wrong()
        await ns.remove(f"/.trash/{one}")
        await ns.rename(f"/.trash/{two}", "/back")
        await ns.rename("/new", f"/.trash/{three}")
        await ns.write(f"/.trash/{four}")
        assert paths(await ns.trashed()) == ["/d"] and len(await ns.names("/.trash")) == 3
        await healthy(ns)
        await ns.write(f"/.trash/{tree}/e/f")
        await ns.remove(f"/.trash/{tree}/e", recursive=True)
        await ns.write(f"/.trash/{tree[:-1]}other")
        await ns.remove(f"/.trash/{tree[:-1]}other")
        assert paths(await ns.trashed()) == ["/d"], "whose number another name has"
        assert await ns.empty_trash() == 1 and await ns.names("/.trash") == sorted([three, four])
        await healthy(ns)

    drive(body)


def test_emptying_in_parts_all_or_what_was_removed_before(drive) -> None:
    async def body(ns) -> None:
        ns.now_ns = NOW_NS
        await ns.write(*(f"/{number}" for number in range(20)))
        for number in range(20):
            await ns.trash(f"/{number}", keep_s=DAY_S + 100 - number)
            if number == 11:
                middle = ns.now_ns + 1
        assert paths(await ns.trashed(page=3)) == [f"/{number}" for number in reversed(range(20))]
        assert await ns.empty_trash(limit=5, removed_before_ns=middle) == 12
        assert sorted(paths(await ns.trashed())) == sorted(f"/{number}" for number in range(12, 20))
        assert await ns.empty_trash(limit=3) == 8
        assert await ns.empty_trash() == 0 and len(await ns.queued()) == 20
        await healthy(ns)

    drive(body)


def test_what_is_due_goes_after_a_while_and_nothing_else_does(drive) -> None:
    async def body(ns) -> None:
        ns.now_ns = NOW_NS
        await ns.mkdir("/d/e", parents=True)
        files = await ns.write("/d/e/f", "/d/g", "/short", "/long")
        await ns.trash("/d", keep_s=DAY_S)
        await ns.trash("/short", keep_s=60)
        await ns.trash("/long", keep_s=DAY_S * 30)
        clocks = Clocks(ns)
        assert await clocks.passes(58) == 0
        assert await clocks.passes(4) == 0 and await clocks.passes(GRACE_S - 1) == 0
        assert await clocks.passes(1) == 1 and paths(await ns.trashed()) == ["/d", "/long"]
        assert await clocks.passes(DAY_S - 700) == 0 and await clocks.passes(40) == 0
        assert await clocks.passes(GRACE_S) == 1, "a directory is one entry"
        assert paths(await ns.trashed()) == ["/long"] and len(await ns.names("/.trash")) == 1
        await clocks.passes(1)
        assert sorted(clocks.removed) == [one.inode_id for one in files[:3]]
        assert await ns.count(keys.INODE) == 3, "the root, the trash, and what is kept"
        assert clocks.registry.get_sample_value("fs3_meta_gc_trash_expired_total") == 2
        await healthy(ns)

    drive(body)


def test_a_clock_that_jumps_ahead_for_a_moment_removes_nothing(drive) -> None:
    async def body(ns) -> None:
        ns.now_ns = NOW_NS
        await ns.write("/f")
        await ns.trash("/f", keep_s=DAY_S)
        clocks = Clocks(ns)
        for _ in range(5):  # again and again
            assert await clocks.passes(1, jump_s=400 * DAY_S) == 0
            assert await clocks.passes(GRACE_S - 2) == 0
            assert await clocks.passes(1, jump_s=-400 * DAY_S) == 0
            assert await clocks.passes(5) == 0
        assert paths(await ns.trashed()) == ["/f"]
        assert await clocks.passes(1, jump_s=-400 * DAY_S) == 0, "nor does one that is behind"
        assert await clocks.passes(DAY_S, jump_s=400 * DAY_S) == 0
        assert await clocks.passes(GRACE_S) == 1

    drive(body)


def test_what_is_restored_in_time_is_safe_from_the_collector(drive) -> None:
    async def body(ns) -> None:
        ns.now_ns = NOW_NS
        await ns.write(*(f"/{number}" for number in range(40)))
        for number in range(40):
            await ns.trash(f"/{number}", keep_s=DAY_S if number % 2 else 60)
        clocks = Clocks(ns)
        assert await clocks.passes(100) == 0
        for one in (await ns.trashed())[:3]:
            await ns.restore(one.name)
        assert await clocks.passes(GRACE_S) == 17
        left = [int(path[1:]) for path in paths(await ns.trashed())]
        assert sorted(left) == list(range(1, 40, 2))
        await healthy(ns)

    drive(body)


def test_every_change_is_answered_again_as_before_and_copies_apply_once(drive) -> None:
    async def body(ns) -> None:
        await ns.write("/f", "/g")
        other = (await ns.trash("/g")).name

        async def twice(op: Any, request: Any) -> Any:
            first, *others = await asyncio.gather(*(ns.change(op, request) for _ in range(4)))
            assert all(one == first for one in others)
            assert await ns.change(op, request) == first
            return first

        thrown = (await twice(trash.trash, meta_pb2.TrashRequest(id=ns.request_id(), path="/f"))).trashed
        assert paths(await ns.trashed()) == ["/g", "/f"]
        back = meta_pb2.RestoreTrashRequest(id=ns.request_id(), name=thrown.name)
        assert (await twice(trash.restore, back)).inode.inode_id == thrown.inode.inode_id
        await ns.trash("/f")
        named = meta_pb2.EmptyTrashRequest(id=ns.request_id(), name=other)
        assert (await twice(partial(trash.empty_page, limit=5), named)).removed == 1
        rest = meta_pb2.EmptyTrashRequest(id=ns.request_id())
        assert (await twice(partial(trash.empty_page, limit=5), rest)).removed == 1
        assert len(await ns.queued()) == 2
        await healthy(ns)

    drive(body)


def test_a_directory_goes_while_somebody_makes_files_in_it(drive) -> None:
    """What was published before is in the trash; what comes later is refused, and nothing is lost on the way."""

    async def body(ns) -> None:
        ns.now_ns = NOW_NS
        await ns.mkdir("/d")
        made = await ns.create(*(f"/d/{number}" for number in range(20)))
        refused: list[int] = []

        async def publish(number: int) -> None:
            try:
                await ns.publish((made[number].inode_id, f"/d/{number}"))
            except errors.NotFound:
                refused.append(number)

        async def throw() -> str:
            return (await ns.trash("/d")).name

        *_, name = await asyncio.gather(*(publish(number) for number in range(10)), throw())
        await asyncio.gather(*(publish(number) for number in range(10, 20)))
        there = [int(one) for one in await ns.names(f"/.trash/{name}")]
        assert sorted(there + refused) == list(range(20)) and len(refused) >= 10
        assert await ns.restore(name) == "/d"
        for number in refused[:]:
            await publish(number)
        assert len(await ns.names("/d")) == 20
        await healthy(ns)

    drive(body)


def test_a_file_that_is_being_written_goes_and_comes_with_its_session(drive) -> None:
    async def body(ns) -> None:
        await ns.write("/f", "/g")
        for path in ("/f", "/g"):
            await ns.change(update.open_for_writing, meta_pb2.OpenForWritingRequest(id=ns.request_id(), paths=[path]))
        kept, lost = [(await ns.trash(path)).inode.inode_id for path in ("/f", "/g")]
        await healthy(ns)
        sync = meta_pb2.FileSync(inode_id=kept, length=99, written=True, close=True)
        await ns.change(update.sync_files, meta_pb2.SyncFilesRequest(id=ns.request_id(), files=[sync]))
        assert await ns.restore((await ns.trashed())[0].name) == "/f" and (await ns.stat("/f"))[0].length == 99
        assert await ns.empty_trash() == 1 and await ns.queued() == set(), "it lives while it is written"
        await healthy(ns)
        await ns.abandon(lost)
        assert await ns.queued() == {lost}
        await healthy(ns)

    drive(body)


def test_two_who_restore_and_one_who_empties(drive) -> None:
    async def body(ns) -> None:
        for turn in range(10):
            await ns.write("/f")
            name = (await ns.trash("/f")).name

            async def tried(made: Any) -> bool:
                try:
                    await made
                except errors.NotFound:
                    return False
                return True

            done = await asyncio.gather(
                tried(ns.restore(name, f"/one{turn}")),
                tried(ns.restore(name, f"/two{turn}")),
                tried(ns.empty_trash(name=name)),
            )
            assert sum(done) == 1 and await ns.trashed() == []
            assert len(await ns.names("/")) - 1 + len(await ns.queued()) == turn + 1
        await healthy(ns)

    drive(body)


def test_on_etcd_all_of_it_in_parts(etcd: LocalEtcd, namespace_on: Callable[[KVEngine], Any]) -> None:
    async def body() -> None:
        kv = EtcdKV(etcd.endpoints, f"test-{secrets.token_hex(4)}", grouping=keys.group)
        try:
            ns = namespace_on(kv)
            ns.now_ns = NOW_NS
            await ns.make_root()
            await ns.mkdir("/d")
            count = 45
            for begin in range(0, count, 15):
                await ns.write(*(f"/d/{number}" for number in range(begin, begin + 15)))
            for number in range(40):
                await ns.set_xattr(f"/d/{number}", "user.x", b"1")
                await ns.trash(f"/d/{number}", keep_s=60)
            await ns.trash("/d")
            assert len(await ns.trashed(page=7)) == 41
            clocks = Clocks(ns)
            assert await clocks.passes(61) == 0
            assert await ns.restore((await ns.trashed())[0].name, "/back") == "/back"
            assert await ns.empty_trash(limit=page_of(kv.limits, trash.KEYS_OF_AN_ENTRY), removed_before_ns=1) == 0
            assert await clocks.passes(GRACE_S) == 39
            assert await ns.empty_trash(limit=page_of(kv.limits, trash.KEYS_OF_AN_ENTRY)) == 1
            assert await ns.trashed() == [] and await ns.names("/.trash") == []
            await clocks.passes(1, rounds=10)
            assert len(clocks.removed) == count - 1
            await healthy(ns)
        finally:
            await kv.close()

    asyncio.run(body())


class Model:
    """What the namespace and its trash should hold: (parent, name) -> file number or None for a directory."""

    def __init__(self) -> None:
        self.tree: dict[str, int | None] = {}
        self.trash: dict[str, tuple[str, dict[str, int | None]]] = {}

    def parent_is_directory(self, path: str) -> bool:
        above = path.rpartition("/")[0]
        return not above or self.tree.get(above, 0) is None

    def cut(self, path: str) -> dict[str, int | None]:
        """What is at and below `path`, by what follows it; taken out of the tree."""
        below = {one: self.tree.pop(one) for one in list(self.tree) if one == path or one.startswith(f"{path}/")}
        return {one.removeprefix(path): number for one, number in below.items()}

    def paste(self, path: str, below: dict[str, int | None]) -> None:
        self.tree |= {path + one: number for one, number in below.items()}


names = st.sampled_from(["a", "b", "ü" * 127])
places = st.lists(names, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
picks = st.integers(0, 7)
steps = st.one_of(
    st.tuples(st.just("mkdir"), places),
    st.tuples(st.just("write"), places),
    st.tuples(st.just("trash"), places, st.sampled_from([60, DAY_S])),
    st.tuples(st.just("trash"), st.sampled_from(["/a", "/b"]), st.just(60)),
    st.tuples(st.just("restore"), picks, st.just("") | places),
    st.tuples(st.just("empty"), picks),
    st.tuples(st.just("remove"), picks),
    st.tuples(st.just("wait"), st.sampled_from([30, 90, DAY_S])),
)


class Both:
    """Each step on the namespace and on the model; they have to agree whether it is done."""

    def __init__(self, ns: Any) -> None:
        self.ns, self.model, self.clocks = ns, Model(), Clocks(ns)

    async def agrees(self, expected: bool, made: Any) -> Any:
        try:
            done = await made
        except errors.Fs3Error:
            assert not expected
            return None
        assert expected
        return done

    async def mkdir(self, path: str) -> None:
        free = path not in self.model.tree and self.model.parent_is_directory(path)
        await self.agrees(free, self.ns.mkdir(path))
        if free:
            self.model.tree[path] = None

    async def write(self, path: str) -> None:
        free = self.model.tree.get(path, 0) is not None and self.model.parent_is_directory(path)
        made = await self.agrees(free, self.ns.write(path))
        if free:
            self.model.tree[path] = made[0].inode_id

    async def trash(self, path: str, keep_s: int) -> None:
        there = path in self.model.tree
        thrown = await self.agrees(there, self.ns.trash(path, keep_s))
        if there:
            self.model.trash[thrown.name] = path, self.model.cut(path)

    async def restore(self, pick: int, target: str) -> None:
        name, (path, below) = self.picked(pick)
        path = target or path
        good = bool(name) and path not in self.model.tree and self.model.parent_is_directory(path)
        await self.agrees(good, self.ns.restore(name, target))
        if good:
            del self.model.trash[name]
            self.model.paste(path, below)

    async def empty(self, pick: int) -> None:
        name, _ = self.picked(pick)
        if pick == 7:
            assert await self.ns.empty_trash(limit=2) == len(self.model.trash)
            self.model.trash.clear()
            return
        await self.agrees(bool(name), self.ns.empty_trash(name=name or "none"))
        self.model.trash.pop(name, None)

    async def remove(self, pick: int) -> None:
        """By hand."""
        name, _ = self.picked(pick)
        await self.agrees(bool(name), self.ns.remove(f"/.trash/{name or 'none'}", recursive=True))
        self.model.trash.pop(name, None)

    async def wait(self, seconds: int) -> None:
        self.ns.now_ns += seconds * 10**9
        due = [one.name for one in await self.ns.trashed() if one.expires_ns <= self.ns.now_ns // 10**9 * 10**9]
        self.clocks.wall_s = self.ns.now_ns / 1e9
        assert await self.clocks.passes(0) == 0
        assert await self.clocks.passes(GRACE_S, jump_s=-GRACE_S) == len(due)
        for name in due:
            del self.model.trash[name]

    def picked(self, pick: int) -> tuple[str, tuple[str, dict[str, int | None]]]:
        known = list(self.model.trash)
        return (known[pick % len(known)], self.model.trash[known[pick % len(known)]]) if known else ("", ("/none", {}))

    async def check(self) -> None:
        assert await self.tree("") == self.model.tree
        found = await self.ns.trashed(page=2)
        assert {one.name: one.record.path for one in found} == {
            name: path for name, (path, _) in self.model.trash.items()
        }
        for name, (_, below) in self.model.trash.items():
            (top,) = await self.ns.stat(f"/.trash/{name}")
            inside = await self.tree(f"/.trash/{name}") if top.is_directory else {}
            assert {"": None if top.is_directory else top.inode_id, **inside} == below
        await healthy(self.ns)

    async def tree(self, top: str) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        pending = [""]
        while pending:
            at = pending.pop()
            for name in await self.ns.names(top + at or "/"):
                (one,) = await self.ns.stat(f"{top}{at}/{name}")
                if top or at or name != trashed.NAME.decode():
                    found[f"{at}/{name}"] = None if one.is_directory else one.inode_id
                    pending += [f"{at}/{name}"] if one.is_directory else []
        return found


@settings(
    max_examples=70,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(steps, min_size=5, max_size=30))
def test_random_changes_against_a_model(namespace_on: Callable[[KVEngine], Any], script: list[tuple[Any, ...]]) -> None:
    async def body() -> None:
        ns = namespace_on(MemoryKV())
        ns.now_ns = NOW_NS
        await ns.make_root()
        both = Both(ns)
        for name, *arguments in [("mkdir", "/a"), ("write", "/a/b"), ("trash", "/a", 60), ("mkdir", "/a"), *script]:
            await getattr(both, name)(*arguments)
            await both.check()

    asyncio.run(body())
