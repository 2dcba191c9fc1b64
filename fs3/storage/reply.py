"""A reply on its way: what is to be sent, in order, and what must stay as it is until it has been.

Parts are memory (a head, verified copies, slices of a mapped block file) or a `FileRange` for `sendfile`. Memory is
copied by the call that sends it; a page handed to `sendfile` is sent as it is when it leaves, so its block must not be
reused until the client has said that it has the reply (flag NEED_ACK).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Fs3Error
from fs3.storage.engine_api import BlockView, ChunkEngine
from fs3.storage.read_core import Parts
from fs3.transport.frame_core import Flag, Header, pack_header, pack_trailer
from fs3.transport.messages import Records

_TRAILER = int(Flag.TRAILER)


@dataclass(slots=True, eq=False)
class FileRange:
    """`length` bytes from `position` of a block file, for `sendfile`."""

    file: BlockView
    position: int
    length: int


Part = bytes | bytearray | memoryview | FileRange


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a part comes from on disk and the range that it begins with, in case it cannot be read from there."""

    file: BlockView
    position: int
    record: int


class Kept:
    """What keeps an engine's blocks from being reused: cheap holds at first, pins if it takes long."""

    __slots__ = ("_blocks", "_holds", "_pins", "_unlocks")

    def __init__(self) -> None:
        self._holds: list[tuple[ChunkEngine, int]] = []
        self._blocks: list[tuple[ChunkEngine, NDArray[np.int64] | list[int]]] = []
        self._pins: list[tuple[ChunkEngine, int]] = []
        self._unlocks: list[Callable[[], None]] = []

    def hold(self, engine: ChunkEngine) -> None:
        """Before a lookup; covers every block that it names."""
        self._holds.append((engine, engine.hold()))

    def names(self, engine: ChunkEngine, blocks: NDArray[np.int64] | list[int]) -> None:
        """These blocks matter, should the hold become pins."""
        self._blocks.append((engine, blocks))

    def also(self, unlock: Callable[[], None]) -> None:
        """Something else that keeps blocks, and how it ends."""
        self._unlocks.append(unlock)

    def settle(self) -> None:
        """Exchange the holds, which delay the reuse of every freed block, for pins of these blocks."""
        if self._holds:
            self._pins += [(engine, engine.pin(np.asarray(blocks, dtype=np.int64))) for engine, blocks in self._blocks]
            self._release_holds()

    def release(self) -> None:
        """The blocks may go; any number of times."""
        unlocks, self._unlocks = self._unlocks, []
        for unlock in unlocks:
            unlock()
        self._release_holds()
        pins, self._pins = self._pins, []
        for engine, token in pins:
            engine.unpin(token)

    def _release_holds(self) -> None:
        holds, self._holds = self._holds, []
        for engine, token in holds:
            engine.release(token)


@dataclass(slots=True, eq=False)
class Reply:
    """One frame to a client. `find_origins` makes `origins`: per place in `parts`, where on disk it comes from."""

    request_id: int
    parts: list[Part]
    total: int
    find_origins: Callable[[], list[Origin | None]] | None = None
    origins: list[Origin | None] | None = None
    on_disk: Parts | FileRange | None = None  # the body, for a look whether it is in the page cache
    disk_bytes: int = 0  # of the body, straight from mapped files
    kept: Kept | None = None
    need_ack: bool = False
    plain: bool = True  # no part is a FileRange
    status: int = 0
    failed: dict[int, int] = field(default_factory=dict)  # status of single records -> how many, for the figures
    body_bytes: int = 0  # for the figures
    located_bytes: int = 0  # ... that the client reads by itself
    descriptors: Sequence[int] = ()  # that go with its first byte
    last: bool = False  # close the connection once this has left
    # how far it has been sent
    at: int = 0
    within: int = 0
    left: int = field(default=0)
    queued_s: float = 0.0
    held_bytes: int = 0  # `own_bytes`, as counted when it was queued

    def __post_init__(self) -> None:
        self.left = self.total

    @property
    def own_bytes(self) -> int:
        """The memory that it takes itself: what does not come straight from mapped files."""
        return self.total - self.disk_bytes

    def release(self) -> None:
        """Its blocks may go; any number of times."""
        if self.kept is not None:
            self.kept.release()


def plain_reply(
    header: Header,
    head: bytes = b"",
    *,
    count: int = 0,
    body: Sequence[bytes | memoryview] = (),
    kind: int | None = None,
    flags: int = 0,
) -> Reply:
    """A reply whose bytes are all in memory."""
    body_bytes = sum(len(part) for part in body)
    packed = pack_header(
        Header(
            header.kind if kind is None else kind,
            header.request_id,
            reply=True,
            flags=flags,
            count=count,
            head_bytes=len(head),
            body_bytes=body_bytes,
            hop=header.hop,
        ),
        head,
    )
    parts: list[Part] = [packed + head, *(part for part in body if len(part))]
    return Reply(header.request_id, parts, len(packed) + len(head) + body_bytes, body_bytes=body_bytes)


def error_reply(header: Header | None, error: Fs3Error, *, last: bool = False) -> Reply:
    """A status for a whole frame; `header` is None if not even that was understood."""
    text = str(error).encode()[:4096]
    asked = header if header is not None else Header(0, 0)
    packed = pack_header(
        Header(asked.kind, asked.request_id, reply=True, head_bytes=len(text), status=error.code), text
    )
    return Reply(asked.request_id, [packed + text], len(packed) + len(text), status=error.code, last=last)


def data_reply(header: Header, head: bytes, count: int, body: list[Part], body_bytes: int, *, flags: int) -> Reply:
    """A READ's reply, with a trailer; `head` holds `count` results and their sums."""
    packed = pack_header(
        Header(
            header.kind,
            header.request_id,
            reply=True,
            flags=flags | _TRAILER,
            count=count,
            head_bytes=len(head),
            body_bytes=body_bytes,
        ),
        head,
    )
    trailer = pack_trailer(0, 0)
    return Reply(
        header.request_id,
        [packed + head, *body, trailer],
        len(packed) + len(head) + body_bytes + len(trailer),
        body_bytes=body_bytes,
    )


def failed_of(results: Records) -> dict[int, int]:
    """How many of the results have which status, 0 left out."""
    status = results["status"]
    if not status.any():
        return {}
    codes, counts = np.unique(status[status != 0], return_counts=True)
    return dict(zip(codes.tolist(), counts.tolist(), strict=True))
