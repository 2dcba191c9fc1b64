"""The order: a bijection with an exact inverse, uniform by chi-square and pair statistics, frozen by golden vectors."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.errors import Invalid
from fs3_loader.sampler_core import MAX_SAMPLES, ORDER_VERSION, Permutation, halves, num_rounds, perm, when

GOLDEN = Path(__file__).parent.parent / "golden" / "loader_order_v1.json"
KEYS = st.integers(0, 2**64 - 1)


def chi_square_z(counts: np.ndarray) -> float:
    """How many standard deviations the chi-square of `counts` against equal cells lies above its mean."""
    expected = counts.sum() / counts.size
    chi = float(((counts - expected) ** 2 / expected).sum())
    return (chi - (counts.size - 1)) / math.sqrt(2 * (counts.size - 1))


@given(num_samples=st.integers(1, 3000), seed=KEYS, epoch=KEYS)
def test_is_a_bijection_with_an_exact_inverse(num_samples: int, seed: int, epoch: int) -> None:
    positions = np.arange(num_samples)
    ids = perm(num_samples, seed, epoch, positions)
    assert np.array_equal(np.sort(ids), positions)
    assert np.array_equal(when(num_samples, seed, epoch, ids), positions)


@given(num_samples=st.integers(1, MAX_SAMPLES), seed=KEYS, epoch=KEYS, data=st.data())
def test_inverts_at_any_size(num_samples: int, seed: int, epoch: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, num_samples - 1), min_size=1, max_size=20))
    order = Permutation(num_samples, seed, epoch)
    ids = order.at(positions)
    assert ids.min() >= 0
    assert ids.max() < num_samples
    assert order.when(ids).tolist() == positions


@given(num_samples=st.integers(1, MAX_SAMPLES))
def test_halves_cover_the_samples_with_little_to_walk_and_both_parities(num_samples: int) -> None:
    a, b = halves(num_samples)
    assert a * b >= num_samples
    assert a * b - num_samples <= 2 * a
    assert b % 2 == 0
    assert num_rounds(num_samples) >= 6


@pytest.mark.parametrize("num_samples", [2, 3, 4, 5])
def test_every_order_of_a_few_samples_is_as_likely_as_any_other(num_samples: int) -> None:
    positions = np.arange(num_samples)
    orders = math.factorial(num_samples)
    seen = Counter(tuple(perm(num_samples, seed, 3, positions).tolist()) for seed in range(20 * orders))
    counts = np.zeros(orders)
    counts[: len(seen)] = list(seen.values())
    assert abs(chi_square_z(counts)) < 4


@pytest.mark.parametrize("num_samples", [9, 25])
def test_both_parities_occur_where_both_halves_could_be_odd(num_samples: int) -> None:
    def parity(order: list[int]) -> int:
        return sum(order[i] > order[j] for i in range(len(order)) for j in range(i + 1, len(order))) % 2

    odd = sum(parity(perm(num_samples, seed, 0, np.arange(num_samples)).tolist()) for seed in range(400))
    assert 160 < odd < 240


@pytest.mark.parametrize("num_samples", [17, 1000, 1024])
def test_neighbours_in_the_order_are_unrelated(num_samples: int) -> None:
    """The difference of two neighbours takes every value but 0 equally often, over seeds and over epochs."""
    positions = np.arange(num_samples)
    steps = np.zeros(num_samples, dtype=np.int64)
    for i in range(min(1000, 500_000 // num_samples)):
        for seed, epoch in ((i, 0), (0, i + 1)):
            ids = perm(num_samples, seed, epoch, positions)
            steps += np.bincount(np.diff(ids) % num_samples, minlength=num_samples)
    assert steps[0] == 0
    assert abs(chi_square_z(steps[1:])) < 4


def same_left_difference_z(order: Permutation, pairs: int) -> float:
    """Pairs that share a right half and differ by 1 in the left: is that difference in the ids too often?

    It is the statistic by which a Feistel network of four rounds shows: there it holds twice as often as by chance.
    """
    a, b = halves(order.num_samples)
    first = np.random.default_rng(5).integers(0, order.num_samples - b, pairs)
    left, later = order.at(first) // b, order.at(first + b) // b
    hits, expected = int(((later - left) % a == 1).sum()), pairs / a
    return (hits - expected) / math.sqrt(expected)


def test_pairs_are_uniform_at_a_billion_samples() -> None:
    order = Permutation(10**9, 1, 2)
    assert abs(same_left_difference_z(order, 2_000_000)) < 4


def test_the_pair_statistic_sees_that_four_rounds_are_too_few() -> None:
    order = Permutation(10**9, 1, 2)
    order._keys = order._keys[:4]
    assert same_left_difference_z(order, 2_000_000) > 6


def test_seed_and_epoch_are_independent_keys() -> None:
    positions = np.arange(1000)
    orders = {(s, e): perm(1000, s, e, positions) for s in range(6) for e in range(6)}
    keys = list(orders)
    for i, one in enumerate(keys):
        for other in keys[i + 1 :]:
            assert (orders[one] == orders[other]).sum() < 12, (one, other)


def test_the_order_of_a_part_is_the_part_of_the_order() -> None:
    order = Permutation(5000, 9, 1)
    whole = order.at(np.arange(5000))
    assert np.array_equal(order.at(np.arange(4990, 5000)), whole[4990:])
    assert np.array_equal(order.at(np.arange(5000).reshape(50, 100)), whole.reshape(50, 100))


def test_the_order_is_frozen() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["order_version"] == ORDER_VERSION
    for case in golden["cases"]:
        ids = perm(case["samples"], case["seed"], case["epoch"], case["positions"])
        assert ids.tolist() == case["ids"], case


@pytest.mark.parametrize(("num_samples", "seed", "epoch"), [(0, 0, 0), (5, -1, 0), (5, 0, 2**64), (2**63, 0, 0)])
def test_refuses_what_it_cannot_order(num_samples: int, seed: int, epoch: int) -> None:
    with pytest.raises(Invalid):
        Permutation(num_samples, seed, epoch)


@pytest.mark.parametrize("position", [-1, 5])
def test_refuses_a_position_outside(position: int) -> None:
    with pytest.raises(Invalid, match="between 0 and 4"):
        perm(5, 0, 0, [position])
