"""Multi-token prediction against a plain reference: token by token, from state-dict tensors, without the module."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from fs3_trainer.model import DeepseekV3, training_loss


def norm(x, weight, eps):
    return x / torch.sqrt((x * x).mean() + eps) * weight


def reference_mtp_loss(model: DeepseekV3, tokens, mtp_input: str) -> float:
    """Mean over positions i of -log p(t_{i+2}), where the module sees Emb(t_{i+1}) and the model's h_i."""
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    config = model.config
    prefix = f"model.layers.{config.num_hidden_layers}."
    out = model(tokens[:, :-1])
    hidden = out.hidden_BTD if mtp_input == "post-norm" else out.residual_BTD
    rope = model.rope(torch.arange(tokens.shape[1] - 2))
    losses = []
    for b in range(len(tokens)):
        rows = []
        for i in range(tokens.shape[1] - 2):
            embedded = weights["model.embed_tokens.weight"][tokens[b, i + 1]]
            joined = torch.cat(
                (
                    norm(embedded, weights[prefix + "enorm.weight"], config.rms_norm_eps),
                    norm(hidden[b, i], weights[prefix + "hnorm.weight"], config.rms_norm_eps),
                )
            )
            rows.append(weights[prefix + "eh_proj.weight"] @ joined)
        block = model.model.layers[config.num_hidden_layers]
        x = torch.stack(rows)[None]
        mixed = block.input_layernorm(x)
        mla = block.self_attn
        q = torch.cat(mla.queries(mixed, rope), dim=-1)[0]
        c, k_rope = (part[0] for part in mla.latents(mixed, rope))
        kv = mla.kv_b_proj(c).view(len(rows), config.num_attention_heads, -1)
        for i in range(len(rows)):
            heads = []
            for h in range(config.num_attention_heads):
                k = torch.cat((kv[: i + 1, h, : config.qk_nope_head_dim], k_rope[: i + 1]), dim=-1)
                p = (k @ q[i, h] * config.qk_head_dim**-0.5).softmax(dim=0)
                heads.append(p @ kv[: i + 1, h, config.qk_nope_head_dim :])
            y = x[0, i] + weights[prefix + "self_attn.o_proj.weight"] @ torch.cat(heads)
            y = y + block.mlp(block.post_attention_layernorm(y)[None, None])[0][0, 0]
            normed = norm(y, weights[prefix + "shared_head.norm.weight"], config.rms_norm_eps)
            logits = weights["lm_head.weight"] @ normed
            losses.append(-torch.log_softmax(logits, dim=0)[tokens[b, i + 2]])
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("mtp_input", ["post-norm", "pre-norm"])
def test_the_loss_is_the_references(tiny, mtp_input):
    config = dataclasses.replace(tiny, mtp_input=mtp_input, initializer_range=0.15)
    model = DeepseekV3.fresh(config, seed=8)
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(0, config.vocab_size, (2, 11), generator=torch.Generator().manual_seed(9))
    losses = training_loss(model, tokens[:, :-1], tokens[:, 1:], mtp_weight=0.3, balance_weight=0.0)
    with torch.no_grad():
        assert losses.mtp.item() == pytest.approx(reference_mtp_loss(model, tokens, mtp_input), rel=1e-5)
    torch.testing.assert_close(losses.total, losses.main + 0.3 * losses.mtp)


def test_the_main_loss_does_not_know_of_it(tiny):
    model = DeepseekV3.fresh(tiny, seed=8)
    tokens = torch.randint(0, tiny.vocab_size, (2, 9), generator=torch.Generator().manual_seed(2))
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    losses = training_loss(model, inputs, labels, mtp_weight=0.0, balance_weight=0.0)
    expected = F.cross_entropy(model.logits(model(inputs).hidden_BTD).flatten(0, 1), labels.flatten())
    assert losses.mtp is None
    assert torch.equal(losses.total, expected)


def test_loads_count_every_choice_once(tiny):
    """Two MoE layers see 2 x 8 tokens, the MTP layer 2 x 7; each token chooses two experts."""
    model = DeepseekV3.fresh(tiny, seed=8)
    tokens = torch.randint(0, tiny.vocab_size, (2, 9), generator=torch.Generator().manual_seed(2))
    losses = training_loss(model, tokens[:, :-1], tokens[:, 1:], mtp_weight=0.3, balance_weight=1e-4)
    assert losses.load_LE.sum(dim=1).tolist() == [32, 32, 28]
    model.level_experts(losses.load_LE, 0.01)
    for router, load in zip(model.routers, losses.load_LE, strict=True):
        moved = torch.sign(load.float().mean() - load) * 0.01
        torch.testing.assert_close(router.e_score_correction_bias, moved)


def test_two_modules_reach_one_token_further(tiny):
    """With two modules, the label of the last tokens changes the second module's loss but not the model's input."""
    config = dataclasses.replace(tiny, num_nextn_predict_layers=2)
    model = DeepseekV3.fresh(config, seed=8)
    tokens = torch.randint(0, config.vocab_size, (1, 9), generator=torch.Generator().manual_seed(2))
    losses = training_loss(model, tokens[:, :-1], tokens[:, 1:], mtp_weight=0.3, balance_weight=0.0)
    assert losses.load_LE.sum(dim=1).tolist() == [16, 16, 14, 12]
    losses.total.backward()
    assert all(p.grad is not None for p in model.parameters())
