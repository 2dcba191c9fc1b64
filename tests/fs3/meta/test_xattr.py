"""Extended attributes: flags, limits, who shares them, and that none outlives its inode, whoever drops that."""

from __future__ import annotations

import pytest

from fs3 import errors
from fs3.kv import keys
from fs3.meta.gc import Collector

# Fixtures: `drive` runs a coroutine function on a fresh namespace, on each engine.


def test_attributes_are_set_replaced_listed_and_removed(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d")
        (f,) = await ns.write("/d/f")
        await ns.set_xattr("/d/f", "user.b", b"\0\xff")
        await ns.set_xattr("/d/f", "user.a", b"", create=True)
        assert await ns.xattrs("/d/f") == {"user.a": b"", "user.b": b"\0\xff"}
        with pytest.raises(errors.Exists):
            await ns.set_xattr("/d/f", "user.a", b"x", create=True)
        with pytest.raises(errors.NoAttribute):
            await ns.set_xattr("/d/f", "user.c", b"x", replace=True)
        await ns.set_xattr("/d/f", "user.a", b"longer", replace=True)
        assert await ns.xattrs("/d/f") == {"user.a": b"longer", "user.b": b"\0\xff"}
        (found,) = await ns.stat("/d/f")
        assert found.xattr_bytes == 20 and found.ctime_ns > f.ctime_ns and found.mtime_ns == f.mtime_ns
        await ns.remove_xattr("/d/f", "user.a")
        for call in (ns.remove_xattr("/d/f", "user.a"), ns.remove_xattr("/d", "user.b")):
            with pytest.raises(errors.NoAttribute):
                await call
        await ns.remove_xattr("/d/f", "user.b")
        assert (await ns.stat("/d/f"))[0].xattr_bytes == 0 and await ns.xattrs("/d/f") == {}
        for path, expected in (("/no", errors.NotFound), ("/d/f/x", errors.NotADirectory)):
            for call in (ns.set_xattr(path, "a", b""), ns.remove_xattr(path, "a"), ns.xattrs(path)):
                with pytest.raises(expected):
                    await call

    drive(body)


def test_limits_of_names_values_and_an_inode(drive) -> None:
    async def body(ns) -> None:
        await ns.write("/f")
        for name in ("", "n" * 256, "a\0b"):
            with pytest.raises(errors.Invalid, match="must be 1 to 255"):
                await ns.set_xattr("/f", name, b"")
        with pytest.raises(errors.Invalid, match="at most 65536"):
            await ns.set_xattr("/f", "a", b"x" * 65_537)
        with pytest.raises(errors.NoSpace, match="65537 bytes, names included"):
            await ns.set_xattr("/f", "a", b"x" * 65_536)
        await ns.set_xattr("/f", "a", b"x" * 65_279)
        await ns.set_xattr("/f", "n" * 255, b"x")
        for name, value in (("b", b""), ("n" * 255, b"xx")):
            with pytest.raises(errors.NoSpace):
                await ns.set_xattr("/f", name, value)
        assert {name: len(value) for name, value in (await ns.xattrs("/f")).items()} == {"a": 65_279, "n" * 255: 1}
        await ns.set_xattr("/f", "a", b"short")
        await ns.set_xattr("/f", "b", b"")
        assert (await ns.stat("/f"))[0].xattr_bytes == 263

    drive(body)


def test_they_belong_to_the_inode_and_not_to_a_name(drive) -> None:
    async def body(ns) -> None:
        await ns.write("/f", "/other")
        await ns.symlink("/s", "f")
        await ns.set_xattr("/f", "user.a", b"1")
        await ns.link("/f", "/g")
        await ns.set_xattr("/g", "user.b", b"2")
        await ns.set_xattr("/s", "user.c", b"3")
        await ns.set_xattr("/s", "user.own", b"4", nofollow=True)
        expected = {"user.a": b"1", "user.b": b"2", "user.c": b"3"}
        assert await ns.xattrs("/f") == await ns.xattrs("/s") == expected
        assert await ns.xattrs("/s", nofollow=True) == {"user.own": b"4"}
        await ns.rename("/f", "/moved")
        await ns.set_attributes("/moved", mode=0o600)
        await ns.remove("/g")
        assert await ns.xattrs("/moved") == expected and await ns.xattrs("/other") == {}

    drive(body)


def test_none_outlives_its_inode(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/keep")
        await ns.set_xattr("/keep", "user.a", b"stays")
        await ns.mkdir("/tree/sub", parents=True)
        for path in ("/removed", "/over", "/under", "/replaced", "/tree/f", "/tree/sub/f"):
            await ns.write(path)
        for path in ("/empty", "/target", "/source"):
            await ns.mkdir(path)
        await ns.symlink("/s", "nothing")
        await ns.set_xattr("/s", "user.a", b"v", nofollow=True)
        changed = (
            "/removed",
            "/under",
            "/replaced",
            "/tree",
            "/tree/f",
            "/tree/sub",
            "/tree/sub/f",
            "/empty",
            "/target",
        )
        for path in changed:
            for name in ("user.a", "user.b"):
                await ns.set_xattr(path, name, b"v")
        await ns.remove("/removed")
        await ns.remove("/s")
        await ns.rename("/over", "/under")
        await ns.write("/replaced")
        await ns.remove("/empty")
        await ns.rename("/source", "/target")
        await ns.remove("/tree", recursive=True)
        await collect(ns)
        assert await ns.count(keys.XATTR) == 1
        for path in ("/under", "/replaced", "/target"):
            assert await ns.xattrs(path) == {}
        assert await ns.xattrs("/keep") == {"user.a": b"stays"}

    drive(body)


async def collect(ns) -> None:
    """Take removed subtrees apart; the files in them stay queued."""

    class Never:
        async def remove_file(self, inode: object) -> None:
            raise errors.Unavailable("no storage in this test")

    collector = Collector(ns.kv, Never(), session_lease_s=1e9, delay_s=1e9, interval_s=1.0)
    while (await collector.round(0.0)).productive:
        pass
