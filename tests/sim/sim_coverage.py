"""How often each thing that a cluster can go through did occur: what was never met was never tested.

The pure cores decide everything that matters, so their calls are counted: every row of the chain table, every change of
a target's phase, every resync rule, every CRAQ decision, every kind of retry; faults come from the simulator's events,
singly and in pairs (one begins while the other is in effect). `Spies` puts a counting function in place of a core's
wherever a module of fs3 holds it; it passes on what it was given and what came back.

`EXPECTED` lists what has to occur in a run of some hundred seeds; what need not, because it cannot be reached or by
accidents only that are rarer than that, stands in `IMPOSSIBLE`, with the reason.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from types import ModuleType, TracebackType
from typing import Any

from sim_kernel import Event

from fs3 import errors
from fs3.client import race, read_path, retry_core, write_path
from fs3.mgmtd import chain_core, routing_core
from fs3.routing import LocalState, TargetState
from fs3.storage import ahead, channel_core, craq_core, resync, resync_core, target_core
from fs3.transport.messages import Op

_USERS = (read_path, write_path, routing_core, resync)  # imported before the names in them are replaced

CHAIN, PHASE, RESYNC = "chain table", "target phase", "resync rule"
CRAQ, CLIENT, FAULT, PAIR = "CRAQ decision", "client retry", "fault", "pair of faults"
GROUPS = (CHAIN, PHASE, RESYNC, CRAQ, CLIENT, FAULT, PAIR)
Key = tuple[str, str]  # group, what


class Coverage:
    """The counts of one run, or of many. `hear` goes to `Simulation.subscribe`."""

    def __init__(self) -> None:
        self.counts: Counter[Key] = Counter()
        self._faults: Counter[str] = Counter()  # in effect now
        self._judged: channel_core.Seen | None = None

    def note(self, group: str, what: str) -> None:
        self.counts[group, what] += 1

    def begin_seed(self) -> None:
        """Another simulation begins: none of the last one's faults is in effect."""
        self._faults.clear()

    def hear(self, event: Event) -> None:
        """Count faults, and what was in effect when they began."""
        if event.kind == "fault":
            what = event.fields["what"]
            self.note(FAULT, what)
            for other, count in self._faults.items():
                if count > 0:
                    self.note(PAIR, pair(what, other))
            self._faults[what] += 1
        elif event.kind == "heal":
            self._faults[event.fields["what"]] -= 1

    # The cores

    def chain(self, step: Any, chain: Any, reports: Any, **_: Any) -> None:
        after = {member.target_id: member.state for member in step.chain.members}
        serves = TargetState.SERVING in after.values()
        for member in chain.members:
            local = chain_core._local(member, chain, reports)
            then = after[member.target_id]
            self.note(CHAIN, chain_row(local, member.state, serves, then))

    def stand(self, after: Any, stand: Any, place: Any, **_: Any) -> None:
        if after is not stand:
            where = "in no chain" if place is None else place.state.name
            self.note(PHASE, phase_row(stand.phase.name, where, after.phase.name))

    def prepared(self, after: Any, stand: Any, **_: Any) -> None:
        if after.phase is not stand.phase:
            self.note(PHASE, phase_row(stand.phase.name, "work done", after.phase.name))

    def synced(self, after: Any, stand: Any, *_: Any, **__: Any) -> None:
        if after.phase is not stand.phase:
            self.note(PHASE, phase_row(stand.phase.name, "sync done", after.phase.name))

    def compared(self, plan: Any, here: Any, there: Any, **_: Any) -> None:
        mine, others = resync_core._by_chunk(here), resync_core._by_chunk(there)
        later = {(int(one["hi"]), int(one["lo"])): int(one["chain_version"]) for one in here}
        before = {(int(one["hi"]), int(one["lo"])): int(one["chain_version"]) for one in there}
        for chunk, meta in mine.items():
            other = others.pop(chunk, None)
            if other is None:
                what = "removed here, unknown" if meta.removed else "only here"
                self.note(RESYNC, f"{what}: transfer" if meta.version else "only pending here: nothing")
            elif other.pending:
                self.note(RESYNC, "pending there: transfer")
            elif meta.version != other.version:
                self.note(RESYNC, f"version {'higher' if meta.version > other.version else 'lower'} here: transfer")
            elif (meta.length, meta.crc) != (other.length, other.crc):
                self.note(RESYNC, "content differs: transfer")
            else:
                self.note(RESYNC, f"same{', later chain version here' * (later[chunk] > before[chunk])}: nothing")
        for other in others.values():
            self.note(RESYNC, "unknown, removed there: remove" if other.removed else "only there: remove")

    def judged(self, seen: Any, *_: Any, **__: Any) -> None:
        self._judged = seen

    def head(self, decision: Any, op: Op, *_: Any, standing: Any = None, **__: Any) -> None:
        if decision.error is not None and self._judged is not channel_core.Seen.LATE:
            what = f"refused, {type(decision.error).__name__}"
        elif self._judged is channel_core.Seen.REPEATED:
            what = "answered before"
        elif self._judged is channel_core.Seen.LATE:
            what = "given up by its client, refused"
        else:
            what = {
                craq_core.Say.STAGE: f"staged, {op.name}",
                craq_core.Say.RESUME: "pending already, resumed",
                craq_core.Say.SETTLE: "another is pending, settled first",
                craq_core.Say.ANSWER: f"nothing to do, {op.name}",
                craq_core.Say.PASS: f"nothing to do, asked again, {op.name}",
            }[decision.say]
        self.note(CRAQ, f"head: {what}")

    def forget(self, decision: Any, *_: Any, **__: Any) -> None:
        self.note(CRAQ, f"forget: {_said(decision)}")

    def noted(self, decision: Any, *_: Any, **__: Any) -> None:
        self.note(CRAQ, f"note: {_said(decision)}")

    def replica(self, decision: Any, *_: Any, **__: Any) -> None:
        self.note(CRAQ, f"replica: {_said(decision)}")

    def syncing(
        self, decision: Any, hi: int, lo: int, version: int, chain_version: int, info: Any, *_: Any, **__: Any
    ) -> None:
        if decision.say is craq_core.Say.STAGE and info.version:
            how = "over the same" if version == info.version else "over a lower" if version > info.version else "back"
            self.note(CRAQ, f"syncing: staged, {how}")
        else:
            self.note(CRAQ, f"syncing: {_said(decision)}")

    def forwarded(self, after: Any, code: int, *, first: bool, whole: bool, **_: Any) -> None:
        name = _code_name(code)
        if after is craq_core.After.COMMIT:
            self.note(CRAQ, f"successor: acked{'' if first else ' when asked again'}")
        else:
            self.note(CRAQ, f"successor: {name} -> {after.name}")

    def came_ahead(self, is_of: bool, *_: Any, **__: Any) -> None:
        self.note(CRAQ, f"ahead: {'the bytes were there' if is_of else 'other bytes, or not all, were there'}")

    def missing(self, error: Any, *_: Any, hop: int, **__: Any) -> None:
        self.note(CRAQ, f"ahead: missing {'behind the head' if hop else 'at the head'}, {type(error).__name__}")

    def after_read(self, step: Any, code: int, *_: Any, **__: Any) -> None:
        self.note(CLIENT, f"read: {_code_name(code)} -> {step.name}")

    def after_write(self, step: Any, code: int, *_: Any, **__: Any) -> None:
        self.note(CLIENT, f"write: {_code_name(code)} -> {step.name}")

    def raced(self, first: Any, lane: Any, *_: Any, **__: Any) -> None:
        which = "neither" if first is None else "first" if first is lane else "second"
        self.note(CLIENT, f"hedge: {which} came")


