"""Who may do what, beside the local filesystem: every operation as users of whom it takes away one bit after the other.

The local side runs in forked children that have become those users, in a root directory of their own, so that paths and
absolute symlinks are the same on both sides; so it wants root. Errors are compared by errno, and the trees afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat as bits
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fs3.errors import Fs3Error, from_code
from fs3.inode import InodeType
from fs3.meta.access import Caller
from fs3.meta.fsck import fsck
from fs3.user import User

ANNA = User(1_000, (1_000, 500))
BERT = User(2_000, (2_000, 500))
ROOT = User(0, (0,))
USERS = (ANNA, BERT, ROOT)
NOBODY = (3_000, 3_000)


class Local:
    """The operating system's calls of one user; files are made beside their place and moved in, as fs3 publishes."""

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        os.mkdir(path, mode)

    def write(self, path: str, mode: int = 0o644) -> None:
        with contextlib.suppress(FileNotFoundError):
            for _ in range(41):
                if not bits.S_ISLNK(os.lstat(path).st_mode):
                    break
                path = os.path.join(os.path.dirname(path), os.readlink(path))
            else:
                raise OSError(errno.ELOOP, "")
            if bits.S_ISDIR(os.lstat(path).st_mode):
                raise OSError(errno.EISDIR, "")
        new = f"{os.path.dirname(path)}/.new"
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        try:
            os.rename(new, path)
        except OSError:
            os.unlink(new)
            raise

    def symlink(self, path: str, target: str) -> None:
        os.symlink(target, path)

    def link(self, source: str, target: str) -> None:
        os.link(source, target, follow_symlinks=False)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(path, uid, gid, follow_symlinks=False)

    def utime(self, path: str) -> None:
        os.utime(path, ns=(5, 5))

    def touch(self, path: str) -> None:
        os.utime(path)

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def stat(self, path: str) -> int:
        return bits.S_IMODE(os.stat(path).st_mode)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def read(self, path: str) -> None:
        self._access(path, os.R_OK)

    def access(self, path: str, mode: int) -> None:
        self._access(path, mode)

    def _access(self, path: str, mode: int) -> None:
        os.stat(path)
        if not os.access(path, mode):
            raise OSError(errno.EACCES, "")

    def set_xattr(self, path: str) -> None:
        os.setxattr(path, "user.a", b"v")

    def get_xattr(self, path: str) -> None:
        os.getxattr(path, "user.b")

    def tree(self) -> dict[str, tuple[Any, ...]]:
        found = {}
        for top, below, files in os.walk("/"):
            for name in below + files:
                path = os.path.join(top, name)
                at = os.lstat(path)
                mode = bits.S_IMODE(at.st_mode) if not bits.S_ISLNK(at.st_mode) else 0o777
                found[path] = mode, at.st_uid, at.st_gid
        return found


class Child:
    """A process that is one user, and runs what it is told in `root`."""

    def __init__(self, root: Path, user: User) -> None:
        self._pipe, theirs = Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._serve(root, user, theirs)
            finally:
                os._exit(1)
        theirs.close()
        assert self._pipe.recv() == "ready"

    @staticmethod
    def _serve(root: Path, user: User, pipe: Connection) -> None:
        os.chroot(root)
        os.chdir("/")
        os.umask(0)
        os.setgroups(list(user.gids))
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        pipe.send("ready")
        local = Local()
        while True:
            results = []
            for name, *arguments in pipe.recv():
                try:
                    results.append(getattr(local, name)(*arguments))
                except OSError as error:
                    results.append(f"errno {errno.errorcode[error.errno or 0]}")
            pipe.send(results)

    def ask(self, *steps: tuple[Any, ...]) -> list[Any]:
        self._pipe.send(steps)
        found: list[Any] = self._pipe.recv()
        return found

    def end(self) -> None:
        os.kill(self._pid, 9)
        os.waitpid(self._pid, 0)
        self._pipe.close()


