"""A workload that uses all that an engine can do to the chunks of one target, and a plain model of what it should hold.

Each `Worker` has a target and draws its calls from its own random numbers and model. Before a call it notes what the
model will be if the call takes effect, so that at any moment `allowed` tells which states a reopened engine may be in:
from the last call that made everything before it durable up to the one that is under way. Loaded by file name.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ahead_of import ahead_of

from fs3 import checksum
from fs3.errors import Corrupt, Fs3Error, NotFound, Unavailable
from fs3.storage.engine import Engine
from fs3.storage.engine_api import DedupEntry, DedupRecord, Update
from fs3.transport.messages import Op, UpdateFlag

HI, CHUNKS, CHUNK_BYTES = 1 << 56 | 77, 5, 200_000
DAMAGED = b"damaged"
_SIZES = (10, 4_096, 30_000, 70_000)


@dataclass(frozen=True)
class Content:
    """A version of a chunk; no data: removed. `os`: the page cache was enough for it, a power loss may take it."""

    version: int
    data: bytes | None
    os: bool = False
    channel: int = 0
    seq: int = 0


@dataclass
class Model:
    """What the engine should know of one target."""

    exists: bool = False
    committed: dict[int, Content] = field(default_factory=dict)
    pending: dict[int, Content] = field(default_factory=dict)
    results: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # channel -> seq, version, length
    marks: set[int] = field(default_factory=set)
    state: dict[bytes, bytes] = field(default_factory=dict)

    def copy(self) -> Model:
        return Model(
            self.exists,
            dict(self.committed),
            dict(self.pending),
            dict(self.results),
            set(self.marks),
            dict(self.state),
        )

    def commit(self, lo: int, new: Content | None) -> None:
        self.pending.pop(lo, None)
        self.marks.discard(lo)
        if new is None:
            self.committed.pop(lo, None)
        else:
            self.committed[lo] = replace(new, channel=0, seq=0)

    def result(self, channel: int, seq: int, version: int, length: int) -> None:
        if channel:
            self.results[channel] = (seq, version, length)

    def apply(self, update: Update, *, commit: bool) -> bool:
        """False if the update changes nothing at all."""
        old = self.committed.get(update.lo, Content(0, None))
        recovery = update.flags & (UpdateFlag.SYNC_REPLACE | UpdateFlag.SYNC_REMOVE)
        if recovery and update.op is Op.REMOVE and not update.version:
            self.commit(update.lo, None)
            return True
        nothing = (update.op is Op.PUT_IF_ABSENT and old.data is not None) or (
            update.op is Op.REMOVE and old.data is None and update.lo not in self.pending and not recovery
        )
        if nothing:
            if commit:
                version, length = (0, len(old.data)) if old.data is not None else (old.version, 0)
                self.result(update.channel, update.seq, version, length)
            return commit and bool(update.channel)
        data = new_content(update, old.data or b"")
        new = Content(update.version or old.version + 1, data, not update.durable, update.channel, update.seq)
        if commit:
            self.commit(update.lo, new)
            self.result(update.channel, update.seq, new.version, len(data or b""))
        else:
            self.pending[update.lo] = new
        return True


def new_content(update: Update, old: bytes) -> bytes | None:
    data = bytes(update.data)
    if update.op is Op.REMOVE:
        return None
    if update.op in (Op.REPLACE, Op.PUT_IF_ABSENT):
        return data
    if update.op is Op.TRUNCATE:
        return old[: update.offset].ljust(update.offset, b"\0")
    return (old[: update.offset].ljust(update.offset, b"\0") + data + old[update.offset + len(data) :]) if data else old


@dataclass(frozen=True)
class Call:
    """`change` tells the model, and whether anything is written; `sync`: durable when the engine's call returns."""

    name: str
    change: Callable[[Model], bool]
    run: Callable[[Engine], Any]
    sync: bool = True


