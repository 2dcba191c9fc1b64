"""Absorbed attention over a sequence's pages: the `Attend` of prefill pieces and of decoding alike.

The new tokens' latents go into their pages first, and are then read back with all others, so that what a token sees of
another does not depend on whether both came in one forward (a cache of a lower precision rounds them all).

    score = s [q_nope W_uk ; q_rope] . [c ; k_rope]         o = (softmax(score) . c) W_uv

Shapes: T new tokens, S tokens seen, H heads, N, R, C, V as in fs3_trainer.model.mla, X = C + R.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fs3_trainer.infer.paged_cache import CachedSequence
from fs3_trainer.model import MLA


class PagedAttend:
    """Attends from the tokens at [start, start + T) of `sequence` to all up to themselves; its pages are reserved."""

    def __init__(self, sequence: CachedSequence, start: int) -> None:
        self._sequence = sequence
        self._start = start

    def __call__(
        self, mla: MLA, q_nope_BTHN: Tensor, q_rope_BTHR: Tensor, c_BTC: Tensor, k_rope_BTR: Tensor, /
    ) -> Tensor:
        assert len(c_BTC) == 1, "one sequence at a time"
        tokens, seen = c_BTC.shape[1], self._start + c_BTC.shape[1]
        self._sequence.write(mla.layer, self._start, torch.cat((c_BTC[0], k_rope_BTR[0]), dim=-1))
        kv_SX = self._sequence.read(mla.layer, seen).to(c_BTC.dtype)
        q_latent_THC = torch.einsum("thn,hnc->thc", q_nope_BTHN[0], mla.w_uk_HNC)
        q_THX = torch.cat((q_latent_THC, q_rope_BTHR[0]), dim=-1)
        scores_THS = (q_THX.flatten(0, 1) @ kv_SX.T).unflatten(0, (tokens, mla.heads)).float() * mla.softmax_scale
        if tokens > 1:
            place = torch.arange(seen, device=kv_SX.device)
            future_TS = place > place[self._start :, None]
            scores_THS = scores_THS.masked_fill(future_TS[:, None], float("-inf"))
        p_THS = scores_THS.softmax(dim=-1).to(kv_SX.dtype)
        o_latent_XC = p_THS.flatten(0, 1) @ kv_SX[:, : mla.latent_rank]
        o_latent_THC = o_latent_XC.unflatten(0, (tokens, mla.heads))
        return torch.einsum("thc,hvc->thv", o_latent_THC, mla.w_uv_HVC)[None]
