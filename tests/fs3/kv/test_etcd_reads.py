"""Gathered point reads: whoever asks is answered, also at the moment at which all that were under way end."""

from __future__ import annotations

import asyncio
from typing import Any

from fs3.kv.etcd_reads import Reads
from fs3.pb.etcd import etcd_pb2 as pb


class Member:
    """Answers every request when it is told to; each key holds itself."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.may_answer = asyncio.Event()

    async def repeat(self, request: pb.TxnRequest, deadline_s: float) -> pb.TxnResponse:
        self.asked.append(len(request.success))
        await self.may_answer.wait()
        response = pb.TxnResponse()
        for one in request.success:
            pair = pb.KeyValue(key=one.request_range.key, value=one.request_range.key)
            response.responses.add(response_range=pb.RangeResponse(kvs=[pair]))
        return response


async def spin() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_a_read_that_comes_when_all_requests_end_is_not_forgotten() -> None:
    async def run() -> None:
        member: Any = Member()
        reads = Reads(member, 10.0, 128)

        async def one_after_the_other(*names: bytes) -> list[bytes]:
            found = [await reads.get(name, 7) for name in names]
            return [one.value for one in found if one is not None]

        both = []
        for names in ((b"a1", b"a2"), (b"b1",)):  # a request each
            both.append(asyncio.create_task(one_after_the_other(*names)))
            await spin()
        assert member.asked == [1, 1]
        member.may_answer.set()
        await spin()
        assert [task.done() for task in both] == [True, True]
        assert [task.result() for task in both] == [[b"a1", b"a2"], [b"b1"]]

    asyncio.run(run())


def test_reads_that_come_together_are_one_request() -> None:
    async def run() -> None:
        member: Any = Member()
        reads = Reads(member, 10.0, 128)
        member.may_answer.set()
        found = await asyncio.gather(*(reads.get(b"%d" % number, 7) for number in range(100)))
        assert [one.value for one in found if one is not None] == [b"%d" % number for number in range(100)]
        assert member.asked == [64, 36]

    asyncio.run(run())
