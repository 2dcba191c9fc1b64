"""What mgmtd must not forget, in the key-value store: one key per node, target, chain and table, one version for all.

    MGMT/cluster            the cluster's id, made at the first start
    MGMT/primary            pb PrimaryClaim: who decides; absent when the last one stopped in order
    MGMT/epoch              counts the primaries; a change is written only under the epoch of who writes it
    MGMT/version            the version of the routing, u64
    MGMT/last-target        the highest target id ever given out, u64
    MGMT/ready              there once the chain tables are published; until then chains and targets are a plan
    MGMT/node/<u32>         pb NodeInfo          MGMT/target/<u32>       pb TargetInfo
    MGMT/chain/<u32>        pb ChainInfo         MGMT/table/<u32><u32>   pb ChainTable (id, version)
    MGMT/session/<u64>      pb ClientSession     MGMT/last-session       the highest session id ever given out, u64
    MGMT/ended              counts the times that sessions ended, u64

Numbers are big-endian. A decision is in force as a whole or not at all, whatever its size (staging.py). Each
transaction compares the epoch, so that a mgmtd which has been replaced cannot write any more, and the version, so that
one whose outcome was unknown cannot arrive after its successor. Space and load figures are not kept: daemons report
them anew.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fs3.errors import Conflict, Corrupt, MaybeApplied
from fs3.kv.api import KVEngine, Transaction, prefix_end, transact
from fs3.mgmtd.election_core import Claim
from fs3.mgmtd.placement_core import Plan
from fs3.mgmtd.stage_core import Change, Stage, overlaid
from fs3.mgmtd.staging import Finish, Staging
from fs3.pb import mgmtd_pb2
from fs3.routing import Routing, routing_from_pb, routing_to_pb
from fs3.sessions import SessionTable

_CLUSTER = b"MGMT/cluster"
_EPOCH = b"MGMT/epoch"
_VERSION = b"MGMT/version"
_READY = b"MGMT/ready"
_PRIMARY = b"MGMT/primary"
_LAST_TARGET = b"MGMT/last-target"
_LAST_SESSION = b"MGMT/last-session"
_ENDED = b"MGMT/ended"
_SESSION = b"MGMT/session/"
_NODE = b"MGMT/node/"
_TARGET = b"MGMT/target/"
_CHAIN = b"MGMT/chain/"
_TABLE = b"MGMT/table/"
_PAGE = 1_000

_U32 = struct.Struct(">I")
_U32X2 = struct.Struct(">II")
_U64 = struct.Struct(">Q")

ANYONE = Claim(0, 0, "", 0, 0)

V = TypeVar("V")

_Staged = tuple[Stage, list[Change]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What was there at the start: the published routing, and the plan if its targets are not all created yet."""

    epoch: int
    routing: Routing
    plan: Plan | None
    sessions: SessionTable


