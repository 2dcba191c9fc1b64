"""Sampling: greedy at 0, the stated distribution otherwise, and the same draws from the same seed."""

import pytest
import torch

from fs3.errors import Invalid
from fs3_trainer.infer import Sampler

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5])


def draws(sampler: Sampler, count: int = 4000) -> torch.Tensor:
    chosen = torch.tensor([sampler.choose(LOGITS) for _ in range(count)])
    return torch.bincount(chosen, minlength=len(LOGITS)) / count


def test_greedy_takes_the_likeliest():
    assert {Sampler(seed=seed).choose(LOGITS) for seed in range(5)} == {1}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_are_those_of_the_softmax(temperature):
    expected = (LOGITS / temperature).softmax(dim=-1)
    torch.testing.assert_close(draws(Sampler(temperature=temperature, seed=3)), expected, atol=0.03, rtol=0)


def test_the_nucleus_is_cut_and_renormalized():
    """At temperature 1 the shares are .44 (token 1), .27 (4), .16 (2), .06, .02: half the mass needs two tokens."""
    expected = torch.zeros(5)
    expected[[1, 4]] = LOGITS[[1, 4]].softmax(dim=-1)
    torch.testing.assert_close(draws(Sampler(temperature=1.0, top_p=0.5, seed=3)), expected, atol=0.03, rtol=0)
    assert draws(Sampler(temperature=1.0, top_p=1e-6), 50)[1] == 1


def test_a_seed_is_a_sequence():
    first, again, other = (
        [sampler.choose(LOGITS) for _ in range(50)]
        for sampler in (Sampler(temperature=1, seed=1), Sampler(temperature=1, seed=1), Sampler(temperature=1, seed=2))
    )
    assert first == again != other


def test_the_smallest_temperature_takes_the_likeliest():
    assert Sampler(temperature=5e-324).choose(torch.tensor([1.0, 3.0, 2.0])) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": 1 << 64}],
)
def test_values_that_cannot_be(wrong):
    with pytest.raises(Invalid):
        Sampler(**wrong)
