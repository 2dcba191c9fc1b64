"""Choosing the next token: the likeliest one, or one drawn from the likeliest with a generator of its own seed."""

from __future__ import annotations

import torch
from torch import Tensor

from fs3.errors import Invalid


class Sampler:
    """Greedy at temperature 0; else a draw from softmax(logits / temperature), cut to the nucleus of mass `top_p`.

    The nucleus is the smallest set of likeliest tokens whose probabilities reach `top_p` (Holtzman et al.,
    arXiv 1904.09751). Draws are made on the CPU in float64: one seed means the same on every device.
    """

    def __init__(self, *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        """Raises: Invalid."""
        if not 0.0 <= temperature < float("inf"):
            raise Invalid(f"temperature {temperature}: give 0 for the likeliest token, or a positive number")
        if not 0.0 < top_p <= 1.0:
            raise Invalid(f"top-p {top_p}: give a share above 0 and up to 1")
        if not -(1 << 63) <= seed < 1 << 64:
            raise Invalid(f"seed {seed}: give a number of 64 bits")
        self.temperature = temperature
        self.top_p = top_p
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, logits_V: Tensor) -> int:
        """The next token; `logits_V` [vocabulary], on any device."""
        if self.temperature == 0.0:
            return int(logits_V.argmax())
        logits = logits_V.detach().to("cpu", torch.float64)
        logits = (logits - logits.max()) / self.temperature  # at most 0: by a tiny temperature all others are -inf
        ordered, tokens = logits.softmax(dim=-1).sort(descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        nucleus = torch.where(before < self.top_p, ordered, 0.0)
        return int(tokens[torch.multinomial(nucleus, 1, generator=self._generator)])
