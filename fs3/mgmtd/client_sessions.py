"""The primary's client sessions: opened and ended in the store, renewed in memory, shown as one `SessionTable`.

An end is committed before any daemon hears of it, and a daemon forgets what it keeps for a client only then. After a
commit whose answer was lost the stored sessions are read again before anything else is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from fs3.errors import Busy, Fs3Error, MaybeApplied
from fs3.mgmtd.session_core import SessionLeases
from fs3.mgmtd.store import MgmtdStore
from fs3.pb import mgmtd_pb2
from fs3.sessions import SessionTable

_log = logging.getLogger(__name__)
_MOST_SESSIONS = 65_536
_ENDED_AT_ONCE = 1_000


class ClientSessions:
    """Belongs to one event loop. Times are those of the lease clock, handed in."""

    def __init__(self, store: MgmtdStore, table: SessionTable, session_s: float, *, started_s: float) -> None:
        self.table = table
        self._store = store
        self._leases = SessionLeases(session_s)
        self._leases.restore(table.live, started_s)
        self._committing = asyncio.Lock()
        self._unsettled = False

    async def open(self, host: str, pid: int, now_s: float) -> int:
        """A new session's id, higher than any before.

        Raises:
            Busy: there are too many.
            Conflict: another mgmtd has taken over.
            MaybeApplied: the store lost the answer; a session that nobody knows of will run out.
        """
        if len(self.table.live) >= _MOST_SESSIONS:
            raise Busy(f"{len(self.table.live)} clients have a session, which is the most; they end when idle")
        async with self._committing:
            await self._settle(now_s)
            try:
                session_id = await self._store.open_session(mgmtd_pb2.ClientSession(host=host, pid=pid))
            except BaseException as error:
                self._unsettled = not isinstance(error, Fs3Error) or isinstance(error, MaybeApplied)
                raise
            if session_id != self.table.last_id + 1:
                self._unsettled = True  # an earlier one, whose answer was lost, arrived since
                await self._settle(now_s)
            self.table = SessionTable(self.table.version, session_id, self.table.live | {session_id})
            self._leases.opened(session_id, now_s)
        _log.info("session %d: opened by process %d on %s", session_id, pid, repr(host) if host else "an unnamed host")
        return session_id

    def renew(self, session_ids: Iterable[int], now_s: float) -> list[int]:
        """Keep sessions alive; those of them that are over."""
        over = []
        for session_id in session_ids:
            if session_id in self.table.live:
                self._leases.renewed(session_id, now_s)
            else:
                over.append(session_id)
        return over

    async def end(self, now_s: float, closed: Iterable[int] = ()) -> None:
        """End what was closed and what has run out. Raises: Conflict, MaybeApplied, and what else the store raises."""
        wanted = list(closed)
        while True:
            async with self._committing:
                await self._settle(now_s)
                most = min(_ENDED_AT_ONCE, self._store.sessions_at_once)
                ending = self._leases.ending(now_s, wanted, most=most)
                if not ending:
                    return
                version = self.table.version + 1
                try:
                    await self._store.end_sessions(ending, version)
                except BaseException as error:
                    self._unsettled = not isinstance(error, Fs3Error) or isinstance(error, MaybeApplied)
                    self._leases.stay(ending)
                    raise
                self._leases.ended(ending)
                self.table = SessionTable(version, self.table.last_id, self.table.live - set(ending))
            _log.info("sessions ended: %s", ", ".join(map(str, ending)))

    def next_expiry_s(self) -> float | None:
        return self._leases.next_expiry_s()

    async def _settle(self, now_s: float) -> None:
        if self._unsettled:
            self.table = await self._store.sessions()
            self._leases.restore(self.table.live, now_s)
            self._unsettled = False
