"""A control call in a frame: which methods a service has, and the bytes of a request (proto/data_plane.md, CALL).

    question   head: "Service.Method" (`count` bytes) | the request, protobuf
    answer     head: the reply, protobuf; or an error as any frame carries it

Pure: bytes in, values out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fs3.transport.frame_core import MAX_HEAD_BYTES, Kind

CALL = int(Kind.CALL)
MAX_REQUEST_BYTES = MAX_HEAD_BYTES


@dataclass(frozen=True, slots=True)
class Method:
    """One rpc; `name` is what stands in the frame."""

    name: bytes
    request: type[Message]
    reply: type[Message]


@cache
def methods_of(service: ServiceDescriptor) -> dict[str, Method]:
    """The methods of a protobuf service, by their names there."""
    return {
        method.name: Method(
            f"{service.name}.{method.name}".encode(),
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
        )
        for method in service.methods
    }
