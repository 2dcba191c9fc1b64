"""The replies that one connection still has to send, and those that its client still has to acknowledge.

Everything that lies in memory, also of several replies, goes out in one `sendmsg`; ranges of 64 KiB and more by
`sendfile`. What cannot be read from the disk is sent as zeros, and the trailer says which range that was.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from dataclasses import dataclass, replace

from fs3.errors import Corrupt
from fs3.storage.reply import FileRange, Origin, Part, Reply
from fs3.transport.descriptors import rights
from fs3.transport.frame_core import pack_trailer

MAX_IOVECS = 1024
_RESCUE_BYTES = 1 << 20
_UNREADABLE = (errno.EFAULT, errno.EIO, errno.ENODATA, errno.EUCLEAN)

Buffer = bytes | bytearray | memoryview


@dataclass(slots=True)
class Held:
    """The memory that unsent replies take, of all connections of an IO thread, and how much that may be."""

    limit_bytes: int
    bytes_: int = 0

    @property
    def full(self) -> bool:
        return self.bytes_ >= self.limit_bytes


class Outbox:
    """Used by the thread that owns the connection. What its replies take themselves is counted in `held`, too."""

    def __init__(self, held: Held | None = None) -> None:
        self._held = held if held is not None else Held(0)
        self._queue: deque[Reply] = deque()
        self._unacked: dict[int, Reply] = {}
        self.own_bytes = 0  # memory that the queued replies take themselves
        self.unreadable = 0
        self.sent_bytes = 0
        self.finished = False  # the reply after which the connection ends has left

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def unacked(self) -> int:
        """How many replies were sent whole and not acknowledged, though they must be."""
        return len(self._unacked)

    def put(self, reply: Reply, now_s: float) -> None:
        """Queue a reply."""
        reply.queued_s = now_s
        reply.held_bytes = reply.own_bytes
        self._count(reply.held_bytes)
        self._queue.append(reply)

    def flush(self, sock: socket.socket, budget: int) -> bool:
        """Send until the socket takes no more, `budget` bytes have gone, or all has; True if the socket was full.

        Raises: OSError, if the peer is gone.
        """
        queue = self._queue
        while queue and budget > 0:
            front = queue[0]
            part = front.parts[front.at]
            try:
                if isinstance(part, FileRange):
                    sent = os.sendfile(
                        sock.fileno(),
                        part.file.fd,
                        part.position + front.within,
                        min(part.length - front.within, budget),
                    )
                    if sent == 0:
                        raise OSError(errno.EIO, "a block file ends too early")
                else:
                    iovecs, more = self._gather()
                    sent = sock.sendmsg(iovecs, rights(front.descriptors), socket.MSG_MORE if more else 0)
                    front.descriptors = ()
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno not in _UNREADABLE or not self._rescue():
                    raise
                continue
            budget -= sent
            self.sent_bytes += sent
            self._advance(sent)
        return False

    def acknowledge(self, ack_id: int) -> None:
        """The client has every reply up to this request id."""
        if self._unacked:
            for request_id in [one for one in self._unacked if one <= ack_id]:
                reply = self._unacked.pop(request_id)
                reply.release()

    def sweep(self, now_s: float, settle_after_s: float) -> float:
        """Exchange old holds for pins; how long the oldest queued reply has waited."""
        for waiting in (self._queue, self._unacked.values()):
            for reply in waiting:
                if reply.kept is not None and now_s - reply.queued_s >= settle_after_s:
                    reply.kept.settle()
        return now_s - self._queue[0].queued_s if self._queue else 0.0

    def unacked_for_s(self, now_s: float) -> float:
        """How long ago the oldest reply was queued that is not acknowledged; 0 if there is none."""
        return max((now_s - reply.queued_s for reply in self._unacked.values()), default=0.0)

    def close(self) -> None:
        """Nothing more will be sent or acknowledged."""
        for reply in [*self._queue, *self._unacked.values()]:
            reply.release()
        self._queue.clear()
        self._unacked.clear()
        self._count(-self.own_bytes)

    def _count(self, bytes_: int) -> None:
        self.own_bytes += bytes_
        self._held.bytes_ += bytes_

    def _gather(self) -> tuple[list[Buffer], bool]:
        """Buffers from the front on, and whether a `sendfile` of the same reply follows them."""
        iovecs: list[Buffer] = []
        for reply in self._queue:
            room = MAX_IOVECS - len(iovecs)
            if room <= 0 or (reply.descriptors and iovecs):  # descriptors go with the first byte of what is sent
                break
            parts = reply.parts[reply.at : reply.at + room] if reply.at or len(reply.parts) > room else reply.parts
            if not reply.plain:
                stop = next((place for place, part in enumerate(parts) if isinstance(part, FileRange)), len(parts))
                if stop < len(parts):
                    iovecs += parts[:stop]  # type: ignore[arg-type]  # none of these is a FileRange
                    self._trim(iovecs)
                    return iovecs, True
            iovecs += parts  # type: ignore[arg-type]
        self._trim(iovecs)
        return iovecs, False

    def _trim(self, iovecs: list[Buffer]) -> None:
        within = self._queue[0].within
        if within:
            iovecs[0] = memoryview(iovecs[0])[within:]

    def _advance(self, sent: int) -> None:
        queue = self._queue
        while queue:
            front = queue[0]
            if sent < front.left:
                front.left -= sent
                _step(front, sent)
                return
            sent -= front.left
            queue.popleft()
            front.left = 0
            self._left(front)

    def _left(self, reply: Reply) -> None:
        self._count(-reply.held_bytes)
        if reply.need_ack:
            self._unacked[reply.request_id] = reply
        else:
            reply.release()
        reply.parts = []
        if reply.last:
            self.finished = True

    def _rescue(self) -> bool:
        """Replace the next megabyte that comes from the disk by a copy, or zeros; False if there is none."""
        for reply in self._queue:
            origins = _origins(reply)
            for at in range(reply.at, len(origins)):
                origin = origins[at]
                if origin is not None:
                    self._copy(reply, origins, at, origin)
                    return True
        return False

    def _copy(self, reply: Reply, origins: list[Origin | None], at: int, origin: Origin) -> None:
        part = reply.parts[at]
        sent = reply.within if at == reply.at else 0
        now = min(_length(part) - sent, _RESCUE_BYTES)
        try:
            copy = os.pread(origin.file.fd, now, origin.position + sent)
        except OSError:
            copy = b""
        if len(copy) < now:
            copy += bytes(now - len(copy))
            self.unreadable += 1
            reply.parts[-1] = pack_trailer(Corrupt.code, origin.record)
        rest: list[Part] = []
        if sent + now < _length(part):
            rest = [_tail(part, sent + now)]
        reply.parts[at : at + 1] = [copy, *rest]
        origins[at : at + 1] = [None, *(replace(origin, position=origin.position + sent + now) for _ in rest)]
        if at == reply.at:
            reply.within = 0


def _origins(reply: Reply) -> list[Origin | None]:
    if reply.origins is None:
        reply.origins = reply.find_origins() if reply.find_origins is not None else []
    return reply.origins


def _tail(part: Part, begin: int) -> Part:
    if isinstance(part, FileRange):
        return FileRange(part.file, part.position + begin, part.length - begin)
    return memoryview(part)[begin:]


def _length(part: Part) -> int:
    return part.length if isinstance(part, FileRange) else len(part)


def _step(reply: Reply, sent: int) -> None:
    at, within = reply.at, reply.within + sent
    parts = reply.parts
    while within >= (size := _length(parts[at])):
        within -= size
        at += 1
    reply.at, reply.within = at, within
