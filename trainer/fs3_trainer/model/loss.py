"""The training loss: L = L_0 + lambda mean_k(L_k) + alpha L_balance.

L_0 is the next token's cross entropy, L_k that of MTP module k, L_balance the sequence-wise balance loss summed over
the MoE layers (DeepSeek-V3, arXiv 2412.19437, equations 17-20 and 24-25).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fs3_trainer.model.model import DeepseekV3
from fs3_trainer.model.moe import sequence_balance_loss


class Losses(NamedTuple):
    """`total` is what to differentiate; the others are its parts, unweighted. `load_LE`: tokens an expert got."""

    total: Tensor
    main: Tensor
    mtp: Tensor | None
    balance: Tensor | None
    load_LE: Tensor


def training_loss(
    model: DeepseekV3, tokens_BT: Tensor, labels_BT: Tensor, *, mtp_weight: float, balance_weight: float
) -> Losses:
    """The loss of one batch.

    Args:
        tokens_BT: int64; `labels_BT` holds the token after each of them, -100 where none counts.
        mtp_weight: lambda. At 0 the MTP modules do not run.
        balance_weight: alpha. At 0 the balance loss is not computed.
    """
    out = model(tokens_BT)
    total = main = _cross_entropy(model, out.hidden_BTD, labels_BT)
    routings = list(out.routings)
    mtp_losses = []
    hidden_BTD = model.mtp_hidden(out)
    for k in range(model.config.num_nextn_predict_layers if mtp_weight else 0):
        # Position i of module k reads t_{i+k+1} and predicts t_{i+k+2}; the last position has no label to learn from.
        reach = labels_BT.shape[1] - k - 1
        positions = torch.arange(reach, device=tokens_BT.device)
        next_BT = labels_BT[:, k : k + reach].clamp(min=0)
        predicted = model.mtp(k, next_BT, hidden_BTD[:, :reach], positions)
        mtp_losses.append(_cross_entropy(model, predicted.hidden_BTD, labels_BT[:, k + 1 :]))
        hidden_BTD = predicted.carry_BTD
        if predicted.routing is not None:
            routings.append(predicted.routing)
    mtp = torch.stack(mtp_losses).mean() if mtp_losses else None
    if mtp is not None:
        total = total + mtp_weight * mtp
    balance = None
    if balance_weight and routings:
        balance = torch.stack([sequence_balance_loss(r, len(tokens_BT)) for r in routings]).sum()
        total = total + balance_weight * balance
    experts = model.config.n_routed_experts
    loads = [r.load_E() for r in routings] + [labels_BT.new_zeros(experts)] * (len(model.routers) - len(routings))
    load_LE = torch.stack(loads) if loads else labels_BT.new_zeros(0, experts)
    return Losses(total, main, mtp, balance, load_LE)


def _cross_entropy(model: DeepseekV3, hidden_BTD: Tensor, labels_BT: Tensor) -> Tensor:
    logits = model.logits(hidden_BTD).float()
    return F.cross_entropy(logits.flatten(0, 1), labels_BT.flatten())
