"""The port to the transactional store: what meta and mgmtd may ask of it, and what every engine must promise.

Transactions are optimistic, as in FoundationDB (whose interface this follows): reads see one snapshot, writes are
buffered, and `commit` succeeds only if nothing read has changed since, so committed transactions are serializable.
A conflict is never missed: a range read conflicts with a concurrent put or delete inside that range. Engines:
`memory` (the simulator's truth), `sqlite` (embedded), `etcd` (replicated). One conformance suite runs on all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from fs3.errors import Conflict

T = TypeVar("T")


class SnapshotExpired(Conflict):
    """The transaction was open for so long that the engine gave up its snapshot; a new one can succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one transaction may hold; `commit` raises `TooLarge` beyond it and commits nothing.

    What counts as an operation is the engine's: each key and range that is written, or each that is read, at least; if
    all of them together are no more, they fit.
    """

    max_operations: int
    max_transaction_bytes: int
    max_key_bytes: int = 10_000
    max_value_bytes: int = 100_000


class Transaction(Protocol):
    """One optimistic transaction; not shared between tasks, of no use after `commit`."""

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        """The value, own writes included; `snapshot` reads without adding a conflict."""
        ...

    async def get_many(self, keys: Sequence[bytes], *, snapshot: bool = False) -> list[bytes | None]:
        """What `get` gives for each key, in order: one request where the engine has to ask somebody."""
        ...

    async def range(
        self, begin: bytes, end: bytes, *, limit: int, reverse: bool = False, snapshot: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """Up to `limit` pairs with begin <= key < end, own writes included; conflicts with any change of that part."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key`; conflicts with nobody by itself."""
        ...

    def delete(self, key: bytes) -> None:
        """Remove `key` if it is there."""
        ...

    def delete_range(self, begin: bytes, end: bytes) -> None:
        """Remove every key with begin <= key < end."""
        ...

    def add(self, key: bytes, delta: int) -> None:
        """Add to a signed 64-bit little-endian counter (absent counts as 0); commutes, so adders do not conflict."""
        ...

    def read_conflict(self, key: bytes) -> None:
        """Make `commit` fail if `key` changes meanwhile, as if it had been read."""
        ...

    def read_conflict_range(self, begin: bytes, end: bytes) -> None:
        """The same for every key with begin <= key < end."""
        ...

    async def commit(self) -> None:
        """Commit durably. Cancellation leaves the outcome unknown.

        Raises:
            Conflict: something read has changed; nothing was written.
            MaybeApplied: the engine lost the answer; the caller must find out.
            TooLarge: beyond `Limits`; nothing was written.
            Invalid: a key or a value is; nothing was written.
        """
        ...


class KVEngine(Protocol):
    """A store of ordered bytes, opened once per process."""

    @property
    def limits(self) -> Limits: ...

    def begin(self, *, patient: bool = False) -> Transaction:
        """A transaction on the newest committed snapshot; `patient`: it reads for minutes, and that is kept for it."""
        ...

    def watch(self, prefix: bytes) -> AsyncIterator[None]:
        """Yields once soon after each commit that touched a key under `prefix` (commits may be merged into one)."""
        ...

    async def close(self) -> None:
        """Finish what was submitted and release files and threads."""
        ...


async def transact(kv: KVEngine, body: Callable[[Transaction], Awaitable[T]], *, attempts: int = 32) -> T:
    """Run `body` in a transaction and commit, again on conflict.

    `body` must be repeatable: it decides from what it reads through its argument alone.

    Raises:
        Conflict: `attempts` tries all lost.
        MaybeApplied: as `Transaction.commit`; bodies that are idempotent by a request id may simply be run again.
    """
    for attempt in range(attempts):
        last = attempt + 1 == attempts
        txn = kv.begin()
        try:
            result = await body(txn)
        except SnapshotExpired:
            if last:
                raise
            continue
        try:
            await txn.commit()
        except Conflict:
            if last:
                raise
            continue
        return result
    raise AssertionError("attempts must be positive")


def prefix_end(prefix: bytes) -> bytes:
    """The first key after every key that starts with `prefix`."""
    stripped = prefix.rstrip(b"\xff")
    assert stripped, "a prefix of only 0xff bytes has no end"
    return stripped[:-1] + bytes([stripped[-1] + 1])
