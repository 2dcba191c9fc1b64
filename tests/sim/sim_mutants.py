"""The mistakes that the simulator must find: bugs that 3FS had, put back into our code, and more of our own.

Of the nine bugs that 3FS fixed after its release (numbered as in its change log's order in our notes) two have no
mechanism here: block compaction racing a removal (2: blocks are never moved to compact a file), and a layout that
depended on a library's shuffle (7: the order is our own, with golden vectors in tests/golden, which no run of a cluster
could see). Bug 3, a chunk moved between blocks, is the reuse of the block that an update has replaced: every update
moves its chunk. Bug 8, a clock that moved back demoting the primary for good, is whatever demotes it: a lease clock
does not go back, but a stall or a slow store takes the claim away.

Left out are mistakes that change nothing which anybody could notice, because another rule holds where one is gone:

    daemons believing a lower epoch         a primary answers within its claim only, and T/2 + E/4 is less than T
    a lease counted from the answer         the call takes at most T/4, and T/2 + T/4 is less than T
    a FORGET passed to a SYNCING replica    which refuses it, and nothing is erased
    the first look at a daemon's lease      when an update comes: the one before its answer counts

and these are made together with the second rule that would hold:

    a late commit's version not compared    the chunk's lock is held from staging to commit
    a gap in the versions taken             no removal is forgotten while an older frame may still arrive
    no settling after a change of a chain   whoever works on a version finishes it, or leaves the chore behind
    SYNC_DONE not comparing tables          a target has the table by the time that its predecessor forgets by it
    repair with another version             the sum of sums, and the version once more under the chunk's lock
    serving again at once after a restart   mgmtd answers a run's first heartbeat once its targets are off duty
"""

from __future__ import annotations

from sim_mutation import Mutant, Patch

_CRAQ = "fs3/storage/craq_core.py"
_REPLICATION = "fs3/storage/replication.py"
_ENGINE = "fs3/storage/engine.py"
_AHEAD = "fs3/storage/ahead.py"
_COMMIT = "fs3/storage/commit.py"
_CHAIN_STATE = "fs3/storage/chain_state.py"
_RESYNC = "fs3/storage/resync.py"
_RESYNC_CORE = "fs3/storage/resync_core.py"
_UPKEEP = "fs3/storage/upkeep.py"
_TARGET = "fs3/storage/target_core.py"
_WRITE_ITEM = "fs3/storage/write_item.py"
_CHAIN = "fs3/mgmtd/chain_core.py"
_CHANGES = "fs3/storage/changes.py"
_SESSIONS = "fs3/storage/session_fence.py"
_REPAIR = "fs3/storage/repair.py"
_STAGING = "fs3/storage/staging.py"
_READ_PATH = "fs3/storage/read_path.py"
_CLIENT_WRITE = "fs3/client/write_path.py"
_AGENT = "fs3/client/node_agent.py"
_STORE = "fs3/mgmtd/store.py"
_PRIMARY = "fs3/mgmtd/primary.py"
_ELECTION = "fs3/mgmtd/election.py"
_ELECTION_CORE = "fs3/mgmtd/election_core.py"


def _one(
    name: str, breaks: str, path: str, before: str, after: str, *, bug: int = 0, faults: tuple[str, ...] = ()
) -> Mutant:
    return Mutant(name, breaks, (Patch(path, before, after),), bug, faults)