def pair(one: str, other: str) -> str:
    """The name of a pair, whichever came first."""
    return " + ".join(sorted((one, other)))


@functools.cache
def chain_row(local: LocalState, now: TargetState, serves: bool, after: TargetState) -> str:
    """A row of the chain table; whether somebody serves matters to those who are not holders."""
    others = ""
    if now in (TargetState.SYNCING, TargetState.WAITING) and local is LocalState.ONLINE:
        others = ", one serves" if serves else ", none serves"
    if now is TargetState.SERVING and local is LocalState.OFFLINE:
        others = ", others hold" if after is TargetState.OFFLINE else ", none serves"
    return f"{local.name.lower()} {now.name}{others} -> {after.name}"


def phase_row(before: str, where: str, after: str) -> str:
    return f"{before} ({where}) -> {after}"


def _said(decision: Any) -> str:
    if decision.error is not None:
        return f"refused, {type(decision.error).__name__}"
    return {
        craq_core.Say.STAGE: "staged",
        craq_core.Say.RESUME: "pending already, resumed",
        craq_core.Say.ANSWER: "had it",
        craq_core.Say.SETTLE: "settled first",
        craq_core.Say.PASS: "done, then answered",
    }[decision.say]


def _code_name(code: int) -> str:
    return "OK" if code == errors.OK else errors.BY_CODE[code].__name__ if code in errors.BY_CODE else f"code {code}"


