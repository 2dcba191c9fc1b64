"""Model configs refuse what cannot be, name what is misspelt, and have a digest that follows the shape alone."""

import dataclasses

import pytest

from fs3.errors import Corrupt, Invalid
from fs3_trainer.model import ModelConfig


def test_an_unknown_key_names_the_nearest(tiny):
    with pytest.raises(Invalid, match="unknown key 'hiden_size'; did you mean 'hidden_size'"):
        ModelConfig.from_dict(tiny.to_dict() | {"hiden_size": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_key_value_heads": 1}, "MLA has one latent"),
        ({"qk_rope_head_dim": 7}, "must be even"),
        ({"n_group": 3}, "does not divide"),
        ({"n_group": 8, "topk_group": 8}, "at least 2 experts"),
        ({"topk_group": 5}, "more than n_group"),
        ({"num_experts_per_tok": 5}, "more than the 4 experts"),
        ({"hidden_size": 0}, "hidden_size must be positive"),
        ({"hidden_size": "32"}, "hidden_size: expected int"),
        ({"mtp_input": "middle"}, "mtp_input"),
    ],
)
def test_what_cannot_be_is_refused(tiny, change, message):
    with pytest.raises(Invalid, match=message):
        ModelConfig.from_dict(tiny.to_dict() | change)


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_a_file_that_is_not_an_object_is_corrupt(text):
    with pytest.raises(Corrupt, match=r"here\.json"):
        ModelConfig.from_json(text, "here.json")


def test_the_digest_follows_the_shape(tiny):
    assert dataclasses.replace(tiny, initializer_range=0.5).digest() == tiny.digest()
    others = [
        dataclasses.replace(tiny, hidden_size=64),
        dataclasses.replace(tiny, rope_theta=20000.0),
        dataclasses.replace(tiny, q_lora_rank=None),
        dataclasses.replace(tiny, mtp_input="pre-norm"),
    ]
    assert len({tiny.digest(), *(other.digest() for other in others)}) == 5
    assert tiny.differences(others[0]) == "hidden_size 32/64"
