"""Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2): one more layer predicts the token after next.

Module k joins the hidden state h_i of the model (or of module k-1) with the embedding of token t_{i+k}, and predicts
t_{i+k+1}:

    h'_i = Block(W [enorm(Emb t_{i+k}) ; hnorm(h_i)])        logits = head(norm h'_i)

Embedding and head are the model's own. It is stored as the layer after the last, under the names of DeepSeek's
published weights; those of its copies of embedding and head are not written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fs3_trainer.model.config import ModelConfig
from fs3_trainer.model.layer import DecoderLayer
from fs3_trainer.model.mla import Attend
from fs3_trainer.model.moe import Routing
from fs3_trainer.model.norm import RMSNorm
from fs3_trainer.model.rope import Rope


class Predicted(NamedTuple):
    """An MTP module's outputs: `hidden_BTD` is what the head reads, `carry_BTD` what the next module takes."""

    hidden_BTD: Tensor
    carry_BTD: Tensor
    routing: Routing | None


class SharedHead(nn.Module):
    """The norm of its own before the shared head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class MTPLayer(DecoderLayer):
    """A decoder layer with the projection that joins token and hidden state before it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.post_norm = config.mtp_input == "post-norm"
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = SharedHead(config)

    def predict(self, embedded_BTD: Tensor, hidden_BTD: Tensor, rope: Rope, attend: Attend) -> Predicted:
        """One module's step.

        Args:
            embedded_BTD: embeddings of the tokens k places after each position.
            hidden_BTD: the model's `mtp_hidden`, or the `carry_BTD` of the module before.
        """
        joined = torch.cat((self.enorm(embedded_BTD), self.hnorm(hidden_BTD)), dim=-1)
        x_BTD, routing = self(self.eh_proj(joined), rope, attend)
        normed = self.shared_head.norm(x_BTD)
        return Predicted(normed, normed if self.post_norm else x_BTD, routing)
