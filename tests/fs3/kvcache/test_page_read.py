"""How one batch of page reads is asked again in parts, against readers in this process: who gets how much time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fs3.client.storage import RANGE
from fs3.clock import deadline_after
from fs3.errors import Corrupt, Fs3Error, Unavailable
from fs3.kvcache.page_read import PageRead
from fs3.transport.messages import RESULT

PAGE_BYTES = 10
Judge = Callable[[list[int], list[int]], Fs3Error | None]


class Reader:
    """Answers at once: `judge(pages, chains)` says whether a call fails. `asked` are its calls: pages and deadline."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.asked: list[tuple[list[int], float]] = []

    def read(
        self, ranges: NDArray[Any], out: memoryview, out_offsets: NDArray[np.int64], *, deadline_s: float | None = None
    ) -> NDArray[Any]:
        assert deadline_s is not None
        pages = ranges["lo"].tolist()
        self.asked.append((pages, deadline_s))
        error = self._judge(pages, ranges["chain"].tolist())
        if error is not None:
            raise error
        results = np.zeros(len(ranges), dtype=RESULT)
        results["length"] = ranges["length"]
        return results


def run(judge: Judge, chains: list[int], deadline_s: float) -> tuple[PageRead, list[tuple[list[int], float]]]:
    """The pages 0, 1, 2... of these chains, read until then; and what was asked for."""
    ranges = np.zeros(len(chains), dtype=RANGE)
    ranges["lo"], ranges["chain"], ranges["length"] = np.arange(len(chains)), chains, PAGE_BYTES
    offsets = np.arange(len(chains), dtype=np.int64) * PAGE_BYTES
    reader = Reader(judge)
    call = PageRead(reader, ranges, memoryview(bytearray(len(chains) * PAGE_BYTES)), offsets)
    call.run(np.arange(len(chains)), deadline_s)
    return call, reader.asked


def test_pages_of_one_chain_have_all_the_time() -> None:
    deadline_s = deadline_after(100_000.0)
    call, asked = run(lambda pages, chains: Unavailable("nobody answers"), [4, 4, 4], deadline_s)
    assert asked == [([0, 1, 2], deadline_s)]
    assert not call.whole.any() and not call.corrupt.any()


def test_a_chain_that_does_not_answer_leaves_the_others_time() -> None:
    deadline_s = deadline_after(100_000.0)
    call, asked = run(
        lambda pages, chains: Unavailable("nobody answers") if 4 in chains else None, [4, 5, 4, 6], deadline_s
    )
    assert [pages for pages, _ in asked] == [[0, 1, 2, 3], [0, 2], [1], [3]]
    assert call.whole.tolist() == [False, True, False, True]
    until_s = [until_s for _, until_s in asked]
    assert until_s[0] < deadline_s - 40_000 and until_s[1] < deadline_s - 60_000
    assert until_s[-1] == pytest.approx(deadline_s, abs=1e-3)


def test_a_damaged_page_costs_no_other() -> None:
    deadline_s = deadline_after(100_000.0)
    call, asked = run(lambda pages, chains: Corrupt("damaged") if 2 in pages else None, [4, 5, 4, 4], deadline_s)
    assert [pages for pages, _ in asked] == [[0, 1, 2, 3], [0, 2, 3], [0], [2], [3], [1]]
    assert call.whole.tolist() == [True, True, False, True]
    assert call.corrupt.tolist() == [False, False, True, False]