class Spies:
    """While entered, calls of the cores are counted by `coverage`; one at a time in a process."""

    def __init__(self, coverage: Coverage) -> None:
        self._wanted: list[tuple[ModuleType, str, Callable[..., None]]] = [
            (chain_core, "next_chain", coverage.chain),
            (target_core, "next_stand", coverage.stand),
            (target_core, "prepared", coverage.prepared),
            (target_core, "synced", coverage.synced),
            (resync_core, "compare", coverage.compared),
            (channel_core, "judge", coverage.judged),
            (craq_core, "head_decides", coverage.head),
            (craq_core, "replica_decides", coverage.replica),
            (craq_core, "syncing_decides", coverage.syncing),
            (craq_core, "forget_decides", coverage.forget),
            (craq_core, "note_decides", coverage.noted),
            (craq_core, "after_forward", coverage.forwarded),
            (ahead, "is_of", coverage.came_ahead),
            (ahead, "missing", coverage.missing),
            (retry_core, "after_read", coverage.after_read),
            (retry_core, "after_write", coverage.after_write),
            (race, "first_of", coverage.raced),
        ]
        self._replaced: list[tuple[ModuleType, str, Any]] = []

    def __enter__(self) -> None:
        modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("fs3.")]
        for home, name, observe in self._wanted:
            original = getattr(home, name)
            spy = _spy(original, observe)
            for module in modules:
                if module.__dict__.get(name) is original:
                    self._replaced.append((module, name, original))
                    setattr(module, name, spy)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, name, original in self._replaced:
            setattr(module, name, original)
        self._replaced.clear()


