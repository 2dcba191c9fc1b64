"""Attention: causal, relative, and the same in the absorbed form that decoding uses."""

import dataclasses

import torch

from fs3_trainer.model import DeepseekV3, causal_attention, rope_at


def tokens_for(config, batch: int, length: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def sharp(config) -> DeepseekV3:
    """Weights large enough that attention is far from uniform."""
    return DeepseekV3.fresh(dataclasses.replace(config, initializer_range=0.3), seed=4).eval()


def absorbed_attention(mla, q_nope, q_rope, c, k_rope):
    """score = (q_nope W_uk).c + q_rope.k_r, o = (p.c) W_uv: written from the formula, over the whole sequence."""
    q_latent = torch.einsum("bthn,hnc->bthc", q_nope, mla.w_uk_HNC)
    scores = torch.einsum("bthc,bsc->bhts", q_latent, c) + torch.einsum("bthr,bsr->bhts", q_rope, k_rope)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    p = (scores * mla.softmax_scale).masked_fill(future, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhts,bsc,hvc->bthv", p, c, mla.w_uv_HVC)


@torch.no_grad()
def test_absorbed_equals_expanded(tiny):
    model = sharp(tiny)
    tokens = tokens_for(tiny, 2, 24)
    expanded = model(tokens, attend=causal_attention).hidden_BTD
    absorbed = model(tokens, attend=absorbed_attention).hidden_BTD
    torch.testing.assert_close(absorbed, expanded, atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_token_changes_nothing_before_it(tiny):
    model = sharp(tiny)
    tokens = tokens_for(tiny, 1, 20)
    changed = tokens.clone()
    changed[0, 12] = (changed[0, 12] + 1) % tiny.vocab_size
    before, after = (model.logits(model(t).hidden_BTD)[0] for t in (tokens, changed))
    torch.testing.assert_close(after[:12], before[:12], atol=1e-5, rtol=0)
    assert ((after[12:] - before[12:]).abs().amax(dim=-1) > 1e-3).all()


@torch.no_grad()
def test_only_distances_between_positions_matter(tiny):
    model = sharp(tiny)
    tokens = tokens_for(tiny, 1, 16)
    here, there = (model(tokens, torch.arange(16) + start).hidden_BTD for start in (0, 500))
    torch.testing.assert_close(here, there, atol=5e-4, rtol=0)
    stretched = model(tokens, torch.arange(16) * 3).hidden_BTD
    assert (stretched - here).abs().max() > 1e-2


@torch.no_grad()
def test_sequences_may_stand_at_different_positions(tiny):
    model = sharp(tiny)
    tokens = tokens_for(tiny, 2, 8)
    positions = torch.stack((torch.arange(8), torch.arange(8) * 2))
    together = model(tokens, positions).hidden_BTD
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], model(tokens[i : i + 1], positions[i]).hidden_BTD)


def test_rope_turns_interleaved_pairs():
    x = torch.tensor([[[1.0, 0.0, 0.0, 2.0]]])
    turned = rope_at(torch.tensor([3]), 4, 100.0).rotate(x, heads=False)
    angles = torch.tensor([3.0, 0.3])
    cos, sin = angles.cos(), angles.sin()
    torch.testing.assert_close(turned[0, 0], torch.stack((cos[0], sin[0], -2 * sin[1], 2 * cos[1])))
