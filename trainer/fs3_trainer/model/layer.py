"""One decoder layer: attention and feed-forward, each behind a norm and added to the residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from fs3_trainer.model.config import ModelConfig
from fs3_trainer.model.mla import MLA, Attend
from fs3_trainer.model.mlp import MLP
from fs3_trainer.model.moe import MoE, Routing
from fs3_trainer.model.norm import RMSNorm
from fs3_trainer.model.rope import Rope


class DecoderLayer(nn.Module):
    """x += attention(norm x); x += mlp(norm x), the mlp dense in the first layers and a mixture of experts after."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MLA(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if config.is_moe(layer) else MLP(config.hidden_size, config.intermediate_size)

    def forward(self, x_BTD: Tensor, rope: Rope, attend: Attend) -> tuple[Tensor, Routing | None]:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rope, attend)
        normed = self.post_attention_layernorm(x_BTD)
        if isinstance(self.mlp, MoE):
            y_BTD, routing = self.mlp(normed)
            return x_BTD + y_BTD, routing
        return x_BTD + self.mlp(normed), None
