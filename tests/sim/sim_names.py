"""Clients that work on names: each worker has a directory to itself and knows exactly what must be in it.

A call that fails with an outcome that is not known (its deadline, or its client's death) may still take effect later;
its worker leaves the directory alone from then on and begins another. Every answer is compared with the model, also the
refusals: a change that is repeated under its request id must never find itself in the way.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from sim_cluster import Cluster, SimClient
from sim_kernel import Simulation, Violation

from fs3.client.meta import InodeType, MetaClient, Publish, Sync, Written
from fs3.errors import Busy, Conflict, Exists, Fs3Error, MaybeApplied, NotFound, QuotaExceeded, Unavailable
from fs3.inode import Inode
from fs3.kv import keys
from fs3.meta import quota
from fs3.meta.fsck import fsck

_UNKNOWN = (MaybeApplied, Unavailable, Busy, Conflict)


@dataclass(slots=True, eq=False)
class Thing:
    """What one or more names of a directory stand for; `length` of a file, `target` of a symlink."""

    kind: InodeType
    length: int = 0
    target: str = ""
    mode: int = 0o644


@dataclass(slots=True)
class Directory:
    """A directory and what must be in it. `sure`: nothing is on its way."""

    path: str
    names: dict[str, Thing] = field(default_factory=dict)
    sure: bool = True
    limit: int = 0  # how many inodes its quota allows
    counted: bool = False  # all of them, from the beginning, not in the background

    def check_room(self, more: bool) -> None:
        """After a refusal for want of room (not `more`), or after one more inode has been made. Raises: Violation."""
        there = len(set(map(id, self.names.values())))
        if not more and not (self.limit and there >= self.limit):
            raise Violation(f"{self.path} has {there} of {self.limit} inodes, and is full")
        if more and self.limit and self.counted and there >= self.limit:
            raise Violation(f"{self.path} had {there} of {self.limit} inodes, and got one more")

    def expected(self) -> dict[str, tuple[object, ...]]:
        """What a listing must say."""
        things = list(self.names.values())
        return {
            name: (thing.kind, thing.length, thing.target, thing.mode, things.count(thing))
            for name, thing in self.names.items()
        }


@dataclass(slots=True)
class Names:
    """`operations` in all, by one worker on each client."""

    sim: Simulation
    cluster: Cluster
    operations: int
    pause_s: float
    directories: list[Directory] = field(default_factory=list)
    done_operations: int = 0
    unknown: int = 0
    _left: dict[int, int] = field(default_factory=dict)
    _busy: dict[int, None] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return not any(self._left.values()) and not self._busy

    def start(self) -> None:
        clients = self.cluster.clients
        for number, client in enumerate(clients):
            self._left[number] = self.operations // len(clients)
            self._begin(number, client)

    def restarted(self, number: int) -> None:
        """The client was killed and started again."""
        for directory in self.directories:
            if directory.path.startswith(f"/{number}-"):
                directory.sure = False
        self._begin(number, self.cluster.clients[number])

    def check(self, client: SimClient) -> None:
        """Once all is quiet: every directory that is surely known has exactly what it must; from a client's thread."""
        while client.meta is None:
            client.runtime.sleep(0.05)
        for directory in self.directories:
            if directory.sure:
                self._compare(client.meta, directory)

    def collected(self) -> bool:
        """Whether no dead file waits for the removal of its chunks, which would be a write like any other, and no quota
        is being counted."""
        dead, quotas = self._records(keys.GC_QUEUE), self._records(keys.QUOTA)
        return not dead and not any(quota.decode(value).counting for _, value in quotas)

    def _records(self, kind: bytes) -> list[tuple[bytes, bytes]]:
        reading = self.cluster.names.kv.begin().range(*keys.whole(kind), limit=1_000, snapshot=True)
        try:
            reading.send(None)  # it waits for nobody
        except StopIteration as read:
            found: list[tuple[bytes, bytes]] = read.value
            return found
        raise AssertionError("the store in memory waits")

    def at_rest(self) -> None:
        """That every record of the metas' store hangs together. Raises: Violation."""
        reading = fsck(self.cluster.names.kv)
        try:
            while True:
                reading.send(None)  # it waits for nobody
        except StopIteration as read:
            found = read.value.findings()
        if found:
            raise Violation("the metadata does not hang together: " + "; ".join(map(str, found[:5])))

    def _begin(self, number: int, client: SimClient) -> None:
        self._busy[number] = None
        draw = self.sim.stream(f"names/{number}/{client.incarnation}")
        client.spawn(lambda: self._work(number, client, draw), name=f"names-{number}")

    def _work(self, number: int, client: SimClient, draw: random.Random) -> None:
        while client.meta is None:
            client.runtime.sleep(0.05)
        directory: Directory | None = None
        while self._left[number] > 0:
            client.runtime.sleep(draw.expovariate(1 / self.pause_s))
            self._left[number] -= 1
            try:
                if directory is None:
                    directory = Directory(f"/{number}-{len(self.directories)}", sure=False)
                    self.directories.append(directory)
                    client.meta.mkdir(directory.path)
                    directory.sure = True
                directory.sure = False  # until there is an answer
                self._act(client, directory, draw)
                directory.sure = True
                self.done_operations += 1
            except _UNKNOWN:
                self.unknown += 1
                directory = None
        self._busy.pop(number, None)

    def _act(self, client: SimClient, directory: Directory, draw: random.Random) -> None:
        act = draw.choice(
            [
                self._create,
                self._create,
                self._mkdir,
                self._rename,
                self._rename,
                self._remove,
                self._link,
                self._symlink,
                self._chmod,
                self._update,
                self._limit,
                self._look,
            ]
        )
        assert client.meta is not None
        act(client.meta, directory, draw)

    def _create(self, meta: MetaClient, directory: Directory, draw: random.Random) -> None:
        name, length = _name(draw), draw.randrange(10_000)
        path, replace = f"{directory.path}/{name}", draw.random() < 0.5
        there = directory.names.get(name)
        leads = None if there is None or there.kind is not InodeType.SYMLINK else there.target
        free = there is None or (there.kind is InodeType.FILE and replace)
        if leads is not None:  # it is followed: `path` is another name for what is, or is not yet, at its end
            return
        begun_s = self.sim.now
        more = there is None or list(directory.names.values()).count(there) > 1  # else it takes the place of another
        try:
            (made,) = meta.create_files([path])
            meta.publish_files([Publish(made.inode_id, path, length, replace)])
        except _UNKNOWN:
            raise
        except QuotaExceeded:
            directory.check_room(more=not more)
            return
        except Fs3Error as error:
            if free and not self._late(error, begun_s):
                raise Violation(f"publishing {path} over {there}, replace {replace}: {error!r}") from error
            return  # what was made and not published is the collector's
        if not free:
            raise Violation(f"{path} was published over {there}, replace {replace}")
        if more:
            directory.check_room(more=True)
        directory.names[name] = Thing(InodeType.FILE, length)

    def _mkdir(self, meta: MetaClient, directory: Directory, draw: random.Random) -> None:
        name = _name(draw)
        if self._made(directory, name, lambda path: meta.mkdir(path)):
            directory.names[name] = Thing(InodeType.DIRECTORY, mode=0o755)

    def _symlink(self, meta: MetaClient, directory: Directory, draw: random.Random) -> None:
        name, target = _name(draw), f"../nowhere/{_name(draw)}"
        if self._made(directory, name, lambda path: meta.symlink(path, target)):
            directory.names[name] = Thing(InodeType.SYMLINK, len(target), target, 0o777)

    def _link(self, meta: MetaClient, directory: Directory, draw: random.Random) -> None:
        source, name = _name(draw), _name(draw)
        thing = directory.names.get(source)
        if thing is None or thing.kind is InodeType.DIRECTORY:
            return
        if self._made(directory, name, lambda path: meta.link(f"{directory.path}/{source}", path), more=False):
            directory.names[name] = thing

    def _made(self, directory: Directory, name: str, make: Callable[[str], object], *, more: bool = True) -> bool:
        """Make something at a name that must be free, and is an inode `more`; whether it was, and there was room."""
        path = f"{directory.path}/{name}"
        try:
            make(path)
        except Exists as error:
            if name not in directory.names:
                raise Violation(f"{path} exists, and was never made") from error
            return False
        except QuotaExceeded:
            directory.check_room(more=not more)
            return False
        if name in directory.names:
            raise Violation(f"{path} was made twice")
        if more:
            directory.check_room(more=True)
        return True

    def _rename(self, meta: MetaClient, directory: Directory, draw: random.Random) -> None:
        source, target = _name(draw), _name(draw)
        names = directory.names
        both = [names[name] for name in (source, target) if name in names]
        if source == target or any(thing.kind is InodeType.DIRECTORY for thing in both):
            return
        try:
            meta.rename(f"{directory.path}/{source}", f"{directory.path}/{target}")
        except NotFound as error:
            if source in names:
                raise Violation(f"{directory.path}/{source} is gone, and nobody has taken it") from error
            return
        if source not in names:
            raise Violation(f"{directory.path}/{source} was renamed, and did not exist")
        if names[source] is not names.get(target):  # two names of one file both stay
            names[target] = names.pop(source)

    def _remove(self, meta: MetaClient, directory: Directory, draw: random.Random) -> None:
        name = _name(draw)
        try:
            meta.remove(f"{directory.path}/{name}", recursive=True)
        except NotFound as error:
            if name in directory.names:
                raise Violation(f"{directory.path}/{name} is gone, and nobody has removed it") from error
            return
        if name not in directory.names:
            raise Violation(f"{directory.path}/{name} was removed, and did not exist")
        del directory.names[name]

    def _chmod(self, meta: MetaClient, directory: Directory, draw: random.Random) -> None:
        name, mode = _name(draw), draw.randrange(0o1000)
        thing = directory.names.get(name)
        if thing is None or thing.kind is InodeType.SYMLINK:
            return
        meta.set_attributes(f"{directory.path}/{name}", mode=mode)
        thing.mode = mode

    def _limit(self, meta: MetaClient, directory: Directory, draw: random.Random) -> None:
        most = draw.choice([0, 2, 3, 4, 100])
        if most or directory.limit:
            meta.set_quota(directory.path, max_inodes=most)
            directory.counted = directory.counted if directory.limit else not directory.names
            directory.limit = most

    def _update(self, meta: MetaClient, directory: Directory, draw: random.Random) -> None:
        """A file written in place, without its bytes: what meta is told of its length, and its name that may go."""
        name = _name(draw)
        path, thing = f"{directory.path}/{name}", directory.names.get(name)
        if thing is None or thing.kind is not InodeType.FILE:
            return
        begun_s, epoch, length = self.sim.now, 0, thing.length
        ((opened,), _) = meta.open_for_writing([path])
        if opened.length != thing.length:
            raise Violation(f"{path} has {opened.length} bytes when it is opened, not {thing.length}")
        for _ in range(draw.randrange(4)):
            what, wanted = draw.choice(["sync", "hint", "remove"]), draw.randrange(1, 10_000)
            if what == "hint":
                length = max(length, wanted)
                lost = meta.renew({opened.inode_id: Written(length, epoch)})
            elif what == "sync":
                epoch += wanted < length
                length = wanted
                lost = self._synced(meta, Sync(opened.inode_id, length, True, epoch=epoch))
            elif name in directory.names:
                meta.remove(path)
                del directory.names[name]
                lost = []
            if lost:
                if self.sim.now - begun_s > 0.99 * self.cluster.shape.write_session_s:
                    raise MaybeApplied(f"{path}: its session ran out, and its length is as it was told last")
                raise Violation(f"the session of {path} was lost after {self.sim.now - begun_s} s")
        thing.length = length
        if self._synced(meta, Sync(opened.inode_id, length, True, close=True, epoch=epoch)):
            raise MaybeApplied(f"{path}: its session ran out before it was closed")

    def _synced(self, meta: MetaClient, sync: Sync) -> list[int]:
        """The file, if its session is over."""
        try:
            meta.sync_files([sync])
        except NotFound:
            return [sync.inode_id]
        return []

    def _late(self, error: Fs3Error, begun_s: float) -> bool:
        """Nobody renews the session here, and it may be over when an answer comes at last."""
        return isinstance(error, NotFound) and self.sim.now - begun_s > 0.99 * self.cluster.shape.write_session_s

    def _look(self, meta: MetaClient, directory: Directory, draw: random.Random) -> None:
        self._compare(meta, directory)

    def _compare(self, meta: MetaClient, directory: Directory) -> None:
        found = {entry.name: _told(entry.inode) for page in meta.list(directory.path) for entry in page}
        if found != directory.expected():
            raise Violation(f"{directory.path} has {found}, not {directory.expected()}")


def _told(inode: Inode) -> tuple[object, ...]:
    names = 1 if inode.is_directory else inode.nlink
    return inode.type, 0 if inode.is_directory else inode.length, inode.symlink, inode.mode, names


def _name(draw: random.Random) -> str:
    return draw.choice("abcdef")