class Both:
    """One tree on either side, and the users that work on it."""

    def __init__(self, children: dict[User, Child], root: Path, namespace: Callable[[], Any]) -> None:
        self._children = children
        for entry in list(os.scandir(root)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        root.chmod(0o755)
        self.ns = namespace()

    async def run(self, user: User, *steps: tuple[Any, ...]) -> list[Any]:
        """Run steps on both sides; the results, or the errors' names, which must be the same."""
        local = self._children[user].ask(*steps)
        self.ns.caller = Caller(user, superuser=user.uid == 0)
        for (name, *arguments), expected in zip(steps, local, strict=True):
            try:
                ours = await getattr(self, f"_{name}")(*arguments)
            except Fs3Error as error:
                ours = f"errno {errno.errorcode[error.errno]}"
            assert ours == expected, (user, name, arguments)
        return local

    async def same(self) -> None:
        """Raises AssertionError unless both trees look the same, and hang together here."""
        self.ns.caller = Caller(ROOT, superuser=True)
        found: dict[str, tuple[Any, ...]] = {}
        pending = [""]
        while pending:
            top = pending.pop()
            for name in await self.ns.names(top or "/"):
                path = f"{top}/{name}"
                (at,) = await self.ns.stat(path, nofollow=True)
                found[path] = at.mode, at.uid, at.gid
                if at.is_directory:
                    pending.append(path)
        assert [found] == self._children[ROOT].ask(("tree",))
        findings = (await fsck(self.ns.kv)).findings()
        assert [one for one in findings if "still to be given out" not in one.text] == []

    async def _mkdir(self, path: str, mode: int = 0o755) -> None:
        await self.ns.mkdir(path, mode=mode)

    async def _write(self, path: str, mode: int = 0o644) -> None:
        await self.ns.write(path, mode=mode)

    async def _symlink(self, path: str, target: str) -> None:
        await self.ns.symlink(path, target)

    async def _link(self, source: str, target: str) -> None:
        await self.ns.link(source, target)

    async def _rename(self, source: str, target: str) -> None:
        await self.ns.rename(source, target)

    async def _unlink(self, path: str) -> None:
        await self.ns.remove(path, must_be=InodeType.FILE)

    async def _rmdir(self, path: str) -> None:
        await self.ns.remove(path, must_be=InodeType.DIRECTORY)

    async def _chmod(self, path: str, mode: int) -> None:
        await self.ns.set_attributes(path, mode=mode)

    async def _chown(self, path: str, uid: int, gid: int) -> None:
        fields = {name: number for name, number in (("uid", uid), ("gid", gid)) if number >= 0}
        await self.ns.set_attributes(path, nofollow=True, **fields)

    async def _utime(self, path: str) -> None:
        await self.ns.set_attributes(path, atime_ns=5, mtime_ns=5)

    async def _touch(self, path: str) -> None:
        await self.ns.set_attributes(path, atime_now=True, mtime_now=True)

    async def _names(self, path: str) -> list[str]:
        return list(await self.ns.names(path))

    async def _stat(self, path: str, access: int = 0) -> int:
        (found,) = await self.ns.stat(path, access=access)
        if isinstance(found, int):
            raise from_code(found, path)
        return int(found.mode)

    async def _readlink(self, path: str) -> str:
        (found,) = await self.ns.stat(path, nofollow=True)
        if isinstance(found, int) or found.type is not InodeType.SYMLINK:
            raise from_code(found if isinstance(found, int) else 2, path)
        return str(found.symlink)

    async def _read(self, path: str) -> None:
        await self._stat(path, access=os.R_OK)

    async def _access(self, path: str, mode: int) -> None:
        await self._stat(path, access=mode)

    async def _set_xattr(self, path: str) -> None:
        await self.ns.set_xattr(path, "user.a", b"v")

    async def _get_xattr(self, path: str) -> None:
        await self.ns.xattr(path, "user.b")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, namespace_in_memory: Any) -> Iterator[Callable[[], Both]]:
    if os.geteuid() != 0:
        pytest.skip("comparing users wants root, who can become any")
    root = tmp_path_factory.mktemp("users") / "root"
    root.mkdir()
    children = {user: Child(root, user) for user in USERS}
    yield lambda: Both(children, root, namespace_in_memory)
    for child in children.values():
        child.end()


# -- one bit after the other

