"""Bytes of whole chunks that come ahead of their updates, so that no replica waits for the one in front of it.

A client sends a large chunk in pieces, and then its update, which names the bytes that went ahead and carries none.
Each replica passes a piece on as soon as it has it, writes it into a block that no record names, and has the block on
stable storage once all pieces are there: every disk of a chain is at work while the client still sends. What is
promised does not depend on any of this. An update is decided, staged, forwarded and committed as ever, in the same
order; all that it finds done is that its bytes, which must be those of its sums, lie in a block already. If they do
not, for whatever reason, it is refused in a way that has it sent again with its bytes, and what did come is given back
after a while.

Pieces are never answered, may come in any order, and twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import FINE_BYTES, Bytes
from fs3.errors import Busy, Corrupt, Fs3Error, Invalid, NoSpace, StaleRouting
from fs3.ids import chunk_name
from fs3.runtime import SYSTEM, Runtime
from fs3.storage import content_core as content
from fs3.storage.allocator_core import LARGEST_BYTES
from fs3.storage.chain_state import ChainState, Duty, Role, Successor
from fs3.storage.engine_api import ChunkEngine, Reserved
from fs3.storage.forward import ForwardPort, Piece
from fs3.transport.frame_core import Header
from fs3.transport.messages import AHEAD, SUM, Records, UpdateFlag, records

_LOG = logging.getLogger("fs3.storage")
KEPT_S = 10.0  # what no update comes for is given back after this
_LOOK_S = 0.1
_WAIT_S = 2.0  # an update waits this long after each piece for the next one
_UNHEARD_S = 0.1  # ... and this long if none of them has been heard of: they came by another connection
_MOST = 512  # updates
_MOST_BYTES = 1 << 30

_Key = tuple[int, int, int, int, int, int]  # chain, chunk, client, channel, seq


@dataclass(slots=True, eq=False)
class Arrival:
    """The bytes of one update, as far as they have come.

    `passed` is whom all of them were passed on to, with the chain version then; `working` counts the pieces that are
    being worked on, of which the last gives the block back if everybody else has let go of it.
    """

    length: int
    durable: bool
    heard_s: float  # when a piece came last
    fine: NDArray[np.uint32]
    claimed: NDArray[np.bool_]  # per 4 KiB
    engine: ChunkEngine | None = None
    reserved: Reserved | None = None
    left: int = 0  # 4 KiB blocks that have not come
    working: int = 0
    ready: bool = False
    failed: bool = False
    gone: bool = False
    hold: int = 0  # of the engine, once its update has it
    passed: tuple[Successor, int] | None = None
    passing: bool = True

    @property
    def used(self) -> bool:
        """Whether a record has its block."""
        return self.reserved is not None and self.reserved.used

    def is_with(self, successor: Successor, chain_version: int) -> bool:
        """Whether all of it was passed on to this replica."""
        return self.passing and self.passed == (successor, chain_version)

    @property
    def data(self) -> memoryview:
        """The bytes, where they lie, for its update."""
        assert self.engine is not None and self.reserved is not None
        begin = self.reserved.position
        return self.engine.file(self.reserved.file).view[begin : begin + self.length]


@dataclass(slots=True)
class AheadFigures:
    """Counters since the daemon started."""

    pieces: int = 0
    passed_on: int = 0
    used: int = 0
    missed: int = 0  # updates whose bytes were not there
    given_back: int = 0


class Ahead:
    """Thread-safe. `ask(in_s)` has `expire` called about then; `may_write()` tells whether the daemon's lease holds."""

    def __init__(
        self,
        state: ChainState,
        port: ForwardPort,
        *,
        may_write: Callable[[], bool],
        ask: Callable[[float], None],
        runtime: Runtime = SYSTEM,
    ) -> None:
        self._state = state
        self._port = port
        self._may_write = may_write
        self._ask = ask
        self._runtime = runtime
        self._turn = runtime.condition()
        self._arrivals: dict[_Key, Arrival] = {}
        self._bytes = 0
        self.figures = AheadFigures()

    def expect(self, record: Records) -> Arrival:
        """A piece with AHEAD record [1] is here: `arrive` or `missed` must follow. Raises: Invalid, NoSpace."""
        length, begin, end = int(record["chunk_length"][0]), int(record["offset"][0]), int(record["length"][0])
        end += begin
        if not 0 < end <= length <= LARGEST_BYTES or begin == end or begin % FINE_BYTES:
            raise Invalid(f"a piece from {begin} to {end} of a chunk of {length} bytes")
        if end % FINE_BYTES and end != length:
            raise Invalid(f"a piece that ends at {end}, within a 4 KiB block of a chunk of {length} bytes")
        key = _key_of(record)
        with self._turn:
            arrival = self._arrivals.get(key)
            if arrival is None:
                if len(self._arrivals) >= _MOST or self._bytes + length > _MOST_BYTES:
                    raise NoSpace("more bytes have come ahead of their updates than are kept")
                blocks = -(-length // FINE_BYTES)
                arrival = self._arrivals[key] = Arrival(
                    length,
                    not int(record["flags"][0]) & UpdateFlag.OS_DURABILITY,
                    self._runtime.now_s(),
                    np.zeros(blocks, dtype=np.uint32),
                    np.zeros(blocks, dtype=np.bool_),
                    left=blocks,
                )
                self._bytes += length
                self._ask(KEPT_S)
                self._turn.notify_all()
            if arrival.length != length:
                raise Invalid(f"pieces of one update, of {arrival.length} and of {length} bytes")
            arrival.working += 1
            arrival.heard_s = self._runtime.now_s()
        return arrival

    def missed(self, arrival: Arrival) -> None:
        """A piece that was expected is not taken: nobody waits for the others any longer."""
        self._fail(arrival)
        self._worked(arrival)

    def arrive(self, arrival: Arrival, piece: Piece, *, deadline_s: float) -> None:
        """Pass a piece on, and put it where it belongs. Blocks; raises nothing."""
        begin = int(piece.record["offset"][0]) // FINE_BYTES
        end = begin + len(piece.sums)
        with self._turn:
            new = not arrival.failed and not arrival.claimed[begin:end].any()
            arrival.claimed[begin:end] = True
            self.figures.pieces += new
        try:
            if new:
                self._take(arrival, piece, begin, end, deadline_s)
        except Fs3Error as error:
            _LOG.debug("a piece that came ahead of its update is not kept: %s", error)
            self._fail(arrival)
        except BaseException:
            self._fail(arrival)
            raise
        finally:
            self._worked(arrival)

    def take(self, record: Records, fine: NDArray[np.uint32], *, hop: int, deadline_s: float) -> Arrival | None:
        """The bytes of the update with UPDATE record [1] and these sums, once they are on stable storage here, if they
        have come; `end` must follow. None: they are not there."""
        key, now_s = _key_of(record), self._runtime.now_s()
        until_s = now_s + (deadline_s - now_s) / 2
        with self._turn:
            if key not in self._arrivals and hop:
                self._turn.wait_for(lambda: key in self._arrivals, min(_UNHEARD_S, until_s - now_s))
            arrival = self._arrivals.get(key)
            if arrival is not None:
                self._wait_whole(arrival, until_s)
                if self._let_go(key, arrival) and is_of(arrival, int(record["length"][0]), fine):
                    assert arrival.engine is not None
                    arrival.working += 1  # the update's
                    arrival.hold = arrival.engine.hold()
                    self.figures.used += 1
                    return arrival
            self.figures.missed += 1
        if arrival is not None:
            self._give_back(arrival)
        return None

    def end(self, arrival: Arrival) -> None:
        """The update is answered; its block is its record's, or nobody's."""
        assert arrival.engine is not None
        arrival.engine.release(arrival.hold)
        self._worked(arrival)

    def expire(self) -> float | None:
        """Give back what no update has come for; in how many seconds to look again."""
        with self._turn:
            old_s = self._runtime.now_s() - KEPT_S
            old = [(key, one) for key, one in self._arrivals.items() if one.heard_s <= old_s]
            for key, arrival in old:
                arrival.failed = True
                self._let_go(key, arrival)
            left = [one.heard_s for one in self._arrivals.values()]
            self._turn.notify_all()
        for _, arrival in old:
            self._give_back(arrival)
        return max(min(left) - old_s, _LOOK_S) if left else None

    def empty(self) -> bool:
        """Whether no bytes wait for their update."""
        return not self._arrivals

    def _wait_whole(self, arrival: Arrival, until_s: float) -> None:
        """Until all of it is there, or none of it has come for a while."""
        while not arrival.ready and not arrival.failed:
            left_s = min(arrival.heard_s + _WAIT_S, until_s) - self._runtime.now_s()
            if left_s <= 0:
                return
            self._turn.wait(left_s)

    def _fail(self, arrival: Arrival) -> None:
        with self._turn:
            arrival.failed = True
            self._turn.notify_all()

    def _take(self, arrival: Arrival, piece: Piece, begin: int, end: int, deadline_s: float) -> None:
        record = piece.record
        role, acting = self._state.enter(int(record["chain"][0]), int(record["chain_version"][0]))
        try:
            if role.duty is Duty.SYNC or role.head != (piece.hop == 0):
                raise StaleRouting(f"target {role.target_id} has another place in chain {role.chain_id}")
            if piece.hop == 0 and not self._may_write():
                raise StaleRouting("this storage daemon has lost touch with mgmtd")
            content.check_update(piece.data, 0, piece.sums)
            self._pass_on(arrival, role, piece, deadline_s)
            engine = self._state.engine(role.target_id)
            reserved = self._reserve(arrival, engine)
            engine.fill(reserved, begin * FINE_BYTES, piece.data)
            with self._turn:
                arrival.fine[begin:end] = piece.sums
                arrival.left -= end - begin
                whole = not arrival.left and not arrival.failed
            if whole:
                engine.seal(reserved, arrival.fine, durable=arrival.durable)
                with self._turn:
                    arrival.ready = True
                    self._turn.notify_all()
        finally:
            self._state.leave(acting)

    def _pass_on(self, arrival: Arrival, role: Role, piece: Piece, deadline_s: float) -> None:
        """To the replica behind, if that serves, and was there for all pieces so far."""
        successor = role.successor
        with self._turn:
            to = None if successor is None or successor.syncing else (successor, role.version)
            if arrival.passed is None:
                arrival.passed = to
            passing = arrival.passing = arrival.passing and to is not None and to == arrival.passed
        if passing and to is not None:
            sent = self._port.send_ahead(to[0].endpoint, piece.on(role.position + 1), deadline_s=deadline_s)
            with self._turn:
                arrival.passing = arrival.passing and sent
                self.figures.passed_on += sent

    def _reserve(self, arrival: Arrival, engine: ChunkEngine) -> Reserved:
        """The block for all of it, which the first piece takes. Raises: Fs3Error."""
        with self._turn:
            first = arrival.engine is None
            if first:
                arrival.engine = engine
            else:
                self._turn.wait_for(lambda: arrival.reserved is not None or arrival.failed)
            if arrival.engine is not engine or arrival.failed:
                raise StaleRouting("its pieces came to several targets, or too late")
        if first:
            reserved = engine.reserve(arrival.length)
            with self._turn:
                arrival.reserved = reserved
                self._turn.notify_all()
        assert arrival.reserved is not None
        return arrival.reserved

    def _worked(self, arrival: Arrival) -> None:
        with self._turn:
            arrival.working -= 1
        if arrival.gone:
            self._give_back(arrival)

    def _let_go(self, key: _Key, arrival: Arrival) -> bool:
        """False: somebody else has let go of it meanwhile."""
        if self._arrivals.get(key) is not arrival:
            return False
        del self._arrivals[key]
        arrival.gone = True
        self._bytes -= arrival.length
        return True

    def _give_back(self, arrival: Arrival) -> None:
        """Free the block, once nobody uses it any more, unless a record has it."""
        with self._turn:
            reserved = arrival.reserved if arrival.gone and not arrival.working else None
            if reserved is None:
                return
            arrival.reserved = None
            self.figures.given_back += not reserved.used
        assert arrival.engine is not None
        if not reserved.used:
            arrival.engine.unreserve(reserved)


def piece_of(header: Header, head: Bytes, body: memoryview) -> Piece:
    """The piece in an AHEAD frame. Raises: Invalid."""
    view = memoryview(head)
    record = records(view, AHEAD, 1) if header.count == 1 and len(view) >= AHEAD.itemsize else None
    if record is None or int(record["length"][0]) != len(body) or len(view) % 4:
        raise Invalid(f"an AHEAD frame of {header.count} records, {len(view)} bytes and a body of {len(body)}")
    sums = np.frombuffer(view[AHEAD.itemsize :], dtype=SUM)
    if len(sums) != -(-len(body) // FINE_BYTES):
        raise Invalid(f"a piece of {len(body)} bytes with {len(sums)} sums")
    return Piece(record, sums, body, header.hop)


def is_of(arrival: Arrival, length: int, fine: NDArray[np.uint32]) -> bool:
    """Whether these are the bytes of an update of this length with these sums."""
    return arrival.ready and not arrival.failed and arrival.length == length and np.array_equal(arrival.fine, fine)


def missing(hi: int, lo: int, *, hop: int) -> Fs3Error:
    """What an update is refused with whose bytes are not here: whoever sent it knows by this to send them with it."""
    why = f"{chunk_name(hi, lo)}: the bytes that went ahead of an update are not here; send them with it"
    return Corrupt(why) if hop else Busy(why)


def _key_of(record: Records) -> _Key:
    names = ("chain", "hi", "lo", "client", "channel", "seq")
    chain, hi, lo, client, channel, seq = (int(record[name][0]) for name in names)
    return chain, hi, lo, client, channel, seq
