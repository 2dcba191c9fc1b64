"""chmod, chown and utimes: what each changes, what stays, what rises, what is refused."""

from __future__ import annotations

import pytest

from fs3 import errors

# Fixtures: `drive` runs a coroutine function on a fresh namespace, on each engine.


def test_only_what_is_named_changes_and_ctime_and_version_rise(drive) -> None:
    async def body(ns) -> None:
        (f,) = await ns.write("/f")
        cases = [
            ({"mode": 0o107755}, {"mode": 0o7755}),
            ({"mode": 0}, {"mode": 0}),
            ({"uid": 1_000}, {"uid": 1_000, "gid": 0}),
            ({"gid": 100}, {"uid": 1_000, "gid": 100}),
            ({"atime_ns": 5}, {"atime_ns": 5, "mtime_ns": f.mtime_ns}),
            ({"mtime_ns": 0}, {"atime_ns": 5, "mtime_ns": 0}),
        ]
        before = f
        for fields, expected in cases:
            after = await ns.set_attributes("/f", **fields)
            assert {name: getattr(after, name) for name in expected} == expected
            assert after.ctime_ns > before.ctime_ns and after.version == before.version + 1
            assert await ns.stat("/f") == [after]
            before = after
        now = await ns.set_attributes("/f", atime_now=True, mtime_now=True)
        assert now.atime_ns == now.mtime_ns == now.ctime_ns == ns.now_ns
        ns.now_ns -= 500
        assert (await ns.set_attributes("/f", mode=1)).ctime_ns == now.ctime_ns + 1, "another daemon's clock is behind"
        assert (now.length, now.btime_ns, now.layout) == (f.length, f.btime_ns, f.layout)

    drive(body)


def test_a_directory_keeps_its_time_until_it_changes(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d")
        assert (await ns.set_attributes("/d", mtime_ns=7, mode=0o2775)).mtime_ns == 7
        (found,) = await ns.stat("/d")
        assert (found.mtime_ns, found.mode) == (7, 0o2775)
        await ns.write("/d/f")
        (found,) = await ns.stat("/d")
        assert (found.mtime_ns, found.mode) == (ns.now_ns, 0o2775)
        assert (await ns.set_attributes("/d", mode=0o755)).mtime_ns == found.mtime_ns
        assert (await ns.set_attributes("/", uid=3)).uid == 3

    drive(body)


def test_symlinks_are_followed_unless_told_otherwise(drive) -> None:
    async def body(ns) -> None:
        await ns.write("/f")
        await ns.symlink("/s", "f")
        await ns.link("/f", "/g")
        assert (await ns.set_attributes("/s", mode=0o600)).mode == 0o600
        assert [one.mode for one in await ns.stat("/f", "/g")] == [0o600, 0o600], "all names show it"
        await ns.set_attributes("/s", uid=9, mtime_ns=1, nofollow=True)
        assert [one.uid for one in await ns.stat("/f")] == [0]
        (link,) = await ns.stat("/s", nofollow=True)
        assert (link.uid, link.mtime_ns, link.mode, link.symlink) == (9, 1, 0o777, "f")
        with pytest.raises(errors.Invalid, match="/s: is a symlink"):
            await ns.set_attributes("/s", mode=0o600, nofollow=True)
        await ns.symlink("/dangling", "nothing")
        for path, expected in (("/dangling", errors.NotFound), ("/f/x", errors.NotADirectory), ("f", errors.Invalid)):
            with pytest.raises(expected):
                await ns.set_attributes(path, mode=0o600)
        for fields in ({"mtime_ns": -1}, {"atime_ns": 1, "atime_now": True}):
            with pytest.raises(errors.Invalid):
                await ns.set_attributes("/f", **fields)

    drive(body)


def test_a_new_owner_ends_set_uid_of_files(drive) -> None:
    async def body(ns) -> None:
        await ns.write("/f")
        await ns.mkdir("/d")
        for mode, left in ((0o6755, 0o755), (0o6745, 0o2745), (0o1644, 0o1644)):
            await ns.set_attributes("/f", mode=mode)
            assert (await ns.set_attributes("/f", gid=5)).mode == left
        assert (await ns.set_attributes("/f", gid=5, mode=0o6755)).mode == 0o6755
        await ns.set_attributes("/d", mode=0o6755)
        assert (await ns.set_attributes("/d", uid=5)).mode == 0o6755

    drive(body)
