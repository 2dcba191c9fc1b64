"""Rotary position embedding on interleaved pairs, as DeepSeek lays them out (RoFormer, arXiv 2104.09864).

Dimensions (2i, 2i+1) are one pair, turned by the angle position * theta^(-2i/R). The pairs stay where they are: only
the dot product of a rotated query with a rotated key has a meaning, and it does not depend on the order. A cached
rotated key therefore has the layout of DeepSeek's own inference code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rope(NamedTuple):
    """Angles of some positions: `cos` and `sin` are float32 [..., T, R/2], leading dimensions as the positions had."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x: Tensor, *, heads: bool) -> Tensor:
        """`x` rotated: [B, T, H, R] with `heads`, else [B, T, R]; positions were [T] or [B, T]."""
        cos, sin = (self.cos.unsqueeze(-2), self.sin.unsqueeze(-2)) if heads else (self.cos, self.sin)
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
        return turned.flatten(-2).to(x.dtype)


def rope_at(positions: Tensor, dim: int, theta: float) -> Rope:
    """The angles for integer `positions` ([T], or [B, T] where sequences stand at different places); `dim` is R."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
    angles = positions[..., None].float() * (1.0 / theta**exponents)
    return Rope(angles.cos(), angles.sin())