# What is done, as Anna, where /t/d, /t/o and the things in them are as open as can be but for the subject.
OPERATIONS: list[tuple[tuple[Any, ...], tuple[str, ...]]] = [
    (("stat", "/t/d/f"), ("/t", "/t/d", "/t/d/f")),
    (("stat", "/t/s/f"), ("/t/d",)),
    (("read", "/t/d/f"), ("/t/d", "/t/d/f")),
    (("access", "/t/d/f", os.W_OK), ("/t/d/f",)),
    (("access", "/t/d/f", os.X_OK), ("/t/d/f",)),
    (("access", "/t/d", os.R_OK | os.W_OK | os.X_OK), ("/t/d",)),
    (("readlink", "/t/d/s"), ("/t/d",)),
    (("names", "/t/d"), ("/t", "/t/d")),
    (("names", "/t/d/f"), ("/t/d", "/t/d/f")),
    (("mkdir", "/t/d/new"), ("/t", "/t/d")),
    (("mkdir", "/t/d/e"), ("/t/d",)),
    (("mkdir", "/t/d/missing/new"), ("/t/d",)),
    (("write", "/t/d/new"), ("/t", "/t/d")),
    (("write", "/t/d/f"), ("/t/d", "/t/d/f")),
    (("write", "/t/d/e"), ("/t/d",)),
    (("symlink", "/t/d/new", "x"), ("/t/d",)),
    (("symlink", "/t/d/f", "x"), ("/t/d",)),
    (("link", "/t/d/f", "/t/o/new"), ("/t/d", "/t/o", "/t/d/f")),
    (("link", "/t/d/f", "/t/o/g"), ("/t/o",)),
    (("link", "/t/d/e", "/t/o/new"), ("/t/d", "/t/o", "/t/d/e")),
    (("link", "/t/d/s", "/t/o/new"), ("/t/d", "/t/o")),
    (("unlink", "/t/d/f"), ("/t/d", "/t/d/f")),
    (("unlink", "/t/d/missing"), ("/t/d",)),
    (("unlink", "/t/d/e"), ("/t/d", "/t/d/e")),
    (("rmdir", "/t/d/e"), ("/t/d", "/t/d/e")),
    (("rmdir", "/t/d/f"), ("/t/d",)),
    (("rmdir", "/t/d"), ("/t", "/t/d")),
    (("rename", "/t/d/f", "/t/d/new"), ("/t/d", "/t/d/f")),
    (("rename", "/t/d/f", "/t/o/new"), ("/t/d", "/t/o", "/t/d/f")),
    (("rename", "/t/d/f", "/t/o/g"), ("/t/d", "/t/o", "/t/o/g")),
    (("rename", "/t/d/f", "/t/o/e"), ("/t/d", "/t/o", "/t/o/e")),
    (("rename", "/t/d/e", "/t/d/new"), ("/t/d", "/t/d/e")),
    (("rename", "/t/d/e", "/t/o/new"), ("/t/d", "/t/o", "/t/d/e")),
    (("rename", "/t/d/e", "/t/o/e"), ("/t/d", "/t/o", "/t/d/e", "/t/o/e")),
    (("rename", "/t/d/e", "/t/o/g"), ("/t/d", "/t/o", "/t/d/e", "/t/o/g")),
    (("rename", "/t/d/e", "/t/o/full"), ("/t/d", "/t/o", "/t/o/full")),
    (("chmod", "/t/d/f", 0o2755), ("/t/d", "/t/d/f")),
    (("chmod", "/t/d/e", 0o2755), ("/t/d", "/t/d/e")),
    (("chmod", "/t/d", 0o1711), ("/t/d",)),
    (("chown", "/t/d/f", BERT.uid, -1), ("/t/d", "/t/d/f")),
    (("chown", "/t/d/f", ANNA.uid, -1), ("/t/d/f",)),
    (("chown", "/t/d/f", -1, 500), ("/t/d/f",)),
    (("chown", "/t/d/f", -1, 600), ("/t/d/f",)),
    (("chown", "/t/d/e", -1, 500), ("/t/d/e",)),
    (("chown", "/t/d/s", -1, 500), ("/t/d",)),
    (("utime", "/t/d/f"), ("/t/d", "/t/d/f")),
    (("touch", "/t/d/f"), ("/t/d", "/t/d/f")),
    (("touch", "/t/d/e"), ("/t/d/e",)),
    (("set_xattr", "/t/d/f"), ("/t/d", "/t/d/f")),
    (("set_xattr", "/t/d/e"), ("/t/d/e",)),
    (("get_xattr", "/t/d/f"), ("/t/d", "/t/d/f")),
]
AS_WHOM = {"owner": (ANNA.uid, 600), "group": (NOBODY[0], 500), "other": NOBODY}
SHIFT = {"owner": 6, "group": 3, "other": 0}


