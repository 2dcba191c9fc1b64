"""From a prompt's tokens to the tokens that follow, one sequence at a time.

load pages | prefill the others | first token | store the new pages | decode ... decode
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fs3.errors import Invalid
from fs3_trainer.infer.offload import Offload
from fs3_trainer.infer.paged_cache import CachedSequence, PagedCache
from fs3_trainer.infer.prefill import forward, prefill
from fs3_trainer.infer.sampling import Sampler
from fs3_trainer.model import DeepseekV3


@dataclass(slots=True)
class Generation:
    """What one call did. Pages are the prompt's: `loaded` and `computed` make them all, an unfull last one included.

    `first_token_s` is from the call to the first token, loading included; `decode_s` from there to the last token,
    storing not included.
    """

    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    pages_loaded: int = 0
    pages_computed: int = 0
    pages_stored: int = 0
    first_token_s: float = 0.0
    decode_s: float = 0.0
    store_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Speed of decoding, the first token aside; 0 if there was only that."""
        return (len(self.tokens) - 1) / self.decode_s if len(self.tokens) > 1 and self.decode_s > 0 else 0.0


class Runner:
    """A model on a cache, with or without a store for the prompts' pages. Not thread-safe."""

    def __init__(self, model: DeepseekV3, cache: PagedCache, offload: Offload | None = None) -> None:
        self._model = model
        self._cache = cache
        self._offload = offload

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        sampler: Sampler,
        stop: Collection[int] = (),
        report: Generation | None = None,
    ) -> Iterator[int]:
        """Yields up to `max_new_tokens` tokens; one in `stop` is the last. `report` is kept up to date meanwhile.

        Raises:
            Invalid: the prompt is empty, has a token that the model does not know, or is too long.
            Busy: the cache has no room for it.
        """
        self._check(prompt, max_new_tokens)
        done = report if report is not None else Generation(len(prompt))
        sequence = self._cache.sequence()
        try:
            sequence.reserve(len(prompt) + max_new_tokens - 1)
            yield from self._generate(sequence, list(prompt), max_new_tokens, sampler, stop, done)
        finally:
            sequence.close()

    def _generate(
        self,
        sequence: CachedSequence,
        prompt: list[int],
        max_new_tokens: int,
        sampler: Sampler,
        stop: Collection[int],
        done: Generation,
    ) -> Iterator[int]:
        begin_s = time.perf_counter()
        hits = self._offload.load(sequence, prompt) if self._offload is not None else []
        loaded = {page for page, hit in enumerate(hits) if hit}
        token = sampler.choose(self._run(sequence, prompt, loaded))
        last = (len(prompt) - 1) // self._cache.page_tokens
        done.pages_loaded = len(loaded - {last})  # the last page is computed even if it was there
        done.pages_computed = last + 1 - done.pages_loaded
        done.tokens.append(token)
        done.first_token_s = time.perf_counter() - begin_s
        yield token
        if self._offload is not None:
            begin_s = time.perf_counter()
            missed = [page for page, hit in enumerate(hits) if not hit]
            done.pages_stored = self._offload.store(sequence, prompt, missed)
            done.store_s = time.perf_counter() - begin_s
        while len(done.tokens) < max_new_tokens and token not in stop:
            begin_s = time.perf_counter()
            with torch.inference_mode():
                logits = forward(self._model, sequence, [token], len(prompt) + len(done.tokens) - 1)
            token = sampler.choose(logits)
            done.tokens.append(token)
            done.decode_s += time.perf_counter() - begin_s
            yield token

    def _run(self, sequence: CachedSequence, prompt: list[int], loaded: Collection[int]) -> Tensor:
        with torch.inference_mode():
            return prefill(self._model, sequence, prompt, loaded)

    def _check(self, prompt: Sequence[int], max_new_tokens: int) -> None:
        config = self._model.config
        if not prompt:
            raise Invalid("the prompt is empty; give at least one token to continue from")
        if max_new_tokens < 1:
            raise Invalid(f"{max_new_tokens} new tokens: ask for at least 1")
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            raise Invalid(
                f"the prompt has token {max(prompt)}, and the model knows {config.vocab_size}; "
                "the tokenizer is not the one it was trained with"
            )
        if len(prompt) + max_new_tokens > config.max_position_embeddings:
            raise Invalid(
                f"{len(prompt)} prompt tokens and {max_new_tokens} new ones are more than the model's "
                f"{config.max_position_embeddings} positions; shorten the prompt or ask for fewer"
            )
