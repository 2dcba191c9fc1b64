"""What many tasks of an event loop ask for at the same moment is done as one batch, on a thread."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, ParamSpec, TypeVar

from fs3.errors import Unavailable

_THREADS = 32  # they wait for sockets
_MOST = 1_024  # questions in one batch

A = TypeVar("A")
R = TypeVar("R")
P = ParamSpec("P")


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="fs3-async")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of the threads


async def in_thread(call: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
    """The result of a call that blocks; of the process's threads for this, which are limited."""
    return await asyncio.get_running_loop().run_in_executor(_pool(), functools.partial(call, *args, **options))


class Gatherer(Generic[A, R]):
    """Collects the questions of one turn of an event loop; `answer` gets up to 1,024 of them, and answers each.

    An answer that is an exception is raised where the question was asked. Of questions for which `answer` raises, each
    half is asked again, so that the one that cannot be answered fails alone; that nobody answers is everybody's.
    """

    def __init__(self, answer: Callable[[list[A]], list[R | Exception]]) -> None:
        self._answer = answer
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[A, asyncio.Future[R]]]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, question: A) -> R:
        """The answer to one of them."""
        loop = asyncio.get_running_loop()
        if loop not in self._waiting:
            self._waiting[loop] = []
            loop.call_soon(self._begin, loop)
        future: asyncio.Future[R] = loop.create_future()
        self._waiting[loop].append((question, future))
        return await future

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting = self._waiting.pop(loop)
        for at in range(0, len(waiting), _MOST):
            task = loop.create_task(self._serve(waiting[at : at + _MOST]))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _serve(self, asked: list[tuple[A, asyncio.Future[R]]]) -> None:
        answers = await in_thread(self._answers, [question for question, _ in asked])
        for (_, future), answer in zip(asked, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _answers(self, questions: list[A]) -> list[R | Exception]:
        try:
            return self._answer(questions)
        except Exception as error:  # noqa: BLE001  # raised by those who asked
            if len(questions) == 1 or (isinstance(error, OSError) and error.errno == Unavailable.errno):
                return [error] * len(questions)
        half = len(questions) // 2
        return self._answers(questions[:half]) + self._answers(questions[half:])
