"""The mistakes that the simulator must find: bugs that 3FS had, put back into our code, and more of our own.

Of the nine bugs that 3FS fixed after its release (numbered as in its change log's order in our notes) two have no
mechanism here: block compaction racing a removal (2: blocks are never moved to compact a file), and a layout that
depended on a library's shuffle (7: the order is our own, with golden vectors in tests/golden, which no run of a cluster
could see).
"""

from __future__ import annotations

from sim_mutation import Mutant, Patch

_CRAQ = "fs3/storage/craq_core.py"
_REPLICATION = "fs3/storage/replication.py"
_ENGINE = "fs3/storage/engine.py"
_COMMIT = "fs3/storage/commit.py"
_CHAIN_STATE = "fs3/storage/chain_state.py"
_RESYNC = "fs3/storage/resync.py"
_RESYNC_CORE = "fs3/storage/resync_core.py"
_UPKEEP = "fs3/storage/upkeep.py"
_TARGET = "fs3/storage/target_core.py"
_WRITE_ITEM = "fs3/storage/write_item.py"
_CHAIN = "fs3/mgmtd/chain_core.py"


def _one(name: str, breaks: str, path: str, before: str, after: str, *, bug: int = 0) -> Mutant:
    return Mutant(name, breaks, (Patch(path, before, after),), bug)