class MgmtdStore:
    """mgmtd's truth in `kv`, which it does not close."""

    def __init__(self, kv: KVEngine) -> None:
        self._kv = kv
        self._epoch = 0
        self._staging = Staging(kv)

    @property
    def sessions_at_once(self) -> int:
        """How many sessions can end in one transaction."""
        return self._staging.most

    async def identify(self) -> str:
        """The cluster's id, made here if this is its first start."""
        return await transact(self._kv, self._identify)

    async def _identify(self, txn: Transaction) -> str:
        cluster = await txn.get(_CLUSTER)
        if cluster is None:
            cluster = secrets.token_hex(8).encode()
            txn.put(_CLUSTER, cluster)
        return cluster.decode()

    async def claim(self) -> Claim | None:
        """Who decides, or did last."""
        txn = self._kv.begin()
        return _claim_from(await txn.get(_PRIMARY, snapshot=True))

    async def take_over(
        self, node_id: int = 0, generation: int = 0, address: str = "", *, seen: Claim | None = ANYONE
    ) -> Loaded:
        """Become the one that decides, and read everything.

        `seen` is the claim that made this mgmtd do it; by default whatever is there is overruled.

        Raises:
            Conflict: the claim is no longer `seen`.
            MaybeApplied: it may be this mgmtd's now; `claim` tells.
        """

        async def body(txn: Transaction) -> tuple[Loaded, _Staged]:
            if seen != ANYONE and _claim_from(await txn.get(_PRIMARY)) != seen:
                raise Conflict("another mgmtd was faster, or the primary is alive after all")
            epoch = await _u64(txn, _EPOCH) + 1
            txn.put(_EPOCH, _U64.pack(epoch))
            _put_claim(txn, Claim(node_id, generation, address, epoch, 0))
            return await self._load(txn, epoch, await self._identify(txn))

        loaded, staged = await transact(self._kv, body)
        self._epoch = loaded.epoch
        self._staging.adopt(*staged)
        return loaded

    async def renew(self) -> None:
        """Show that this mgmtd goes on deciding. Raises: Conflict: another one does now."""

        async def body(txn: Transaction) -> None:
            await self._check_epoch(txn)
            claim = _claim_from(await txn.get(_PRIMARY))
            if claim is None or claim.epoch != self._epoch:
                raise Conflict(f"the claim of epoch {self._epoch} is gone: {claim}")
            _put_claim(txn, replace(claim, beat=claim.beat + 1))

        await transact(self._kv, body)

    async def resign(self) -> None:
        """Let the next mgmtd take over at once, if this one still decides."""

        async def body(txn: Transaction) -> None:
            claim = _claim_from(await txn.get(_PRIMARY))
            if claim is not None and claim.epoch == self._epoch:
                txn.delete(_PRIMARY)

        await transact(self._kv, body)

    async def load(self) -> Loaded:
        """What is stored, for a primary that lost the answer to a commit. Raises: Conflict, as `save`."""

        async def body(txn: Transaction) -> tuple[Loaded, _Staged]:
            await self._check_epoch(txn)
            return await self._load(txn, self._epoch, await self._identify(txn))

        loaded, staged = await transact(self._kv, body)
        self._staging.adopt(*staged)
        return loaded

    async def save(self, before: Routing, after: Routing) -> None:
        """Commit the step from `before` (what is stored) to `after`.

        Raises:
            Conflict: another mgmtd has taken over; this one must stop deciding.
            MaybeApplied: what is stored now is not known; `load` tells.
        """
        changed = replace(
            after,
            nodes=_changed(before.nodes, after.nodes),
            targets=_changed(before.targets, after.targets),
            chains=_changed(before.chains, after.chains),
            tables=_changed(before.tables, after.tables),
        )

        def finish(txn: Transaction) -> None:
            txn.put(_VERSION, _U64.pack(after.version))
            if after.last_target_id != before.last_target_id:
                txn.put(_LAST_TARGET, _U64.pack(after.last_target_id))
            if after.ready and not before.ready:
                txn.put(_READY, b"1")

        gone: list[Change] = [(key, None) for key in _gone(before, after)]
        await self._write([*gone, *_records(routing_to_pb(changed))], before.version, finish)

    async def save_plan(self, routing: Routing, plan: Plan) -> None:
        """Commit what is to be created, before any daemon is told, beside `routing`. Raises: as `save`."""

        def finish(txn: Transaction) -> None:
            txn.put(_VERSION, _U64.pack(routing.version))  # so that a plan which arrives late meets a conflict

        await self._write(list(_records(routing_to_pb(_as_routing(plan)))), routing.version, finish)

    async def _write(self, changes: list[Change], version: int, finish: Finish) -> None:
        """Make `changes` to what is stored as `version`."""

        async def check(txn: Transaction) -> None:
            await self._check_epoch(txn)
            await self._check_version(txn, version)

        await self._staging.write(changes, check, finish, check_epoch=self._check_epoch)

    async def open_session(self, session: mgmtd_pb2.ClientSession) -> int:
        """Commit a session under the next id, which it returns. Raises: as `save`."""

        async def body(txn: Transaction) -> int:
            await self._check_epoch(txn)
            session.session_id = await _u64(txn, _LAST_SESSION) + 1
            txn.put(_LAST_SESSION, _U64.pack(session.session_id))
            txn.put(_SESSION + _U64.pack(session.session_id), session.SerializeToString())
            return session.session_id

        return await transact(self._kv, body)

    async def end_sessions(self, session_ids: Iterable[int], version: int) -> None:
        """Commit that sessions are over, as `version` of the table. Raises: as `save`."""

        async def body(txn: Transaction) -> None:
            await self._check_epoch(txn)
            if (stored := await _u64(txn, _ENDED) + 1) != version - 1:
                raise MaybeApplied(f"the session table in the store has version {stored}, not {version - 1}")
            txn.put(_ENDED, _U64.pack(version - 1))
            for session_id in session_ids:
                txn.delete(_SESSION + _U64.pack(session_id))

        await transact(self._kv, body)

    async def sessions(self) -> SessionTable:
        """What is stored, after a lost answer. Raises: Conflict, as `save`."""

        async def body(txn: Transaction) -> SessionTable:
            await self._check_epoch(txn)
            return await _load_sessions(txn)

        return await transact(self._kv, body)

    async def session_records(self) -> list[mgmtd_pb2.ClientSession]:
        """Every live session, for people."""
        txn = self._kv.begin()
        return [mgmtd_pb2.ClientSession.FromString(value) async for _, value in _pairs(txn, _SESSION)]

    async def _check_epoch(self, txn: Transaction) -> None:
        newest = await _u64(txn, _EPOCH)
        if newest != self._epoch:
            raise Conflict(f"another mgmtd has taken over (epoch {newest}, this one has {self._epoch})")

    async def _check_version(self, txn: Transaction, version: int) -> None:
        stored = await _u64(txn, _VERSION)
        if stored != version:
            raise MaybeApplied(f"the routing in the store has version {stored}, not {version}: a commit arrived late")

    async def _load(self, txn: Transaction, epoch: int, cluster_id: str) -> tuple[Loaded, _Staged]:
        """What has changed before `txn` commits makes it conflict: every change puts one of the keys read singly."""
        stage, changes = await self._staging.load(txn)
        message = mgmtd_pb2.Routing(cluster_id=cluster_id)
        message.version = await _u64(txn, _VERSION)
        message.ready = await txn.get(_READY) is not None
        for prefix, repeated in (
            (_NODE, message.nodes),
            (_TARGET, message.targets),
            (_CHAIN, message.chains),
            (_TABLE, message.tables),
        ):
            stored = {key: value async for key, value in _pairs(txn, prefix)}
            for value in overlaid(stored, changes, prefix):
                repeated.add().ParseFromString(value)
        message.last_target_id = await _u64(txn, _LAST_TARGET)
        if message.ready:
            message.last_target_id = max(message.last_target_id, *(target.target_id for target in message.targets), 0)
        everything = routing_from_pb(message)
        sessions = await _load_sessions(txn)
        for chain in everything.chains.values():
            if any(target not in everything.targets for target in chain.targets):
                raise Corrupt(
                    f"chain {chain.chain_id} names a target that the store lacks; restore mgmtd's data folder"
                )
        if everything.ready or not everything.chains:
            return Loaded(epoch=epoch, routing=everything, plan=None, sessions=sessions), (stage, changes)
        plan = Plan(
            tuple(everything.targets.values()), tuple(everything.chains.values()), tuple(everything.tables.values())
        )
        bare = replace(everything, targets={}, chains={}, tables={})
        return Loaded(epoch=epoch, routing=bare, plan=plan, sessions=sessions), (stage, changes)


