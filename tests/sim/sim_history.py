"""What the clients of a simulated cluster asked of each chunk, when, and what they were told.

Times are numbers from one counter, so that two events are never at the same time: `invoked` when the call began,
`returned` when it ended. What an operation is to the checker (sim_linearize.py) depends on how it ended:

    OK        it took effect once, between the two, and saw what it says
    FAILED    a definite error: it never takes effect, and is left out
    UNKNOWN   MaybeApplied, or its client died: it may take effect once, at any time after it began, or never

Every write carries bytes that tell who wrote them and where they belong (`content`), so a report can name, for every
stretch of a chunk that was read, the operation that it came from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

Chunk = tuple[int, int]  # hi, lo
_WORD = 8


class Kind(Enum):
    """What an operation does. LOSS is no client's: from then on the chunk may once be what it was at any earlier time
    (a power loss under data that was not to be synced; an operator who accepted the loss)."""

    WRITE = "write"
    REPLACE = "replace"
    PUT_IF_ABSENT = "put-if-absent"
    TRUNCATE = "truncate"
    REMOVE = "remove"
    READ = "read"
    QUERY = "query"
    LOSS = "loss"


class Outcome(Enum):
    """See the module."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(slots=True, eq=False)
class Operation:
    """One operation on one chunk. `length` is what a READ asked for; `seen`, `found`, `version` and `chunk_length` are
    what the answer said. PUT_IF_ABSENT that found the chunk has `version` 0."""

    number: int
    client: str
    chunk: Chunk
    kind: Kind
    invoked: int
    offset: int = 0
    length: int = 0
    data: bytes = b""
    returned: int | None = None
    outcome: Outcome = Outcome.UNKNOWN
    found: bool = True
    version: int = 0
    chunk_length: int = 0
    seen: bytes = b""
    error: str = ""
    chain: int = 0
    durable: bool = True
    invoked_s: float = 0.0
    returned_s: float = 0.0

    def __str__(self) -> str:
        what = {
            Kind.WRITE: f"[{self.offset}, {self.offset + len(self.data)})",
            Kind.REPLACE: f"{len(self.data)} bytes",
            Kind.PUT_IF_ABSENT: f"{len(self.data)} bytes",
            Kind.TRUNCATE: f"to {self.offset}",
            Kind.READ: f"[{self.offset}, {self.offset + self.length})",
        }.get(self.kind, "")
        return f"op {self.number} {self.client} {self.kind.value} {what}".rstrip()

    def answer(self) -> str:
        """What its client was told, in words."""
        if self.outcome is not Outcome.OK:
            return f"{self.outcome.value}: {self.error or 'no answer'}"
        if not self.found:
            return "not found"
        if self.kind is Kind.PUT_IF_ABSENT and not self.version:
            return f"exists, {self.chunk_length} bytes"
        told = f"version {self.version}, {self.chunk_length} bytes"
        return f"{told}: {describe(self.seen, self.offset)}" if self.kind is Kind.READ else told


@dataclass(slots=True)
class History:
    """All operations of one run, in order of their beginning."""

    operations: list[Operation] = field(default_factory=list)
    now: int = 0

    def tick(self) -> int:
        self.now += 1
        return self.now

    def begin(self, client: str, chunk: Chunk, kind: Kind, **what: object) -> Operation:
        """A call has begun. Until `end` its outcome is unknown."""
        operation = Operation(len(self.operations) + 1, client, chunk, kind, self.tick(), **what)  # type: ignore[arg-type]
        self.operations.append(operation)
        return operation

    def end(self, operation: Operation, outcome: Outcome, error: str = "") -> None:
        """The call has ended, with what is in `operation` by now."""
        operation.outcome, operation.error, operation.returned = outcome, error, self.tick()

    def chunks(self) -> dict[Chunk, list[Operation]]:
        """The operations by chunk, in order of their beginning."""
        out: defaultdict[Chunk, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            out[operation.chunk].append(operation)
        return dict(out)


def content(number: int, offset: int, length: int) -> bytes:
    """The bytes that operation `number` writes at `offset`: every 8 bytes name it and their place in the chunk."""
    first, last = offset // _WORD, -(-(offset + length) // _WORD)
    words = np.arange(first, last, dtype="<u8") | np.uint64(number << 32)
    start = offset - first * _WORD
    return words.tobytes()[start : start + length]


def sources(data: bytes, offset: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, operation) for each stretch of `data`, which stands at `offset` of its chunk; operation 0 for zeros,
    -1 for bytes that nobody wrote there."""
    begin, last = offset, None
    at = offset
    while at < offset + len(data):
        word = at // _WORD
        end = min((word + 1) * _WORD, offset + len(data))
        source = _source(data[at - offset : end - offset], at - word * _WORD, word)
        if source != last:
            if last is not None:
                yield begin, at, last
            begin, last = at, source
        at = end
    if last is not None:
        yield begin, at, last


def _source(piece: bytes, shift: int, word: int) -> int:
    if not any(piece):
        return 0
    if len(piece) == _WORD:
        value = int.from_bytes(piece, "little")
        return value >> 32 if value & 0xFFFFFFFF == word else -1
    # A word cut short: who wrote it can be told only if it holds the operation's number, bytes 4 to 8.
    low = (word & 0xFFFFFFFF).to_bytes(4, "little")
    if any(piece[at - shift] != low[at] for at in range(shift, min(4, shift + len(piece)))):
        return -1
    upper = piece[max(4 - shift, 0) :]
    return int.from_bytes(upper, "little") if upper and shift <= 4 else -2


def describe(data: bytes, offset: int) -> str:
    """Whose bytes these are, in words."""
    if not data:
        return "nothing"
    names = {0: "zeros", -1: "bytes that nobody wrote there", -2: "cut"}
    parts = [f"[{begin}, {end}) {names.get(who, f'op {who}')}" for begin, end, who in sources(data, offset)]
    return ", ".join(parts[:12]) + (" ..." if len(parts) > 12 else "")
