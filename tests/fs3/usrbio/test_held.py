"""Which batches of a file are written at once."""

from __future__ import annotations

import itertools
import random

import numpy as np

from fs3.usrbio.held import TOGETHER_BYTES, TOGETHER_S, Share, together


def share(begin: int, length: int, deadline_s: float = 0.0) -> Share:
    return Share(np.array([begin]), [memoryview(bytes(length))], deadline_s, lambda errors: None)


def test_those_that_are_apart_in_the_file_and_end_at_about_the_same_time() -> None:
    first, second, third = share(0, 10, 0.1), share(10, 10), share(5, 1, 0.2)
    assert together([first, second, third]) == [second, first]
    late = share(20, 10, TOGETHER_S + 0.5)
    assert together([late, first, second]) == [second, first] and together([late]) == [late]
    assert together([]) == []


def test_not_more_than_so_many_bytes_but_always_one() -> None:
    half, whole = share(0, TOGETHER_BYTES // 2 + 1), share(1 << 40, TOGETHER_BYTES + 1)
    other = share(1 << 39, TOGETHER_BYTES // 2)
    assert together([half, other]) == [half] and together([whole, half]) == [whole]


def test_none_is_left_that_must_end_before_them() -> None:
    chance = random.Random(4)
    for _ in range(200):
        waiting = [share(chance.randrange(60), chance.randrange(20), chance.random() * 3) for _ in range(8)]
        some = together(waiting)
        left = [one for one in waiting if one not in some]
        assert min(one.deadline_s for one in waiting) == some[0].deadline_s == min(one.deadline_s for one in some)
        assert all(one.deadline_s >= some[0].deadline_s for one in left)
        taken = sorted((int(one.offsets[0]), len(one.datas[0])) for one in some if len(one.datas[0]))
        assert all(begin + length <= after for (begin, length), (after, _) in itertools.pairwise(taken))
