"""What the storage daemon does with each kind of request: at once on the IO thread, or on a pool of threads.

HELLO, ACK, STATS     at once; SCRUB beside slow reads
LOCATE                at once
READ, QUERY           at once, unless it would wait: many partial blocks to verify, ranges that are not in the page
                      cache, listings
REPORT                on the pool of slow reads: the chunks are read whole
WRITE                 on the pool of its hop: one that waits for a successor holds no thread that the successor's
                      own requests need (body_pool.py has the same for memory)
AHEAD                 on another pool of its hop, for a WRITE may wait for it; never answered
SYNC_LIST, SYNC_DONE  on a pool of their own
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from fs3.checksum import FINE_BYTES
from fs3.errors import Busy, Fs3Error, Invalid, PermissionDenied, Unavailable
from fs3.ids import node_name
from fs3.pb import storage_pb2
from fs3.runtime import SYSTEM, Runtime
from fs3.storage import read_one
from fs3.storage.ahead import Ahead, piece_of
from fs3.storage.body_pool import Body
from fs3.storage.config import StorageConfig
from fs3.storage.connections import MAX_HOPS, Peer
from fs3.storage.locate import LocatePath
from fs3.storage.pools import Pool
from fs3.storage.read_path import ReadPath, ranges_of
from fs3.storage.reassembly_core import Frame
from fs3.storage.reply import Reply, error_reply, failed_of, plain_reply
from fs3.transport.credentials import PROTOCOL, Credentials
from fs3.transport.frame_core import Feature, Header, Kind
from fs3.transport.messages import LIST_KIND, MAX_REPORTED, UPDATE, Records, records

_LOG = logging.getLogger("fs3.storage")
_DEPTH = 256  # requests that wait for a thread of a pool
_SYNC_THREADS = 4
_AHEAD_THREADS = 4
_DEFAULT_S = 30.0  # for a request that names no deadline
_LONGEST_S = 120.0  # no request keeps a thread for longer, whatever it asks for
_MAX_INSPECTED = 256  # chunks in an INSPECT
_MAX_LISTINGS = 4  # in a QUERY, each of up to 65,536 chunks

Work = Callable[[], Reply]
M = TypeVar("M", bound=Any)


class Writes(Protocol):
    """What of the write path answers frames. All may block and raise Fs3Error."""

    @property
    def ahead(self) -> Ahead: ...
    def update(
        self,
        header: Header,
        updates: Records,
        sums: NDArray[np.uint32],
        body: memoryview,
        hop: int,
        *,
        deadline_s: float | None = None,
    ) -> Records: ...
    def sync_list(self, request: storage_pb2.SyncListRequest) -> tuple[storage_pb2.SyncListReply, Records]: ...
    def sync_done(self, request: storage_pb2.SyncDoneRequest) -> None: ...
    def inspect(self, ranges: Records) -> Records: ...
    def report(self, ranges: Records) -> Records: ...


class Service:
    """See the module; `stats` makes the JSON of STATS, `scrub(begin)` that of SCRUB. `connections.Handler` for the IO
    threads."""

    def __init__(
        self,
        config: StorageConfig,
        credentials: Credentials,
        reads: ReadPath,
        writes: Writes,
        *,
        generation: int,
        check_lease: Callable[[], None],
        stats: Callable[[], str],
        scrub: Callable[[bool], str],
        runtime: Runtime = SYSTEM,
    ) -> None:
        self._runtime = runtime
        self._config = config
        self._credentials = credentials
        self._reads = reads
        self._locates = LocatePath(reads)
        self._writes = writes
        self._generation = generation
        self._check_lease = check_lease
        self._stats = stats
        self._scrub = scrub
        self._max_head_bytes = (
            config.max_ranges * (UPDATE.itemsize + 8) + config.max_body_bytes // FINE_BYTES * 4 + (64 << 10)
        )
        self._hops = [self._pool(f"fs3-hop{hop}", config.write_threads) for hop in range(MAX_HOPS)]
        self._ahead_hops = [self._pool(f"fs3-ahead{hop}", _AHEAD_THREADS) for hop in range(MAX_HOPS)]
        self._slow_reads = self._pool("fs3-read", config.read_threads)
        self._syncs = self._pool("fs3-sync", _SYNC_THREADS)
        self._begin: dict[int, Callable[[Peer, Frame], None]] = {
            Kind.HELLO: self._hello,
            Kind.READ: self._read,
            Kind.LOCATE: self._locate,
            Kind.QUERY: self._query,
            Kind.ACK: lambda peer, frame: None,
            Kind.SYNC_LIST: self._sync_list,
            Kind.SYNC_DONE: self._sync_done,
            Kind.STATS: self._stats_of,
            Kind.INSPECT: self._inspect,
            Kind.REPORT: self._report,
            Kind.SCRUB: self._scrub_of,
        }

    def _pool(self, name: str, threads: int) -> Pool:
        return Pool(name, threads=threads, depth=_DEPTH, runtime=self._runtime)

    def close(self) -> None:
        """Finish what the pools have taken on."""
        for pool in (*self._hops, *self._ahead_hops, self._slow_reads, self._syncs):
            pool.close()

    def begin(self, peer: Peer, frame: Frame, body: Body | None) -> None:
        """See `connections.Handler`."""
        if frame.header.kind == Kind.WRITE:
            self._write(peer, frame, body)
            return
        if frame.header.kind == Kind.AHEAD:
            self._ahead(peer, frame, body)
            return
        handle = self._begin.get(frame.header.kind)
        if handle is None:
            raise Invalid(f"unknown kind of request {frame.header.kind}; is the caller newer than this daemon?")
        handle(peer, frame)

    def _hello(self, peer: Peer, frame: Frame) -> None:
        hello = _parsed(storage_pb2.Hello(), frame)
        if peer.welcome:
            raise Invalid("HELLO was said already")
        if hello.protocol != PROTOCOL:
            raise Invalid(f"protocol {hello.protocol}; this daemon speaks {PROTOCOL}: upgrade the older one")
        self._credentials.check(hello.cluster_id, hello.secret)
        peer.role = f"node {node_name(hello.node_id)}" if hello.role == "chain" else "client"
        config = self._config
        features = Feature.AHEAD
        if hello.features & Feature.SAME_HOST:
            keep = hello.features & Feature.KEEP
            peer.descriptors = self._locates.welcome(peer.user, to_keep_places=bool(keep))
            features |= Feature.SAME_HOST | keep if peer.descriptors is not None else Feature.NONE
        peer.welcomed(max_head_bytes=self._max_head_bytes, max_body_bytes=config.max_body_bytes)
        said = storage_pb2.HelloReply(
            protocol=PROTOCOL,
            node_id=config.node_id,
            generation=self._generation,
            features=features,
            max_ranges=config.max_ranges,
            max_body_bytes=config.max_body_bytes,
        )
        peer.answer(plain_reply(frame.header, said.SerializeToString()))

    def _read(self, peer: Peer, frame: Frame) -> None:
        header = frame.header
        _check_room(peer)
        by_sendfile = peer.may_owe_acks
        if header.count == 1 and not header.body_bytes:
            asked = read_one.asked_of(frame.head)
            plain = self._reads.read_one(header, asked, by_sendfile=by_sendfile) if asked is not None else None
            if plain is not None:
                self._answer_warm(peer, header, plain)
                return
        ranges = ranges_of(header, frame.head, self._config.max_ranges)
        if self._reads.many_edges(ranges):
            self._submit(
                self._slow_reads, peer, header, lambda: self._reads.read(header, ranges, by_sendfile=by_sendfile)
            )
            return
        self._answer_warm(peer, header, self._reads.read(header, ranges, by_sendfile=by_sendfile))

    def _answer_warm(self, peer: Peer, header: Header, reply: Reply) -> None:
        """Answer once what comes from the disk is in the page cache. Raises: Busy."""
        if self._reads.bodies.is_cold(reply):
            try:
                self._submit(self._slow_reads, peer, header, functools.partial(self._reads.warm, reply))
            except Busy:
                reply.release()
                raise
            return
        peer.answer(reply)

    def _locate(self, peer: Peer, frame: Frame) -> None:
        _check_room(peer)
        ranges = ranges_of(frame.header, frame.head, self._config.max_ranges)
        if peer.descriptors is None:
            raise Invalid("LOCATE is for clients of the daemon's own user that offered it in HELLO on the Unix socket")
        if not peer.may_owe_acks:
            raise Busy("too many replies are not acknowledged")
        peer.answer(self._locates.locate(frame.header, ranges, peer.descriptors))

    def _query(self, peer: Peer, frame: Frame) -> None:
        header = frame.header
        _check_room(peer)
        ranges = ranges_of(header, frame.head, self._config.max_ranges)
        listings = int((ranges["offset"] >= LIST_KIND).sum())
        if listings > _MAX_LISTINGS:
            raise Invalid(f"{listings} listings in a QUERY; this daemon takes {_MAX_LISTINGS}")
        if listings:
            self._submit(self._slow_reads, peer, header, lambda: self._reads.query(header, ranges))
        else:
            peer.answer(self._reads.query(header, ranges))

    def _report(self, peer: Peer, frame: Frame) -> None:
        header = frame.header
        ranges = ranges_of(header, frame.head, MAX_REPORTED)

        def looked_at() -> Reply:
            results = self._writes.report(ranges)
            return plain_reply(header, results.tobytes(), count=len(results))

        self._submit(self._slow_reads, peer, header, looked_at)

    def _write(self, peer: Peer, frame: Frame, body: Body | None) -> None:
        header = frame.header

        def update() -> Reply:
            results = self._writes.update(
                header, updates, sums, frame.body, header.hop, deadline_s=_deadline_s(header, arrived_s)
            )
            if header.hop == 0:
                self._check_lease()
            reply = plain_reply(header, results.tobytes(), count=len(results))
            reply.failed = failed_of(results)
            return reply

        def done() -> None:
            if body is not None:
                body.share.give_back(body)

        arrived_s = self._runtime.now_s()
        try:
            if header.hop >= MAX_HOPS:
                raise Invalid(f"hop {header.hop}: chains have at most {MAX_HOPS} replicas")
            if header.hop:
                self._check_predecessor(peer)
            updates, sums = self._updates_of(frame)
            self._submit(self._hops[header.hop], peer, header, update, done)
        except BaseException:
            done()
            raise
        peer.loop.figures.write_bytes += header.body_bytes

    def _ahead(self, peer: Peer, frame: Frame, body: Body | None) -> None:
        """Take a piece of a chunk whose update is to come, or leave it: the update finds out."""
        header, ahead = frame.header, self._writes.ahead
        deadline_s = _deadline_s(header, self._runtime.now_s())

        def arrive() -> None:
            try:
                ahead.arrive(arrival, piece, deadline_s=deadline_s)
            finally:
                done()

        def done() -> None:
            if body is not None:
                body.share.give_back(body)

        try:
            if header.hop >= MAX_HOPS:
                raise Invalid(f"hop {header.hop}: chains have at most {MAX_HOPS} replicas")
            if header.hop:
                self._check_predecessor(peer)
            piece = piece_of(header, frame.head, frame.body)
            arrival = ahead.expect(piece.record)
        except Fs3Error as error:
            _LOG.debug("a piece that came ahead of its update is not taken: %s", error)
            done()
            return
        if not self._ahead_hops[header.hop].submit(arrive):
            ahead.missed(arrival)
            done()
        peer.loop.figures.write_bytes += header.body_bytes

    def _updates_of(self, frame: Frame) -> tuple[Records, NDArray[np.uint32]]:
        """The UPDATE records and the sums of a WRITE. Raises: Invalid."""
        count, head = frame.header.count, memoryview(frame.head)
        if count > self._config.max_ranges:
            raise Invalid(f"{count} updates in a request; this daemon takes {self._config.max_ranges}")
        begin = count * UPDATE.itemsize
        if len(head) < begin or (len(head) - begin) % 4:
            raise Invalid(f"a head of {len(head)} bytes is not {count} updates and their sums")
        return records(head[:begin], UPDATE, count), np.frombuffer(head[begin:], dtype="<u4")

    def _sync_list(self, peer: Peer, frame: Frame) -> None:
        self._check_predecessor(peer)
        request = _parsed(storage_pb2.SyncListRequest(), frame)

        def listed() -> Reply:
            said, page = self._writes.sync_list(request)
            body = [page.tobytes()] if len(page) else []
            return plain_reply(frame.header, said.SerializeToString(), count=len(page), body=body)

        self._submit(self._syncs, peer, frame.header, listed)

    def _sync_done(self, peer: Peer, frame: Frame) -> None:
        self._check_predecessor(peer)
        request = _parsed(storage_pb2.SyncDoneRequest(), frame)

        def done() -> Reply:
            self._writes.sync_done(request)
            return plain_reply(frame.header)

        self._submit(self._syncs, peer, frame.header, done)

    def _check_predecessor(self, peer: Peer) -> None:
        if not peer.role.startswith("node "):
            raise PermissionDenied("only a predecessor in a chain may say this")

    def _stats_of(self, peer: Peer, frame: Frame) -> None:
        said = storage_pb2.StatsReply(json=self._stats())
        peer.answer(plain_reply(frame.header, said.SerializeToString()))

    def _scrub_of(self, peer: Peer, frame: Frame) -> None:
        header = frame.header
        if header.head_bytes or header.body_bytes or header.count > 1:
            raise Invalid("a SCRUB frame has no head and no body, and begins a pass if its count is 1")

        def scrubbed() -> Reply:
            return plain_reply(header, storage_pb2.StatsReply(json=self._scrub(header.count == 1)).SerializeToString())

        self._submit(self._slow_reads, peer, header, scrubbed)

    def _inspect(self, peer: Peer, frame: Frame) -> None:
        ranges = ranges_of(frame.header, frame.head, min(self._config.max_ranges, _MAX_INSPECTED))

        def inspect() -> Reply:
            metas = self._writes.inspect(ranges)
            return plain_reply(frame.header, metas.tobytes(), count=len(metas))

        self._submit(self._slow_reads, peer, frame.header, inspect)

    def _submit(
        self, pool: Pool, peer: Peer, header: Header, work: Work, done: Callable[[], None] | None = None
    ) -> None:
        """Have `work` make the reply on a thread of `pool`, and then `done` run. Raises: Busy (neither will run)."""
        if peer.busy:
            raise Busy(f"{peer.in_progress} requests of this connection are being worked on; wait for answers")
        arrived_s = self._runtime.now_s()

        def run() -> None:
            reply: Reply | None = None
            try:
                if self._runtime.now_s() > _deadline_s(header, arrived_s):
                    raise Unavailable("the deadline passed before the request's turn came; nothing was done")
                if pool is self._slow_reads:
                    _check_room(peer)
                reply = work()
            except Fs3Error as error:
                reply = error_reply(header, error)
            except Exception as error:  # noqa: BLE001  # a defect: the caller hears of it, the daemon goes on
                _LOG.exception("a request of kind %d failed", header.kind)
                reply = error_reply(header, Fs3Error(f"the storage daemon failed: {type(error).__name__}"))
            finally:
                if done is not None:
                    done()
                if reply is not None:
                    peer.answer_later(reply)

        if not pool.submit(run):
            raise Busy("too many requests wait for a thread; try again soon")
        peer.in_progress += 1


def _check_room(peer: Peer) -> None:
    """Raises: Busy."""
    if peer.crowded:
        raise Busy("replies that their clients do not take fill the memory; try again soon")


def _deadline_s(header: Header, arrived_s: float) -> float:
    return arrived_s + (min(header.deadline_ms / 1_000, _LONGEST_S) if header.deadline_ms else _DEFAULT_S)


def _parsed(message: M, frame: Frame) -> M:
    """Raises: Invalid."""
    try:
        message.ParseFromString(bytes(frame.head))
    except DecodeError:
        raise Invalid(f"the head of a {Kind(frame.header.kind).name} cannot be understood") from None
    return message
