"""The namespace beside the local filesystem: random operations on both, compared result by result, errno by errno.

What differs on purpose is kept out of the comparison: a directory's nlink and size, a symlink's size (absolute targets
lie below a temporary directory there), and ".." above the root, which ends at the root here and leaves the temporary
directory there: so no symlink with ".." ever lies in the root.
"""

from __future__ import annotations

import asyncio
import os
import stat as bits
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fs3.errors import Fs3Error, from_code
from fs3.inode import Inode, InodeType
from fs3.kv import keys
from fs3.kv.api import Transaction, transact
from fs3.kv.occ_core import encode_counter
from fs3.meta.fsck import fsck
from fs3.meta.ops import stat
from fs3.pb import meta_pb2

TYPES = {bits.S_IFREG: InodeType.FILE, bits.S_IFDIR: InodeType.DIRECTORY, bits.S_IFLNK: InodeType.SYMLINK}

names = st.sampled_from("aabbc")
paths = st.lists(names, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
BEGIN = [("mkdir", "/a"), ("mkdir", "/a/b"), ("write", "/b", 3), ("link", "/b", "/a/a"), ("symlink", "/a/c", "../b")]
lengths = st.integers(0, 9)


@st.composite
def symlinks(draw: st.DrawFn) -> tuple[str, ...]:
    path = draw(paths)
    up = st.just("../") if path.count("/") > 1 else st.nothing()
    begin = draw(st.sampled_from(["", "/", "./"]) | up)
    return "symlink", path, begin + draw(paths).removeprefix("/")


steps = st.one_of(
    st.tuples(st.just("mkdir"), paths),
    st.tuples(st.just("write"), paths, lengths),
    symlinks(),
    st.tuples(st.just("link"), paths, paths),
    st.tuples(st.just("rename"), paths, paths),
    st.tuples(
        st.just("rename"),
        st.sampled_from(["/a/a", "/a/b/a", "/b/a", "/a", "/b"]),
        st.sampled_from(["/a", "/b", "/a/b"]),
    ),
    st.tuples(st.just("chmod"), paths, st.integers(0, 0o77).map(lambda bits: bits | 0o700)),
    st.tuples(st.just("utime"), paths, st.integers(0, 1 << 60)),
    st.tuples(st.just("unlink"), paths),
    st.tuples(st.just("rmdir"), paths),
    st.tuples(st.just("readlink"), paths),
    st.tuples(st.just("names"), paths),
    st.tuples(st.just("realpath"), paths),
    st.tuples(st.just("stat"), paths),
    st.tuples(st.just("lstat"), paths),
)


def seen(kind: InodeType, mode: int, nlink: int, length: int) -> tuple[Any, ...]:
    """What both sides must show of an inode."""
    if kind is InodeType.DIRECTORY:
        return kind, mode
    return kind, mode, nlink, length if kind is InodeType.FILE else 0


class Local:
    """The operating system's calls, below a directory; files are written beside it and moved in, as fs3 publishes."""

    def __init__(self, root: Path) -> None:
        self.root = root / "root"
        self.root.mkdir()
        self._new = root / "new"

    def at(self, path: str) -> str:
        return f"{self.root}{path}"

    def mkdir(self, path: str) -> None:
        os.mkdir(self.at(path))
        os.chmod(self.at(path), 0o755)

    def write(self, path: str, length: int) -> None:
        os.close(os.open(self.at(path), os.O_WRONLY | os.O_CREAT))
        self._new.write_bytes(b"x" * length)
        self._new.chmod(0o644)
        os.replace(self._new, os.path.realpath(self.at(path)))

    def symlink(self, path: str, target: str) -> None:
        os.symlink(self.at(target) if target.startswith("/") else target, self.at(path))

    def link(self, source: str, target: str) -> None:
        os.link(self.at(source), self.at(target))

    def rename(self, source: str, target: str) -> None:
        os.rename(self.at(source), self.at(target))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def utime(self, path: str, mtime_ns: int) -> int:
        os.utime(self.at(path), ns=(0, mtime_ns))
        return os.stat(self.at(path)).st_mtime_ns

    def unlink(self, path: str) -> None:
        os.unlink(self.at(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self.at(path))

    def readlink(self, path: str) -> str:
        return os.readlink(self.at(path)).removeprefix(str(self.root))

    def realpath(self, path: str) -> str:
        os.stat(self.at(path))
        return os.path.realpath(self.at(path)).removeprefix(os.path.realpath(self.root)) or "/"

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(self.at(path)))

    def stat(self, path: str, follow: bool = True) -> tuple[Any, ...]:
        found = os.stat(self.at(path), follow_symlinks=follow)
        return seen(TYPES[bits.S_IFMT(found.st_mode)], bits.S_IMODE(found.st_mode), found.st_nlink, found.st_size)

    def lstat(self, path: str) -> tuple[Any, ...]:
        return self.stat(path, follow=False)

    def lies_in_the_root_with_dots(self, step: tuple[Any, ...]) -> bool:
        """Whether the step would bring a symlink with ".." into the root."""
        if step[0] not in ("link", "rename") or step[2].count("/") > 1:
            return False
        return os.path.islink(self.at(step[1])) and ".." in os.readlink(self.at(step[1]))

    def tree(self) -> tuple[dict[str, Any], int, int]:
        """What every name shows, and how many files and directories there are, as `du` counts."""
        found: dict[str, Any] = {}
        directories = 0
        inodes: set[int] = set()
        for top, below, files in os.walk(self.root):
            directories += 1
            for name in below + files:
                path = os.path.join(top, name)
                name = path.removeprefix(str(self.root))
                found[name] = self.lstat(name)
                if os.path.islink(path) or not os.path.isdir(path):
                    inodes.add(os.lstat(path).st_ino)
        return found, len(inodes), directories


class Ours:
    """The same calls on a namespace of fs3."""

    def __init__(self, ns: Any) -> None:
        self.ns = ns

    async def mkdir(self, path: str) -> None:
        await self.ns.mkdir(path)

    async def write(self, path: str, length: int) -> None:
        await self.ns.write(path, length=length)

    async def symlink(self, path: str, target: str) -> None:
        await self.ns.symlink(path, target)

    async def link(self, source: str, target: str) -> None:
        await self.ns.link(source, target)

    async def rename(self, source: str, target: str) -> None:
        await self.ns.rename(source, target)

    async def chmod(self, path: str, mode: int) -> None:
        await self.ns.set_attributes(path, mode=mode)

    async def utime(self, path: str, mtime_ns: int) -> int:
        await self.ns.set_attributes(path, atime_ns=0, mtime_ns=mtime_ns)
        (found,) = await self.ns.stat(path)
        return found.mtime_ns

    async def unlink(self, path: str) -> None:
        await self.ns.remove(path, must_be=InodeType.FILE)

    async def rmdir(self, path: str) -> None:
        await self.ns.remove(path, must_be=InodeType.DIRECTORY)

    async def readlink(self, path: str) -> str:
        found = await self._inode(path, follow=False)
        if found.type is not InodeType.SYMLINK:
            raise from_code(2, "not a symlink")
        return found.symlink

    async def realpath(self, path: str) -> str:
        await self._inode(path, follow=True)
        return await self.ns.realpath(path)

    async def names(self, path: str) -> list[str]:
        return await self.ns.names(path)

    async def stat(self, path: str, follow: bool = True) -> tuple[Any, ...]:
        found = await self._inode(path, follow)
        return seen(found.type, found.mode, found.nlink, found.length)

    async def lstat(self, path: str) -> tuple[Any, ...]:
        return await self.stat(path, follow=False)

    async def _inode(self, path: str, follow: bool) -> Inode:
        (found,) = await self.ns.stat(path, nofollow=not follow)
        if isinstance(found, int):
            raise from_code(found, path)
        return found

    async def tree(self) -> tuple[dict[str, Any], int, int]:
        found: dict[str, Any] = {}
        pending = [""]
        while pending:
            top = pending.pop()
            for name in await self.ns.names(top or "/"):
                path = f"{top}/{name}"
                found[path] = await self.lstat(path)
                if found[path][0] is InodeType.DIRECTORY:
                    pending.append(path)
        usage = await self.ns.read(stat.usage_start, meta_pb2.UsageRequest(path="/"))
        while usage.pending:
            usage = await stat.usage_step(self.ns.kv.begin(), usage, 3)
        return found, usage.files, usage.directories


async def count_inodes(txn: Transaction) -> None:
    """The ids of this namespace are not drawn from the store's counter."""
    txn.put(keys.NEXT_INODE, encode_counter(1 << 32))


async def outcome(made: Awaitable[Any]) -> Any:
    try:
        return await made
    except Fs3Error as error:
        return f"errno {os.strerror(error.errno)}"


def local_outcome(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return call(*arguments)
    except OSError as error:
        assert error.errno is not None
        return f"errno {os.strerror(error.errno)}"


@settings(
    max_examples=180,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(steps, min_size=10, max_size=50))
def test_the_namespace_does_what_the_local_filesystem_does(
    namespace_in_memory: Callable[[], Any],
    tmp_path_factory: pytest.TempPathFactory,
    script: list[tuple[Any, ...]],
) -> None:
    local = Local(tmp_path_factory.mktemp("local"))

    async def body() -> None:
        ours = Ours(namespace_in_memory())
        await ours.ns.make_root()
        for step in BEGIN + script:
            if local.lies_in_the_root_with_dots(step):
                continue
            name, *arguments = step
            expected = local_outcome(getattr(local, name), tuple(arguments))
            assert await outcome(getattr(ours, name)(*arguments)) == expected, step
        assert await ours.tree() == local.tree()
        await transact(ours.ns.kv, count_inodes)
        assert (await fsck(ours.ns.kv)).findings() == []

    asyncio.run(body())
