"""Whose updates a head still takes: those of clients whose sessions with mgmtd go on. And when results are forgotten.

An update is known by its (client, channel, seq), and by the result that it left (channel_core.py). Results cannot be
kept for ever, so a client is one session: when that has ended, every target forgets the client's results, each by
itself, as it hears of it, and every head refuses the client's updates from then on. Nothing of this goes through the
chain. What makes it safe is one rule, which holds for every target at any time:

    a target that lacks the result of an update which its chain has applied knows, also after a restart,
    that the client's session has ended

    heard of      A table of sessions (fs3/sessions.py) only ever adds to who has ended: ids rise, none is used twice.
    before        A result is looked up before the client's standing is, and the table that results are forgotten by is
    forgotten     in place before the first of them goes. So whoever finds no result because it was forgotten finds the
                  session ended.
    a restart     The daemon comes back with no table. The version of the table that results were last forgotten by, the
                  fence, is kept per target, written in the same batch that drops the results. Until a table as new as
                  the fence has come the target takes no client's update that it does not know.
    a head change The next head lacks a result only if it has forgotten it itself, or was brought up to date by somebody
                  who had; it was SERVING, or synced, when the update was applied, so it had the update pending or
                  committed, with the client's name in the record, whoever commits it.
    recovery      The predecessor sends the results that it has, and at the end (SYNC_DONE) the version of its table, or
                  its fence if that is newer. The SYNCING target refuses to be done until its own table is as new, and
                  makes that version its fence before it calls itself up to date.
    a table that  A head that has not heard of the end yet takes the client's updates, and knows the results of all
    lags          earlier ones: it has not forgotten them. The next head may refuse what the last one took; the client
                  is told that the outcome of an update is unknown if one of its attempts got no answer.
    a late frame  A frame of a dead client, arriving now: its update was applied, then a head either knows the result
                  (it answers that, and nothing is applied) or that the session has ended (it refuses); or it never was,
                  then it may be applied once, by a head whose table lags, which leaves a result as any update does.
    left behind   An update that was under way when its client's results were forgotten leaves a result afterwards, and
                  so does recovery from a predecessor who is slower to forget. They are forgotten the next time.

An update under way is never refused halfway: replicas behind the head do not ask. What an operator makes of a chain by
accepting loss (rotate-lastsrv) loses results with the updates that left them; no such promise holds for those.
"""

from __future__ import annotations

from collections.abc import Mapping

from fs3.errors import StaleRouting
from fs3.runtime import SYSTEM, Runtime
from fs3.sessions import SessionTable
from fs3.storage.channel_core import Standing
from fs3.storage.engine_api import ChunkEngine

FENCE = b"sessions"  # engine state of a target: the version of the table that its results were last forgotten by
_AGAIN_S = 1.0


class SessionFence:
    """What one daemon knows of clients' sessions. Thread-safe."""

    def __init__(self, engines: Mapping[int, ChunkEngine], *, runtime: Runtime = SYSTEM) -> None:
        self._engines = engines
        self._lock = runtime.lock()
        self._storing = runtime.lock()  # held while fences are written: none may go back
        self._table = SessionTable()
        self._fences: dict[int, int] = {}

    def adopt(self, table: SessionTable) -> bool:
        """Take a table from mgmtd, if it is newer; whether it was. Does not block."""
        with self._lock:
            known = self._table
            if (table.version, table.last_id) <= (known.version, known.last_id):
                return False
            self._table = table
            return table.version > known.version

    def standing(self, engine: ChunkEngine, target_id: int, client: int) -> Standing:
        """What a target knows of a client; to be asked after the client's result was looked up."""
        table = self._table
        if table.ended(client):
            return Standing.ENDED
        return Standing.UNSURE if table.version < self._fence(engine, target_id) else Standing.LIVE

    def version(self, engine: ChunkEngine, target_id: int) -> int:
        """No result that this target has forgotten is of a client that had not ended in the table of this version."""
        return max(self._table.version, self._fence(engine, target_id))

    def follow(self, engine: ChunkEngine, target_id: int, version: int) -> None:
        """Note durably that a target's results are what is left after forgetting by the table of `version`.

        Raises: StaleRouting (this daemon has not heard of that table yet), NoSpace, Unavailable.
        """
        if self._table.version < version:
            raise StaleRouting(
                f"target {target_id}: sessions are known up to {self._table.version} here, not {version}"
            )
        with self._storing:
            fence = max(version, self._fence(engine, target_id))
            if _unpacked(engine.get_state(target_id, FENCE)) < fence:  # `forget` writes it only where it has forgotten
                engine.put_state(target_id, FENCE, _packed(fence))
                self._raise(target_id, fence)

    def forget(self, disk: int) -> float | None:
        """Drop the results of clients whose sessions have ended, from all targets of an engine. Raises: Fs3Error."""
        with self._storing:
            engine, table = self._engines[disk], self._table
            ended = {client for client in engine.result_clients() if table.ended(client)}
            if ended:
                if any(self._fence(engine, target_id) > table.version for target_id in engine.targets()):
                    return _AGAIN_S  # a fence never goes back
                for target_id in engine.targets():
                    self._raise(target_id, table.version)
                engine.forget_clients(ended, FENCE, _packed(table.version))
        return None

    def _fence(self, engine: ChunkEngine, target_id: int) -> int:
        fence = self._fences.get(target_id)
        if fence is None:
            self._raise(target_id, _unpacked(engine.get_state(target_id, FENCE)))
            fence = self._fences[target_id]
        return fence

    def _raise(self, target_id: int, version: int) -> None:
        with self._lock:
            self._fences[target_id] = max(self._fences.get(target_id, 0), version)


def _packed(version: int) -> bytes:
    return version.to_bytes(8, "little")


def _unpacked(said: bytes | None) -> int:
    return int.from_bytes(said or b"", "little")
