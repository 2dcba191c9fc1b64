"""A prompt's pages from and to a store: loaded in one batch before prefill, stored in one batch after it.

Every full page of the prompt is asked for at once. A page that is missing, lost or late is computed, and pages behind
it are used all the same, since a page has the same bits however its prefix came about (fs3_trainer.infer.prefill).
Pages that decoding fills are not stored: they were computed token by token and have other last bits.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Protocol

import torch

from fs3.kvcache import Namespace, PageSlab, page_keys
from fs3_trainer.infer.paged_cache import CachedSequence, PagedCache
from fs3_trainer.model import DeepseekV3

LAYOUT = "mla-latent-v1 [layer, token, c | k_rope]"


class PageStore(Protocol):
    """What the offload needs of a store; `fs3.kvcache.KVStore` is one."""

    def get_rows(self, keys: Sequence[bytes], slab: PageSlab, rows: Sequence[int], /) -> list[bool]:
        """Fill the rows; which were there, whole and in time: [n]."""

    def put_rows(
        self, keys: Sequence[bytes], slab: PageSlab, rows: Sequence[int], /, *, depths: Sequence[int]
    ) -> list[bool]:
        """Store the rows; which are stored now: [n]."""


class Offload:
    """The way between one cache and one store."""

    def __init__(self, cache: PagedCache, store: PageStore, namespace: bytes) -> None:
        """`namespace`: the digest of `namespace_of`."""
        self._cache = cache
        self._store = store
        self._namespace = namespace

    def load(self, sequence: CachedSequence, prompt: Sequence[int]) -> list[bool]:
        """Which of the full pages of `prompt` are in the sequence's pages now: [len(prompt) // page_tokens].

        The content of the others is undefined. Raises: Busy, if the cache has no room.
        """
        sequence.reserve(len(prompt))
        keys = page_keys(self._namespace, prompt, self._cache.page_tokens)
        if not keys:
            return []
        rows = sequence.block_table[: len(keys)]
        hits = self._store.get_rows(keys, self._cache.slab, rows)
        self._cache.unstage([row for row, hit in zip(rows, hits, strict=True) if hit])
        return hits

    def store(self, sequence: CachedSequence, prompt: Sequence[int], pages: Sequence[int]) -> int:
        """Store these full `pages` of `prompt`, which are computed; how many are stored now."""
        if not pages:
            return 0
        keys = page_keys(self._namespace, prompt, self._cache.page_tokens)
        rows = [sequence.block_table[page] for page in pages]
        self._cache.stage(rows)
        return sum(self._store.put_rows([keys[page] for page in pages], self._cache.slab, rows, depths=pages))


def namespace_of(
    model: DeepseekV3, cache: PagedCache, *, math_mode: str = "", weights_digest: str | None = None
) -> Namespace:
    """Everything that a page's bits depend on besides its tokens.

    Args:
        math_mode: the value of MKL_CBWR that the process was started with.
        weights_digest: `model.weights_digest()`, if it is known already.
    """
    return Namespace(
        weights=f"{weights_digest or model.weights_digest()} {model.config.digest()}",
        dtype=f"{next(model.parameters()).dtype} weights, {cache.dtype} cache",
        layout=f"{LAYOUT}; {computation_mode(cache.device, math_mode)}",
        page_tokens=cache.page_tokens,
        layers=cache.layers,
        shape=(cache.layers, cache.page_tokens, cache.latent_dim),
    )


def computation_mode(device: torch.device, math_mode: str) -> str:
    """What else decides the last bits of a sum: the library, its version, and the processor's kind.

    Under MKL's strict mode the number of threads does not: measured on two cores with the small preset, all pages of a
    prompt were the same bits with 1 and 2 threads. Otherwise it is part of the mode. So is a precision of products that
    torch was allowed to reduce (TF32, bfloat16): they differ in far more than the last bits.
    """
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    precision = backend.matmul.fp32_precision
    products = "" if precision in ("none", "ieee") else f", float32 products in {precision}"
    if device.type == "cuda":
        return f"torch {torch.__version__}, {torch.cuda.get_device_name(device)}{products}"
    strict = torch.backends.mkl.is_available() and math_mode.endswith(",STRICT")
    threads = f"MKL {math_mode}" if strict else f"{math_mode} {torch.get_num_threads()} threads"
    capability = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"torch {torch.__version__}, {capability}, {threads}{products}"
