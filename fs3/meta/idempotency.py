"""A change that is sent twice applies once: the answer of each is kept, under the caller's (client id, request id).

Answers are filed by period. The collector starts a new period every 30 minutes, by its own clock, and drops what is
older than the previous one; so an answer is kept for 30 to 60 minutes, whatever wall clocks do. The answer is written
in the transaction of the change itself, and both periods are read in it: of two copies of a request that run at the
same time one loses, runs again, and finds the other's answer.

A refusal changes nothing, and is not kept, unless the request says that it was sent before: then a copy may be under
way, and would be applied when the caller has long gone on from the refusal. Once it is kept, every copy gets it.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from fs3.errors import Busy, Conflict, Fs3Error, Invalid, MaybeApplied, Unavailable, from_code
from fs3.kv import keys
from fs3.kv.api import Transaction
from fs3.kv.occ_core import decode_counter, encode_counter
from fs3.pb import meta_pb2

KEEP_S = 1_800.0
_REFUSAL = meta_pb2.Refusal.DESCRIPTOR.name.encode()
_PASSING = (Busy, Conflict, MaybeApplied, Unavailable)  # the caller sends the request again

M = TypeVar("M", bound=Message)


async def current_period(txn: Transaction, *, snapshot: bool = True) -> int:
    return decode_counter(await txn.get(keys.IDEMPOTENCY_PERIOD, snapshot=snapshot))


async def recorded(txn: Transaction, request: meta_pb2.RequestId, reply: type[M]) -> M | None:
    """The answer that this request got before, or None if it is new.

    Raises: Invalid if it was another request; as before, if that was a refusal that is kept.
    """
    if not request.request_id:
        raise Invalid("the request has no request id")
    value = await _filed(txn, request)
    if value is None:
        return None
    kind, _, body = value.partition(b"\0")
    if kind == _REFUSAL:
        refusal = meta_pb2.Refusal.FromString(body)
        raise from_code(refusal.code, refusal.message)
    if kind.decode() != reply.DESCRIPTOR.name:
        raise Invalid(f"request id {request.request_id} was already used for a different request")
    found: M = reply()
    found.ParseFromString(body)
    return found


async def _filed(txn: Transaction, request: meta_pb2.RequestId) -> bytes | None:
    period = await current_period(txn)
    periods = range(period, max(period - 2, -1), -1)
    found = await txn.get_many([keys.idempotency(one, request.client_id, request.request_id) for one in periods])
    return next((value for value in found if value is not None), None)


async def start_period(txn: Transaction, ended: int) -> None:
    """Begin the period after `ended`, unless somebody has."""
    if await current_period(txn, snapshot=False) == ended:
        txn.put(keys.IDEMPOTENCY_PERIOD, encode_counter(ended + 1))


async def forget(txn: Transaction, limit: int) -> bool:
    """Drop up to `limit` answers that are older than the previous period; whether there may be more."""
    begin, end = keys.idempotency_before(await current_period(txn) - 1)
    old = await txn.range(begin, end, limit=limit, snapshot=True)
    if old:
        txn.delete_range(old[0][0], old[-1][0] + b"\0")
    return len(old) == limit


async def record(txn: Transaction, request: meta_pb2.RequestId, reply: M) -> M:
    """Keep `reply` as this request's answer, and return it."""
    await _file(txn, request, reply.DESCRIPTOR.name.encode(), reply)
    return reply


async def record_refusal(txn: Transaction, request: meta_pb2.RequestId, error: Fs3Error) -> bool:
    """Keep `error` as this request's answer, unless it has one by now; whether it is kept."""
    if await _filed(txn, request) is not None:
        return False
    await _file(txn, request, _REFUSAL, meta_pb2.Refusal(code=error.code, message=str(error)))
    return True


def lasting(error: Fs3Error) -> bool:
    """Whether the caller takes it for the answer."""
    return not isinstance(error, _PASSING)


async def _file(txn: Transaction, request: meta_pb2.RequestId, kind: bytes, answer: Message) -> None:
    value = kind + b"\0" + answer.SerializeToString()
    txn.put(keys.idempotency(await current_period(txn), request.client_id, request.request_id), value)