class Worker:
    """One target's calls, one after the other; `single`: no batches, so that an error says exactly what was done."""

    def __init__(self, target: int, seed: int, *, single: bool = False) -> None:
        self.target = target
        self.client = 100 + target
        self.rng = random.Random(f"{seed}/{target}")
        self.single = single
        self.model = Model()
        self.states = [self.model]  # from the last durable one to the newest
        self.next: Model | None = None
        self.seq = 0
        self.done = 0
        self.errors: list[Fs3Error] = []

    def allowed(self) -> list[Model]:
        return [*self.states, *([self.next] if self.next is not None else [])]

    def run(self, engine: Engine, calls: int) -> None:
        """Ends early if the engine takes no more changes; what its last call did is then unknown."""
        for _ in range(calls):
            call = self._draw()
            after = self.model.copy()
            writes = call.change(after)
            self.next = after
            try:
                results = call.run(engine) or []
                for result in results:
                    if isinstance(result, Fs3Error):
                        raise result
            except Fs3Error as error:
                self.errors.append(error)
                if isinstance(error, Unavailable) or call.name == "drop":
                    return  # a drop that met a full disk has begun, and is to be asked for again
                self.next = None
                continue
            self.next = None
            self.model = after
            if call.sync and writes:
                self.states.clear()
            self.states.append(after)
            self.done += 1

    def settle(self, engine: Engine) -> None:
        """Take over what an engine was found with, without what a power loss has damaged: calls are drawn from that."""
        found = read_back(engine, self.target)
        engine.abort([engine.pending_staged(self.target, HI, lo) for lo in found.pending])
        damaged = [lo for lo, one in found.committed.items() if one.data == DAMAGED]
        engine.stage_and_commit([self._update(lo, Op.REMOVE, flags=UpdateFlag.SYNC_REMOVE) for lo in damaged])
        self.model = read_back(engine, self.target)
        self.states, self.next = [self.model], None

    def _draw(self) -> Call:
        target, rng, model = self.target, self.rng, self.model
        self.seq += 1
        if not model.exists:
            return Call("create", _created, lambda engine: engine.create_target(target, 7))
        kinds = ["apply"] * 6 + ["stage"] * 4 + ["commit"] * 4 + ["abort"] * 2 + ["replace"] * 2 + ["erase", "forget"]
        kinds += ["repair"] * 3 + ["mark", "results", "forget client", "state"] + ["drop"] * (rng.random() < 0.3)
        kind = rng.choice(kinds)
        return {
            "apply": lambda: self._updates(commit=True),
            "stage": lambda: self._updates(commit=False),
            "commit": lambda: self._pending(commit=True),
            "abort": lambda: self._pending(commit=False),
            "replace": self._replace,
            "erase": self._erase,
            "forget": self._forget,
            "repair": self._repair,
            "mark": self._mark,
            "results": self._results,
            "forget client": self._forget_client,
            "state": self._state,
            "drop": lambda: Call("drop", _dropped, lambda engine: engine.drop_target(target)),
        }[kind]()

    def _update(self, lo: int, op: Op, data: bytes = b"", offset: int = 0, **more: Any) -> Update:
        view = memoryview(data)
        fine = checksum.fine_sums(view, offset if op is Op.WRITE else 0)
        fields: dict[str, Any] = {"chunk_bytes": CHUNK_BYTES, **more}
        return Update(target_id=self.target, hi=HI, lo=lo, op=op, offset=offset, data=view, fine=fine, **fields)

    def _updates(self, *, commit: bool) -> Call:
        rng = self.rng
        durable = rng.random() < 0.75
        updates = []
        for place, lo in enumerate(rng.sample(range(CHUNKS), 1 if self.single else rng.choice([1, 1, 2, 3]))):
            op = rng.choice([Op.WRITE, Op.WRITE, Op.REPLACE, Op.REPLACE, Op.TRUNCATE, Op.REMOVE, Op.PUT_IF_ABSENT])
            offset = rng.choice([0, 4_096, rng.randrange(60_000)]) if op in (Op.WRITE, Op.TRUNCATE) else 0
            data = b"" if op in (Op.REMOVE, Op.TRUNCATE) else rng.randbytes(rng.choice(_SIZES))
            channel = place + 1 if rng.random() < 0.8 else 0
            who = {"client": self.client, "channel": channel, "seq": self.seq} if channel else {}
            updates.append(self._update(lo, op, data, offset, durable=durable, **who))

        def change(model: Model) -> bool:
            return any([model.apply(one, commit=commit) for one in updates])

        def run(engine: Engine) -> object:
            with ahead_of(engine, updates) as some:
                return engine.stage_and_commit(some) if commit else engine.stage(some)

        return Call(("apply" if commit else "stage") + ("" if durable else " os"), change, run, sync=durable)

    def _pending(self, *, commit: bool) -> Call:
        chosen = self.rng.sample(range(CHUNKS), 1 if self.single else 3)
        sync = commit and self.rng.random() < 0.5

        def change(model: Model) -> bool:
            found = [lo for lo in chosen if lo in model.pending]
            for lo in found:
                one = model.pending.pop(lo)
                if commit:
                    model.commit(lo, one)
                    model.result(one.channel, one.seq, one.version, len(one.data or b""))
            return bool(found)

        def run(engine: Engine) -> None:
            there = {chunk.lo for chunk in engine.pending_of(self.target)}
            staged = [engine.pending_staged(self.target, HI, lo) for lo in chosen if lo in there]
            if commit:
                engine.commit(staged, sync=sync)
            else:
                engine.abort(staged)

        return Call("commit" if commit else "abort", change, run, sync=sync)

    def _replace(self) -> Call:
        """As recovery does: any version, whole."""
        lo, version = self.rng.randrange(CHUNKS), self.rng.randrange(1, 30)
        removes = self.rng.random() < 0.3
        data = b"" if removes else self.rng.randbytes(self.rng.choice(_SIZES))
        flags = UpdateFlag.SYNC_REMOVE if removes else UpdateFlag.SYNC_REPLACE
        one = self._update(lo, Op.REMOVE if removes else Op.REPLACE, data, version=version, flags=flags)
        return Call("replace", lambda model: model.apply(one, commit=True), lambda e: e.stage_and_commit([one]))

    def _erase(self) -> Call:
        one = self._update(self.rng.randrange(CHUNKS), Op.REMOVE, flags=UpdateFlag.SYNC_REMOVE)
        return Call("erase", lambda model: model.apply(one, commit=True), lambda e: e.stage_and_commit([one]))

    def _forget(self) -> Call:
        """Forget removals."""
        gone = [(lo, one.version) for lo, one in self.model.committed.items() if one.data is None]
        chosen = [(lo, version) for lo, version in gone if lo not in self.model.pending]

        def change(model: Model) -> bool:
            for lo, _ in chosen:
                model.commit(lo, None)
            return bool(chosen)

        removals = [(HI, lo, version) for lo, version in chosen]
        return Call("forget", change, lambda engine: engine.forget_tombstones(self.target, removals))

    def _repair(self) -> Call:
        whole = [lo for lo, one in self.model.committed.items() if one.data]
        if not whole:
            return self._updates(commit=True)
        lo = self.rng.choice(whole)
        one = self.model.committed[lo]
        data = memoryview(one.data or b"")

        def change(model: Model) -> bool:
            model.marks.discard(lo)
            model.committed[lo] = replace(one, os=False)
            return True

        return Call(
            "repair",
            change,
            lambda engine: engine.repair(self.target, HI, lo, one.version, data, checksum.fine_sums(data)),
        )

    def _mark(self) -> Call:
        whole = [lo for lo, one in self.model.committed.items() if one.data]
        if not whole:
            return self._updates(commit=False)
        lo = self.rng.choice(whole)
        version = self.model.committed[lo].version

        def change(model: Model) -> bool:
            model.marks.add(lo)
            return True

        def run(engine: Engine) -> None:
            assert engine.mark_damaged(self.target, HI, lo, version)

        return Call("mark", change, run, sync=False)

    def _results(self) -> Call:
        channel, sync = self.rng.randrange(1, 5), self.rng.random() < 0.5
        entry = DedupEntry(self.seq, self.rng.randrange(9), self.rng.randrange(9))
        record = DedupRecord(self.client, channel, entry)

        def change(model: Model) -> bool:
            model.result(channel, *entry[:3])
            return True

        return Call("results", change, lambda e: e.put_dedup(self.target, [record], sync=sync), sync=sync)

    def _forget_client(self) -> Call:
        def change(model: Model) -> bool:
            if model.results:
                model.state[b"gone"] = b"%d" % self.seq
            model.results.clear()
            return True

        seq = self.seq
        return Call(
            "forget client", change, lambda e: e.forget_clients({self.client}, b"gone", b"%d" % seq), sync=False
        )

    def _state(self) -> Call:
        value = b"%d" % self.seq

        def change(model: Model) -> bool:
            model.state[b"k"] = value
            return True

        return Call("state", change, lambda engine: engine.put_state(self.target, b"k", value))


