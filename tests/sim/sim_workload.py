"""What the clients of a simulated cluster do: all kinds of chunk operations on few chunks, from the seed, recorded.

Each client runs a few workers, threads of its process that call the production `StorageClient` one operation or batch
after another. Which kinds of operations there are, how often, how long the chunks and the deadlines are, how many
chunks are hot, all that is drawn anew for each seed, so that seeds differ in kind and not only in detail. A client
that is killed takes its calls with it, their outcome is unknown; once it is started again, its workers go on.

Chunks are synced or, a few, left to the page cache (`durable=False`). For synced ones everything is checked. For the
others a power loss of a node, and nothing else, may undo the latest changes, as their contract says: `power_lost`
records a LOSS for them, after which the chunk may once be what it was at any earlier time, but nothing else: no
mixture, no bytes of another chunk. They are only written whole.

Of chunks of which a client does not know what became of a change, some are never changed again: what the daemons left
unfinished there they have to finish by themselves.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from sim_history import Chunk, History, Kind, Operation, Outcome, content
from sim_kernel import Simulation, Violation

from fs3 import errors
from fs3.client.storage import RANGE, ChunkUpdate, Op, Records
from fs3.errors import Fs3Error, MaybeApplied
from fs3.ids import file_chunk, kv_page_chunk

BLOCK = 4_096
FIRST_FILE = 1 << 40  # no inode that the metas give out: their collector removes what it believes to be its files'
_OPS = {
    Kind.WRITE: Op.WRITE,
    Kind.REPLACE: Op.REPLACE,
    Kind.PUT_IF_ABSENT: Op.PUT_IF_ABSENT,
    Kind.TRUNCATE: Op.TRUNCATE,
    Kind.REMOVE: Op.REMOVE,
}
_WHOLE = (Kind.REPLACE, Kind.PUT_IF_ABSENT, Kind.REMOVE)
# What a caller must expect when faults are about; anything else is a mistake somewhere.
EXPECTED = (
    errors.Unavailable,
    errors.Busy,
    errors.NoSpace,
    errors.Corrupt,
    errors.Conflict,
    errors.StaleRouting,
    errors.MaybeApplied,
)


class Storage(Protocol):
    """What is used of `StorageClient`."""

    def try_write(
        self, updates: Sequence[ChunkUpdate], *, deadline_s: float | None = None
    ) -> tuple[Records, list[Exception | None]]: ...
    def read(self, ranges: Any, out: memoryview, out_offsets: Any, *, deadline_s: float | None = None) -> Records: ...
    def query(self, hi: Any, lo: Any, chain: Any, *, deadline_s: float | None = None) -> Records: ...


class Client(Protocol):
    """What is used of a simulated client; see README.md."""

    process: Any
    storage: Any
    runtime: Any
    alive: bool

    def spawn(self, body: Any, *, name: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class Place:
    """A chunk that is worked on."""

    chunk: Chunk
    chain: int
    chunk_bytes: int
    durable: bool
    weight: float


@dataclass(slots=True, eq=False)
class Worker:
    """One thread's share of the work; `left` operations are still to be begun."""

    client: int
    number: int
    draw: random.Random
    left: int
    finished: bool = False

    @property
    def name(self) -> str:
        return f"client-{self.client + 1}/{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What a seed's workload is like. `kinds` are weights."""

    operations: int
    kinds: dict[Kind, float]
    batch: float  # how likely an operation is one of a batch
    pause_s: float  # between operations, on average
    deadlines_s: tuple[float, ...]
    hot: int
    cold: int
    os_share: float
    workers: int

    @staticmethod
    def drawn(draw: random.Random, *, operations: int = 220) -> Mix:
        kinds = {
            Kind.WRITE: 3.0,
            Kind.REPLACE: 2.0,
            Kind.PUT_IF_ABSENT: 1.0,
            Kind.TRUNCATE: 0.7,
            Kind.REMOVE: 1.2,
            Kind.READ: 4.0,
            Kind.QUERY: 0.5,
        }
        # Some kinds are left out, others are made frequent: rare paths need a seed that has little else.
        weights = {kind: usual * draw.choice([0.0, 0.5, 1.0, 1.0, 1.0, 3.0]) for kind, usual in kinds.items()}
        weights[Kind.READ] = max(weights[Kind.READ], 1.5)
        weights[draw.choice([Kind.WRITE, Kind.REPLACE])] += 1.0
        return Mix(
            operations=operations,
            kinds=weights,
            batch=draw.choice([0.0, 0.1, 0.3, 0.6]),
            pause_s=draw.choice([0.05, 0.2, 0.4, 0.6]),
            deadlines_s=draw.choice([(30.0,), (0.3, 2.0, 30.0), (2.0, 5.0), (5.0, 30.0)]),
            hot=draw.randint(2, 4),
            cold=draw.randint(0, 8),
            os_share=draw.choice([0.0, 0.0, 0.2, 0.5, 1.0]),
            workers=draw.randint(1, 3),
        )


