"""The latents of sequences in pages of one slab, so that sequences grow without copying and a page is one record.

A page holds, for every layer, `page_tokens` rows of latent and rotated key (fs3_trainer.model.mla):

    latents_PLTX[page, layer, token] = c | k_rope           X = kv_lora_rank + qk_rope_head_dim

The bytes of latents_PLTX[page] lie together and are the record that the KV store keeps (fs3.kvcache.PageSlab); on a CPU
the slab is the cache itself, on a GPU it is pinned memory that pages are staged in. A sequence has a block table: page
i of it is row `block_table[i]` of the slab (vLLM's PagedAttention, arXiv 2309.06180, on MLA's latents).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fs3.errors import Busy, Invalid
from fs3.kvcache import PageSlab
from fs3_trainer.model import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PagedCache:
    """`pages` pages of `page_tokens` tokens for the main model's layers, lent to sequences."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        pages: int,
        page_tokens: int = 64,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if pages < 1 or page_tokens < 1:
            raise Invalid(f"a KV cache of {pages} pages of {page_tokens} tokens: both must be positive")
        self.page_tokens = page_tokens
        self.layers = config.num_hidden_layers
        self.latent_dim = config.latent_dim
        self.dtype = dtype
        self.device = torch.device(device)
        shape = (self.layers, page_tokens, self.latent_dim)
        page_bytes = self.layers * page_tokens * self.latent_dim * dtype.itemsize
        on_gpu = self.device.type == "cuda"
        row_bytes = PageSlab.row_size(page_bytes)
        self._memory = torch.zeros(pages * row_bytes, dtype=torch.uint8, pin_memory=on_gpu)
        self.slab = PageSlab(pages, page_bytes, self._memory.numpy())
        rows = self._memory.view(pages, row_bytes)[:, :page_bytes]
        self._staged_PLTX = rows.view(dtype).unflatten(1, shape)
        if on_gpu:
            self.latents_PLTX = torch.zeros(pages, *shape, dtype=dtype, device=self.device)
        else:
            self.latents_PLTX = self._staged_PLTX
        self._free = list(range(pages - 1, -1, -1))

    @property
    def pages(self) -> int:
        """Pages in all."""
        return self.slab.count

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return len(self._free)

    def sequence(self) -> CachedSequence:
        """A new, empty sequence; close it to give its pages back."""
        return CachedSequence(self)

    def take(self, count: int) -> list[int]:
        """Rows of `count` pages, with arbitrary content. Raises: Busy, if so many are not free."""
        if count > len(self._free):
            raise Busy(f"the KV cache has {len(self._free)} of {self.pages} pages free, and {count} are needed")
        return [self._free.pop() for _ in range(count)]

    def give_back(self, rows: Sequence[int]) -> None:
        """End the loan of `rows`."""
        assert not set(rows) & set(self._free), "a page was given back twice"
        self._free.extend(reversed(rows))

    def stage(self, rows: Sequence[int]) -> None:
        """Bring pages into the slab, to be stored from it. Without a GPU they are there."""
        if self.latents_PLTX is not self._staged_PLTX:
            for row in rows:
                self._staged_PLTX[row].copy_(self.latents_PLTX[row])

    def unstage(self, rows: Sequence[int]) -> None:
        """Take pages out of the slab, where they were loaded to."""
        if self.latents_PLTX is not self._staged_PLTX:
            for row in rows:
                self.latents_PLTX[row].copy_(self._staged_PLTX[row])


class CachedSequence:
    """One sequence's pages; `block_table[i]` is the slab's row of its page i."""

    def __init__(self, cache: PagedCache) -> None:
        self.cache = cache
        self.block_table: list[int] = []
        self._rows = torch.zeros(0, dtype=torch.int64, device=cache.device)

    def reserve(self, tokens: int) -> None:
        """Hold pages for `tokens` tokens from now on. Raises: Busy; nothing has changed then."""
        missing = -(-tokens // self.cache.page_tokens) - len(self.block_table)
        if missing > 0:
            self.block_table += self.cache.take(missing)
            self._rows = torch.tensor(self.block_table, dtype=torch.int64, device=self.cache.device)

    def write(self, layer: int, start: int, latents_TX: Tensor) -> None:
        """Put the latents of tokens [start, start + T) of `layer` into their pages."""
        places = torch.arange(start, start + len(latents_TX), device=self.cache.device)
        rows = self._rows[places // self.cache.page_tokens]
        values = latents_TX.to(self.cache.dtype)
        self.cache.latents_PLTX[rows, layer, places % self.cache.page_tokens] = values

    def read(self, layer: int, tokens: int) -> Tensor:
        """The latents of the first `tokens` tokens of `layer`, gathered: [tokens, X]."""
        pages = -(-tokens // self.cache.page_tokens)
        gathered_PTX = self.cache.latents_PLTX[self._rows[:pages], layer]
        return gathered_PTX.flatten(0, 1)[:tokens]

    def close(self) -> None:
        """Give the pages back."""
        self.cache.give_back(self.block_table)
        self.block_table = []
        self._rows = self._rows[:0]
