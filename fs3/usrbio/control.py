"""Messages between an application and its I/O process, over a Unix socket: all that is not a batch.

Each is a u32 length and so many bytes of JSON, an object; descriptors travel with the length. The application asks and
waits for the one answer: {"error": code, "message": ...} or what the request's kind gives. Version 2 (docs/formats.md).

The I/O process ends the connection only when nothing of it is under way any more, or by dying. So an application whose
connection has ended knows that nobody writes into its memory.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from fs3.client.file import OpenFile
from fs3.errors import Fs3Error, Invalid, Unavailable, from_code
from fs3.ids import InodeId
from fs3.layout import Durability, Layout
from fs3.transport.descriptors import close_all, rights

PROTOCOL = 2
MAX_MESSAGE_BYTES = 16 << 20
MAX_DESCRIPTORS = 3
WORK_S = 20.0  # for an answer; an application waits longer
_LENGTH = struct.Struct("<I")


class Closed(Unavailable):
    """The other side is gone."""


class Silent(Unavailable):
    """The other side is there, and did not answer in time."""


def send(sock: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Raises: Closed, Silent; Invalid: the message is too long."""
    raw = json.dumps(message, separators=(",", ":")).encode()
    if len(raw) > MAX_MESSAGE_BYTES:
        raise Invalid(f"a message of {len(raw)} bytes: at most {MAX_MESSAGE_BYTES} fit; name fewer files at once")
    try:
        if descriptors:
            sock.sendmsg([_LENGTH.pack(len(raw))], rights(descriptors), socket.MSG_NOSIGNAL)
            sock.sendall(raw)
        else:
            sock.sendall(_LENGTH.pack(len(raw)) + raw)
    except TimeoutError:
        raise Silent("the other side of a USRBIO connection does not take what is sent") from None
    except OSError as error:
        raise Closed(f"the other side of a USRBIO connection is gone: {error.strerror}") from None


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message, and the descriptors that came with it, which are the caller's to close.

    Raises: Closed; Silent: nothing came before the socket's timeout; Invalid: it is no message.
    """
    descriptors: list[int] = []
    try:
        try:
            head, descriptors, flags, _ = socket.recv_fds(sock, _LENGTH.size, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
            if not head:
                raise Closed("the other side of a USRBIO connection has closed it")
            head += _exactly(sock, _LENGTH.size - len(head))
            (length,) = _LENGTH.unpack(head)
            if flags & socket.MSG_CTRUNC or length > MAX_MESSAGE_BYTES:
                raise Invalid(f"a message of {length} bytes, or with too many descriptors")
            raw = _exactly(sock, length)
        except TimeoutError:
            raise Silent("the other side of a USRBIO connection does not answer") from None
        except OSError as error:
            raise Closed(f"the other side of a USRBIO connection is gone: {error.strerror}") from None
        try:
            message = json.loads(raw)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise Invalid("a message that is no JSON object")
    except BaseException:
        close_all(descriptors)
        raise
    return message, descriptors


def call(sock: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
    """Ask, and the answer. Raises: Closed, Silent; and what the other side answers with."""
    send(sock, message, descriptors)
    answer, extra = receive(sock)
    close_all(extra)
    if "error" in answer:
        raise from_code(int(answer["error"]), str(answer.get("message", "")))
    return answer


def refusal(error: Fs3Error) -> dict[str, Any]:
    """The answer that `call` raises as `error`."""
    return {"error": error.code, "message": str(error)}


def file_to_json(file: OpenFile) -> list[Any]:
    """An open file, which the I/O process needs nothing else to read."""
    return [file.inode_id, file.length, list(file.layout), file.chains.tolist(), file.version, file.path]


def file_from_json(value: Any) -> OpenFile:
    """Raises: Invalid."""
    try:
        inode_id, length, layout, chains, version, path = value
        table, version_of_table, chunk_bytes, stripe, seed, durability = map(int, layout)
        return OpenFile(
            InodeId(int(inode_id)),
            int(length),
            Layout(table, version_of_table, chunk_bytes, stripe, seed, Durability(durability)),
            np.array(chains, dtype=np.int64),
            int(version),
            str(path),
        )
    except (TypeError, ValueError) as error:
        raise Invalid(f"no open file: {error}") from None


def _exactly(sock: socket.socket, size: int) -> bytearray:
    raw = bytearray(size)
    view = memoryview(raw)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise Closed("the other side of a USRBIO connection has closed it")
        view = view[got:]
    return raw