def _claim_from(raw: bytes | None) -> Claim | None:
    if raw is None:
        return None
    claim = mgmtd_pb2.PrimaryClaim.FromString(raw)
    return Claim(claim.node_id, claim.generation, claim.address, claim.epoch, claim.beat)


def _put_claim(txn: Transaction, claim: Claim) -> None:
    message = mgmtd_pb2.PrimaryClaim(
        node_id=claim.node_id,
        generation=claim.generation,
        address=claim.address,
        epoch=claim.epoch,
        beat=claim.beat,
    )
    txn.put(_PRIMARY, message.SerializeToString())


async def _load_sessions(txn: Transaction) -> SessionTable:
    """Version 1 is that of a cluster in which no session has ended: 0 means none heard of."""
    live = [mgmtd_pb2.ClientSession.FromString(value).session_id async for _, value in _pairs(txn, _SESSION)]
    return SessionTable(await _u64(txn, _ENDED) + 1, await _u64(txn, _LAST_SESSION), frozenset(live))


def _as_routing(plan: Plan) -> Routing:
    return Routing(
        targets={target.target_id: target for target in plan.targets},
        chains={chain.chain_id: chain for chain in plan.chains},
        tables={(table.table_id, table.version): table for table in plan.tables},
    )


def _changed(before: Mapping[Any, V], after: Mapping[Any, V]) -> dict[Any, V]:
    return {key: value for key, value in after.items() if before.get(key) != value}


def _gone(before: Routing, after: Routing) -> list[bytes]:
    """The keys of what `after` no longer has."""
    return [
        *(_NODE + _U32.pack(key) for key in before.nodes if key not in after.nodes),
        *(_TARGET + _U32.pack(key) for key in before.targets if key not in after.targets),
        *(_CHAIN + _U32.pack(key) for key in before.chains if key not in after.chains),
        *(_TABLE + _U32X2.pack(*key) for key in before.tables if key not in after.tables),
    ]


async def _u64(txn: Transaction, key: bytes) -> int:
    raw = await txn.get(key)
    return int(_U64.unpack(raw)[0]) if raw else 0


def _records(message: mgmtd_pb2.Routing) -> Iterator[Change]:
    for node in message.nodes:
        yield _NODE + _U32.pack(node.node_id), node.SerializeToString()
    for target in message.targets:
        yield _TARGET + _U32.pack(target.target_id), target.SerializeToString()
    for chain in message.chains:
        yield _CHAIN + _U32.pack(chain.chain_id), chain.SerializeToString()
    for table in message.tables:
        yield _TABLE + _U32X2.pack(table.table_id, table.version), table.SerializeToString()


async def _pairs(txn: Transaction, prefix: bytes) -> AsyncIterator[tuple[bytes, bytes]]:
    """All keys of a kind, without a conflict (`_load` says why)."""
    begin, end = prefix, prefix_end(prefix)
    while True:
        page = await txn.range(begin, end, limit=_PAGE, snapshot=True)
        for pair in page:
            yield pair
        if len(page) < _PAGE:
            return
        begin = page[-1][0] + b"\0"