LAID_OUT: list[tuple[Any, ...]] = [
    *(("mkdir", path, 0o777) for path in ("/t", "/t/d", "/t/o", "/t/d/e", "/t/o/e", "/t/o/full", "/t/o/full/x")),
    *(("write", path, 0o666) for path in ("/t/d/f", "/t/o/g")),
    ("symlink", "/t/d/s", "f"),
    ("symlink", "/t/s", "/t/d"),
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: "-".join(map(str, one[0])))
def test_one_bit_after_the_other(both: Callable[[], Both], operation: tuple[tuple[Any, ...], tuple[str, ...]]) -> None:
    """Each of the eight sets of bits, for the owner, the group and others, of each thing that an operation goes by."""
    step, subjects = operation
    results = set()
    cases = [(whom, allowed, 0, 0) for whom in AS_WHOM for allowed in range(8)]
    cases += [(whom, 7, special, 0) for whom in AS_WHOM for special in (0o1000, 0o2000, 0o4000)]
    cases += [(whom, 7, 0o2000, 0o010) for whom in AS_WHOM]  # setgid, where the group may not run it

    async def of_subject(subject: str) -> None:
        pair = None
        for whom, allowed, special, without in cases:
            if pair is None:  # what was refused has changed nothing, and what only looks neither
                pair = both()
                await pair.ns.make_root()
                await pair.run(ROOT, *LAID_OUT)
            mode = 0o777 & ~(7 << SHIFT[whom]) | allowed << SHIFT[whom] | special
            mode &= ~without
            await pair.run(ROOT, ("chown", subject, *AS_WHOM[whom]), ("chmod", subject, mode))
            (result,) = await pair.run(ANNA, step)
            results.add(repr(result))
            if result is None and step[0] not in ("read", "access"):
                await pair.same()
                pair = None
        if pair is not None:
            await pair.same()

    for subject in subjects:
        asyncio.run(of_subject(subject))
    assert len(results) > 1 or step[0] == "readlink"


# -- anything after anything

names = st.sampled_from("ab")
paths = st.lists(names, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
users = st.sampled_from((ANNA, ANNA, BERT, BERT, ROOT))
modes = st.builds(
    lambda most, some, special: (most | some) & 0o777 | special,
    st.sampled_from((0o700, 0o750, 0o070, 0o777, 0o000)),
    st.integers(0, 0o777),
    st.sampled_from((0, 0, 0, 0o1000, 0o2000, 0o3000, 0o4000)),
)
owners = st.sampled_from((-1, ANNA.uid, BERT.uid))
groups = st.sampled_from((-1, 500, ANNA.gid, BERT.gid))
steps = st.one_of(
    st.tuples(users, st.just("mkdir"), paths, modes.map(lambda mode: mode & 0o1777 or 0o700)),
    st.tuples(users, st.just("write"), paths, modes.map(lambda mode: mode or 0o600)),  # 0 is "as usual" in a request
    st.tuples(users, st.just("symlink"), paths, paths),
    st.tuples(users, st.just("link"), paths, paths),
    st.tuples(users, st.just("rename"), paths, paths),
    st.tuples(users, st.just("chmod"), paths, modes),
    st.tuples(st.sampled_from((ROOT, ROOT, ANNA, BERT)), st.just("chown"), paths, owners, groups),
    st.tuples(users, st.sampled_from(("unlink", "rmdir", "names", "stat", "read", "touch", "utime")), paths),
    st.tuples(users, st.just("access"), paths, st.integers(0, 7)),
)
BEGIN = [
    (ROOT, "mkdir", "/a", 0o1777),
    (ROOT, "mkdir", "/b", 0o777),
    (ROOT, "chmod", "/b", 0o2777),
    (ANNA, "mkdir", "/a/a", 0o755),
    (BERT, "mkdir", "/b/a", 0o775),
    (ANNA, "write", "/a/b", 0o664),
    (BERT, "write", "/b/b", 0o640),
]


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(script=st.lists(steps, min_size=8, max_size=25))
def test_anything_after_anything(both: Callable[[], Both], script: list[tuple[Any, ...]]) -> None:
    async def body() -> None:
        pair = both()
        await pair.ns.make_root()
        for user, *step in BEGIN + script:
            await pair.run(user, tuple(step))
        await pair.same()

    asyncio.run(body())