def _created(model: Model) -> bool:
    model.exists = True
    return True


def _dropped(model: Model) -> bool:
    empty = Model()
    for name in ("exists", "committed", "pending", "results", "marks", "state"):
        setattr(model, name, getattr(empty, name))
    return True


def read_back(engine: Engine, target: int) -> Model:
    """What an engine holds; a version whose bytes fail their sums has the data DAMAGED."""
    model = Model(exists=target in engine.targets())
    if not model.exists:
        return model
    for lo in range(CHUNKS):
        info = engine.info(target, HI, lo)
        if info.found:
            try:
                data = bytes(engine.read_chunk(target, HI, lo).data)
            except Corrupt:
                data = DAMAGED
            with contextlib.suppress(NotFound):  # a disk that has failed may have records that nobody was told of
                verdict = engine.verify(target, HI, lo)
                assert verdict.version != info.version or bool(verdict.fault) == (data == DAMAGED)
            model.committed[lo] = Content(info.version, data)
        elif info.version:
            model.committed[lo] = Content(info.version, None)
    for one in engine.pending_of(target):
        try:
            chunk = engine.read_chunk(target, HI, one.lo, pending=True)
            data = None if one.removes else bytes(chunk.data)
        except Corrupt:
            data = DAMAGED
        model.pending[one.lo] = Content(one.version, data, channel=one.channel, seq=one.seq)
    model.results = {record.channel: record.entry[:3] for record in engine.dedup_records(target)}
    model.marks = {key[2] for key in engine.damaged() if key[0] == target}
    for key in (b"gone", b"k"):
        value = engine.get_state(target, key)
        if value is not None:
            model.state[key] = value
    return model


def matches(found: Model, model: Model, *, failed: bool = False) -> bool:
    """Whether `found` is what `model` says, save that what the page cache was enough for may be gone or damaged.

    `failed`: the disk has; what is read from its records may then be ahead of what anybody was told.
    """
    if (found.exists, found.results) != (model.exists, model.results) or (not failed and found.state != model.state):
        return False
    for there, should in ((found.committed, model.committed), (found.pending, model.pending)):
        for lo in range(CHUNKS):
            has, wants = there.get(lo), should.get(lo)
            if wants is not None and wants.os and (has is None or has == replace(wants, os=False, data=DAMAGED)):
                continue
            if has != (replace(wants, os=False) if wants is not None else None):
                return False
    alive = {lo for lo in model.marks if lo in found.committed}
    return alive == found.marks
