"""From a WRITE frame to the updates that may go on: whose place in its chain this replica has, with the bytes that came
with the frame or ahead of it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Fs3Error, Invalid, StaleRouting
from fs3.runtime import Lock
from fs3.storage import ahead, channel_core, craq_core
from fs3.storage.ahead import Ahead, Arrival
from fs3.storage.chain_state import Acting, ChainState, Duty, Role
from fs3.storage.engine_api import DedupEntry, DedupRecord
from fs3.storage.write_item import Item
from fs3.transport.messages import Op, Records, UpdateFlag

_LOG = logging.getLogger("fs3.storage")
_FLAGS = UpdateFlag(sum(UpdateFlag))  # unknown ones are ignored
_COLUMNS = (
    *("hi", "lo", "offset", "length", "chain", "chain_version", "client", "seq", "channel"),
    *("n_sums", "version", "op", "flags", "chunk_bytes", "reserved"),
)

Actings = dict[tuple[int, int], tuple[Role, Acting] | Fs3Error]  # by chain and its version; each to be left


class Frames:
    """Thread-safe. `recovering` has a lock for each target, under which it takes results from its predecessor."""

    def __init__(self, state: ChainState, ahead: Ahead, recovering: Mapping[int, Lock]) -> None:
        self._state = state
        self._ahead = ahead
        self._recovering = recovering

    def items(
        self,
        updates: Records,
        sums: NDArray[np.uint32],
        body: memoryview,
        hop: int,
        results: Records,
        actings: Actings,
        arrived: Mapping[int, Arrival | None],
    ) -> dict[int, Item]:
        """The updates that may go on, by row; the status of the others is in `results`. Raises: Invalid."""
        lengths, n_sums = updates["length"].astype(np.int64), updates["n_sums"].astype(np.int64)
        lengths[list(arrived)] = 0
        if int(lengths.sum()) != len(body) or int(n_sums.sum()) != len(sums):
            raise Invalid(
                f"a WRITE frame names {int(lengths.sum())} bytes and {int(n_sums.sum())} sums,"
                f" and carries {len(body)} and {len(sums)}"
            )
        body_at = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        sums_at = np.concatenate([[0], np.cumsum(n_sums)]).tolist()
        columns = dict(zip(_COLUMNS, (updates[name].tolist() for name in _COLUMNS), strict=True))
        items: dict[int, Item] = {}
        arriving: defaultdict[int, list[DedupRecord]] = defaultdict(list)
        for row in range(len(updates)):
            chain = (columns["chain"][row], columns["chain_version"][row])
            try:
                role, acting = self._entered(chain, actings)
                op, flags = _op_of(columns["op"][row]), UpdateFlag(columns["flags"][row]) & _FLAGS
                self._check_place(role, op, flags, hop)
                arrival = arrived.get(row)
                if row in arrived and arrival is None:
                    raise ahead.missing(columns["hi"][row], columns["lo"][row], hop=hop)
            except Fs3Error as error:
                _LOG.debug("chain %d: %s", chain[0], error)
                results["status"][row] = error.code
                continue
            identity = (columns["client"][row], columns["channel"][row], columns["seq"][row])
            if flags & UpdateFlag.SYNC_RESULT:
                entry = DedupEntry(
                    identity[2], columns["version"][row], columns["offset"][row], columns["reserved"][row]
                )
                arriving[role.target_id].append(DedupRecord(identity[0], identity[1], entry))
                continue
            items[row] = Item(
                (role.target_id, columns["hi"][row], columns["lo"][row]),
                acting,
                role,
                self._state.engine(role.target_id),
                op,
                columns["offset"][row],
                body[body_at[row] : body_at[row + 1]] if arrival is None else arrival.data,
                sums[sums_at[row] : sums_at[row + 1]],
                flags & ~UpdateFlag.AHEAD,
                columns["chunk_bytes"][row],
                columns["version"][row],
                identity,
                recorded_crc=columns["reserved"][row] & 0xFFFF_FFFF,
                from_client=hop == 0,
                length=columns["offset"][row] if op is Op.NOTE else 0,
                arrival=arrival,
            )
        for target_id, records in arriving.items():
            self._take_results(target_id, records)
        return items

    def arrived(
        self, updates: Records, sums: NDArray[np.uint32], hop: int, deadline_s: float, taken: list[Arrival]
    ) -> dict[int, Arrival | None]:
        """By row, of the updates whose bytes went ahead: those bytes, if they are here; `taken` has them too."""
        rows = np.flatnonzero(updates["flags"] & np.uint16(UpdateFlag.AHEAD)).tolist()
        if not rows:
            return {}
        arrived: dict[int, Arrival | None] = {}
        ends = np.cumsum(updates["n_sums"].astype(np.int64)).tolist()
        for row in rows:
            fine = sums[ends[row] - int(updates["n_sums"][row]) : ends[row]]
            arrival = self._ahead.take(updates[row : row + 1], fine, hop=hop, deadline_s=deadline_s)
            arrived[row] = arrival
            if arrival is not None:
                taken.append(arrival)
        return arrived

    def _entered(self, chain: tuple[int, int], actings: Actings) -> tuple[Role, Acting]:
        if chain not in actings:
            try:
                actings[chain] = self._state.enter(*chain)
            except Fs3Error as error:
                actings[chain] = error
        entered = actings[chain]
        if isinstance(entered, Fs3Error):
            raise entered
        return entered

    def _check_place(self, role: Role, op: Op, flags: UpdateFlag, hop: int) -> None:
        """Raises: Invalid, StaleRouting: the update has no business at this replica."""
        if flags & UpdateFlag.SYNC_RESULT and hop and role.duty is Duty.SYNC:
            return
        if hop == 0 and not role.head:
            raise StaleRouting(f"target {role.target_id} is not the head of chain {role.chain_id}")
        if hop and role.head:
            raise StaleRouting(f"target {role.target_id} is the head of chain {role.chain_id}, nobody precedes it")
        wrong = craq_core.check_flags(
            op, flags & ~UpdateFlag.OS_DURABILITY, from_client=hop == 0, syncing=role.duty is Duty.SYNC
        )
        if wrong is not None:
            raise wrong

    def _take_results(self, target_id: int, records: list[DedupRecord]) -> None:
        engine = self._state.engine(target_id)
        with self._recovering[target_id]:
            known = {}
            for record in records:
                entry = engine.dedup(target_id, record.client, record.channel)
                if entry is not None:
                    known[record.client, record.channel] = entry
            engine.put_dedup(target_id, channel_core.newer_results(known, records))


def _op_of(op: int) -> Op:
    try:
        return Op(op)
    except ValueError:
        raise Invalid(f"an update with the unknown operation {op}") from None


def waves(items: dict[int, Item]) -> list[dict[int, Item]]:
    """The items in runs of distinct chunks; of one chunk's updates each is in a later run than the one before it."""
    waves: list[dict[int, Item]] = []
    seen: defaultdict[tuple[int, int, int], int] = defaultdict(int)
    for row, item in items.items():
        number = seen[item.key]
        seen[item.key] += 1
        if number == len(waves):
            waves.append({})
        waves[number][row] = item
    return waves
