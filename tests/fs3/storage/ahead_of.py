"""Updates of whole chunks whose bytes lie in their blocks before them, for workloads that end in a crash."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fs3.checksum import FINE_BYTES
from fs3.storage.engine import Engine
from fs3.storage.engine_api import Update
from fs3.transport.messages import Op


@contextlib.contextmanager
def ahead_of(engine: Engine, updates: Sequence[Update]) -> Iterator[list[Update]]:
    """The updates, for a call of the engine; of every second whole chunk the bytes are put there first, in two pieces.
    Raises: Fs3Error."""
    some: list[Update] = []
    try:
        for update in updates:
            whole = update.op in (Op.REPLACE, Op.PUT_IF_ABSENT)
            if whole and update.data and update.data[0] % 2:
                reserved = engine.reserve(len(update.data))
                update = replace(update, reserved=reserved)
                some.append(update)
                cut = len(update.data) // 2 // FINE_BYTES * FINE_BYTES
                engine.fill(reserved, cut, update.data[cut:])
                engine.fill(reserved, 0, update.data[:cut])
                engine.seal(reserved, update.fine, durable=update.durable)
        named = {id(update.data): update for update in some}
        yield [named.get(id(update.data), update) for update in updates]
    finally:
        for update in some:
            if update.reserved is not None and not update.reserved.used:
                engine.unreserve(update.reserved)
