"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

Keys and values come from one small latent a token, c = RMSNorm(W_kva x), and one rotated key k_r that all heads share.
Training expands the latent to per-head keys and values:

    k = [W_uk c ; k_r]    v = W_uv c    o = softmax(s q.k) v

Decoding absorbs the expansion into the query and the output, so that only (c, k_r) is cached:

    score = s ((q_nope W_uk) . c + q_rope . k_r)        o = (p . c) W_uv

`queries`, `latents`, `w_uk_HNC`, `w_uv_HVC` and `project_out` are the parts; how they are combined is an `Attend`,
which the caller of the model may replace (paged and absorbed in fs3_trainer.infer).

Shapes: B sequences, T tokens, D hidden, H heads, N = qk_nope_head_dim, R = qk_rope_head_dim, V = v_head_dim,
C = kv_lora_rank.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fs3_trainer.model.config import ModelConfig
from fs3_trainer.model.norm import RMSNorm
from fs3_trainer.model.rope import Rope

LORA_NORM_EPS = 1e-6  # DeepSeek's, whatever rms_norm_eps the config has


class Attend(Protocol):
    """From queries and the new tokens' latents to the heads' outputs; `mla.layer` says which layer's cache."""

    def __call__(
        self, mla: MLA, q_nope_BTHN: Tensor, q_rope_BTHR: Tensor, c_BTC: Tensor, k_rope_BTR: Tensor, /
    ) -> Tensor:
        """Returns o_BTHV."""


class MLA(nn.Module):
    """The attention of one layer; `layer` is its index in the state dict."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = config.num_attention_heads
        self.nope_dim = config.qk_nope_head_dim
        self.rope_dim = config.qk_rope_head_dim
        self.v_dim = config.v_head_dim
        self.latent_rank = config.kv_lora_rank
        self.softmax_scale = config.qk_head_dim**-0.5
        q_out = self.heads * config.qk_head_dim
        self.q_lora = config.q_lora_rank is not None
        if config.q_lora_rank is not None:
            self.q_a_proj = nn.Linear(config.hidden_size, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LORA_NORM_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, q_out, bias=False)
        else:
            self.q_proj = nn.Linear(config.hidden_size, q_out, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, self.latent_rank + self.rope_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(self.latent_rank, LORA_NORM_EPS)
        self.kv_b_proj = nn.Linear(self.latent_rank, self.heads * (self.nope_dim + self.v_dim), bias=False)
        self.o_proj = nn.Linear(self.heads * self.v_dim, config.hidden_size, bias=False)

    @property
    def w_uk_HNC(self) -> Tensor:
        """The view of kv_b_proj that makes a head's position-free key of the latent."""
        return self.kv_b_proj.weight.view(self.heads, self.nope_dim + self.v_dim, -1)[:, : self.nope_dim]

    @property
    def w_uv_HVC(self) -> Tensor:
        """The view of kv_b_proj that makes a head's value of the latent."""
        return self.kv_b_proj.weight.view(self.heads, self.nope_dim + self.v_dim, -1)[:, self.nope_dim :]

    def queries(self, x_BTD: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """(q_nope_BTHN, q_rope_BTHR), the second rotated."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD))) if self.q_lora else self.q_proj(x_BTD)
        q_nope, q_rope = q.unflatten(-1, (self.heads, -1)).split((self.nope_dim, self.rope_dim), dim=-1)
        return q_nope, rope.rotate(q_rope, heads=True)

    def latents(self, x_BTD: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """(c_BTC, k_rope_BTR): the normed latent and the rotated shared key, which is all that a cache needs."""
        c, k_rope = self.kv_a_proj_with_mqa(x_BTD).split((self.latent_rank, self.rope_dim), dim=-1)
        return self.kv_a_layernorm(c), rope.rotate(k_rope, heads=False)

    def project_out(self, o_BTHV: Tensor) -> Tensor:
        """Heads' outputs back to hidden size: [B, T, D]."""
        return self.o_proj(o_BTHV.flatten(-2))

    def forward(self, x_BTD: Tensor, rope: Rope, attend: Attend) -> Tensor:
        return self.project_out(attend(self, *self.queries(x_BTD, rope), *self.latents(x_BTD, rope)))


def causal_attention(
    mla: MLA, q_nope_BTHN: Tensor, q_rope_BTHR: Tensor, c_BTC: Tensor, k_rope_BTR: Tensor, /
) -> Tensor:
    """The expanded form over the given tokens alone, each seeing itself and those before it: training's `Attend`."""
    kv_BTHX = mla.kv_b_proj(c_BTC).unflatten(-1, (mla.heads, -1))
    k_nope, v = kv_BTHX.split((mla.nope_dim, mla.v_dim), dim=-1)
    k_rope = k_rope_BTR.unsqueeze(-2).expand(-1, -1, mla.heads, -1)
    q = torch.cat((q_nope_BTHN, q_rope_BTHR), dim=-1)
    k = torch.cat((k_nope, k_rope), dim=-1)
    # The fused kernels want one head size for keys and values; zeros appended to v only append zeros to the output.
    short = q.shape[-1] - mla.v_dim
    if short > 0:
        v = F.pad(v, (0, short))
    o = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, scale=mla.softmax_scale
    )
    return o.transpose(1, 2)[..., : mla.v_dim]
