"""The model equals transformers' DeepseekV3ForCausalLM in float32: logits, every gradient, and the chosen experts.

Weights travel as they do for a user: our state dict and config.json in a folder that `from_pretrained` reads. The
gradients come back through transformers' own `save_pretrained`, so that both directions of the names are checked.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3ForCausalLM

from fs3_trainer.model import DeepseekV3, ModelConfig

BASE = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    num_attention_heads=3,
    kv_lora_rank=16,
    q_lora_rank=24,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=12,
    n_routed_experts=8,
    n_shared_experts=2,
    num_experts_per_tok=3,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
    first_k_dense_replace=1,
    num_nextn_predict_layers=0,
    rms_norm_eps=1e-5,
    initializer_range=0.2,
)
SHAPES = {
    "q_lora, groups": BASE,
    "plain q, one group": dataclasses.replace(BASE, q_lora_rank=None, n_group=1, topk_group=1),
    "weights not normalized": dataclasses.replace(BASE, norm_topk_prob=False, v_head_dim=24),
}


def peer_of(model: DeepseekV3, folder) -> DeepseekV3ForCausalLM:
    (folder / "config.json").write_text(model.config.to_json())
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    peer, info = DeepseekV3ForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return peer


def randomized(config: ModelConfig) -> DeepseekV3:
    """Fresh weights, with norms and router biases off their neutral values, where a mistake in them would hide."""
    model = DeepseekV3.fresh(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norm" in name:
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.2)
            if "e_score_correction_bias" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
def test_logits_gradients_and_routes(config, tmp_path):
    model = randomized(config)
    peer = peer_of(model, tmp_path)
    tokens = torch.randint(0, config.vocab_size, (2, 33), generator=torch.Generator().manual_seed(3))
    inputs, labels = tokens[:, :-1], tokens[:, 1:]

    peer_routes = []
    for layer in peer.model.layers[config.first_k_dense_replace :]:
        layer.mlp.gate.register_forward_hook(lambda _module, _args, output: peer_routes.append(output[2]))
    out = model(inputs)
    logits = model.logits(out.hidden_BTD)
    peer_logits = peer(inputs).logits

    torch.testing.assert_close(logits, peer_logits, atol=2e-5, rtol=0)
    assert len(out.routings) == len(peer_routes) == config.num_hidden_layers - config.first_k_dense_replace
    for mine, theirs in zip(out.routings, peer_routes, strict=True):
        assert torch.equal(mine.experts_SK.sort(dim=-1).values, theirs.sort(dim=-1).values)

    F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    F.cross_entropy(peer_logits.flatten(0, 1), labels.flatten()).backward()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(parameter.grad)
    peer.save_pretrained(tmp_path / "gradients")
    peer_gradients = load_file(tmp_path / "gradients" / "model.safetensors")
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert set(gradients) == {n for n in peer_gradients if "e_score_correction_bias" not in n}
    for name, gradient in gradients.items():
        difference = (gradient - peer_gradients[name]).norm() / peer_gradients[name].norm().clamp(min=1e-12)
        assert difference < 1e-5, f"{name}: gradient differs by {difference:.2e}"


def test_config_json_round_trip():
    for config in (BASE, dataclasses.replace(BASE, num_nextn_predict_layers=1, mtp_input="pre-norm")):
        assert ModelConfig.from_json(config.to_json()) == config
