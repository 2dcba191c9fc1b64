"""Clients that work on names: each worker has a directory to itself and knows exactly what must be in it.

A call that fails with an outcome that is not known (its deadline, or its client's death) may still take effect later;
its worker leaves the directory alone from then on and begins another. Every answer is compared with the model, also the
refusals: a change that is repeated under its request id must never find itself in the way.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from sim_cluster import Cluster, SimClient
from sim_kernel import Simulation, Violation

from fs3.client.meta import InodeType, Publish
from fs3.errors import Busy, Conflict, Exists, Fs3Error, MaybeApplied, NotFound, Unavailable
from fs3.meta.fsck import fsck

_UNKNOWN = (MaybeApplied, Unavailable, Busy, Conflict)
_DIRECTORY = -1


@dataclass(slots=True)
class Directory:
    """A directory and what must be in it: name -> length, or -1 for a directory. `sure`: nothing is on its way."""

    path: str
    names: dict[str, int] = field(default_factory=dict)
    sure: bool = True


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
                self._compare(client, directory)

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
            [self._create, self._create, self._mkdir, self._rename, self._rename, self._remove, self._look]
        )
        act(client, directory, draw)

    def _create(self, client: SimClient, directory: Directory, draw: random.Random) -> None:
        meta, name, length = client.meta, _name(draw), draw.randrange(10_000)
        assert meta is not None
        path, replace = f"{directory.path}/{name}", draw.random() < 0.5
        there = directory.names.get(name)
        free = there is None or (there != _DIRECTORY and replace)
        begun_s = self.sim.now
        try:
            (made,) = meta.create_files([path])
            meta.publish_files([Publish(made.inode_id, path, length, replace)])
        except _UNKNOWN:
            raise
        except Fs3Error as error:
            # Nobody renews the session here, and it may be over when an answer comes at last.
            late = isinstance(error, NotFound) and self.sim.now - begun_s > 0.99 * self.cluster.shape.write_session_s
            if free and not late:
                raise Violation(f"publishing {path} over {there}, replace {replace}: {error!r}") from error
            return  # what was made and not published is the collector's
        if not free:
            raise Violation(f"{path} was published over {there}, replace {replace}")
        directory.names[name] = length

    def _mkdir(self, client: SimClient, directory: Directory, draw: random.Random) -> None:
        name = _name(draw)
        assert client.meta is not None
        try:
            client.meta.mkdir(f"{directory.path}/{name}")
        except Exists as error:
            if name not in directory.names:
                raise Violation(f"{directory.path}/{name} exists, and was never made") from error
            return
        if name in directory.names:
            raise Violation(f"{directory.path}/{name} was made twice")
        directory.names[name] = _DIRECTORY

    def _rename(self, client: SimClient, directory: Directory, draw: random.Random) -> None:
        source, target = _name(draw), _name(draw)
        names = directory.names
        assert client.meta is not None
        if source == target or _DIRECTORY in (names.get(source), names.get(target)):
            return
        try:
            client.meta.rename(f"{directory.path}/{source}", f"{directory.path}/{target}")
        except NotFound as error:
            if source in names:
                raise Violation(f"{directory.path}/{source} is gone, and nobody has taken it") from error
            return
        if source not in names:
            raise Violation(f"{directory.path}/{source} was renamed, and did not exist")
        names[target] = names.pop(source)

    def _remove(self, client: SimClient, directory: Directory, draw: random.Random) -> None:
        name = _name(draw)
        assert client.meta is not None
        try:
            client.meta.remove(f"{directory.path}/{name}", recursive=True)
        except NotFound as error:
            if name in directory.names:
                raise Violation(f"{directory.path}/{name} is gone, and nobody has removed it") from error
            return
        if name not in directory.names:
            raise Violation(f"{directory.path}/{name} was removed, and did not exist")
        del directory.names[name]

    def _look(self, client: SimClient, directory: Directory, draw: random.Random) -> None:
        self._compare(client, directory)

    def _compare(self, client: SimClient, directory: Directory) -> None:
        assert client.meta is not None
        found = {
            entry.name: _DIRECTORY if entry.inode.type is InodeType.DIRECTORY else entry.inode.length
            for page in client.meta.list(directory.path)
            for entry in page
        }
        if found != directory.names:
            raise Violation(f"{directory.path} has {found}, not {directory.names}")


def _name(draw: random.Random) -> str:
    return draw.choice("abcdef")
