"""Writes a decision whole, however large it is and however little a transaction of the store may hold.

One that fits is one transaction. A larger one is laid down beside everything first:

    MGMT/stage                      which stage is the newest, and how many of its parts are in force (u64, u32)
    MGMT/staged/<u64><u32>          parts of a stage (stage_core), by its number and theirs

Its parts are put in as many transactions as they need, mostly one, and the last of them brings all of them into force,
together with the version that they make. From then on who reads the store sees the parts on top of what lies under the
keys themselves. They are moved there next, in any number of transactions that may be repeated, and before anything else
is decided. Each transaction compares the epoch, and that the stage is as this mgmtd knows it; those that fill a stage
write it too, so that one which arrives late meets a conflict.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Awaitable, Callable, Sequence

from fs3.errors import Corrupt, Fs3Error, MaybeApplied
from fs3.kv.api import KVEngine, Transaction, prefix_end, transact
from fs3.mgmtd.stage_core import PART_BYTES, Change, Stage, batches, pack, unpack

_STAGE = b"MGMT/stage"
_STAGED = b"MGMT/staged/"
_RESERVE = 16  # operations of a transaction for what it compares, and for the engine's own
_PAGE = 8

_U64 = struct.Struct(">Q")
_PART = struct.Struct(">QI")

Check = Callable[[Transaction], Awaitable[None]]
Finish = Callable[[Transaction], None]


class Staging:
    """What one mgmtd knows of the stages in `kv` during one term."""

    def __init__(self, kv: KVEngine) -> None:
        self._kv = kv
        self._stage = Stage()
        self._in_force: list[Change] = []

    @property
    def most(self) -> int:
        """How many keys one transaction may change."""
        return self._kv.limits.max_operations - _RESERVE

    async def load(self, txn: Transaction) -> tuple[Stage, list[Change]]:
        """The newest stage, and its changes if they are in force; to be `adopt`ed once `txn` is committed."""
        stage = Stage.unpack(await txn.get(_STAGE))
        changes: list[Change] = []
        begin, end = _STAGED + _PART.pack(stage.number, 0), _STAGED + _PART.pack(stage.number, stage.parts)
        parts = 0
        while parts < stage.parts:
            page = await txn.range(begin, end, limit=_PAGE, snapshot=True)
            if not page:
                raise Corrupt(f"stage {stage.number} has {parts} of {stage.parts} parts; restore mgmtd's store")
            for _, part in page:
                changes += unpack(part)
            parts += len(page)
            begin = page[-1][0] + b"\0"
        return stage, changes

    def adopt(self, stage: Stage, changes: list[Change]) -> None:
        """Go on from what `load` found."""
        self._stage, self._in_force = stage, changes

    async def write(self, changes: Sequence[Change], check: Check, finish: Finish, *, check_epoch: Check) -> None:
        """Make `changes`, all at once, together with what `finish` does.

        `check` must hold until then, `check_epoch` also afterwards, while they are moved to their places.

        Raises:
            MaybeApplied: the store lost an answer, or is not as this mgmtd knows it.
            Fs3Error: of a check, or of the store; nothing was changed.
        """
        await self._move(check_epoch)
        limits = self._kv.limits
        groups = list(batches(changes, most=self.most, most_bytes=limits.max_transaction_bytes // 2))
        if len(groups) <= 1:
            await self._write_at_once(changes, check, finish)
            return
        part_bytes = min(PART_BYTES, limits.max_transaction_bytes // 4)
        number = self._stage.number + 1
        parts: list[Change] = [
            (_STAGED + _PART.pack(number, at), pack(part))
            for at, part in enumerate(batches(changes, most=len(changes), most_bytes=part_bytes))
        ]
        filling = list(batches(parts, most=self.most, most_bytes=limits.max_transaction_bytes // 2))
        for group in filling[:-1]:
            await self._fill(Stage(number), group, check, lambda txn: None)
        await self._fill(Stage(number, len(parts)), filling[-1], check, finish)
        self._in_force = list(changes)
        with contextlib.suppress(Fs3Error):  # what is in force is; who decides next moves it, or meets the same error
            await self._move(check_epoch)

    async def _write_at_once(self, changes: Sequence[Change], check: Check, finish: Finish) -> None:
        async def body(txn: Transaction) -> None:
            await check(txn)
            await self._check_stage(txn)
            _make(txn, changes)
            finish(txn)

        await transact(self._kv, body)

    async def _fill(self, after: Stage, group: Sequence[Change], check: Check, finish: Finish) -> None:
        """Put some parts of the stage that is `after` then; what another stage has left goes."""

        async def body(txn: Transaction) -> None:
            await check(txn)
            await self._check_stage(txn)
            txn.delete_range(_STAGED, _STAGED + _U64.pack(after.number))
            _make(txn, group)
            txn.put(_STAGE, after.pack())
            finish(txn)

        await transact(self._kv, body)
        self._stage = after

    async def _move(self, check_epoch: Check) -> None:
        """Make the changes that are in force where they belong, and be done with their stage."""
        if not self._stage.parts:
            return
        most_bytes = self._kv.limits.max_transaction_bytes // 2
        for batch in batches(self._in_force, most=self.most, most_bytes=most_bytes):
            await self._move_some(batch, check_epoch)
        done = Stage(self._stage.number)

        async def body(txn: Transaction) -> None:
            await check_epoch(txn)
            await self._check_stage(txn)
            txn.put(_STAGE, done.pack())
            txn.delete_range(_STAGED, prefix_end(_STAGED))

        await transact(self._kv, body)
        self.adopt(done, [])

    async def _move_some(self, batch: Sequence[Change], check_epoch: Check) -> None:
        async def body(txn: Transaction) -> None:
            await check_epoch(txn)
            await self._check_stage(txn)
            _make(txn, batch)

        await transact(self._kv, body)

    async def _check_stage(self, txn: Transaction) -> None:
        found = Stage.unpack(await txn.get(_STAGE))
        if found != self._stage:
            raise MaybeApplied(f"the store is at {found}, not at {self._stage}: a commit arrived late")


def _make(txn: Transaction, changes: Sequence[Change]) -> None:
    for key, value in changes:
        if value is None:
            txn.delete(key)
        else:
            txn.put(key, value)
