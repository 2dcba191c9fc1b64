"""What a page is called: the digest of its tokens chained onto its prefix, under everything the bytes depend on.

    key[-1] = digest(namespace)        key[i] = blake2b(key[i-1] | tokens of page i, u32 little-endian)
    chunk id = kind and 15 bytes of blake2b(directory's inode | key)

Two runners share a page only if every token before it, the weights, the dtype, the layout and the page size agree.
Peers that left one of these out served one model's state to another (sglang #33268, #24758, #26792). The directory is
part of the chunk id, so that caches in two directories never meet: each can be counted, bounded and cleared by itself.
The encoding is frozen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike

from fs3.errors import Invalid
from fs3.ids import kv_page_chunk

KEY_BYTES = 32
LARGEST_TOKEN = (1 << 32) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """Everything that the bytes of a page depend on besides the tokens. Every field is part of every key.

    `weights` identifies the weights' revision (a digest, not a name), `layout` names how a page's bytes are arranged
    and were computed, `shape` what one page holds, `quantization` and `adapters` what changed the weights.
    """

    weights: str
    dtype: str
    layout: str
    page_tokens: int
    layers: int
    shape: tuple[int, ...]
    quantization: str = "none"
    adapters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("weights", "dtype", "layout"):
            if not getattr(self, name):
                raise Invalid(f"KV namespace: {name!r} is empty; pages of different models would collide")
        if self.page_tokens < 1 or self.layers < 1:
            raise Invalid(f"KV namespace: page_tokens {self.page_tokens} and layers {self.layers} must be positive")

    def digest(self) -> bytes:
        """The 32 bytes that the first page's key is chained onto."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return blake2b(text.encode(), digest_size=KEY_BYTES, person=b"fs3-kv-names-v1").digest()


def page_keys(namespace: bytes, tokens: ArrayLike | Sequence[int], page_tokens: int) -> list[bytes]:
    """The keys of the full pages of `tokens` [n], in order: [n // page_tokens] of 32 bytes each.

    Raises: Invalid, if a token is no unsigned 32-bit number (two of them must never be written alike).
    """
    assert page_tokens > 0, page_tokens
    given = np.asarray(tokens)
    if given.ndim != 1:
        raise Invalid(f"tokens must be one sequence, got shape {given.shape}")
    if len(given) and given.dtype.kind not in "iu":
        raise Invalid(f"tokens of type {given.dtype}: a token is a whole number of 32 bits")
    if len(given) and not 0 <= int(given.min()) <= int(given.max()) <= LARGEST_TOKEN:
        raise Invalid(f"tokens from {int(given.min())} to {int(given.max())}: a token is a number of 32 bits")
    raw = given.astype("<u4")
    keys = []
    key = namespace
    for begin in range(0, len(raw) - page_tokens + 1, page_tokens):
        page = raw[begin : begin + page_tokens].tobytes()
        key = blake2b(key + page, digest_size=KEY_BYTES, person=b"fs3-kv-page-v1").digest()
        keys.append(key)
    return keys


def page_chunk(directory: int, key: bytes) -> tuple[int, int]:
    """The chunk (hi, lo) that holds the page of `key` in the cache of the directory with this inode id."""
    place = blake2b(directory.to_bytes(8, "little") + key, digest_size=KEY_BYTES, person=b"fs3-kv-place-v1").digest()
    return kv_page_chunk(place)
