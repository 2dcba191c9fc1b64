"""Whether the operations on one chunk can have happened one after another, each at a moment between its beginning and
its end: linearizability of a register that is a string of bytes, or absent.

    absent          READ, QUERY: not found      WRITE, TRUNCATE make it, zeros up to their offset
    bytes           READ gives a part, QUERY the length; WRITE changes a part, TRUNCATE cuts or adds zeros
    both            REPLACE gives all bytes, REMOVE makes it absent, PUT_IF_ABSENT is REPLACE if absent and else nothing

The search is Wing and Gong's, with Lowe's memory of the (operations done, state) pairs that were tried, and two facts
that keep it short: an operation that only observes, and fits the state, is best done at once; and every change makes
the chunk's version one higher (a removed chunk, whose tombstone is forgotten, begins at 1 again), so the versions that
clients were told pin the order down. That also finds an update that was applied twice with no difference to the bytes.

Sources: Wing and Gong, "Testing and Verifying Concurrent Objects" (1993); Lowe, "Testing for Linearizability" (2017).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sim_history import Kind, Operation, Outcome, describe

_NEVER = 1 << 62
MOST_NODES = "FS3_SIM_SEARCH_NODES"  # in the environment, so that processes that run seeds have it too
_MOST_NODES = 20_000_000
_LOST = -1  # the version of a chunk that has lost its latest changes: any

_Node = tuple[int, int, int]  # which operations are done (a bit each), content, version


@dataclass(frozen=True, slots=True)
class Verdict:
    """`order`: the operations that took effect, in an order that explains everything; or, if `ok` is false, the longest
    beginning of one that was found. `why` then says where it ends. `decided` is false if the search was given up."""

    ok: bool
    order: tuple[Operation, ...]
    nodes: int
    why: str = ""
    decided: bool = True


def check(operations: Sequence[Operation], *, versions: bool = True) -> Verdict:
    """The verdict on the operations of one chunk. `versions`: see the module; without, only bytes count."""
    known = 0
    operations = [*operations, *_undone(operations)]
    while True:
        search = _Search(operations, versions=versions)
        verdict = search.run()
        # After a LOSS the chunk may be whatever it was before, which a failed search knows better than it did.
        if verdict.ok or not verdict.decided or not search.losses or len(search.contents) == known:
            return verdict
        known = len(search.contents)


class _Search:
    def __init__(self, operations: Sequence[Operation], *, versions: bool) -> None:
        kept = [one for one in operations if one.outcome is not Outcome.FAILED and not _idle(one)]
        self._operations = sorted(kept, key=lambda one: one.invoked)
        self._invoked = [one.invoked for one in self._operations]
        self._returned = [
            one.returned if one.outcome is Outcome.OK and one.returned is not None else _NEVER
            for one in self._operations
        ]
        self._required = sum(1 << at for at, one in enumerate(self._operations) if one.outcome is Outcome.OK)
        self._versions = versions
        self._observes = [_observes(one) for one in self._operations]
        # A REMOVE that may have found nothing may also have found what comes later.
        self._pure = [self._observes[at] and one.kind is not Kind.REMOVE for at, one in enumerate(self._operations)]
        losses = [one.invoked for one in self._operations if one.kind is Kind.LOSS]
        self.losses = bool(losses)
        # What a LOSS has left may be a record without its bytes, which PUT_IF_ABSENT takes for absent.
        self._hollow = [bool(losses) and min(losses) < ended for ended in self._returned]
        self.contents: list[bytes | None] = [None]
        self._ids: dict[bytes | None, int] = {None: 0}
        self._applied: dict[tuple[int, int], int] = {}
        self._fits: dict[tuple[int, int], bool] = {}
        self._parent: dict[_Node, tuple[_Node, int]] = {}

    def run(self) -> Verdict:
        start: _Node = (0, 0, 0)
        stack = [start]
        seen = {start}
        best, best_done = start, -1
        most = int(os.environ.get(MOST_NODES, _MOST_NODES))
        while stack:
            node = stack.pop()
            if (further := self._observe(node)) != node:
                if further in seen:
                    continue
                seen.add(further)
                node = further
            done = node[0] & self._required
            if done == self._required:
                return Verdict(True, self._order(node), len(seen))
            if (count := done.bit_count()) > best_done:
                best, best_done = node, count
            if len(seen) > most:
                return Verdict(False, self._order(best), len(seen), self._story(best), decided=False)
            nexts = []
            for at in self._candidates(node[0]):
                for after in self._step(node, at):
                    if after not in seen:
                        seen.add(after)
                        self._parent[after] = (node, at)
                        nexts.append((self._returned[at], after))
            # What has to happen soonest is tried first; what may never happen, last.
            nexts.sort(key=lambda one: one[0], reverse=True)
            stack += [after for _, after in nexts]
        return Verdict(False, self._order(best), len(seen), self._story(best))

    def _candidates(self, done: int) -> list[int]:
        """The operations that may be next: begun before any that is not done has ended."""
        invoked, returned = self._invoked, self._returned
        first_end = _NEVER
        out = []
        begin = (~done & (done + 1)).bit_length() - 1
        rest = done >> begin
        for at in range(begin, len(invoked)):
            if invoked[at] > first_end:
                break
            if not rest & 1:
                first_end = min(first_end, returned[at])
                out.append(at)
            rest >>= 1
        return [at for at in out if invoked[at] < first_end]

    def _observe(self, node: _Node) -> _Node:
        """Do whatever only observes and fits."""
        if node[2] == _LOST:
            return node
        again = True
        while again:
            again = False
            for at in self._candidates(node[0]):
                if self._pure[at] and self._sees(node, at):
                    after = (node[0] | 1 << at, node[1], node[2])
                    self._parent.setdefault(after, (node, at))
                    node = after
                    again = True
        return node

    def _sees(self, node: _Node, at: int) -> bool:
        """Whether an operation that changes nothing was told the truth of this state."""
        operation, (_, content, version) = self._operations[at], node
        if operation.kind is Kind.REMOVE:
            return content == 0 and (not self._versions or version == _LOST or operation.version in (version, 0))
        fits = self._fits.get((content, at))
        if fits is None:
            fits = self._fits[content, at] = _fits(operation, self.contents[content])
        if not fits or not self._versions or version == _LOST or not operation.version:
            return fits
        return not operation.found or operation.version == version

    def _step(self, node: _Node, at: int) -> Iterator[_Node]:
        """The nodes after one more operation."""
        operation, (done, content, version) = self._operations[at], node
        done |= 1 << at
        if operation.kind is Kind.LOSS:
            for earlier in range(len(self.contents)):
                yield done, earlier, _LOST
            return
        if self._observes[at] and self._sees(node, at):
            # Seen a second time a removed chunk says nothing of its version.
            told = version == _LOST and operation.version and operation.found
            yield done, content, operation.version if told else version
        after = self._apply(content, at)
        if after < 0:
            return
        if not self._versions:
            yield done, after, 0
            return
        said = operation.version if operation.outcome is Outcome.OK else 0
        nexts = {1, version + 1} if content == 0 else {version + 1}
        for number in sorted({said} if version == _LOST and said else {_LOST} if version == _LOST else nexts):
            if not said or said == number:
                yield done, after, number

    def _apply(self, content: int, at: int) -> int:
        """The content after an update of that content; -1 if it changes nothing, or was told of another length."""
        after = self._applied.get((content, at))
        if after is None:
            operation = self._operations[at]
            changed, new = _change(operation, self.contents[content], hollow=self._hollow[at])
            after = -1
            if changed and (operation.outcome is not Outcome.OK or operation.chunk_length == len(new or b"")):
                after = self._ids.get(new, -1)
                if after < 0:
                    after = self._ids[new] = len(self.contents)
                    self.contents.append(new)
            self._applied[content, at] = after
        return after

    def _order(self, node: _Node) -> tuple[Operation, ...]:
        out = []
        while node in self._parent:
            node, at = self._parent[node]
            out.append(self._operations[at])
        return tuple(reversed(out))

    def _story(self, node: _Node) -> str:
        done, content, version = node
        held = self.contents[content]
        state = "absent" if held is None else f"{len(held)} bytes: {describe(held, 0)}"
        stuck = [self._operations[at] for at in self._candidates(done)]
        lines = [f"the chunk is then {state}" + (f", version {version}" if self._versions else "")]
        lines += [f"and does not fit: {one} -> {one.answer()}" for one in stuck]
        return "\n".join(lines)


def _undone(operations: Sequence[Operation]) -> Iterator[Operation]:
    """An update that was in progress at a LOSS may have been applied before it, and lost with all memory of it: its
    client sends it again. So it may take effect once more than its answer tells."""
    losses = [one.invoked for one in operations if one.kind is Kind.LOSS]
    for one in operations:
        ended = _NEVER if one.returned is None else one.returned
        if one.kind not in (Kind.READ, Kind.QUERY, Kind.LOSS) and any(one.invoked < loss < ended for loss in losses):
            yield replace(one, outcome=Outcome.UNKNOWN, returned=None, error="may have been lost")


def _idle(operation: Operation) -> bool:
    """Without an answer an operation that only observes says nothing."""
    return operation.outcome is Outcome.UNKNOWN and operation.kind in (Kind.READ, Kind.QUERY)


def _observes(operation: Operation) -> bool:
    """Whether an operation may change nothing; a REMOVE then finds no chunk."""
    if operation.outcome is not Outcome.OK:
        return False
    if operation.kind is Kind.PUT_IF_ABSENT:
        return not operation.version
    return operation.kind in (Kind.READ, Kind.QUERY, Kind.REMOVE)


def _fits(operation: Operation, held: bytes | None) -> bool:
    """Whether what an operation saw is what is there."""
    if held is None or not operation.found:
        return held is None and not operation.found
    if operation.chunk_length != len(held):
        return False
    part = held[operation.offset : operation.offset + operation.length]
    return operation.kind is not Kind.READ or operation.seen == part


def _change(operation: Operation, held: bytes | None, *, hollow: bool) -> tuple[bool, bytes | None]:
    """(whether an operation changes a chunk, what it is then); `hollow`: its bytes may have been lost."""
    old, offset, data = held or b"", operation.offset, operation.data
    match operation.kind:
        case Kind.REPLACE:
            return True, data
        case Kind.PUT_IF_ABSENT:
            wrote = operation.outcome is not Outcome.OK or operation.version > 0
            return (held is None or (hollow and operation.version > 0)) and wrote, data
        case Kind.WRITE:
            return True, old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
        case Kind.TRUNCATE:
            return True, old[:offset].ljust(offset, b"\0")
        case Kind.REMOVE:
            return held is not None, None
        case _:
            return False, held
