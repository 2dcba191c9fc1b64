"""One mgmtd's part in the cluster: standing by, taking over, deciding while its claim holds, and standing by again.

Each term of office has a `Primary` and a store of its own, under one epoch: whatever a lost term still has under way
meets a conflict. While it stands by, a mgmtd sends heartbeats to the one that decides, as any daemon does, and so
becomes known to daemons and clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from fs3.clock import lease_now_s
from fs3.errors import Conflict, Fs3Error, Invalid, NotPrimary
from fs3.kv.api import KVEngine
from fs3.mgmtd.config import MgmtdConfig
from fs3.mgmtd.election_core import Candidate, Claim, Tenure, Verdict
from fs3.mgmtd.primary import Primary
from fs3.mgmtd.store import MgmtdStore
from fs3.pb import mgmtd_pb2
from fs3.routing import Node, node_to_pb
from fs3.transport.credentials import ControlCall, Credentials

_log = logging.getLogger(__name__)
_BEATS_PER_LEASE = 10
_STORE_PATIENCE = 2  # times E: what a slow store may take before its answer is taken for lost
_RESIGN_S = 1.0
_ALL_KNOWN = (1 << 64) - 1


class Election:
    """Made once per process; `run` does the work, and ends only when cancelled or when a twin was started."""

    def __init__(
        self,
        config: MgmtdConfig,
        kv: KVEngine,
        *,
        own_node: Node,
        credentials: Credentials,
        call: ControlCall,
        now: Callable[[], float] = lease_now_s,
    ) -> None:
        self._config = config
        self._kv = kv
        self._own = own_node
        self._address = own_node.endpoints[0]
        self._credentials = credentials
        self._call = call
        self._now = now
        self._candidate = Candidate(own_node.node_id, own_node.generation, config.election_s)
        self._claim: Claim | None = None
        self._primary: Primary | None = None
        self._store: MgmtdStore | None = None  # of the primary's term
        self._tenure = Tenure(config.election_s)
        self._settled = asyncio.Event()
        self._store_answers = True

    @property
    def primary(self) -> Primary | None:
        """What decides, if this mgmtd does at this moment; to be asked again after every wait."""
        return self._primary if self._primary is not None and self._tenure.valid(self._now()) else None

    @property
    def address(self) -> str:
        """Where the mgmtd that decides is, as far as this one knows; or ""."""
        if self._primary is not None:
            return self._address if self.primary is not None else ""
        return self._claim.address if self._claim is not None else ""

    def deciding(self) -> Primary:
        """As `primary`. Raises: NotPrimary."""
        primary = self.primary
        if primary is None:
            where = self.address
            known = f"the one at {where} does, or did last" if where else "no other is known to"
            raise NotPrimary(f"mgmtd {self._own.node_id} at {self._address} does not decide now; {known}")
        return primary

    async def wait_settled(self) -> None:
        """Wait until this mgmtd decides, or knows that another one does."""
        await self._settled.wait()

    async def run(self) -> None:
        """Take part until cancelled; then let the next one take over at once.

        Raises:
            Conflict: a mgmtd with this node id was started later.
            Invalid: the node id belongs to a daemon of another kind.
        """
        try:
            while True:
                await self._stand_by()
                await self._decide()
                await self._end_term()
        finally:
            await self._end_term()

    async def _stand_by(self) -> None:
        """Until this mgmtd has taken over."""
        registering = asyncio.create_task(self._register())
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait((watching, registering), return_when=asyncio.FIRST_COMPLETED)
            if registering.done():
                registering.result()
            await watching
        finally:
            for task in (registering, watching):
                task.cancel()
            await asyncio.gather(registering, watching, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_STORE_PATIENCE * self._config.election_s):
                    claim = self._claim = await MgmtdStore(self._kv).claim()
                    verdict = self._candidate.look(claim, self._now())
                    if verdict == Verdict.TAKE and await self._take_over(claim):
                        return
                self._heard_from_store(None)
            except (Fs3Error, TimeoutError) as error:
                self._heard_from_store(error)
                verdict = Verdict.TAKE
            if verdict == Verdict.TWIN:
                assert claim is not None
                raise Conflict(
                    f"another mgmtd with node_id {self._own.node_id} was started later, at {claim.address}; give every"
                    " daemon a node_id of its own"
                )
            if verdict == Verdict.WAIT:
                self._settled.set()
            now_s = self._now()
            await asyncio.sleep(min(max(self._candidate.next_look_s(now_s) - now_s, 0.0), self._config.election_s))

    async def _take_over(self, claim: Claim | None) -> bool:
        """Begin a term; False if another mgmtd was faster."""
        store = MgmtdStore(self._kv)
        started_s = self._now()
        try:
            loaded = await store.take_over(self._own.node_id, self._own.generation, self._address, seen=claim)
        except Conflict as error:
            _log.info("mgmtd %d: %s", self._own.node_id, error)
            return False
        self._tenure = Tenure(self._config.election_s)
        self._tenure.renewed(started_s)
        self._store = store
        self._primary = Primary(self._config, store, loaded, own_node=self._own, now=self._now)
        before = "" if claim is None else f", after mgmtd {claim.node_id} at {claim.address}"
        _log.info("mgmtd %d decides, epoch %d%s", self._own.node_id, loaded.epoch, before)
        self._settled.set()
        return True

    async def _decide(self) -> None:
        """Until another mgmtd has taken over, or could have."""
        assert self._store is not None
        assert self._primary is not None
        clock = asyncio.create_task(self._primary.run())
        renewing = asyncio.create_task(self._renew(self._store))
        try:
            await asyncio.wait((clock, renewing), return_when=asyncio.FIRST_COMPLETED)
            for task in (renewing, clock):
                if task.done():
                    with contextlib.suppress(Conflict):
                        task.result()
            _log.warning("mgmtd %d stands by", self._own.node_id)
        finally:
            for task in (clock, renewing):
                task.cancel()
            await asyncio.gather(clock, renewing, return_exceptions=True)

    async def _renew(self, store: MgmtdStore) -> None:
        """Returns when the claim has run out; raises Conflict when it is another's."""
        tenure, retry_s = self._tenure, self._config.election_s / 8
        pause_s = tenure.next_renewal_s - self._now()
        while True:
            await asyncio.sleep(min(max(pause_s, 0.0), self._config.election_s))
            started_s = self._now()
            if not tenure.valid(started_s):
                _log.warning("mgmtd %d: its claim has run out, for it could not be renewed", self._own.node_id)
                return
            try:
                async with asyncio.timeout(_STORE_PATIENCE * self._config.election_s):
                    await store.renew()
            except Conflict as error:
                _log.warning("mgmtd %d: %s", self._own.node_id, error)
                raise
            except (Fs3Error, TimeoutError) as error:
                self._heard_from_store(error)
                pause_s = retry_s
            else:
                self._heard_from_store(None)
                tenure.renewed(started_s)
                pause_s = tenure.next_renewal_s - self._now()

    async def _register(self) -> None:
        """Heartbeats to the mgmtd that decides; that none answers is for `_watch` to see. Raises: Conflict, Invalid."""
        beat_s = self._config.lease_s / _BEATS_PER_LEASE
        request = mgmtd_pb2.HeartbeatRequest(
            node=node_to_pb(self._own), known_routing=_ALL_KNOWN, known_sessions=_ALL_KNOWN
        )
        while True:
            await asyncio.sleep(beat_s)
            if self._claim is None or self._claim.node_id == self._own.node_id:
                continue
            try:
                await self._call(
                    self._claim.address, "Heartbeat", request, timeout_s=beat_s, credentials=self._credentials
                )
            except (Conflict, Invalid):
                raise
            except Fs3Error as error:
                _log.debug("mgmtd %d is not registered: %s", self._own.node_id, error)

    async def _end_term(self) -> None:
        """Answer no more, and let the next one take over at once; best effort, for the claim runs out by itself."""
        store, primary, self._store, self._primary = self._store, self._primary, None, None
        if store is None or primary is None:
            return
        await primary.end()
        with contextlib.suppress(Fs3Error, TimeoutError):
            async with asyncio.timeout(_RESIGN_S):
                await store.resign()

    def _heard_from_store(self, error: Exception | None) -> None:
        if error is not None and self._store_answers:
            said = str(error) or f"no answer within {_STORE_PATIENCE * self._config.election_s:g} s"
            _log.error("mgmtd %d: the key-value store: %s", self._own.node_id, said)
        self._store_answers = error is None
