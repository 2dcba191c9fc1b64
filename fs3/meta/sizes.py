"""How much an operation takes on at once, by what a transaction of the store may hold.

An engine knows exactly what fits only when it commits. What is told here from a request alone is what surely does not
fit, before any work is done; and pages for work that may be done in parts, which surely do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from fs3.errors import Conflict, TooLarge
from fs3.kv.api import KVEngine, Limits, Transaction, transact

_MOST = 512
_KEYS_OF_AN_INODE = 5  # at most: an inode that goes, its name, its session or place in the queue, each read and written
_RESERVE = 16  # for the rest of the operation, and what an engine adds
_LEAST_REST = 8  # of publishing files, at least: its record, the directory, stamps

T_co = TypeVar("T_co", covariant=True)


def page_of(limits: Limits, keys_of_one: int = _KEYS_OF_AN_INODE) -> int:
    """How many inodes one transaction may queue, renew or forget."""
    return min(max((limits.max_operations - _RESERVE) // keys_of_one, 1), _MOST)


def check_files(limits: Limits, count: int, keys_of_a_file: int) -> None:
    """Raises: TooLarge if so many files, of which each changes so many keys at least, surely do not fit."""
    if count * keys_of_a_file > limits.max_operations:
        most = limits.max_operations // keys_of_a_file
        raise TooLarge(f"{count} files at once: the metadata store takes {most} at most; nothing was changed")


def most_keys(limits: Limits) -> int:
    """How many keys the files that are published at once may change; more surely do not fit."""
    return limits.max_operations - _LEAST_REST


class Paged(Protocol[T_co]):
    """An operation on up to `limit` things."""

    def __call__(self, txn: Transaction, *, limit: int) -> Awaitable[T_co]: ...


async def while_too_much(kv: KVEngine, body: Paged[T_co], limit: int) -> T_co:
    """`body` in a transaction, with fewer things at once where the store does not take them, or others come in between.

    Raises: TooLarge, Conflict: not even one.
    """
    while True:
        try:
            return await transact(kv, _limited(body, limit))
        except (TooLarge, Conflict):
            if limit == 1:
                raise
            limit = (limit + 1) // 2


def _limited(body: Paged[T_co], limit: int) -> Callable[[Transaction], Awaitable[T_co]]:
    return lambda txn: body(txn, limit=limit)