# Disks number the runs of a daemon in their order (run_number.py); without them mgmtd must know them apart by itself.
_NUMBERED_BY_THE_CLOCK = Patch(
    "fs3/storage/daemon.py",
    "max([wall_ns, *(engine.last_run + 1 for engine in engines)])",
    "wall_ns",
)

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
        "                elif isinstance(result, Fs3Error):\n                    self._engine_failed(engine, result)\n",
        "                elif isinstance(result, Fs3Error) and len(group) > 1:\n"
        "                    self._answer(item, version_of[id(item)], 0)\n"
        "                elif isinstance(result, Fs3Error):\n                    self._engine_failed(engine, result)\n",
        bug=4,
    ),
    Mutant(
        "commit-of-another-version",
        "the chunk's lock is let go while the successor is asked, and a late commit commits whatever is pending then",
        (
            Patch(
                _REPLICATION,
                "        for group in slices(asking):\n",
                "        self._unlock(asking)\n        for group in slices(asking):\n",
            ),
            Patch(
                _CHANGES,
                "                if pending is not None and pending.version != one.version:\n                    pending = None\n",
                "",
            ),
        ),
        bug=5,
    ),
    _one(
        "published-before-stored",
        "readers see a version before its record is on stable storage",
        _COMMIT,
        "            self._publish([batch for batch in group if not batch.sync])\n",
        "            for batch in group:\n                batch.publish(self._number)\n                batch.publish = nothing\n"
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
    # Bytes ahead of their update
    _one(
        "ahead-not-synced",
        "bytes that went ahead count as synced though they are not",
        "fs3/storage/staging.py",
        "            if durable:\n                file.sync()\n",
        "",
        faults=("all storages lose power", "storage power loss"),
    ),
    Mutant(
        "ahead-before-all-is-there",
        "an update takes what went ahead as soon as some of it has come, and does not compare the sums",
        (
            Patch(
                _AHEAD,
                "                whole = not arrival.left and not arrival.failed\n",
                "                whole = not arrival.failed\n",
            ),
            Patch(_AHEAD, " and arrival.length == length and np.array_equal(arrival.fine, fine)\n", "\n"),
        ),
    ),
    _one(
        "ahead-given-back-twice",
        "the block of bytes that went ahead is free again once their update is answered",
        _AHEAD,
        "        if not reserved.used:\n            arrival.engine.unreserve(reserved)\n",
        "        arrival.engine.unreserve(reserved)\n",
    ),
    # Versions and order
    Mutant(
        "version-gap",
        "removals are forgotten though older frames may still arrive, and a replica takes them for something new",
        (
            Patch(
                "fs3/storage/sending.py",
                "            if self._doubts.has(item.key[0], item.role.version, chunk):\n",
                "            if self._doubts.has(item.key[0], item.role.version - 1, chunk):\n",
            ),
            Patch(
                _CRAQ,
                "    if not info.found if fresh else (info.found and version == info.version + 1):\n",
                "    if version > info.version:\n",
            ),
        ),
        faults=("connections hang",),
    ),
    _one(
        "old-chunk-in-recovery",
        "a whole chunk that arrives late at a SYNCING replica replaces a newer one",
        _CRAQ,
        "    if info.chain_version == chain_version and info.version:\n        if version < info.version:",
        "    if info.chain_version == chain_version and info.version:\n        if version < 0:",
        faults=("connections hang", "storage stall", "storage crash"),
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
        "            if item.role.successor is None:\n                ready.append(item)",
        "            if item.role.successor is None or item.role.head:\n                ready.append(item)",
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
        "            self._raw.sync()\n",
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
        "                beside = self._runtime.lock()\n                beside.acquire()\n"
        "                waiters.append(beside)\n                return True\n            if waiters is None:",
    ),
    # Exactly once
    _one(
        "result-not-kept",
        "the result of an update is not recorded with it",
        _CHANGES,
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
        faults=("connections hang",),
    ),
    _one(
        "new-number-for-a-retry",
        "the client sends an update again under a new sequence number",
        "fs3/client/write_path.py",
        "        self._tries[todo] += 1\n",
        '        self._tries[todo] += 1\n        self._records["seq"][todo] += (self._tries[todo] > 1).astype(np.uint64)\n',
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
        "    same = here.version == there.version and here.length == there.length and here.crc == there.crc",
        "    same = here.version == there.version",
        faults=("all storages lose power", "storage power loss"),
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
        "recovery does not mind what a replica that was left behind has pending",
        _RESYNC_CORE,
        "    return bool(there.pending) or not same",
        "    return not same",
        faults=("storage crash", "client crash", "storage stall"),
    ),
    _one(
        "pending-dropped",
        "a replica that was left behind drops what it has pending, which may be acknowledged and damaged elsewhere",
        _UPKEEP,
        "        except Unavailable as error:\n            self._state.broken(engine, error)\n            return None\n"
        "        for one in pending:\n",
        "            else:\n"
        "                engine.abort([engine.pending_staged(target_id, one.hi, one.lo)"
        " for one in engine.pending_of(target_id)])\n"
        "        except Unavailable as error:\n            self._state.broken(engine, error)\n            return None\n"
        "        for one in pending:\n",
        faults=("bytes change on a disk", "all storages lose power"),
    ),
    Mutant(
        "not-settled",
        "pending versions that nobody works on any more stay",
        (
            Patch(_CHAIN_STATE, '                self._ask("settle", role.target_id)\n', ""),
            Patch(_REPLICATION, "            self._settle(item.key[0], _SETTLE_AGAIN_S)\n", "            return\n"),
        ),
    ),
    # States
    _one(
        "serves-when-stale",
        "a target that is behind says that it is up to date",
        _TARGET,
        "    Phase.STALE: LocalState.ONLINE,",
        "    Phase.STALE: LocalState.UPTODATE,",
    ),
    Mutant(
        "restart-not-noticed",
        "a daemon that was restarted serves as it did before, and is answered before its targets are off duty",
        (
            Patch(
                _TARGET,
                "    if phase is Phase.BROKEN or (phase is Phase.HELD and not ours):\n        return stand",
                "    if phase is Phase.BROKEN:\n        return stand\n    if phase is Phase.HELD and place is not None:\n"
                "        return Stand(Phase.SERVING if place.state is TargetState.SERVING else Phase.CLEARING)",
            ),
            Patch(
                _PRIMARY,
                "        if news or new_disks or verdict != Heard.RENEWED or self._bootstrap_is_due():\n",
                "        if verdict == Heard.STARTED and self.routing.ready:\n"
                "            self._undecided = True\n            self._wake.set()\n"
                "        elif news or new_disks or verdict != Heard.RENEWED or self._bootstrap_is_due():\n",
            ),
        ),
        faults=("storage crash", "slow network"),
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
    # Sessions
    _one(
        "ended-clients-served",
        "a head takes updates of clients whose sessions have ended, and whose results are forgotten",
        _CRAQ,
        "    if client and standing is Standing.ENDED:\n",
        "    if client < 0 and standing is Standing.ENDED:\n",
    ),
    _one(
        "fence-not-kept",
        "a restarted daemon does not know that it has forgotten results",
        _SESSIONS,
        "engine.forget_clients(ended, FENCE, _packed(table.version))",
        "engine.forget_clients(ended, FENCE, _packed(0))",
    ),
    Mutant(
        "sync-done-with-an-older-table",
        "a replica is in sync although it does not know yet whose results its predecessor has forgotten, just now",
        (
            Patch(
                _SESSIONS,
                "        if self._table.version < version:\n            raise",
                "        if version < 0:\n            raise",
            ),
            Patch(
                _SESSIONS,
                "        if _unpacked(engine.get_state(target_id, FENCE)) < fence:",
                "        if fence < 0:",
            ),
            Patch("fs3/storage/write_path.py", "_FORGET_AFTER_S = 1.0 ", "_FORGET_AFTER_S = 0.0 "),
        ),
    ),
    _one(
        "unknown-means-ended",
        "a session that is newer than the table counts as over",
        "fs3/sessions.py",
        "        return client_id != 0 and client_id <= self.last_id and client_id not in self.live\n",
        "        return client_id != 0 and client_id not in self.live\n",
    ),
    _one(
        "session-ids-twice",
        "a session's id may be given out again after the session has ended",
        _STORE,
        "            session.session_id = await _u64(txn, _LAST_SESSION) + 1\n",
        "            live = await txn.range(_SESSION, prefix_end(_SESSION), limit=_PAGE)\n"
        "            session.session_id = len(live) + 1\n",
    ),
    # Removals
    _one(
        "forgotten-by-the-head-alone",
        "the head forgets a removal and tells nobody",
        _REPLICATION,
        "            if item.role.successor is None:\n                ready.append(item)",
        "            if item.role.successor is None or item.op is Op.FORGET:\n                ready.append(item)",
    ),
    _one(
        "forgotten-by-the-head-first",
        "a replica forgets a removal before its successor has",
        _REPLICATION,
        "            else:\n                asking.append(item)\n        self._conclude(ready, sync=True)\n",
        "            else:\n                asking.append(item)\n                if item.op is Op.FORGET:\n"
        "                    item.engine.forget_tombstones(item.key[0], [(*item.key[1:], item.version)])\n"
        "        self._conclude(ready, sync=True)\n",
    ),
    _one(
        "fresh-ignored",
        "a replica that has forgotten a removal takes the chunk's return at the next version only",
        _CRAQ,
        "    if not info.found if fresh else (",
        "    if (not info.found and version == info.version + 1) if fresh else (",
        faults=("connections hang",),
    ),
    _one(
        "removal-leaves-nothing",
        "a removal leaves no tombstone",
        _STAGING,
        "        return Prepared(_staged(update, version, 0, applied=True), _tombstone(update, version))\n",
        "        return Prepared(_staged(update, version, 0, applied=True), _tombstone(update, version), erases=True)\n",
    ),
    _one(
        "removals-left-behind",
        "recovery does not copy tombstones",
        _RESYNC,
        "            here = self._engine.metas(self._role.target_id, after, self._page, removals=True)",
        "            here = self._engine.metas(self._role.target_id, after, self._page)",
    ),
    _one(
        "removals-kept",
        "a replica keeps the tombstones of an earlier recovery, which the one in front of it has forgotten since",
        _RESYNC_CORE,
        "    return Plan(transfer, list(others))",
        "    return Plan(transfer, [chunk for chunk, other in others.items() if not other.removed])",
    ),
    # The order of what is heard
    _one(
        "late-heartbeat-believed",
        "mgmtd takes what a daemon said under an older version of the chain for what it says now",
        _CHAIN,
        "    if report.chain_version < chain.version:\n",
        "    if report.chain_version < NEVER:\n",
    ),
    _one(
        "run-not-told-from-run",
        "mgmtd does not notice that a daemon was started again",
        "fs3/mgmtd/lease_core.py",
        "        if generation != lease.generation:\n",
        "        if generation != lease.generation and not lease.alive:\n",
    ),
    _one(
        "generation-goes-back",
        "a late heartbeat of a daemon that is gone ends its successor's lease",
        "fs3/mgmtd/lease_core.py",
        "        if generation in lease.parted or (generation < lease.generation and generation in lease.retired):\n"
        "            return Heard.RETIRED\n"
        "        other = generation != lease.generation\n"
        "        before = generation < lease.generation or generation in lease.retired or generation in lease.early\n"
        "        if lease.alive and other and (before or elsewhere):\n"
        "            if generation not in lease.early:\n"
        "                lease.early.append(generation)\n"
        "            return Heard.EARLY\n",
        "",
    ),
    Mutant(
        "replaced-run-comes-back",
        "a late heartbeat of a run that was replaced ends its successor, where the clock went back between them",
        (
            _NUMBERED_BY_THE_CLOCK,
            Patch(
                "fs3/mgmtd/lease_core.py",
                "generation < lease.generation or generation in lease.retired or generation in lease.early",
                "generation < lease.generation or generation in lease.early",
            ),
        ),
        faults=("wall clock jumps",),
    ),
    Mutant(
        "run-that-waited-comes-back",
        "a late heartbeat of a run that was told to wait ends the one that was heard next, where the clock went back",
        (
            _NUMBERED_BY_THE_CLOCK,
            Patch(
                "fs3/mgmtd/lease_core.py",
                "generation < lease.generation or generation in lease.retired or generation in lease.early",
                "generation < lease.generation or generation in lease.retired",
            ),
        ),
        faults=("wall clock jumps",),
    ),
    _one(
        "old-requests-after-the-lock",
        "an update that waited for its chunk while the chain changed is carried out",
        _REPLICATION,
        "        if now is not None and now.version == item.role.version:\n            return None\n",
        "        if now is not None:\n            return None\n",
        faults=("wall clock jumps", "connections hang"),
    ),
    # Election
    _one(
        "hasty-standby",
        "a standby takes over without waiting for the claim to run out",
        _ELECTION_CORE,
        "        return Verdict.TAKE if now_s >= self._since_s + self._election_s else Verdict.WAIT\n",
        "        return Verdict.TAKE\n",
    ),
    _one(
        "claim-not-compared",
        "a standby that was stopped before it took over takes over all the same",
        _STORE,
        "            if seen != ANYONE and _claim_from(await txn.get(_PRIMARY)) != seen:\n",
        "            if seen != ANYONE and seen is not None and seen.beat < 0:\n",
    ),
    _one(
        "claim-for-ever",
        "a primary goes on answering when its claim has run out",
        _ELECTION_CORE,
        "        return now_s < self._renewed_s + self._election_s\n",
        "        return now_s < self._renewed_s + 1e9\n",
    ),
    _one(
        "leases-not-restarted",
        "a new primary counts leases from before its start",
        _PRIMARY,
        "alive=node.alive, started_s=started_s)\n",
        "alive=node.alive, started_s=started_s - config.lease_s)\n",
    ),
    _one(
        "demoted-for-good",
        "a mgmtd that has lost its claim once takes no part any more",
        _ELECTION,
        "                await self._decide()\n                await self._end_term()\n",
        "                await self._decide()\n                await self._end_term()\n"
        "                await asyncio.Event().wait()\n",
        bug=8,
    ),
    # Damage
    _one(
        "damage-served",
        "a chunk that is known to be damaged is sent",
        _READ_PATH,
        "            self.refuse_damaged(ranges, results)\n",
        "",
    ),
    _one(
        "sums-not-verified",
        "a client takes what it reads, whatever its sums say",
        "fs3/client/verify_core.py",
        "    return np.flatnonzero(piece_sums(memory, begin, end) != sums)\n",
        "    return np.flatnonzero(np.zeros(len(sums), dtype=np.bool_))\n",
    ),
    Mutant(
        "old-block-not-verified",
        "a partial write keeps the rest of its block unseen, and gives it a new sum",
        (
            Patch(
                _STAGING, "            content.check_sums(old_fine, coarse, base.length, what)", "            str(what)"
            ),
            Patch(
                _STAGING,
                "                    content.check_old(buffer, begin, base.length, old_fine, coarse, what)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "damage-made-good",
        "bytes that do not match their sums are given new sums",
        (
            Patch(
                _REPAIR,
                "        if checksum.crc(checksum.coarse_from_fine(fine, len(found.data)).tobytes()) != found.recorded_crc:\n",
                "        if len(fine) < 0:\n",
            ),
            Patch(
                _CHANGES,
                "            if len(data) != record.length or checksum.crc(coarse.tobytes()) != record.crc:\n",
                "            if len(data) != record.length:\n",
            ),
        ),
    ),
    Mutant(
        "repaired-with-another-version",
        "a damaged chunk gets the bytes of whatever version another replica has",
        (
            Patch(_REPAIR, "            if version != info.version:\n", "            if version < 0:\n"),
            Patch(
                _CHANGES,
                "            if len(data) != record.length or checksum.crc(coarse.tobytes()) != record.crc:\n",
                "            if len(data) < 0:\n",
            ),
            Patch(_CHANGES, "or record.file < 0 or record.version != version:", "or record.file < 0:"),
        ),
        faults=("bytes change on a disk",),
    ),
    _one(
        "not-heard-of-is-lost",
        "a replica that could not be asked for a chunk's bytes counts as one that has lost them",
        _REPAIR,
        "                outcome = outcome if isinstance(error, Corrupt | NotFound) else Mend.UNKNOWN\n",
        "",
        faults=("bytes change on a disk", "operator drains a target", "operator drains a node"),
    ),
    _one(
        "drained-in-spite-of-damage",
        "a target leaves its chain though those that stay have chunks of which it may hold the last good copy",
        "fs3/routing.py",
        "        return self.is_full(chain_id) and not any(target.damaged for target in self.staying(chain_id))\n",
        "        return self.is_full(chain_id)\n",
        faults=("bytes change on a disk", "operator drains a target", "operator drains a node"),
    ),
    _one(
        "damage-not-marked",
        "what is found damaged is not noted",
        _REPAIR,
        "            if not engine.mark_damaged(*key, verdict.version):\n                return False",
        "            if verdict.version >= 0:\n                return False",
    ),
    # Leases of daemons
    Mutant(
        "write-without-lease",
        "a head that has lost touch with mgmtd goes on answering updates",
        (
            Patch(
                "fs3/storage/write_path.py",
                "        if hop == 0 and not self._may_write():\n",
                "        if hop < 0 and not self._may_write():\n",
            ),
            Patch(
                "fs3/storage/service.py",
                "            if header.hop == 0:\n                self._check_lease()\n",
                "",
            ),
        ),
    ),
    _one(
        "serves-too-long",
        "a daemon serves for T, and not T/2, after the last answered heartbeat",
        _AGENT,
        "        return self._renewed_s + self._lease_s / 2\n",
        "        return self._renewed_s + self._lease_s * 1.5\n",
    ),
    # Chains that change under an update
    _one(
        "joined-replica-passed-over",
        "an update that had to wait for another is committed with the eyes of before the chain changed",
        _REPLICATION,
        "        if item.acting.version != item.role.version:\n            try:",
        "        if item.acting.version < 0:\n            try:",
    ),
    Mutant(
        "recovery-without-locks",
        "recovery sends chunks that are just being written",
        (
            Patch(
                _RESYNC,
                "        got = locks.acquire([(target_id, *chunk) for chunk in batch], deadline_s - _CALL_S / 2)\n",
                "        got = {(target_id, *chunk) for chunk in batch}\n",
            ),
            Patch(_RESYNC, "            locks.release(got)\n", "            pass\n"),
        ),
    ),
    _one(
        "blocks-reused-while-read",
        "a freed block is used again while a reply that names it is being sent",
        "fs3/storage/allocator_core.py",
        "            if order >= oldest or batch > self._synced_batch:\n",
        "            if (oldest and False) or batch > self._synced_batch:\n",
        faults=("slow network",),
    ),
    # Orderly stops, and nodes that are not what they should be
    _one(
        "goodbye-before-the-work-ends",
        "a daemon that stops says goodbye while it still serves",
        "fs3/storage/daemon.py",
        "            await asyncio.get_running_loop().run_in_executor(None, self._end_work, wind_down)\n"
        "            if not registered.done():\n                await agent.stop()\n",
        "            self._stopping = False\n            if not registered.done():\n                await agent.stop()\n"
        "            self._stopping = True\n"
        "            await asyncio.get_running_loop().run_in_executor(None, self._end_work, wind_down)\n",
        faults=("storage stops",),
    ),
    _one(
        "resigned-and-answers",
        "a mgmtd that has given its claim up goes on to answer",
        _ELECTION,
        "        store, primary, self._store, self._primary = self._store, self._primary, None, None\n",
        "        store, primary, self._store = self._store, self._primary, None\n",
        faults=("mgmtd stops",),
    ),
    _one(
        "second-daemon-taken-in",
        "a second daemon with a node's id takes it from the first, which serves",
        "fs3/mgmtd/lease_core.py",
        "        if lease.alive and other and (before or elsewhere):\n",
        "        if lease.alive and other and before:\n",
        faults=("a storage daemon is started twice",),
    ),
    _one(
        "older-disk-serves",
        "a disk that was not there when its target was last complete serves as the last that served",
        _CHAIN_STATE,
        "        holds = target_id in self._holds and (target is None or self._holds[target_id] >= target.complete_at)\n",
        "        holds = target_id in self._holds\n",
        faults=("a disk is not mounted",),
    ),
    # Clients
    _one(
        "unknown-told-as-failed",
        "an update whose outcome nobody knows is said to have failed",
        _CLIENT_WRITE,
        "        if self._uncertain[place]:\n            waited_s",
        "        if place < 0:\n            waited_s",
    ),
    _one(
        "ended-session-means-failed",
        "an update refused for its session's end is sent again though an earlier attempt got no answer",
        _CLIENT_WRITE,
        "            todo = ended[~self._uncertain[ended]]\n",
        "            todo = ended\n",
        faults=("no way to the mgmtds",),
    ),
    # Metas and their store
    _one(
        "answer-not-kept",
        "a meta does not remember what it has answered",
        "fs3/meta/idempotency.py",
        "    txn.put(keys.idempotency(await current_period(txn), request.client_id, request.request_id), value)\n",
        "    assert value\n",
    ),
    _one(
        "name-kept-by-rename",
        "a rename leaves the old name",
        "fs3/meta/moving.py",
        "    await take(txn, source, now_ns)\n",
        "",
        faults=("meta crash",),
    ),
    _one(
        "refusal-not-kept",
        "a copy of a request that was refused is applied later",
        "fs3/meta/service.py",
        '    return hasattr(request, "id") and request.id.retry\n',
        "    return False\n",
        faults=("requests met twice", "meta stall", "meta crash", "meta stops"),
    ),
    _one(
        "inode-ids-twice",
        "inode ids that another meta has taken are given out again",
        "fs3/meta/id_blocks.py",
        "    txn.put(keys.NEXT_INODE, encode_counter(first + size))\n",
        "",
    ),
    _one(
        "writers-not-waited-for",
        "the collector takes files whose writers are at work",
        "fs3/meta/gc.py",
        "            if self._sessions.seen.age_s(now_s, key, value) < self._session_lease_s:\n",
        "            if self._sessions.seen.age_s(now_s, key, value) < 0:\n",
    ),
    _one(
        "written-file-dies-with-its-name",
        "a file that is being written is collected when its last name goes",
        "fs3/meta/inode.py",
        "    if inode.rewritten and await session.load(txn, inode.inode_id) is not None:\n",
        "    if False:\n",
    ),
    _one(
        "quota-keeps-what-is-gone",
        "what has lost its last name is still counted by its quota",
        "fs3/meta/inode.py",
        "        return\n    charges.release(inode)\n",
        "        return\n",
    ),
    _one(
        "quota-misses-growth",
        "what a file that is written in place grows by is not counted",
        "fs3/meta/ops/update.py",
        "        charges.add(found.quotas, 0, synced.length - found.length)\n",
        "",
    ),
    _one(
        "conflicts-overlooked",
        "a transaction commits although what it has read was changed",
        "fs3/kv/occ_core.py",
        "            if self._last.get(key, 0) > read_version:\n",
        "            if self._last.get(key, 0) < 0:\n",
    ),
)
