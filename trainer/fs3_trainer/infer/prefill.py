"""Filling the cache with a prompt, one forward for each page and none for a page that is there already.

    tokens   | page 0 | page 1 | page 2 | rest |
    forwards    T=64     T=64     T=64     T<64

A page is computed from the pages before it, always in a forward of just its own tokens. So its bits do not depend on
which of those pages were computed and which were loaded, nor on what follows it, and a page that anybody stored is, to
the bit, the page that would be computed here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fs3_trainer.infer.attention import PagedAttend
from fs3_trainer.infer.paged_cache import CachedSequence
from fs3_trainer.model import DeepseekV3


def forward(model: DeepseekV3, sequence: CachedSequence, tokens: Sequence[int], start: int) -> Tensor:
    """Runs `tokens` at [start, start + T) of `sequence`, whose pages are reserved; the last one's logits [vocabulary].

    The latents of all tokens before `start` are in the cache, and those of `tokens` are afterwards.
    """
    device = sequence.cache.device
    tokens_BT = torch.tensor([tokens], dtype=torch.int64, device=device)
    positions = torch.arange(start, start + len(tokens), device=device)
    out = model(tokens_BT, positions, PagedAttend(sequence, start))
    return model.logits(out.hidden_BTD[0, -1])


def prefill(model: DeepseekV3, sequence: CachedSequence, prompt: Sequence[int], loaded: Collection[int]) -> Tensor:
    """Computes the pages of `prompt` that are not `loaded`, and always the last; the last token's logits [vocabulary].

    Raises: Busy, if the cache has no room.
    """
    assert prompt, "a prompt has at least one token"
    sequence.reserve(len(prompt))
    step = sequence.cache.page_tokens
    last = (len(prompt) - 1) // step
    for page in range(last):
        if page not in loaded:
            forward(model, sequence, prompt[page * step : (page + 1) * step], page * step)
    return forward(model, sequence, prompt[last * step :], last * step)
