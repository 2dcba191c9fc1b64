"""What becomes of a chunk whose bytes fail their sums: looked at, marked, and given its bytes back by another replica.

    somebody says so      a client's REPORT, the scrubber, a read of a partial block, recovery; nobody is believed
    look                  the whole block is read and compared with its sums and with the record's sum of sums
    mark                  from then on this target answers reads of the chunk with Corrupt at once: others serve it
    mend                  the same committed version is read from another SERVING replica, verified against this
                          replica's own record, and put into a new block under the same version

If the bytes are good and only their sums are not, they are their own source. Nobody having a good copy, the chunk stays
marked and is tried again now and then; a client that writes it whole ends it too. That nobody has one is known only
once everybody has said so: who did not answer, or has not heard of the newest chain yet, may have it. 3FS checks
checksums on whole-chunk reads only and has no repair; see DESIGN.md, D7.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from fs3 import checksum
from fs3.errors import Conflict, Corrupt, Fs3Error, NotFound, Unavailable
from fs3.ids import chunk_name
from fs3.runtime import SYSTEM, Event, Runtime
from fs3.storage.chain_state import ChainState
from fs3.storage.engine_api import ChunkEngine
from fs3.storage.forward import ForwardPort
from fs3.storage.write_locks import Key
from fs3.transport.messages import RANGE, RESULT, Records

_LOG = logging.getLogger("fs3.storage")
_AGAIN_S = 10.0  # after a round that left what is lost
_SOON_S = 0.5  # after one that left what may not be
_FETCH_S = 10.0
_MOST_SUSPECTS = 4_096


class Mend(Enum):
    """What came of an attempt to give a chunk its bytes back."""

    WHOLE = "they are in order"
    LOST = "whoever serves the chunk was asked, and has no good copy"
    UNKNOWN = "somebody who may have a good copy could not be asked"


@dataclass(slots=True)
class RepairCounts:
    """Counters since the start."""

    reports: int = 0  # ranges that clients reported
    confirmed: int = 0  # chunks found damaged, whoever said so
    repaired: int = 0
    failed: int = 0  # attempts that found no good copy


@dataclass(slots=True)
class _Mending:
    """A chunk that a thread is at; others who want it mended wait, and share what came of it."""

    over: Event
    outcome: Mend = Mend.UNKNOWN


class Repair:
    """Thread-safe. `ask(in_s)` has `round` run on a thread of its owner's, in `in_s` seconds at the latest."""

    def __init__(
        self, state: ChainState, port: ForwardPort, *, ask: Callable[[float], None], runtime: Runtime = SYSTEM
    ) -> None:
        self.counts = RepairCounts()
        self._state = state
        self._port = port
        self._ask = ask
        self._runtime = runtime
        self._guard = runtime.lock()
        self._suspects: dict[Key, None] = {}  # in order of arrival
        self._mending: dict[Key, _Mending] = {}
        self._hopeless: dict[Key, str] = {}  # what was said of a chunk without a good copy

    # What others say

    def report(self, ranges: Records) -> Records:
        """A client's REPORT: RANGE records [n] of bytes that failed their sums -> RESULT [n]; reads the chunks."""
        results = np.zeros(len(ranges), dtype=RESULT)
        self.counts.reports += len(ranges)
        for row, (hi, lo, chain) in enumerate(ranges[["hi", "lo", "chain"]].tolist()):
            role = self._state.role(chain)
            if role is None:
                results["status"][row] = NotFound.code
                continue
            try:
                if self.look((role.target_id, hi, lo)):
                    results["status"][row] = Corrupt.code
            except Fs3Error as error:
                results["status"][row] = error.code
        return results

    def suspect(self, key: Key) -> None:
        """Look at a chunk soon; does not block. Suspicions beyond what is kept are dropped: they come again."""
        with self._guard:
            if key not in self._suspects and len(self._suspects) < _MOST_SUSPECTS:
                self._suspects[key] = None
        self._ask(0.0)

    def look(self, key: Key) -> bool:
        """Whether a chunk is damaged; then it is marked, and will be mended. Raises: NotFound, NoSpace, Unavailable."""
        engine = self._state.engine(key[0])
        if key in engine.damaged():
            return True
        verdict = engine.verify(*key)
        if not verdict.fault:
            return False
        try:
            if not engine.mark_damaged(*key, verdict.version):
                return False  # another version meanwhile
        except Unavailable as error:
            self._state.broken(engine, error)
            raise
        self.counts.confirmed += 1
        _LOG.error("damaged: %s; reads of it are left to other replicas", verdict.fault)
        self._ask(0.0)
        return True

    # What is done about it

    def has_work(self) -> bool:
        """Whether chunks here are marked, so that a change of the chains may help."""
        return any(self._state.engine(target_id).damaged() for target_id in self._state.local())

    def round(self) -> float | None:
        """Look at what is suspected, mend what is damaged; in how many seconds to go on, None if all is well."""
        while (key := self._next_suspect()) is not None:
            try:
                self.look(key)
            except NotFound:
                continue  # removed meanwhile
            except Fs3Error as error:  # of its disk: no reason to leave those of other disks
                _LOG.warning("%s of target %d cannot be looked at: %s", chunk_name(*key[1:]), key[0], error)
        outcomes = set()
        for target_id in self._state.local():
            engine = self._state.engine(target_id)
            for key in [key for key in engine.damaged() if key[0] == target_id]:
                outcomes.add(self._try(key))
        if Mend.UNKNOWN in outcomes:
            return _SOON_S
        return _AGAIN_S if outcomes - {Mend.WHOLE} else None

    def _try(self, key: Key) -> Mend | None:
        """`mend`; None if its own disk did not take it, which may last, and is no reason to leave those of others."""
        try:
            return self.mend(key, self._runtime.now_s() + _FETCH_S)
        except Fs3Error as error:
            self._say(key, "is not repaired yet", str(error))
            return None

    def _next_suspect(self) -> Key | None:
        with self._guard:
            key = next(iter(self._suspects), None)
            if key is not None:
                del self._suspects[key]
            return key

    def why(self, key: Key) -> str:
        """What stood in the way when a marked chunk was last tried to be mended; empty if it was not tried yet."""
        return self._hopeless.get(key, "")

    def mend(self, key: Key, deadline_s: float) -> Mend:
        """Bring a chunk into order now, if it is damaged and anybody has its bytes.

        Blocks. Raises: NoSpace, Unavailable: of this replica's own disk.
        """
        engine = self._state.engine(key[0])
        with self._guard:
            other = self._mending.get(key)
            if other is None:
                mine = self._mending[key] = _Mending(self._runtime.event())
        if other is not None:
            other.over.wait(max(deadline_s - self._runtime.now_s(), 0.0))
            return Mend.WHOLE if key not in engine.damaged() else other.outcome
        try:
            if not self.look(key):
                return Mend.WHOLE
            outcome, why = Mend.WHOLE, self._from_itself(engine, key)
            if why:
                outcome, why = self._from_others(engine, key, deadline_s)
            mine.outcome = outcome
        except NotFound:
            return Mend.WHOLE  # removed meanwhile
        finally:
            with self._guard:
                del self._mending[key]
            mine.over.set()
        if outcome is Mend.WHOLE:
            self._hopeless.pop(key, None)
            return outcome
        self.counts.failed += 1
        self._say(key, "has no good copy" if outcome is Mend.LOST else "is not repaired yet", why)
        return outcome

    def _say(self, key: Key, what: str, why: str) -> None:
        """Once, until it is for another reason."""
        if self._hopeless.get(key) != why:
            self._hopeless[key] = why
            _LOG.error("%s of target %d %s: %s", chunk_name(*key[1:]), key[0], what, why)

    def _from_itself(self, engine: ChunkEngine, key: Key) -> str:
        """Empty if the bytes were good and only their sums were not."""
        found = engine.read_as_is(*key)
        fine = checksum.fine_sums(found.data)
        if checksum.crc(checksum.coarse_from_fine(fine, len(found.data)).tobytes()) != found.recorded_crc:
            return "its bytes are damaged"
        return self._repaired(engine, key, found.version, found.data, fine, "its own bytes, which were good")

    def _from_others(self, engine: ChunkEngine, key: Key, deadline_s: float) -> tuple[Mend, str]:
        """Whether another replica had the bytes; if not, what each of them said."""
        info = engine.info(*key)
        chain_id, chain_version, others = self._state.others(key[0])
        outcome, said = Mend.LOST, []
        for place, (target_id, endpoint) in enumerate(others):
            now_s = self._runtime.now_s()
            until_s = now_s + max(deadline_s - now_s, 0.0) / (len(others) - place)
            asked = np.zeros(1, dtype=RANGE)
            asked["hi"], asked["lo"] = key[1:]
            asked["length"], asked["chain"], asked["chain_version"] = info.length, chain_id, chain_version
            try:
                if not endpoint:
                    raise Unavailable("its node is not there now")
                version, data, fine = self._port.read_chunk(endpoint, asked, info.length, deadline_s=until_s)
                if version != info.version:
                    raise Conflict(f"it has version {version}, not {info.version}")
            except Fs3Error as error:
                # One that has another version will have this one, or a later one will come here.
                outcome = outcome if isinstance(error, Corrupt | NotFound) else Mend.UNKNOWN
                said.append(f"target {target_id}: {type(error).__name__}, {error}")
                continue
            failure = self._repaired(engine, key, version, data, fine, f"target {target_id}")
            if not failure:
                return Mend.WHOLE, ""
            said.append(failure)
        return outcome, "; ".join(said) or "no other target of the chain serves"

    def _repaired(
        self, engine: ChunkEngine, key: Key, version: int, data: memoryview, fine: NDArray[np.uint32], source: str
    ) -> str:
        """Empty if the chunk is whole again. Raises: NoSpace, Unavailable."""
        try:
            engine.repair(*key, version, data, fine)
        except (Conflict, Corrupt) as error:
            return "" if key not in engine.damaged() else f"{source}: {error}"
        except Unavailable as error:
            self._state.broken(engine, error)
            raise
        self.counts.repaired += 1
        _LOG.warning("repaired: %s of target %d, version %d, from %s", chunk_name(*key[1:]), key[0], version, source)
        return ""
