"""What one replica of a chain does with one update of one chunk: the decisions of CRAQ, without any I/O.

    head    -- u = v+1, staged -->  middle  -- u, staged -->  tail
            <-- commit u, ack ----          <-- commit u, ack --   commit u

A replica holds at most a committed version v and a pending one, which is v+1. It stages u durably before it forwards
u, and commits u only after its successor has; so whoever is behind a replica never knows more than it has on disk, and
a pending version may be committed by whoever finds that nobody is left behind it. A chunk's lock is held throughout.

A removal leaves a tombstone of its version. Tombstones are forgotten one day, the tail's first, so a replica may have
forgotten one that its predecessor still has. An update of a chunk that the sender does not have (absent, or removed) is
therefore FRESH: it may be of any version above what the receiver has, if that is nothing or a tombstone. tombstones.py
says why a frame from before the removal cannot pass for one.

An ack never lies, however late it comes. A replica R that was stopped after its successor's ack, and wakes up when the
chain has gone on without it, still says the truth: whoever stood behind R has committed the update. So has whoever of
them serves now; those in front of R hold it pending, under the chunk's lock, by somebody who acts on an old version of
the chain; and a newcomer was brought up to date by a replica that has it committed, or that waited until nobody acted
on an old version and then settled what was pending. So replicas after the head need no lease to acknowledge; the head
needs one to answer its client, since only clients can have been sent to another head meanwhile.

What is answered to a client, or to a predecessor, as an error is final: the update was not applied and will not be.
Unavailable alone says that nobody knows: that is what is said of a version that is kept pending, whatever the reason.

Source: Terrace and Freedman, "Object Storage on CRAQ" (USENIX ATC 2009); 3FS, design notes ("Data replication").
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fs3 import errors
from fs3.errors import Conflict, Fs3Error, Invalid, SessionEnded, StaleRouting
from fs3.ids import chunk_name
from fs3.storage.channel_core import Seen, Standing, judge
from fs3.storage.engine_api import ChunkInfo, DedupEntry
from fs3.transport.messages import Op, UpdateFlag

Identity = tuple[int, int, int]  # client, channel, seq
_SYNC = UpdateFlag.SYNC_REPLACE | UpdateFlag.SYNC_REMOVE


class Say(Enum):
    """What to do with an update whose chunk is locked."""

    ANSWER = "it is settled: answer, nothing changes"
    STAGE = "make it the pending version, then forward"
    RESUME = "it is the pending version already: forward that"
    SETTLE = "another update is pending: finish that one first, then decide again"
    PASS = "no new version: have it done behind, then do it here, then answer"


@dataclass(frozen=True, slots=True)
class Decision:
    """`version` is what the chunk becomes (STAGE, RESUME) or what is answered (ANSWER, PASS), with `length`, unless
    `error` is."""

    say: Say
    version: int = 0
    length: int = 0
    error: Fs3Error | None = None


def head_decides(
    op: Op,
    identity: Identity,
    info: ChunkInfo,
    result: DedupEntry | None,
    pending: Identity | None,
    *,
    standing: Standing = Standing.LIVE,
    retry: bool = False,
) -> Decision:
    """A client's update at the head. `result` is its channel's last one, `pending` who asked for what is pending.

    `standing` must have been looked up after `result`: a result that is missing because it was forgotten is told from
    one that never was by the session's end, which was known before anything was forgotten. `retry`: an earlier attempt
    got no answer, and may still arrive; so an answer that changes nothing leaves a note in the chain, by which that
    attempt is known as answered. (A first attempt is the only frame that names its update: its answer ends it.)
    """
    client, _, seq = identity
    seen = judge(result, client, seq)
    if seen is Seen.REPEATED:
        assert result is not None
        error = errors.from_code(result.status, "as it was answered before") if result.status else None
        return Decision(Say.ANSWER, result.version, result.length, error)
    if seen is Seen.LATE:
        assert result is not None
        return _refuse(Invalid(f"update {seq} of a channel that is at {result.seq}: it was given up by its client"))
    if client and info.pending and pending == identity:
        return Decision(Say.RESUME, info.pending)
    if client and standing is Standing.ENDED:
        return _refuse(SessionEnded(f"the session {client} of this client is over"))
    if client and standing is Standing.UNSURE:
        return _refuse(StaleRouting("this daemon waits to hear from mgmtd which sessions have ended"))
    if info.pending:
        return Decision(Say.SETTLE)
    if op is Op.PUT_IF_ABSENT and info.found:
        return Decision(Say.PASS if client and retry else Say.ANSWER, 0, info.length)
    if op is Op.REMOVE and not info.found:
        return Decision(Say.PASS if client and retry else Say.ANSWER, info.version, 0)
    return Decision(Say.STAGE, info.version + 1)


def replica_decides(
    hi: int,
    lo: int,
    version: int,
    info: ChunkInfo,
    *,
    fresh: bool = False,
    identity: Identity = (0, 0, 0),
    pending: Identity | None = None,
) -> Decision:
    """A predecessor's update, to become `version`, at a SERVING replica; `pending` is who asked for what is pending.

    A version that is committed here is known to everybody behind too, so the ack is all that the predecessor lacks. The
    pending version has the predecessor's content: nobody in front of a replica can have given the number to another
    update, since all of them had staged it first.
    """
    if not version:
        return _refuse(Invalid("an update from a predecessor without its version"))
    if version <= info.version:
        return Decision(Say.ANSWER, info.version, info.length)
    if info.pending:
        if version == info.pending and pending in (None, identity):
            return Decision(Say.RESUME, version)
        return _refuse(
            Conflict(
                f"{chunk_name(hi, lo)}: update {version} came to a replica with another one, {info.pending}, pending"
            )
        )
    if not info.found if fresh else (info.found and version == info.version + 1):
        return Decision(Say.STAGE, version)
    has = f"has {info.version}" if info.found else f"does not have it (removed by {info.version})"
    return _refuse(Conflict(f"{chunk_name(hi, lo)}: update {version} came to a replica that {has}; it misses updates"))


def forget_decides(hi: int, lo: int, version: int, info: ChunkInfo) -> Decision:
    """That the removal of a chunk by `version` may be forgotten, at the head and every replica behind it."""
    nothing = not info.version and not info.pending and not info.found
    if nothing or (info.version == version and not info.found and not info.pending):
        return Decision(Say.PASS, version)
    return _refuse(
        Conflict(f"{chunk_name(hi, lo)}: it is not the removal by {version}; version {info.version} is there")
    )


def note_decides(identity: Identity, version: int, length: int, result: DedupEntry | None) -> Decision:
    """That an update was answered with `version` and `length`, at a replica behind the head."""
    client, _, seq = identity
    if judge(result, client, seq) is Seen.NEW:
        return Decision(Say.PASS, version, length)
    return Decision(Say.ANSWER, version, length)


def syncing_decides(hi: int, lo: int, version: int, chain_version: int, info: ChunkInfo) -> Decision:
    """A whole chunk, or its removal (version 0: it never was), at the SYNCING replica of chain version `chain_version`.

    What the replica kept from earlier times counts for nothing, its version may even be higher. What it was sent under
    this chain version only moves forward: a frame that its sender had given up may still arrive after a later one.
    """
    if info.chain_version == chain_version and info.version:
        if version < info.version:
            return _refuse(Conflict(f"{chunk_name(hi, lo)}: version {version} arrives after {info.version}"))
        if version == info.version:
            return Decision(Say.ANSWER, info.version, info.length)
    return Decision(Say.STAGE, version)


def check_flags(op: Op, flags: UpdateFlag, *, from_client: bool, syncing: bool) -> Fs3Error | None:
    """Whether an update of this kind may come from there to a replica in this state."""
    recovery = flags & _SYNC
    if flags & UpdateFlag.AHEAD and (recovery or op not in (Op.REPLACE, Op.PUT_IF_ABSENT)):
        return Invalid("the bytes of whole chunks alone go ahead of their updates, and not in recovery")
    if from_client:
        if recovery or flags & (UpdateFlag.FRESH | UpdateFlag.DAMAGED) or op in (Op.FORGET, Op.NOTE):
            return Invalid("only a predecessor sends this kind of update")
        return None
    if flags & UpdateFlag.DAMAGED and not flags & UpdateFlag.SYNC_REPLACE:
        return Invalid("damaged bytes come in recovery only")
    if op is Op.NOTE and not recovery:
        return None
    if syncing != bool(recovery):
        return Invalid("a SYNCING replica takes whole chunks only" if syncing else "this replica is not SYNCING")
    if op is Op.PUT_IF_ABSENT:
        return Invalid("PUT_IF_ABSENT is decided by the head and forwarded as REPLACE")
    if flags & UpdateFlag.SYNC_REPLACE and op is not Op.REPLACE:
        return Invalid(f"{op.name} with SYNC_REPLACE")
    return None


class After(Enum):
    """What to do with a pending version after its successor has answered, or could not be asked."""

    COMMIT = "everybody behind has it"
    RETRY = "ask again, when the routing is newer or after a pause"
    WHOLE = "ask again with the whole chunk: the successor cannot read the old version, or lacks what went ahead"
    ABORT = "nobody behind can have it: drop it, pass the error on"
    KEEP = "keep the version, somebody behind may have it; up the chain nobody knows what becomes of it"


_RETRY = frozenset(
    {code for code, cls in errors.BY_CODE.items() if cls.retryable} - {errors.Conflict.code}
    | {errors.MaybeApplied.code}
)


def after_forward(code: int, *, first: bool, whole: bool) -> After:
    """`first`: no earlier attempt can have reached a successor; `whole`: this attempt sent the whole chunk."""
    if code == errors.OK:
        return After.COMMIT
    if code in _RETRY:
        return After.RETRY
    if code == errors.Corrupt.code and not whole:
        return After.WHOLE
    if code == errors.Conflict.code:
        return After.KEEP
    return After.ABORT if first else After.KEEP


def _refuse(error: Fs3Error) -> Decision:
    return Decision(Say.ANSWER, error=error)
