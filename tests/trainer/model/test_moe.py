"""The router against a plain loop, the bias update, the balance loss, and what one expert's gradient may touch."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fs3_trainer.model.moe import MoE, Router, Routing, sequence_balance_loss
from fs3_trainer.run_config import load_run_config

TINY = load_run_config("tiny").model


def router(experts: int, groups: int, top_groups: int, k: int) -> Router:
    return Router(
        dataclasses.replace(
            TINY, n_routed_experts=experts, n_group=groups, topk_group=top_groups, num_experts_per_tok=k
        )
    )


def chosen_plainly(scores: list[float], groups: int, top_groups: int, k: int) -> set[int]:
    size = len(scores) // groups
    members = [range(g * size, (g + 1) * size) for g in range(groups)]
    worth = [sum(sorted((scores[e] for e in m), reverse=True)[:2]) for m in members]
    best = sorted(range(groups), key=lambda g: worth[g], reverse=True)[:top_groups]
    open_experts = [e for g in best for e in members[g]]
    return set(sorted(open_experts, key=lambda e: scores[e], reverse=True)[:k])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(8, 4, 2, 3), (8, 1, 1, 2), (12, 3, 1, 4), (8, 2, 2, 5)]),
    seed=st.integers(0, 2**31),
)
def test_the_choice_is_that_of_a_plain_loop(shape, seed):
    experts, groups, top_groups, k = shape
    # Distinct by construction, also group sums of two, so that no tie decides; some below zero, as biases make them.
    draw = torch.randperm(experts, generator=torch.Generator().manual_seed(seed))
    scores = 2.0 ** draw.double() - 3.0
    chosen = router(*shape).choose(scores[None])
    assert set(chosen[0].tolist()) == chosen_plainly(scores.tolist(), groups, top_groups, k)


def test_the_bias_decides_the_choice_and_not_the_weights():
    gate = router(8, 1, 1, 2)
    x = torch.randn(5, TINY.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        gate.weight.normal_(generator=torch.Generator().manual_seed(2))
        gate.e_score_correction_bias[3] = 10.0
    routing = gate(x)
    assert (routing.experts_SK == 3).any(dim=-1).all()
    raw = torch.sigmoid(x @ gate.weight.T).gather(1, routing.experts_SK)
    expected = raw / raw.sum(dim=-1, keepdim=True) * TINY.routed_scaling_factor
    torch.testing.assert_close(routing.weights_SK, expected)


def test_the_bias_moves_towards_the_mean_load():
    gate = router(4, 1, 1, 1)
    gate.level(torch.tensor([10, 0, 5, 5]), gamma=0.001)
    torch.testing.assert_close(gate.e_score_correction_bias, torch.tensor([-0.001, 0.001, 0.0, 0.0]))


def test_levelling_levels():
    """Tokens that all like the same expert spread over all of them, without any gradient."""
    gate = router(8, 1, 1, 2)
    x = torch.randn(256, TINY.hidden_size, generator=torch.Generator().manual_seed(3)) + 0.5
    with torch.no_grad():
        gate.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(4))
        first = gate(x).load_E()
        for _ in range(300):
            gate.level(gate(x).load_E(), gamma=0.002)
        last = gate(x).load_E()
    assert first.sum() == last.sum() == 512
    assert first.max() > 2 * 64
    assert last.max() < 1.3 * 64


def test_experts_run_on_their_own_tokens_only():
    torch.manual_seed(0)
    moe = MoE(TINY)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(std=0.3)
    x = torch.randn(2, 6, TINY.hidden_size)
    y, routing = moe(x)
    flat = x.flatten(0, 1)
    for s in range(12):
        expected = moe.shared_experts(flat[s])
        for e, w in zip(routing.experts_SK[s].tolist(), routing.weights_SK[s], strict=True):
            expected = expected + w * moe.experts[e](flat[s])
        torch.testing.assert_close(y.flatten(0, 1)[s], expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(moe(x)[0], y)
    y.sum().backward()
    idle = set(range(8)) - set(routing.experts_SK.flatten().tolist())
    for e, expert in enumerate(moe.experts):
        assert (expert.up_proj.weight.grad.abs().sum() == 0) == (e in idle)
    assert moe.gate.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("sequences", [1, 3])
def test_the_balance_loss_is_its_formula(sequences):
    length, experts, k = 5, 4, 2
    generator = torch.Generator().manual_seed(6)
    scores = torch.rand(sequences * length, experts, generator=generator)
    chosen = scores.topk(k, dim=-1).indices
    total = 0.0
    for b in range(sequences):
        rows = range(b * length, (b + 1) * length)
        for e in range(experts):
            f = experts / (k * length) * sum(int(e in chosen[t].tolist()) for t in rows)
            p = sum(float(scores[t, e] / scores[t].sum()) for t in rows) / length
            total += f * p / sequences
    loss = sequence_balance_loss(Routing(chosen, torch.ones_like(chosen).float(), scores), sequences)
    assert loss.item() == pytest.approx(total, rel=1e-5)


def test_level_routing_has_balance_loss_one():
    scores = torch.full((8, 4), 0.5)
    chosen = torch.tensor([[0, 1], [2, 3]] * 4)
    assert sequence_balance_loss(Routing(chosen, scores[:, :2], scores), 2).item() == pytest.approx(1.0)
