"""A storage daemon in this process: real engines, write path, IO threads and sockets, and a real mgmtd over gRPC."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fs3 import checksum
from fs3.clock import deadline_after, lease_now_s
from fs3.kv.sqlite import SqliteKV
from fs3.mgmtd import server as mgmtd_server
from fs3.mgmtd.config import MgmtdConfig
from fs3.pb import storage_pb2
from fs3.storage import listeners
from fs3.storage.config import StorageConfig
from fs3.storage.connections import Patience
from fs3.storage.engine_api import Located
from fs3.storage.server import StorageServer
from fs3.transport.connection import Connection
from fs3.transport.frame_core import Flag, Header, Kind
from fs3.transport.messages import RANGE, RESULT, SUM, UPDATE, Op, Records, UpdateFlag

CHUNK_BYTES = 1 << 20
Range = tuple[int, int, int]  # chunk, offset, length

sys.path.insert(0, str(Path(__file__).parent))  # for `write_cluster`


@dataclass
class Answer:
    """One reply to a READ."""

    results: Records
    sums: NDArray[np.uint32]
    bodies: list[bytes]
    trailer: tuple[int, int]


@dataclass
class Daemon:
    """A running daemon; chunk `index` of file 1 lies on chain `index % chains`."""

    server: StorageServer
    seq: int = 0
    durable: bool = False  # what it writes; else freed blocks are long in coming back
    connections: list[Connection] = field(default_factory=list)

    @property
    def chains(self) -> list[tuple[int, int]]:
        """(chain, version), by id."""
        return sorted((role.chain_id, role.version) for role in self.server.writes.state.roles())

    def hello(self, **changed: Any) -> storage_pb2.Hello:
        said = {"protocol": 1, "cluster_id": self.server.credentials.cluster_id, "secret": "", "client_id": 5}
        return storage_pb2.Hello(**{**said, **changed})

    def connect(self, endpoint: str | None = None, **changed: Any) -> Connection:
        connection = Connection.open(endpoint or self.server.address, self.hello(**changed), timeout_s=10)
        self.connections.append(connection)
        return connection

    def ranges(self, asked: list[Range]) -> Records:
        out = np.zeros(len(asked), dtype=RANGE)
        for row, (index, offset, length) in enumerate(asked):
            out[row] = (1 << 56 | 1, index, offset, length, *self.chains[index % len(self.chains)])
        return out

    def updates(self, asked: list[tuple[int, Op, bytes]]) -> tuple[Records, list[NDArray[np.uint32]]]:
        out = np.zeros(len(asked), dtype=UPDATE)
        sums = [checksum.fine_sums(memoryview(data)) for _, _, data in asked]
        for row, (index, op, data) in enumerate(asked):
            self.seq += 1
            one = out[row]
            one["hi"], one["lo"], one["length"] = 1 << 56 | 1, index, len(data)
            one["chain"], one["chain_version"] = self.chains[index % len(self.chains)]
            one["client"], one["seq"], one["channel"] = 5, self.seq, self.seq
            one["n_sums"], one["op"], one["chunk_bytes"] = len(sums[row]), op, CHUNK_BYTES
            one["flags"] = UpdateFlag.NONE if self.durable else UpdateFlag.OS_DURABILITY
        return out, sums

    def write(self, connection: Connection, asked: list[tuple[int, Op, bytes]]) -> Records:
        updates, sums = self.updates(asked)
        connection.send(
            Kind.WRITE,
            [updates.tobytes(), *(one.tobytes() for one in sums)],
            [data for _, _, data in asked if data],
            count=len(asked),
            deadline_s=deadline_after(30),
        )
        _, head = connection.receive_head()
        return np.frombuffer(head, dtype=RESULT, count=len(asked)).copy()

    def put(self, connection: Connection, chunks: dict[int, bytes]) -> None:
        results = self.write(connection, [(index, Op.REPLACE, data) for index, data in chunks.items()])
        assert not results["status"].any(), results

    def ask(self, connection: Connection, asked: list[Range], *, flags: int = Flag.CHECKSUM) -> int:
        ranges = self.ranges(asked)
        return connection.send(
            Kind.READ, [ranges.tobytes()], count=len(ranges), flags=flags, deadline_s=deadline_after(30)
        )

    def take(self, connection: Connection) -> tuple[Header, Answer]:
        header, head = connection.receive_head()
        results = np.frombuffer(head, dtype=RESULT, count=header.count).copy()
        sums = np.frombuffer(head, dtype=SUM, offset=results.nbytes).copy()
        body = memoryview(bytearray(header.body_bytes))
        connection.receive_body([body])
        ends = np.cumsum(results["length"].astype(np.int64)).tolist()
        bodies = [bytes(body[end - int(size) : end]) for end, size in zip(ends, results["length"], strict=True)]
        return header, Answer(results, sums, bodies, connection.receive_trailer())

    def read(self, connection: Connection, asked: list[Range], *, flags: int = Flag.CHECKSUM) -> Answer:
        self.ask(connection, asked, flags=flags)
        return self.take(connection)[1]

    def located(self, index: int) -> tuple[Any, Located]:
        """The engine that has a chunk, and where."""
        chain, version = self.chains[index % len(self.chains)]
        target = self.server.writes.serving(chain, version)
        one = np.array([index], dtype=np.uint64)
        hi = np.array([1 << 56 | 1], dtype=np.uint64)
        engine = self.server.writes.state.engine(target)
        return engine, engine.lookup(np.array([target], dtype=np.uint32), hi, one)

    def kept(self) -> int:
        """Holds and pins of all engines."""
        return sum(stats.holds + stats.pins for stats in (engine.stats() for engine in self.server.engines))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what other threads are about to do."""
        wait_until(condition, what)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    tick = threading.Event()
    deadline_s = lease_now_s() + 20
    while not condition():
        assert lease_now_s() < deadline_s, f"waited in vain until {what}"
        tick.wait(0.005)


