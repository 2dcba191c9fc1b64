"""Keys: a page is found by whoever has the same prefix in the same namespace, and by nobody else."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from fs3.errors import Invalid
from fs3.kvcache import Namespace, page_keys

NAMESPACE = Namespace(weights="w", dtype="float32", layout="plain", page_tokens=4, layers=2, shape=(2, 4, 8))
SEED = NAMESPACE.digest()


def test_only_full_pages_have_keys() -> None:
    assert [len(page_keys(SEED, range(count), 4)) for count in (0, 3, 4, 7, 8, 9)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("seed", range(20))
def test_keys_are_shared_up_to_the_first_page_that_differs(seed: int) -> None:
    draw = random.Random(seed)
    tokens = [draw.randrange(1 << 32) for _ in range(40)]
    changed = list(tokens)
    place = draw.randrange(40)
    changed[place] = (changed[place] + draw.randrange(1, 1 << 32)) % (1 << 32)
    one, other = page_keys(SEED, tokens, 4), page_keys(SEED, changed, 4)
    same = [a == b for a, b in zip(one, other, strict=True)]
    assert same == [page < place // 4 for page in range(10)]
    assert page_keys(SEED, tokens[:17], 4) == one[:4]
    assert len(set(one) | set(other)) == 20 - place // 4


def test_how_tokens_come_does_not_matter() -> None:
    expected = page_keys(SEED, [1, 2, 3, 4], 4)
    for dtype in (np.int64, np.uint32, np.int32, np.uint16):
        assert page_keys(SEED, np.array([1, 2, 3, 4], dtype=dtype), 4) == expected


@pytest.mark.parametrize(
    "tokens",
    [
        [0, 1, 2, -1],
        [0, 1, 2, 1 << 32],
        [0, 1, 2, 1 << 64],
        [[1, 2], [3, 4]],
        [1.0, 2.0, 3.0, 4.5],
        np.array([1, 2, 3, (1 << 24) + 1], dtype=np.float32),
        ["1", "2", "3", "4"],
        [1, 2, 3, None],
    ],
)
def test_what_is_no_token_is_refused(tokens: Any) -> None:
    with pytest.raises(Invalid):
        page_keys(SEED, tokens, 4)


OTHER: dict[str, Any] = {
    "weights": "v",
    "dtype": "bfloat16",
    "layout": "other",
    "page_tokens": 8,
    "layers": 3,
    "shape": (2, 4, 9),
    "quantization": "fp8",
    "adapters": ("lora",),
}


def test_every_field_is_part_of_every_key() -> None:
    assert set(OTHER) == {field.name for field in fields(Namespace)}
    spaces = [NAMESPACE, *(replace(NAMESPACE, **{name: value}) for name, value in OTHER.items())]
    assert len({space.digest() for space in spaces}) == len(spaces)
    assert len({page_keys(space.digest(), range(8), 4)[1] for space in spaces}) == len(spaces)


@pytest.mark.parametrize("wrong", [{"weights": ""}, {"dtype": ""}, {"layout": ""}, {"page_tokens": 0}, {"layers": 0}])
def test_a_namespace_that_could_collide_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        replace(NAMESPACE, **wrong)
