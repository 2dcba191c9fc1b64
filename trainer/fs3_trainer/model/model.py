"""The whole model: embedding, layers, final norm, head, and the MTP modules stored after the last layer.

out = model(tokens_BT)                       training: positions from 0, causal attention over the tokens given
out = model(tokens_BT, positions, attend)    decoding: `attend` holds the cache (mla.Attend)
logits_BTV = model.logits(out.hidden_BTD)    or of a slice, as decoding needs only the last position's
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fs3_trainer.model.config import ModelConfig
from fs3_trainer.model.layer import DecoderLayer
from fs3_trainer.model.mla import Attend, causal_attention
from fs3_trainer.model.moe import MoE, Router, Routing
from fs3_trainer.model.mtp import MTPLayer, Predicted
from fs3_trainer.model.norm import RMSNorm
from fs3_trainer.model.rope import Rope, rope_at


class Forward(NamedTuple):
    """`hidden_BTD` has passed the final norm; `residual_BTD` has not. One routing for each MoE layer, in order."""

    hidden_BTD: Tensor
    residual_BTD: Tensor
    routings: list[Routing]


class Backbone(nn.Module):
    """What Hugging Face calls `model`: all but the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        first_mtp = config.num_hidden_layers
        self.layers = nn.ModuleList(
            DecoderLayer(config, i) if i < first_mtp else MTPLayer(config, i) for i in range(config.stored_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class DeepseekV3(nn.Module):
    """Build it with `DeepseekV3.fresh`, or with `empty` and `load_state_dict`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def empty(cls, config: ModelConfig, device: torch.device | str = "cpu") -> DeepseekV3:
        """A model whose weights are not set yet: for loading, without paying for an initialisation first."""
        with torch.device("meta"):
            model = cls(config)
        return model.to_empty(device=device)

    @classmethod
    def fresh(cls, config: ModelConfig, seed: int, device: torch.device | str = "cpu") -> DeepseekV3:
        """A new model. The weights are drawn on the CPU, so that a seed means the same on every device."""
        model = cls.empty(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear | nn.Embedding | Router):
                    module.weight.normal_(0.0, config.initializer_range, generator=generator)
                if isinstance(module, Router):
                    module.e_score_correction_bias.zero_()
                if isinstance(module, RMSNorm):
                    module.weight.fill_(1.0)
        return model.to(device)

    @property
    def layers(self) -> list[DecoderLayer]:
        """The decoder layers of the main model, MTP modules not among them."""
        return list(self.model.layers[: self.config.num_hidden_layers])

    @property
    def mtp_layers(self) -> list[MTPLayer]:
        return list(self.model.layers[self.config.num_hidden_layers :])

    @property
    def routers(self) -> list[Router]:
        """The routers in layer order, the MTP modules' last: the order of the loads in `Losses`."""
        return [layer.mlp.gate for layer in self.model.layers if isinstance(layer.mlp, MoE)]

    def rope(self, positions: Tensor) -> Rope:
        """The angles that every layer uses for int64 `positions` ([T] or [B, T])."""
        return rope_at(positions, self.config.qk_rope_head_dim, self.config.rope_theta)

    def forward(self, tokens_BT: Tensor, positions: Tensor | None = None, attend: Attend = causal_attention) -> Forward:
        """Runs the main model's layers.

        Args:
            tokens_BT: int64.
            positions: int64 [T] or [B, T]; None counts from 0.
            attend: how each layer attends; the default sees exactly `tokens_BT`, causally.
        """
        if positions is None:
            positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        rope = self.rope(positions)
        x_BTD = self.model.embed_tokens(tokens_BT)
        routings = []
        for layer in self.layers:
            x_BTD, routing = layer(x_BTD, rope, attend)
            if routing is not None:
                routings.append(routing)
        return Forward(self.model.norm(x_BTD), x_BTD, routings)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., vocabulary]."""
        return self.lm_head(hidden)

    def mtp_hidden(self, out: Forward) -> Tensor:
        """The hidden state that the first MTP module takes, after or before the final norm as the config says."""
        return out.hidden_BTD if self.config.mtp_input == "post-norm" else out.residual_BTD

    def mtp(
        self, k: int, next_BT: Tensor, hidden_BTD: Tensor, positions: Tensor, attend: Attend = causal_attention
    ) -> Predicted:
        """MTP module `k` (from 0): its head input for the token k + 2 places after each position.

        Args:
            next_BT: the tokens k + 1 places after each position, int64.
            hidden_BTD: `mtp_hidden`, or the `carry_BTD` of module k - 1.
            positions: as in `forward`, of the positions themselves.
        """
        embedded = self.model.embed_tokens(next_BT)
        return self.mtp_layers[k].predict(embedded, hidden_BTD, self.rope(positions), attend)

    def level_experts(self, load_LE: Tensor, gamma: float) -> None:
        """Moves every router's bias after a step; `load_LE` is summed over the step's tokens and all its ranks."""
        for router, load_E in zip(self.routers, load_LE, strict=True):
            router.level(load_E, gamma)

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def weights_digest(self) -> str:
        """SHA-256 (hex) over names, dtypes, shapes and bytes of the whole state: the same model, to the bit."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()