class Running:
    """The daemon's event loop, on a thread."""

    def __init__(self, folder: Path, *, patience: Patience | None = None, disks: int = 2, **changed: Any) -> None:
        self._folder = folder
        self._patience = patience
        self._disks = disks
        self._changed = changed
        self._begun = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Daemon:
        self._thread.start()
        assert self._begun.wait(30)
        if self._error is not None:
            raise self._error
        self.daemon = Daemon(self.server)
        wait_until(self._serves, "the chains serve")
        return self.daemon

    def __exit__(self, *exc: object) -> None:
        for connection in self.daemon.connections:
            connection.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _serves(self) -> bool:
        roles = self.server.writes.state.roles()
        states = [
            self.server.writes.state.reads.target[role.chain_id] != 0
            for role in roles
            if role.chain_id < len(self.server.writes.state.reads.target)
        ]
        return bool(states) and all(states)

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        (self._folder / "mgmtd").mkdir(parents=True, exist_ok=True)
        kv = SqliteKV(self._folder / "mgmtd" / "mgmtd.sqlite")
        secret = self._changed.get("secret", "")
        wanted = MgmtdConfig(node_id=99, data_dir=self._folder / "mgmtd", listen_port=0, secret=secret)
        try:
            async with mgmtd_server.serve(wanted, kv) as mgmtd:
                config = StorageConfig(
                    **{
                        "node_id": 1,
                        "mgmtd": (mgmtd.address,),
                        "disks": tuple(self._folder / f"disk{number}" for number in range(self._disks)),
                        **self._changed,
                    }
                )
                self.server = StorageServer(
                    config, mgmtd.credentials.cluster_id, listeners.bind(config), patience=self._patience
                )
                self._begun.set()
                await self.server.serve(self._stop)
        except BaseException as error:
            self._error = error
            self._begun.set()
            raise
        finally:
            await kv.close()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the tests of a module; they use chunks of their own."""
    folder = tmp_path_factory.mktemp("daemon")
    with Running(folder, unix_dir=folder) as running:
        yield running


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Running]:
    """A daemon of a test's own: `with start(max_connections=2) as daemon`; the same folder again is a restart."""
    return lambda **changed: Running(tmp_path, **changed)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes clusters of write_cluster.py, which end with the test."""
    import write_cluster as wc

    made: list[wc.Cluster] = []

    def cluster(**options: int) -> wc.Cluster:
        made.append(wc.Cluster(tmp_path / str(len(made)), **options))
        return made[-1]

    yield cluster
    for one in made:
        one.close()
