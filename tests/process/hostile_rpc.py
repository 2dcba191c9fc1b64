"""Bytes that no well-behaved peer sends to the ports of mgmtd and meta: an endless supply, from a seed.

    raw      a connection of random bytes, of another protocol, or of HTTP/2 frames of random kinds, flags and streams
    frames   a connection of fs3's frames: calls as below, unknown kinds, wrong sizes, damaged, cut off, before HELLO
    call     a gRPC call whose request is not what its method takes: random bytes, a message of random fields, or of
             another method; or a method that does not exist

Each is one case. Random fields keep away from small numbers, which could be somebody's: a stranger who knows the right
ones and no secret is asked for may say what it likes, that is no malformed request.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fs3.pb import meta_pb2, mgmtd_pb2
from fs3.transport.credentials import Credentials
from fs3.transport.frame_core import Header, Kind, pack_header

_PACKAGE = "/fs3.pb."
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_TEXTS = (
    "",
    "/",
    "//",
    "/..",
    "/a/../b",
    "/\x00",
    "/x" * 2_000,
    "ä€😀",
    "/" + "n" * 300,
    "\n\t",
    "/hostile/%s",
    "0" * 5_000,
)
_LARGE = (1 << 20, (1 << 31) - 1, (1 << 32) - 1, (1 << 53) + 1, (1 << 63) - 1)
_NEVER = frozenset({"wait_ms"})  # a long poll that is asked for is answered late, as it should be


@dataclass(frozen=True, slots=True)
class Call:
    """A gRPC call with the bytes of its request."""

    method: str
    request: bytes


class RpcSource:
    """Cases for one service, "mgmtd" or "meta"."""

    def __init__(self, service: str, seed: int) -> None:
        module: Any = {"mgmtd": mgmtd_pb2, "meta": meta_pb2}[service]
        (described,) = module.DESCRIPTOR.services_by_name.values()
        self._methods = [(f"/{described.full_name}/{method.name}", method.input_type) for method in described.methods]
        self._rng = random.Random(seed)

    def raw(self) -> bytes:
        """What a connection sends."""
        rng = self._rng
        dice = rng.random()
        if dice < 0.3:
            return rng.randbytes(rng.randrange(1, 2_000))
        if dice < 0.4:
            return rng.choice(
                (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00" + rng.randbytes(500), b"FS31", b"PRI")
            )
        frames = [_PREFACE if rng.random() < 0.95 else _PREFACE[: rng.randrange(24)]]
        if rng.random() < 0.9:
            frames.append(_SETTINGS)
        frames += [self._frame() for _ in range(rng.randrange(1, 30))]
        stream = b"".join(frames)
        return stream[: rng.randrange(1, len(stream))] if rng.random() < 0.2 else stream

    def framed(self) -> bytes:
        """What a connection sends in frames."""
        rng = self._rng
        said = Credentials().hello(role="control").SerializeToString()
        frames = [_framed(Kind.HELLO, 0, said)] if rng.random() < 0.9 else []
        for number in range(1, rng.randrange(2, 12)):
            called = self.call()
            name = called.method.removeprefix(_PACKAGE).replace("/", ".").encode()
            dice = rng.random()
            kind = Kind.CALL if dice < 0.8 else rng.randrange(256)
            count = len(name) if rng.random() < 0.9 else rng.getrandbits(rng.choice((4, 8, 32)))
            frame = bytearray(_framed(kind, number, name + called.request, count=count))
            if rng.random() < 0.1:
                frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
            if rng.random() < 0.05:
                struct.pack_into("<IQ", frame, 20, rng.getrandbits(32), rng.choice((0, rng.getrandbits(64))))
            frames.append(bytes(frame))
        stream = b"".join(frames)
        return stream[: rng.randrange(1, len(stream))] if stream and rng.random() < 0.2 else stream

    def call(self) -> Call:
        """A call that the service can only refuse, or answer with nothing."""
        rng = self._rng
        method, takes = rng.choice(self._methods)
        dice = rng.random()
        if dice < 0.05:
            return Call(method + rng.choice(("X", "/", "")) + "?", b"")
        if dice < 0.45:
            return Call(method, rng.randbytes(rng.choice((1, 5, 50, 500, 5_000))))
        if dice < 0.6:
            takes = rng.choice(self._methods)[1]
        raw = bytearray(self._message(takes, 0).SerializeToString())
        if raw and rng.random() < 0.3:
            for _ in range(rng.randrange(1, 5)):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        return Call(method, bytes(raw))

    def _frame(self) -> bytes:
        rng = self._rng
        payload = rng.randbytes(rng.choice((0, 1, 4, 8, 40, 300)))
        length = len(payload) if rng.random() < 0.85 else rng.getrandbits(24)
        kind = rng.randrange(10) if rng.random() < 0.9 else rng.randrange(256)
        stream = rng.choice((0, 1, 1, 3, 5, rng.getrandbits(31)))
        return struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, rng.getrandbits(8), stream) + payload

    def _message(self, described: descriptor.Descriptor, depth: int) -> Message:
        rng = self._rng
        message: Any = GetMessageClass(described)()
        for one in described.fields:
            if rng.random() < 0.3 or one.name in _NEVER:
                continue
            times = rng.randrange(4) if one.is_repeated else 1
            for _ in range(times):
                self._fill(message, one, depth)
        return message  # type: ignore[no-any-return]

    def _fill(self, message: Any, one: descriptor.FieldDescriptor, depth: int) -> None:
        if one.message_type is not None:
            if depth < 3 and not one.message_type.GetOptions().map_entry:
                value: Any = self._message(one.message_type, depth + 1)
                if one.is_repeated:
                    getattr(message, one.name).append(value)
                else:
                    getattr(message, one.name).CopyFrom(value)
            return
        value = self._value(one)
        if one.is_repeated:
            getattr(message, one.name).append(value)
        else:
            setattr(message, one.name, value)

    def _value(self, one: descriptor.FieldDescriptor) -> Any:
        rng = self._rng
        kinds = descriptor.FieldDescriptor
        if one.cpp_type == kinds.CPPTYPE_STRING:
            if one.type == kinds.TYPE_BYTES:
                return rng.randbytes(rng.randrange(50))
            return rng.choice(_TEXTS)
        if one.cpp_type == kinds.CPPTYPE_BOOL:
            return rng.random() < 0.5
        if one.cpp_type in (kinds.CPPTYPE_FLOAT, kinds.CPPTYPE_DOUBLE):
            return rng.choice((0.0, -1.0, 1e300, float("inf"), float("nan")))
        if one.cpp_type == kinds.CPPTYPE_ENUM:
            return rng.choice((0, 1, 2, 77, -5))
        most = 31 if one.cpp_type == kinds.CPPTYPE_INT32 else 32 if one.cpp_type == kinds.CPPTYPE_UINT32 else 63
        return min(rng.choice((*_LARGE, rng.getrandbits(most) | 1 << 20)), (1 << most) - 1)


def _framed(kind: int, number: int, head: bytes, count: int = 0) -> bytes:
    header = Header(kind & 0x7F, number, reply=bool(kind & 0x80), count=count, head_bytes=len(head), deadline_ms=1_000)
    return pack_header(header, head) + head
