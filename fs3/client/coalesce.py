"""Single reads of many asyncio tasks, sent as batches: what is asked for in one turn of the loop is one request a node.

A blocking call per range costs a thread and a request each, and Python runs a few thousand of those a second; the same
ranges in batches are read fifty times as fast (D2). Tasks that each want one range need not know: while a batch is on
its way the next one gathers, so that batches grow with the load and a lone read waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fs3.client.file import FileClient, OpenFile
from fs3.errors import Busy, Fs3Error, Unavailable

MAX_WAITING = 65_536
RANGES_AT_ONCE = 1_024


@dataclass(slots=True)
class _Asked:
    handle: OpenFile
    offset: int
    length: int
    answer: asyncio.Future[bytes]


class AsyncReader:
    """Reads of one event loop. Close it when no read is outstanding."""

    def __init__(self, files: FileClient, *, batches: int = 2) -> None:
        """At most `batches` are on their way at once."""
        self._files = files
        self._batches = batches
        self._threads = ThreadPoolExecutor(batches, thread_name_prefix="fs3-coalesce")
        self._waiting: deque[_Asked] = deque()
        self._turn_ends = False
        self._running = 0

    async def read(self, handle: OpenFile, offset: int, length: int) -> bytes:
        """`length` bytes of an open file, verified. Cancelling drops the answer.

        Raises: as `FileClient.read_batch`, and Busy if too many reads wait already.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise Busy(f"{MAX_WAITING} reads are waiting; ask for fewer at once")
        loop = asyncio.get_running_loop()
        asked = _Asked(handle, offset, length, loop.create_future())
        self._waiting.append(asked)
        if not self._turn_ends:
            self._turn_ends = True
            loop.call_soon(self._send, loop)
        return await asked.answer

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False)

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turn_ends = False
        while self._waiting and self._running < self._batches:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), RANGES_AT_ONCE))]
            batch = [asked for asked in batch if not asked.answer.done()]
            if batch:
                self._running += 1
                self._threads.submit(self._run, loop, batch)

    def _run(self, loop: asyncio.AbstractEventLoop, batch: list[_Asked]) -> None:
        answers: list[bytes | BaseException]
        try:
            answers = self._read(batch)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the tasks that wait must get it
            answers = [error] * len(batch)
        loop.call_soon_threadsafe(self._answer, loop, batch, answers)

    def _answer(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Asked], answers: list[bytes | BaseException]
    ) -> None:
        self._running -= 1
        for asked, answer in zip(batch, answers, strict=True):
            if asked.answer.done():
                continue
            if isinstance(answer, BaseException):
                asked.answer.set_exception(answer)
            else:
                asked.answer.set_result(answer)
        self._send(loop)

    def _read(self, batch: list[_Asked]) -> list[bytes | BaseException]:
        """Each range's bytes, or the error that concerns it."""
        handles = list({id(asked.handle): asked.handle for asked in batch}.values())
        place = {id(handle): index for index, handle in enumerate(handles)}
        index = np.array([place[id(asked.handle)] for asked in batch], dtype=np.int64)
        offsets = np.array([asked.offset for asked in batch], dtype=np.int64)
        lengths = np.array([asked.length for asked in batch], dtype=np.int64)
        out = bytearray(max(int(lengths.sum()), 0))
        try:
            self._files.read_batch(handles, index, offsets, lengths, out)
        except Unavailable:
            raise
        except Fs3Error as error:
            # One bad range must not fail its neighbours, and each must hear of its own file.
            return [error] if len(batch) == 1 else [answer for asked in batch for answer in self._read([asked])]
        ends = np.cumsum(lengths)
        return [bytes(out[begin:end]) for begin, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]