def _spy(original: Callable[..., Any], observe: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(original)
    def spy(*args: Any, **named: Any) -> Any:
        result = original(*args, **named)
        observe(result, *args, **named)
        return result

    return spy


# What has to occur

_ROWS = (
    *(f"uptodate {now} -> SERVING" for now in ("SERVING", "SYNCING", "LASTSRV")),
    *(f"uptodate {now} -> WAITING" for now in ("WAITING", "OFFLINE")),
    "online LASTSRV -> SERVING",
    "online SERVING -> SERVING",
    "online SYNCING, one serves -> SYNCING",
    "online WAITING, one serves -> SYNCING",
    "online WAITING, one serves -> WAITING",
    "online SYNCING, none serves -> WAITING",
    "online WAITING, none serves -> WAITING",
    "online OFFLINE -> WAITING",
    "offline SERVING, none serves -> LASTSRV",
    "offline SERVING, others hold -> OFFLINE",
    "offline LASTSRV -> LASTSRV",
    *(f"offline {now} -> OFFLINE" for now in ("SYNCING", "WAITING", "OFFLINE")),
)
_PHASES = (
    phase_row("HELD", "in no chain", "COMPLETE"),
    phase_row("HELD", "LASTSRV", "RECALLING"),
    phase_row("HELD", "OFFLINE", "CLEARING"),
    phase_row("COMPLETE", "SERVING", "SERVING"),
    phase_row("SERVING", "LASTSRV", "RECALLING"),
    phase_row("SERVING", "OFFLINE", "CLEARING"),
    phase_row("RECALLING", "work done", "COMPLETE"),
    phase_row("CLEARING", "work done", "STALE"),
    phase_row("STALE", "sync done", "COMPLETE"),
)
_RESYNC = (
    "only here: transfer",
    "only there: remove",
    "removed here, unknown: transfer",
    "unknown, removed there: remove",
    "pending there: transfer",
    "version higher here: transfer",
    "version lower here: transfer",
    "content differs: transfer",
    "same: nothing",
    "same, later chain version here: nothing",
)
_CRAQ = (
    *(f"head: staged, {op.name}" for op in (Op.WRITE, Op.REPLACE, Op.REMOVE, Op.PUT_IF_ABSENT, Op.TRUNCATE)),
    "head: nothing to do, PUT_IF_ABSENT",
    "head: nothing to do, REMOVE",
    "head: nothing to do, asked again, PUT_IF_ABSENT",
    "head: nothing to do, asked again, REMOVE",
    "head: refused, SessionEnded",
    "head: refused, StaleRouting",
    "forget: done, then answered",
    "forget: refused, Conflict",
    "note: done, then answered",
    "note: had it",
    "head: answered before",
    "head: pending already, resumed",
    "head: another is pending, settled first",
    "replica: staged",
    "replica: pending already, resumed",
    "replica: had it",
    "syncing: staged",
    "syncing: staged, over a lower",
    "syncing: had it",
    "syncing: refused, Conflict",
    "successor: acked",
    "successor: acked when asked again",
    "successor: StaleRouting -> RETRY",
    "successor: Unavailable -> RETRY",
)
_CLIENT = (
    "read: Unavailable -> OTHER",
    "read: StaleRouting -> REFRESH",
    "read: Committing -> TAIL",
    "hedge: first came",
    "hedge: second came",
    "hedge: neither came",
    "write: Unavailable -> REFRESH",
    "write: StaleRouting -> REFRESH",
    "write: Busy -> PAUSE",
)
EXPECTED: dict[str, tuple[str, ...]] = {CHAIN: _ROWS, PHASE: _PHASES, RESYNC: _RESYNC, CRAQ: _CRAQ, CLIENT: _CLIENT}
_NOT_MET = {
    CHAIN: {
        "uptodate OFFLINE -> WAITING": "a daemon that has seen its target OFFLINE reports it OFFLINE, then ONLINE",
        "online LASTSRV -> SERVING": "a target becomes LASTSRV from SERVING; then its daemon reports OFFLINE first",
        "online SERVING -> SERVING": "ONLINE is reported of a target that is off duty, for that version of its chain",
    },
    CRAQ: {
        "head: refused, StaleRouting": "a guard: the routing by which a head serves brings the sessions with it",
        "forget: refused, Conflict": "a guard: the head forgets what all replicas have, under the chunk's lock",
        "note: had it": "two answers in a row have to be lost, to the same retry of an update without effect",
    },
}
IMPOSSIBLE: dict[Key, str] = {(group, what): why for group, whats in _NOT_MET.items() for what, why in whats.items()}


def expect_faults(kinds: Iterable[str], impossible_pairs: dict[str, str]) -> None:
    """The kinds of faults that the simulator has: each, and each pair of two, has to occur."""
    names = sorted(kinds)
    pairs = tuple(pair(one, other) for at, one in enumerate(names) for other in names[at:])
    EXPECTED[FAULT] = tuple(names)
    EXPECTED[PAIR] = pairs
    IMPOSSIBLE.update({(PAIR, name): why for name, why in impossible_pairs.items()})


def missing(counts: Counter[Key]) -> list[Key]:
    """What had to occur and did not."""
    return [
        (group, what)
        for group in GROUPS
        for what in EXPECTED.get(group, ())
        if not counts[group, what] and (group, what) not in IMPOSSIBLE
    ]
