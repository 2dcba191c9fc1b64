"""A seeded workload on a chunk engine with a plain model of it; as a script, it runs workloads that end in a crash.

    python engine_workload.py FOLDER FIRST_SEED LAST_SEED

forks a process per seed (RocksDB's threads do not survive a fork, so nothing is opened before), which opens an engine
in FOLDER/SEED, works, and ends itself at a step drawn from the seed. What it did is in FOLDER/SEED.log: "ack" after
each operation, and the engine's steps, so that the reader of the log can take away what was not synced.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from ahead_of import ahead_of

from fs3 import checksum
from fs3.errors import Fs3Error
from fs3.storage.engine import Engine
from fs3.storage.engine_api import EngineConfig, Staged, Update
from fs3.transport.messages import Op

TARGET, HI, CHUNKS, CHUNK_BYTES = 3, 1 << 56 | 77, 6, 400_000
CONFIG = EngineConfig(
    file_bytes=8 << 20, group_bytes=256 << 10, reserve_bytes=0, index_chunks=16, write_buffer_bytes=1 << 20
)
STEPS = 260  # a crash comes within so many; a workload takes more

Content = tuple[int, bytes | None]  # version, bytes; None: a tombstone


@dataclass
class Model:
    """What an engine should hold: committed and pending versions by chunk, and the result per channel."""

    committed: dict[int, Content] = field(default_factory=dict)
    pending: dict[int, tuple[int, bytes | None, int, int]] = field(default_factory=dict)  # + channel, seq
    results: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # channel -> seq, version, length

    def copy(self) -> Model:
        return Model(dict(self.committed), dict(self.pending), dict(self.results))


@dataclass(frozen=True)
class Step:
    """One call: "apply" is stage_and_commit, "stage" leaves pending what "commit" and "abort" take up."""

    call: str
    updates: tuple[Update, ...] = ()
    chunks: tuple[int, ...] = ()
    sync: bool = True


def new_content(update: Update, old: bytes) -> bytes | None:
    data = bytes(update.data)
    if update.op is Op.REMOVE:
        return None
    if update.op in (Op.REPLACE, Op.PUT_IF_ABSENT):
        return data
    if update.op is Op.TRUNCATE:
        return old[: update.offset].ljust(update.offset, b"\0")
    return (old[: update.offset].ljust(update.offset, b"\0") + data + old[update.offset + len(data) :]) if data else old


def draw(rng: random.Random, seq: int, *, durable: bool) -> Step:
    """The next call of a workload."""
    call = rng.choice(["apply", "apply", "stage", "stage", "commit", "commit", "abort"])
    chunks = tuple(rng.sample(range(CHUNKS), rng.choice([1, 1, 2, 3])))
    if call in ("commit", "abort"):
        return Step(call, chunks=chunks, sync=durable and rng.random() < 0.7)
    updates = []
    for place, lo in enumerate(chunks):
        op = rng.choice([Op.WRITE, Op.WRITE, Op.REPLACE, Op.TRUNCATE, Op.REMOVE, Op.PUT_IF_ABSENT])
        offset = rng.choice([0, 4096, rng.randrange(150_000)]) if op in (Op.WRITE, Op.TRUNCATE) else 0
        size = 0 if op in (Op.REMOVE, Op.TRUNCATE) else rng.choice([0, 10, 4096, rng.randrange(150_000)])
        data = memoryview(rng.randbytes(size))
        updates.append(
            Update(
                target_id=TARGET,
                hi=HI,
                lo=lo,
                op=op,
                offset=offset,
                data=data,
                fine=checksum.fine_sums(data, offset if op is Op.WRITE else 0),
                chunk_bytes=CHUNK_BYTES,
                durable=durable,
                client=9,
                channel=place,
                seq=seq,
            )
        )
    return Step(call, updates=tuple(updates), sync=durable)


def on_model(model: Model, step: Step) -> None:
    for update in step.updates:
        version, old = model.committed.get(update.lo, (0, None))
        exists, waiting = old is not None, update.lo in model.pending
        nothing = (update.op is Op.PUT_IF_ABSENT and exists) or (update.op is Op.REMOVE and not exists and not waiting)
        content = new_content(update, old or b"")
        if step.call == "stage" and not nothing:
            model.pending[update.lo] = (version + 1, content, update.channel, update.seq)
        if step.call == "apply":
            if not nothing:
                model.pending.pop(update.lo, None)
                model.committed[update.lo] = (version + 1, content)
                model.results[update.channel] = (update.seq, version + 1, len(content or b""))
            else:
                absent = (0, len(old or b"")) if exists else (version, 0)
                model.results[update.channel] = (update.seq, *absent)
    for lo in step.chunks:
        waiting_one = model.pending.pop(lo, None)
        if waiting_one is not None and step.call == "commit":
            version, content, channel, seq = waiting_one
            model.committed[lo] = (version, content)
            model.results[channel] = (seq, version, len(content or b""))


def on_engine(engine: Engine, step: Step) -> None:
    """Raises: Fs3Error, also one that came back in an update's place."""
    results: list[Staged | Fs3Error] = []
    if step.call in ("apply", "stage"):
        with ahead_of(engine, step.updates) as updates:
            results = engine.stage_and_commit(updates) if step.call == "apply" else engine.stage(updates)
    else:
        there = {chunk.lo for chunk in engine.pending_of(TARGET)}
        staged = [engine.pending_staged(TARGET, HI, lo) for lo in step.chunks if lo in there]
        if step.call == "commit":
            engine.commit(staged, sync=step.sync)
        else:
            engine.abort(staged)
    for result in results:
        if isinstance(result, Fs3Error):
            raise result


