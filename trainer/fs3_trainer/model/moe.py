"""Mixture of experts with DeepSeek-V3's router (arXiv 2412.19437, section 2.1.2).

A token scores each expert with s = sigmoid(w.x) in float32. The choice is made on s + b, where b is a bias that no
gradient touches; the weights are the chosen s, normalized. After each step b moves by gamma towards the experts that
got less than the mean load, which keeps them level without a loss that fights the language model's. Against a
single sequence that leans on few experts there is still a loss, with a weight of 1e-4.

Tokens are sorted by expert, and each expert's rows go through its own matrices as one product: on two CPU cores that
measured as fast as `F.grouped_mm` on stacked weights, and keeps one parameter an expert, as checkpoints name them.

Shapes: S tokens (sequences flattened), D hidden, E experts, K experts a token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fs3_trainer.model.config import ModelConfig
from fs3_trainer.model.mlp import MLP


class Routing(NamedTuple):
    """One layer's choice: `experts_SK` int64, their `weights_SK`, and all `scores_SE` (float32, differentiable)."""

    experts_SK: Tensor
    weights_SK: Tensor
    scores_SE: Tensor

    def load_E(self) -> Tensor:
        """Tokens that each expert got, int64."""
        return torch.bincount(self.experts_SK.flatten(), minlength=self.scores_SE.shape[-1])


class Router(nn.Module):
    """Group-limited top-k on biased sigmoid scores."""

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts = config.n_routed_experts
        self.top_k = config.num_experts_per_tok
        self.groups = config.n_group
        self.top_groups = config.topk_group
        self.normalize = config.norm_topk_prob
        self.scaling = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(self.experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(self.experts, dtype=torch.float32))

    def forward(self, x_SD: Tensor) -> Routing:
        scores_SE = F.linear(x_SD.float(), self.weight.float()).sigmoid()
        experts_SK = self.choose(scores_SE.detach() + self.e_score_correction_bias)
        weights_SK = scores_SE.gather(1, experts_SK)
        if self.normalize:
            weights_SK = weights_SK / (weights_SK.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(experts_SK, weights_SK * self.scaling, scores_SE)

    def choose(self, biased_SE: Tensor) -> Tensor:
        """The K experts of each token: the best of the groups whose two best experts sum highest."""
        if self.top_groups < self.groups:
            grouped_SGX = biased_SE.unflatten(-1, (self.groups, -1))
            group_score_SG = grouped_SGX.topk(2, dim=-1).values.sum(dim=-1)
            chosen_SG = group_score_SG.topk(self.top_groups, dim=-1, sorted=False).indices
            closed_SG = torch.ones_like(group_score_SG, dtype=torch.bool).scatter(1, chosen_SG, False)
            biased_SE = grouped_SGX.masked_fill(closed_SG.unsqueeze(-1), float("-inf")).flatten(-2)
        return biased_SE.topk(self.top_k, dim=-1, sorted=False).indices

    @torch.no_grad()
    def level(self, load_E: Tensor, gamma: float) -> None:
        """Moves each expert's bias by `gamma` towards the mean load: b += gamma sign(mean load - load)."""
        load_E = load_E.to(self.e_score_correction_bias)
        self.e_score_correction_bias += gamma * torch.sign(load_E.mean() - load_E)


class MoE(nn.Module):
    """Routed experts plus the shared ones that see every token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = nn.ModuleList(
            MLP(config.hidden_size, config.moe_intermediate_size) for _ in range(config.n_routed_experts)
        )
        self.shared_experts = MLP(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        """The layer's output [B, T, D] and the routing, which the caller counts (once, also under recompute)."""
        x_SD = x_BTD.flatten(0, 1)
        routing = self.gate(x_SD)
        y_SD = self._routed(x_SD, routing) + self.shared_experts(x_SD)
        return y_SD.view_as(x_BTD), routing

    def _routed(self, x_SD: Tensor, routing: Routing) -> Tensor:
        order = torch.argsort(routing.experts_SK.flatten(), stable=True)
        token = order // routing.experts_SK.shape[1]
        counts: list[int] = routing.load_E().tolist()
        # With gradients on, an expert without tokens still runs, on no rows: its gradient is zero rather than absent,
        # and the optimizer treats every parameter alike.
        outputs = [
            expert(rows)
            for expert, rows in zip(self.experts, x_SD[token].split(counts), strict=True)
            if len(rows) or torch.is_grad_enabled()
        ]
        weighted = torch.cat(outputs) * routing.weights_SK.flatten()[order, None].to(x_SD.dtype)
        return torch.zeros_like(x_SD).index_add(0, token, weighted)


def sequence_balance_loss(routing: Routing, sequences: int) -> Tensor:
    """DeepSeek-V3's sequence-wise balance loss, before its weight: mean over sequences of sum_e f_e P_e.

    f_e is the share of the sequence's choices that fell on expert e, times E (1 when level); P_e the mean over the
    sequence of e's share of a token's scores. Level routing gives 1. Only P carries a gradient.

    Args:
        sequences: B; the S tokens are B sequences of equal length, one after the other.
    """
    S, E = routing.scores_SE.shape
    K = routing.experts_SK.shape[1]
    chosen_BX = routing.experts_SK.view(sequences, -1)
    ones = torch.ones_like(chosen_BX, dtype=torch.float32)
    count_BE = ones.new_zeros(sequences, E).scatter_add(1, chosen_BX, ones)
    f_BE = count_BE * (E * sequences / (K * S))
    share_SE = routing.scores_SE / routing.scores_SE.sum(dim=-1, keepdim=True)
    p_BE = share_SE.view(sequences, -1, E).mean(dim=1)
    return (f_BE * p_BE).sum(dim=-1).mean()
