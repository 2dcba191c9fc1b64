"""Which clients' sessions with mgmtd are over: one small value that mgmtd publishes and every daemon acts on.

A client opens a session before its first change and renews it; what daemons keep for it (the results of its updates,
its files opened for writing) may be forgotten once the session has ended, and not before. Session ids only rise and are
never used twice, so "given out and not alive" means ended for good, and an id above every one that a table knows of is
newer than the table. Source: 3FS, mgmtd's client sessions.
"""

from __future__ import annotations

from dataclasses import dataclass

from fs3.pb import mgmtd_pb2


@dataclass(frozen=True, slots=True)
class SessionTable:
    """The sessions as of `version`, which rises with every session that ends and never falls, whoever is primary.

    Tables of one version agree on who has ended; sessions opened since may be missing from one and in the other.
    Version 0 is the table of a daemon that has heard of none.
    """

    version: int = 0
    last_id: int = 0
    live: frozenset[int] = frozenset()

    def ended(self, client_id: int) -> bool:
        """Whether the session was given out and is over; client 0 has none, and never ends."""
        return client_id != 0 and client_id <= self.last_id and client_id not in self.live


def sessions_to_pb(table: SessionTable) -> mgmtd_pb2.SessionTable:
    return mgmtd_pb2.SessionTable(version=table.version, last_id=table.last_id, live=sorted(table.live))


def sessions_from_pb(message: mgmtd_pb2.SessionTable) -> SessionTable:
    return SessionTable(message.version, message.last_id, frozenset(message.live))