MUTANTS: tuple[Mutant, ...] = (
    # Bugs of 3FS
    _one(
        "truncate-while-syncing",
        "a truncation goes to a SYNCING successor as it is, not as the whole chunk",
        _WRITE_ITEM,
        "return item.whole or not item.own or (item.role.successor is not None and item.role.successor.syncing)",
        "return item.whole or not item.own or (\n"
        "        item.role.successor is not None and item.role.successor.syncing and item.op is not Op.TRUNCATE\n    )",
        bug=1,
    ),
    _one(
        "reuse-before-durable",
        "a block that an update has replaced is free before the record that names it is gone from stable storage",
        "fs3/storage/space.py",
        "            self._quarantine.retire([self._id(block) for block in blocks], batch)\n",
        "            for block in blocks:\n                self._allocator.free(block)\n",
        bug=3,
    ),
    _one(
        "batch-failure-hidden",
        "an update that its replica refused is answered as applied, as long as it came in a batch",
        _REPLICATION,
        "                if isinstance(result, Fs3Error):\n                    self._answer(item, error=result)",
        "                if isinstance(result, Fs3Error) and len(group) > 1:\n"
        "                    self._answer(item, version_of[id(item)], 0)\n"
        "                elif isinstance(result, Fs3Error):\n                    self._answer(item, error=result)",
        bug=4,
    ),
    _one(
        "commit-of-another-version",
        "a commit that arrives late commits whatever is pending then",
        _ENGINE,
        "                if pending is not None and pending.version != one.version:\n                    pending = None\n",
        "",
        bug=5,
    ),
    _one(
        "published-before-stored",
        "readers see a version before its record is on stable storage",
        _COMMIT,
        "            self._publish([batch for batch in group if not batch.sync])\n",
        "            for batch in group:\n                batch.publish(self._number)\n"
        "            self._publish([batch for batch in group if not batch.sync])\n",
        bug=6,
    ),
    _one(
        "resync-asked-once",
        "a SYNCING successor is brought up to date only if it is there when the daemon starts",
        _CHAIN_STATE,
        "                if role.successor is not None and role.successor.syncing:\n",
        "                if role.successor is not None and role.successor.syncing and chain_id not in before:\n",
        bug=9,
    ),
    # Versions and order
    _one(
        "version-gap",
        "a replica takes any newer version, also one whose predecessor it has missed",
        _CRAQ,
        "    if version == info.version + 1:\n        return Decision(Say.STAGE, version)\n    return _refuse(\n"
        '        Conflict(f"{chunk_name(hi, lo)}: update {version} came',
        "    if version > info.version:\n        return Decision(Say.STAGE, version)\n    return _refuse(\n"
        '        Conflict(f"{chunk_name(hi, lo)}: update {version} came',
    ),
    _one(
        "old-chunk-in-recovery",
        "a whole chunk that arrives late at a SYNCING replica replaces a newer one",
        _CRAQ,
        "    if info.chain_version == chain_version and info.version:\n        if version < info.version:",
        "    if info.chain_version == chain_version and info.version:\n        if version < 0:",
    ),
    _one(
        "any-chain-version",
        "a request under an old version of the chain is served",
        _CHAIN_STATE,
        '            if role.version != chain_version:\n                raise StaleRouting(f"chain {chain_id} is at version',
        '            if role.version < 0:\n                raise StaleRouting(f"chain {chain_id} is at version',
    ),
    # Acknowledgements
    _one(
        "early-ack",
        "the head commits and answers without asking its successor",
        _REPLICATION,
        "            (ready if item.role.successor is None else asking).append(item)",
        "            (ready if item.role.successor is None or item.role.head else asking).append(item)",
    ),
    _one(
        "skip-the-middle",
        "a replica forwards to the last of the chain, not to the next",
        _CHAIN_STATE,
        "                successor = self._successor(writable[position + 1])",
        "                successor = self._successor(writable[-1])",
    ),
    _one(
        "no-data-sync",
        "a durable write's bytes are not synced",
        "fs3/storage/blocks.py",
        "        self._raw.sync()\n",
        "",
    ),
    _one(
        "no-log-sync",
        "the log of the metadata is not synced",
        _COMMIT,
        '        self._metadata.sync()\n        self._step("metadata synced", -1, 0, 0)',
        '        self._step("metadata synced", -1, 0, 0)',
    ),
    _one(
        "unlocked-chunks",
        "updates of one chunk do not wait for each other",
        "fs3/storage/write_locks.py",
        "            waiters = self._waiters.get(key)\n            if waiters is None:",
        "            waiters = self._waiters.get(key)\n            if waiters is not None:\n"
        "                waiters.append(self._runtime.lock())\n                return True\n            if waiters is None:",
    ),
    # Exactly once
    _one(
        "result-not-kept",
        "the result of an update is not recorded with it",
        _ENGINE,
        "        if not staged.client:\n            return []\n        key = md.result_key",
        "        if staged.client:\n            return []\n        key = md.result_key",
    ),
    _one(
        "results-left-behind",
        "recovery copies chunks, but not the results of updates",
        _RESYNC,
        "        self._send_results()\n",
        "",
    ),
    _one(
        "repeats-applied",
        "a repeated update is taken for a new one",
        "fs3/storage/channel_core.py",
        "    return Seen.REPEATED if seq == entry.seq else Seen.LATE",
        "    return Seen.NEW if seq == entry.seq else Seen.LATE",
    ),
    _one(
        "late-updates-applied",
        "an update that its client has given up is applied when it arrives at last",
        "fs3/storage/channel_core.py",
        "    return Seen.REPEATED if seq == entry.seq else Seen.LATE",
        "    return Seen.REPEATED if seq == entry.seq else Seen.NEW",
    ),
    _one(
        "new-number-for-a-retry",
        "the client sends an update again under a new sequence number",
        "fs3/client/write_path.py",
        "        self._tries[todo] += 1\n",
        '        self._tries[todo] += 1\n        self._records["seq"][todo] += self._tries[todo] - 1\n',
    ),
    # Reads
    _one(
        "read-while-pending",
        "a replica serves the committed version of a chunk that has a pending one",
        "fs3/storage/read_core.py",
        "    if not relaxed and pending.any():\n",
        "    if relaxed and pending.any():\n",
    ),
    _one(
        "read-without-lease",
        "a daemon that has lost touch with mgmtd goes on answering reads",
        "fs3/storage/read_path.py",
        "            reply = self._reply(header, ranges, results, file, position, kept, by_sendfile=by_sendfile)\n"
        "            self._check_lease()\n",
        "            reply = self._reply(header, ranges, results, file, position, kept, by_sendfile=by_sendfile)\n",
    ),
    # Recovery
    _one(
        "recovery-ignores-sums",
        "a chunk of the same version is taken for the same, whatever its bytes and length",
        _RESYNC_CORE,
        "    return bool(there.pending) or here.version != there.version or here.length != there.length or here.crc != there.crc",
        "    return bool(there.pending) or here.version != there.version",
    ),
    _one(
        "recovery-leaves-removed",
        "chunks that exist only at the SYNCING replica stay there",
        _RESYNC_CORE,
        "    return Plan(transfer, list(others))",
        "    return Plan(transfer, [])",
    ),
    _one(
        "recovery-does-not-drain",
        "recovery begins while updates still run that do not know of the SYNCING replica",
        _RESYNC,
        "            if not self.state.drained(",
        "            if not self.state or False and not self.state.drained(",
    ),
    _one(
        "pending-forgotten",
        "the last that served comes back without committing its pending versions",
        _UPKEEP,
        "                engine.commit(pending, sync=True)\n",
        "                engine.abort(pending)\n",
    ),
    _one(
        "pending-kept",
        "a replica that was left behind keeps the pending versions of before",
        _UPKEEP,
        "                engine.abort(pending)\n",
        "                pass\n",
    ),
    _one(
        "not-settled",
        "pending versions are not finished after a change of the chain",
        _CHAIN_STATE,
        '                self._ask("settle", role.target_id)\n',
        "",
    ),
    # States
    _one(
        "serves-when-stale",
        "a target that is behind says that it is up to date",
        _TARGET,
        "        Phase.STALE: LocalState.ONLINE,",
        "        Phase.STALE: LocalState.UPTODATE,",
    ),
    _one(
        "restart-not-noticed",
        "a daemon that was restarted speaks for its targets before it has seen them off duty",
        _TARGET,
        "    if phase is Phase.BROKEN or (phase is Phase.HELD and not ours):\n        return stand",
        "    if phase is Phase.BROKEN:\n        return stand\n    if phase is Phase.HELD and place is not None:\n"
        "        return Stand(Phase.SERVING if place.state is TargetState.SERVING else Phase.CLEARING)",
    ),
    _one(
        "two-last-servers",
        "whoever of a chain comes back first serves, though it was not the last that served",
        _CHAIN,
        '    if not somebody_serves:\n        return TargetState.WAITING, "nobody serves whom it could follow"\n',
        '    if not somebody_serves:\n        return TargetState.SERVING, "nobody serves whom it could follow"\n',
    ),
    _one(
        "two-syncing",
        "two targets of a chain are synced at once",
        _CHAIN,
        '    if syncing is not None:\n        return TargetState.WAITING, f"target {syncing} is synced first"\n',
        "",
    ),
    # mgmtd
    _one(
        "old-primary-writes",
        "a mgmtd that was replaced can still change the routing",
        "fs3/mgmtd/store.py",
        "        if newest != self._epoch:\n",
        "        if newest < self._epoch:\n",
    ),
    _one(
        "impatient-mgmtd",
        "mgmtd gives a daemon up before the daemon has stopped serving",
        "fs3/mgmtd/lease_core.py",
        "            node_id for node_id, lease in self._leases.items() if lease.alive and now_s >= lease.since_s + self.lease_s\n",
        "            node_id\n            for node_id, lease in self._leases.items()\n"
        "            if lease.alive and now_s >= lease.since_s + self.lease_s / 4\n",
    ),
)
