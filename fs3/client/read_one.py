"""A READ of one range in plain Python: what `ReadCall` does for a batch, in a fraction of the time.

Numpy costs a microsecond or two a call, however short the arrays: nothing over 256 ranges, most of the work for one.
Only the plain case ends here: every replica is thought well of, one of them answers in time with all the bytes, and
they match their sums. Everything else is the batch's, which knows what to do; at worst it asks again. A request that is
late is handed over as it stands, to be hedged.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fs3.checksum import crc, pieces
from fs3.client.exchange import STEP_BYTES, Lane
from fs3.client.peers import SLACK_BYTES, Peers
from fs3.client.plan_core import Asked
from fs3.client.race import silence_s
from fs3.client.same_host import LOCAL_BYTES
from fs3.client.select_core import ReplicaTable, choose_one
from fs3.errors import Fs3Error, Unavailable
from fs3.transport.connection import Connection
from fs3.transport.frame_core import Flag, Kind
from fs3.transport.messages import RANGE, RESULT

_RANGE = struct.Struct("<QQIIII")
_RESULT = struct.Struct("<HHIIIQ")
_READ, _CHECKSUM, _NOTHING = Kind.READ, int(Flag.CHECKSUM), int(Flag.NONE)

assert _RANGE.size == RANGE.itemsize and _RESULT.size == RESULT.itemsize


class Answer(NamedTuple):
    """A range whose bytes are in place and verified."""

    chunk_length: int
    version: int


@dataclass(frozen=True, slots=True)
class Begun:
    """A request whose answer is late; the batch goes on with it."""

    table: ReplicaTable
    lane: Lane


def read_one(peers: Peers, asked: Asked, out: memoryview, deadline_s: float) -> Answer | Begun | None:
    """Read a range into `out` [length]; None: nothing is known of it, the batch must ask.

    Raises: Unavailable: the client is closed.
    """
    length = asked.length
    table = peers.table()
    there = table.by_chain.get(asked.chain)
    if there is None or not there[1] or not length or peers.avoids:
        return None
    if length >= LOCAL_BYTES and peers.same_host.near(table) is not None:
        return None
    version, endpoints = there
    endpoint = endpoints[0]
    if len(endpoints) > 1:
        owed = [peers.load_of(table.endpoints[one]) for one in endpoints]
        endpoint = choose_one(endpoints, length, owed, slack=SLACK_BYTES, rotation=peers.rotation())
    name = table.endpoints[endpoint]
    try:
        connection = peers.borrow(table, endpoint, deadline_s=deadline_s, patient=False)
    except Fs3Error as error:
        _failed(peers, table, endpoint, error)
        return None
    keep = False
    peers.add_load(name, length)
    try:
        head = _RANGE.pack(asked.hi, asked.lo, asked.offset, length, asked.chain, version)
        flags = _CHECKSUM if peers.verify else _NOTHING
        request = connection.send(_READ, [head], count=1, flags=flags, deadline_s=deadline_s)
        hedges = peers.hedges
        if hedges.enabled and table.endpoint.shape[1] > 1:
            sent_s = peers.runtime.now_s()
            hedges.asked()
            due_s = sent_s + hedges.after_s(name, length)
            if connection.wait(min(due_s, deadline_s, sent_s + peers.stall_s)) is None:
                keep = True
                place = np.zeros(1, dtype=np.int64)
                return Begun(table, Lane(endpoint, place, length, connection, sent={request: place}, since_s=sent_s))
            hedges.replied(name, length, peers.runtime.now_s() - sent_s)
            connection.stall_s = silence_s(peers, name, length)
        return _receive(connection, asked, out, verify=peers.verify)
    except Fs3Error as error:
        _failed(peers, table, endpoint, error)
        return None
    finally:
        peers.add_load(name, -length)
        if not keep:
            peers.give_back(connection)


def _receive(connection: Connection, asked: Asked, out: memoryview, *, verify: bool) -> Answer | None:
    """Receive the reply, and verify it as it comes. Raises: Fs3Error."""
    header, head = connection.receive_head()
    offset, length = asked.offset, asked.length
    sums_bytes = len(head) - _RESULT.size
    status, _, n_sums, got, chunk_length, version = _RESULT.unpack_from(head) if sums_bytes >= 0 else (1, 0, 0, 0, 0, 0)
    right = False
    if status or got != length or header.body_bytes != length or header.count != 1 or sums_bytes != 4 * n_sums:
        if header.body_bytes > length:
            connection.close()
            return None
        connection.receive_body([out[: header.body_bytes]])
    elif verify:
        cuts = pieces(offset, length, chunk_length) if offset + length <= chunk_length else []
        sums = struct.unpack_from(f"<{n_sums}I", head, _RESULT.size)
        right = _receive_verified(connection, out, cuts, offset, sums)
    else:
        connection.receive_body([out])
        right = True
    trailer_status, _ = connection.receive_trailer()
    return Answer(chunk_length, version) if right and not trailer_status else None


def _receive_verified(
    connection: Connection, out: memoryview, cuts: list[tuple[int, int]], offset: int, sums: Sequence[int]
) -> bool:
    """Receive a reply's body in steps and verify each at once; whether all of it matches."""
    if len(cuts) != len(sums):
        connection.receive_body([out])
        return False
    right, at, first, last = True, 0, 0, len(cuts) - 1
    for number, (_, end) in enumerate(cuts):
        stop = end - offset
        if stop - at < STEP_BYTES and number != last:
            continue
        connection.receive_body([out[at:stop]], stop - at)
        for place in range(first, number + 1):
            a, b = cuts[place]
            right = right and crc(out[a - offset : b - offset]) == sums[place]
        at, first = stop, number + 1
    return right


def _failed(peers: Peers, table: ReplicaTable, endpoint: int, error: Fs3Error) -> None:
    if isinstance(error, Unavailable):
        peers.failed(table, endpoint)
