"""Write sessions: who is writing a file, be it one that has no name yet.

A session is one record: the client and a beat that every renewal raises. Nobody compares clocks across machines: the
collector calls a session dead once it has seen the same beat for the whole lease, by its own clock. The beat's upper
half is the session's epoch: a renewal that was under way while the file was made shorter must not make it longer again.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from fs3.errors import NotFound, PermissionDenied
from fs3.ids import InodeId
from fs3.kv import keys
from fs3.kv.api import Transaction

_VALUE = struct.Struct(">QQ")
_EPOCH_BITS = 32


@dataclass(frozen=True, slots=True)
class Session:
    """A client's claim to write a file."""

    client_id: int
    beat: int

    @property
    def epoch(self) -> int:
        """How often its writer has made the file shorter."""
        return self.beat >> _EPOCH_BITS

    def at_epoch(self, epoch: int) -> Session:
        """The session once its writer has told of this epoch."""
        return self if epoch <= self.epoch else Session(self.client_id, epoch << _EPOCH_BITS)


def decode(value: bytes) -> Session:
    return Session(*_VALUE.unpack(value))


def store(txn: Transaction, inode_id: InodeId, session: Session) -> None:
    txn.put(keys.session(inode_id), _VALUE.pack(session.client_id, session.beat))


def end(txn: Transaction, inode_id: InodeId) -> None:
    txn.delete(keys.session(inode_id))


async def load(txn: Transaction, inode_id: InodeId) -> Session | None:
    value = await txn.get(keys.session(inode_id))
    return None if value is None else decode(value)


async def owned(txn: Transaction, inode_id: InodeId, client_id: int) -> Session | None:
    """The client's session, or None if there is none any more. Raises: PermissionDenied if it is another client's."""
    session = await load(txn, inode_id)
    if session is not None:
        _check(inode_id, session, client_id)
    return session


async def require(txn: Transaction, writing: Sequence[tuple[InodeId, str]], client_id: int) -> list[Session]:
    """The client's sessions for these files, which a message calls by these names.

    Raises: NotFound if one is over, or ends with an earlier one of them; PermissionDenied if it is another client's.
    """
    values = await txn.get_many([keys.session(inode_id) for inode_id, _ in writing])
    ended: set[InodeId] = set()
    sessions: list[Session] = []
    for (inode_id, path), value in zip(writing, values, strict=True):
        if value is None or inode_id in ended:
            raise NotFound(
                f"{path}: the write session of inode {inode_id} is over (published, abandoned, or not renewed in "
                "time); write the file again"
            )
        sessions.append(decode(value))
        _check(inode_id, sessions[-1], client_id)
        ended.add(inode_id)
    return sessions


async def renew(txn: Transaction, client_id: int, inode_ids: Sequence[InodeId]) -> dict[InodeId, Session]:
    """Raise the beat of those sessions that the client still has: these."""
    values = await txn.get_many([keys.session(inode_id) for inode_id in inode_ids])
    renewed: dict[InodeId, Session] = {}
    for inode_id, value in zip(inode_ids, values, strict=True):
        session = None if value is None else decode(value)
        if session is not None and session.client_id == client_id:
            renewed[inode_id] = Session(client_id, session.beat + 1)
            store(txn, inode_id, renewed[inode_id])
    return renewed


def _check(inode_id: InodeId, session: Session, client_id: int) -> None:
    if session.client_id != client_id:
        raise PermissionDenied(f"inode {inode_id} is being written by another client")