def read_back(engine: Engine) -> Model:
    """The engine's state as a model; every byte is verified on the way."""
    model = Model()
    for lo in range(CHUNKS):
        info = engine.info(TARGET, HI, lo)
        if info.found:
            chunk = engine.read_chunk(TARGET, HI, lo)
            model.committed[lo] = (chunk.version, bytes(chunk.data))
        elif info.version:
            model.committed[lo] = (info.version, None)
    for pending in engine.pending_of(TARGET):
        chunk = engine.read_chunk(TARGET, HI, pending.lo, pending=True)
        content = None if pending.removes else bytes(chunk.data)
        model.pending[pending.lo] = (pending.version, content, pending.channel, pending.seq)
    for record in engine.dedup_records(TARGET):
        model.results[record.channel] = record.entry[:3]
    return model


def steps(seed: int) -> list[Step]:
    rng = random.Random(seed)
    return [draw(rng, seq, durable=seed % 2 == 0) for seq in range(1, 220)]


def _crash(folder: Path, seed: int) -> None:
    log = os.open(folder / f"{seed}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    left = random.Random(seed ^ 0xC0FFEE).randrange(10, STEPS)
    lock = threading.Lock()
    path = folder / str(seed)

    def step(what: str, file: int, offset: int, length: int) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left <= 0:
                os._exit(9)
            logs = sorted(path.glob("metadata/*.log"))
            size = logs[-1].stat().st_size if logs else 0
            os.write(log, f"{what},{file},{offset},{length},{size}\n".encode())

    engine = Engine.open(path, cluster_id="crash", create=True, config=CONFIG, step=step)
    engine.create_target(TARGET, 1)
    os.write(log, b"ack,0,0,0,0\n")
    for one in steps(seed):
        on_engine(engine, one)
        os.write(log, b"ack,0,0,0,0\n")
    os._exit(1)


if __name__ == "__main__":
    for number in range(int(sys.argv[2]), int(sys.argv[3])):
        child = os.fork()
        if not child:
            try:
                _crash(Path(sys.argv[1]), number)
            finally:
                os._exit(2)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 9, (number, status)