@dataclass(slots=True)
class Workload:
    """All clients' work on chunks of `chains`."""

    sim: Simulation
    clients: Sequence[Client]
    chains: Sequence[int]
    mix: Mix
    history: History = field(default_factory=History)
    places: list[Place] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    lossy_chains: set[int] = field(default_factory=set)  # on which a LOSS was recorded
    left_alone: set[Chunk] = field(default_factory=set)  # and not changed any more
    done: bool = False  # every worker has ended

    def __post_init__(self) -> None:
        draw = self.sim.stream("workload")
        for at in range(self.mix.hot + self.mix.cold):
            durable = draw.random() >= self.mix.os_share
            is_page = draw.random() < 0.2
            chunk = kv_page_chunk(draw.randbytes(16)) if is_page else file_chunk(FIRST_FILE + at // 3, at)
            chunk_bytes = draw.choice([BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK, 4 * BLOCK, 10_000, 66_000, 66_000])
            weight = 4.0 if at < self.mix.hot else 1.0
            self.places.append(Place(chunk, draw.choice(self.chains), chunk_bytes, durable, weight))
        workers = len(self.clients) * self.mix.workers
        for number in range(workers):
            share = self.mix.operations // workers + (number < self.mix.operations % workers)
            stream = self.sim.stream(f"worker/{number}")
            self.workers.append(Worker(number % len(self.clients), number // len(self.clients), stream, share))

    def start(self) -> None:
        """Begin, on all clients."""
        for number in range(len(self.clients)):
            self.restarted(number)

    def restarted(self, number: int) -> None:
        """A client has just been started: its workers begin, or go on."""
        for worker in self.workers:
            if worker.client != number:
                continue
            if not worker.left:
                self._finish(worker)  # its last operation ended with its client
            else:
                self.clients[number].spawn(lambda worker=worker: self._work(worker), name=worker.name)

    def _finish(self, worker: Worker) -> None:
        worker.finished = True
        self.done = all(one.finished for one in self.workers)

    def power_lost(self, chains: Sequence[int]) -> None:
        """A node that has replicas of these chains lost what it had not synced."""
        for place in self.places:
            if not place.durable and place.chain in chains:
                self.lossy_chains.add(place.chain)
                self.history.begin("power loss", place.chunk, Kind.LOSS, chain=place.chain)

    def loss_accepted(self, chain: int) -> None:
        """An operator made an older replica of this chain the one that counts."""
        for place in self.places:
            if place.chain == chain:
                self.lossy_chains.add(chain)
                self.history.begin("operator", place.chunk, Kind.LOSS, chain=chain)

    def read_all(self, number: int, *, within_s: float = 60.0) -> None:
        """Read every chunk whole once more, by one client; in a thread of its process. Raises: Violation."""
        client = self.clients[number]
        while client.storage is None:
            client.runtime.sleep(0.05)
        for place in self.places:
            error = self._read(client, [(place, 0, place.chunk_bytes)], within_s, f"client-{number + 1}/last")
            # What was not synced may have lost its bytes, and not its record, with the power of all its replicas.
            if error is not None and not (isinstance(error, errors.Corrupt) and not place.durable):
                raise Violation(f"{place.chunk} cannot be read though all is well again: {error!r}")

    def write_all(self, number: int, *, within_s: float = 60.0) -> None:
        """Replace every chunk that is not left alone, by one client; in a thread of its process. Raises: Violation."""
        client, last = self.clients[number], Worker(number, len(self.workers), self.sim.stream("last"), 0)
        wanted = [(place, Kind.REPLACE) for place in self.places if place.chunk not in self.left_alone]
        operations = self._write(client, last, wanted, within_s) if wanted else []
        for operation in operations:
            if operation.outcome is not Outcome.OK:
                raise Violation(f"{operation.chunk} takes no change though all is well again: {operation}")

    # One worker

    def _work(self, worker: Worker) -> None:
        client, draw = self.clients[worker.client], worker.draw
        while client.storage is None:
            client.runtime.sleep(0.05)
        while worker.left > 0:
            if self.mix.pause_s:
                client.runtime.sleep(draw.expovariate(1 / self.mix.pause_s))
            count = 1
            if draw.random() < self.mix.batch:
                count = min(draw.randint(2, 6), worker.left, len(self.places))
            self._act(client, worker, count)
        self._finish(worker)

    def _act(self, client: Client, worker: Worker, count: int) -> None:
        draw, mix = worker.draw, self.mix
        kind = draw.choices(list(mix.kinds), list(mix.kinds.values()))[0]
        within_s = draw.choice(mix.deadlines_s)
        places = self._places(draw, count)
        if kind not in (Kind.READ, Kind.QUERY):
            changed = [place for place in places if place.chunk not in self.left_alone]
            kind, places = (kind, changed) if changed else (Kind.READ, places)
        worker.left -= len(places)
        if kind is Kind.READ:
            self._read(client, [(place, *_range(draw, place)) for place in places], within_s, worker.name)
        elif kind is Kind.QUERY:
            self._query(client, places, within_s, worker.name)
        else:
            kinds = [kind if at == 0 else draw.choice(list(_OPS)) for at in range(len(places))]
            self._write(client, worker, list(zip(places, kinds, strict=True)), within_s)

    def _places(self, draw: random.Random, count: int) -> list[Place]:
        weights = [place.weight for place in self.places]
        chosen: dict[Chunk, Place] = {}
        while len(chosen) < count:
            place = draw.choices(self.places, weights)[0]
            chosen[place.chunk] = place
        return list(chosen.values())

    def _write(
        self, client: Client, worker: Worker, wanted: list[tuple[Place, Kind]], within_s: float
    ) -> list[Operation]:
        operations: list[Operation] = []
        updates: list[ChunkUpdate] = []
        for place, kind in wanted:
            if not place.durable and kind not in _WHOLE:
                kind = Kind.REPLACE
            operation, update = self._update(worker, place, kind)
            operations.append(operation)
            updates.append(update)
        try:
            results, failures = client.storage.try_write(updates, deadline_s=client.runtime.now_s() + within_s)
        except Fs3Error as error:  # nothing of it was sent
            for operation in operations:
                self._failed(operation, error)
            return operations
        for row, (operation, failure) in enumerate(zip(operations, failures, strict=True)):
            if failure is not None:
                self._failed(operation, failure)
            else:
                operation.version, operation.chunk_length = (
                    int(results["version"][row]),
                    int(results["chunk_length"][row]),
                )
                self._ended(operation, Outcome.OK)
        return operations

    def _update(self, worker: Worker, place: Place, kind: Kind) -> tuple[Operation, ChunkUpdate]:
        draw = worker.draw
        offset = length = 0
        if kind is Kind.TRUNCATE:
            offset = _length(draw, place.chunk_bytes)
        elif kind is Kind.WRITE:
            offset, length = _range(draw, place)
        elif kind is not Kind.REMOVE:
            length = _length(draw, place.chunk_bytes)
        data = content(len(self.history.operations) + 1, offset, length)
        operation = self._begun(worker.name, place, kind, offset=offset, length=length, data=data)
        return operation, ChunkUpdate(
            hi=place.chunk[0],
            lo=place.chunk[1],
            chain=place.chain,
            op=_OPS[kind],
            offset=offset,
            data=operation.data,
            chunk_bytes=place.chunk_bytes,
            durable=place.durable,
        )

    def _read(
        self, client: Client, wanted: list[tuple[Place, int, int]], within_s: float, name: str
    ) -> Fs3Error | None:
        ranges = np.zeros(len(wanted), dtype=RANGE)
        at = np.zeros(len(wanted), dtype=np.int64)
        operations, end = [], 0
        for row, (place, offset, length) in enumerate(wanted):
            ranges[row] = (*place.chunk, offset, length, place.chain, 0)
            at[row] = end
            end += length
            operations.append(self._begun(name, place, Kind.READ, offset=offset, length=length))
        out = bytearray(end)
        try:
            results = client.storage.read(ranges, memoryview(out), at, deadline_s=client.runtime.now_s() + within_s)
        except Fs3Error as error:
            for operation in operations:
                self._failed(operation, error)
            return error
        for row, operation in enumerate(operations):
            self._seen(operation, results[row])
            begin = int(at[row])
            operation.seen = bytes(out[begin : begin + int(results["length"][row])]) if operation.found else b""
            self._ended(operation, Outcome.OK)
        return None

    def _query(self, client: Client, places: list[Place], within_s: float, name: str) -> None:
        operations = [self._begun(name, place, Kind.QUERY) for place in places]
        hi = np.array([place.chunk[0] for place in places], dtype=np.uint64)
        lo = np.array([place.chunk[1] for place in places], dtype=np.uint64)
        chain = np.array([place.chain for place in places], dtype=np.uint32)
        try:
            results = client.storage.query(hi, lo, chain, deadline_s=client.runtime.now_s() + within_s)
        except Fs3Error as error:
            for operation in operations:
                self._failed(operation, error)
            return
        for row, operation in enumerate(operations):
            self._seen(operation, results[row])
            self._ended(operation, Outcome.OK)

    # The record

    def _begun(self, name: str, place: Place, kind: Kind, **what: Any) -> Operation:
        operation = self.history.begin(
            name, place.chunk, kind, chain=place.chain, durable=place.durable, invoked_s=self.sim.now, **what
        )
        self.sim.emit("operation", None, operation=operation)
        return operation

    def _seen(self, operation: Operation, result: Any) -> None:
        status = int(result["status"])
        if status not in (errors.OK, errors.NotFound.code):
            raise Violation(f"{operation} returned with status {status} in its result")
        operation.found = status == errors.OK
        operation.version, operation.chunk_length = int(result["version"]), int(result["chunk_length"])

    def _failed(self, operation: Operation, error: Exception) -> None:
        if not isinstance(error, EXPECTED):
            raise Violation(f"{operation} failed with {type(error).__name__}: {error}") from error
        unknown = isinstance(error, MaybeApplied)
        if unknown and len(self.left_alone) < len(self.places) // 2:
            self.left_alone.add(operation.chunk)
        self._ended(operation, Outcome.UNKNOWN if unknown else Outcome.FAILED, f"{type(error).__name__}: {error}")

    def _ended(self, operation: Operation, outcome: Outcome, error: str = "") -> None:
        operation.returned_s = self.sim.now
        self.history.end(operation, outcome, error)
        self.sim.emit("operation", None, operation=operation)


def _length(draw: random.Random, most: int) -> int:
    """A length of 1 to `most`; whole blocks, and one more or less, are likely."""
    style = draw.random()
    if style < 0.35:
        return most
    if style < 0.6:
        return BLOCK * draw.randint(1, max(most // BLOCK, 1)) if most >= BLOCK else most
    if style < 0.8:
        return min(max(BLOCK * draw.randint(0, most // BLOCK) + draw.choice([-1, 1]), 1), most)
    return draw.randint(1, most)


def _range(draw: random.Random, place: Place) -> tuple[int, int]:
    """(offset, length) of a part of a chunk, or of all of it."""
    most = place.chunk_bytes
    style = draw.random()
    if style < 0.3:
        return 0, most
    offset = draw.randrange(most) if style < 0.6 else BLOCK * draw.randrange(max(most // BLOCK, 1))
    return offset, _length(draw, most - offset)
