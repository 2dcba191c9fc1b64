"""One run of `fs3-generate`, from its options to its last line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import torch

from fs3.errors import Fs3Error, Invalid, NotADirectory, NotFound, PermissionDenied
from fs3.kvcache import KVStore
from fs3.kvcache.admin import clear
from fs3.url import parse_url
from fs3_trainer.infer.offload import Offload, namespace_of
from fs3_trainer.infer.paged_cache import DTYPES, PagedCache
from fs3_trainer.infer.runner import Generation, Runner
from fs3_trainer.infer.sampling import Sampler
from fs3_trainer.infer.text import Text
from fs3_trainer.train.allocator import keep_freed_memory
from fs3_trainer.train.checkpoint import LoadedModel, load_model

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line said; None where it was silent. `math_mode` is the process's MKL_CBWR."""

    checkpoint: str
    prompt: str
    kv_cache: str | None = None
    kv_limit_bytes: int | None = None
    max_new_tokens: int = 64
    page_tokens: int = 64
    cache_dtype: str = "float32"
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    secret: str = ""
    math_mode: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run's text and figures. `kv_cache` is "none", "used" or "unreachable"; `kv_removed` pages went by the limit."""

    text: str
    step: int
    kv_cache: str
    kv_removed: int
    generation: Generation

    def line(self) -> str:
        """The figures as one line."""
        done = self.generation
        removed = f", {self.kv_removed} removed by the limit" if self.kv_removed else ""
        speed = f", {done.tokens_per_s:.1f} tokens/s" if done.tokens_per_s else ""
        return (
            f"prompt {done.prompt_tokens} tokens: {done.pages_loaded} pages loaded from the cache, "
            f"{done.pages_computed} computed, {done.pages_stored} stored{removed}; "
            f"{len(done.tokens)} new tokens, first after {done.first_token_s:.3f} s{speed}"
        )

    def as_data(self) -> dict[str, object]:
        """The same as plain JSON values."""
        figures = dataclasses.asdict(self.generation) | {"tokens_per_s": self.generation.tokens_per_s}
        return {
            "text": self.text,
            "step": self.step,
            "kv_cache": self.kv_cache,
            "kv_removed": self.kv_removed,
            **figures,
        }


def generate(options: Options, write: Say, warn: Say) -> Result:
    """Generates, handing each piece of text to `write` as it comes; what the cache could not do goes to `warn`.

    Raises:
        Fs3Error: whatever the user or the world did wrong, in one line.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise Invalid("--device cuda: torch sees no CUDA device here; use --device cpu")
    if options.kv_cache is not None:
        parse_url(options.kv_cache)
    sampler = Sampler(temperature=options.temperature, top_p=options.top_p, seed=options.seed)
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    torch.use_deterministic_algorithms(True)
    keep_freed_memory()
    loaded = load_model(options.checkpoint, options.device)
    text = _text(loaded, options)
    prompt = text.encode(options.prompt)
    cache = _cache(loaded, len(prompt), options)
    store = _open_store(loaded, cache, options, warn)
    offload = Offload(cache, store, store.namespace.digest()) if store is not None else None
    done = Generation(len(prompt))
    stream = text.stream()
    tokens = Runner(loaded.model, cache, offload).generate(
        prompt, max_new_tokens=options.max_new_tokens, sampler=sampler, stop=text.ends, report=done
    )
    pieces: list[str] = []

    def put(piece: str) -> None:
        if piece:
            pieces.append(piece)
            write(piece)

    for token in tokens:
        put(stream.push(token))
    put(stream.finish())
    if store is not None and store.stats().last_failure:
        warn(f"KV cache {options.kv_cache}: {store.stats().last_failure}; what it did not give was computed")
    removed = _trim(options, warn) if store is not None else 0
    state = "none" if options.kv_cache is None else "used" if store is not None else "unreachable"
    return Result(text="".join(pieces), step=loaded.step, kv_cache=state, kv_removed=removed, generation=done)


def _text(loaded: LoadedModel, options: Options) -> Text:
    if loaded.tokenizer_json is None:
        raise NotFound(
            f"{options.checkpoint} has no tokenizer.json, so text has no tokens; "
            "put there the one that the data set was made with"
        )
    return Text(loaded.tokenizer_json, options.checkpoint)


def _cache(loaded: LoadedModel, prompt_tokens: int, options: Options) -> PagedCache:
    positions = loaded.model.config.max_position_embeddings
    tokens = min(prompt_tokens + options.max_new_tokens, positions)
    return PagedCache(
        loaded.model.config,
        pages=-(-tokens // options.page_tokens),
        page_tokens=options.page_tokens,
        dtype=DTYPES[options.cache_dtype],
        device=options.device,
    )


def _open_store(loaded: LoadedModel, cache: PagedCache, options: Options, warn: Say) -> KVStore | None:
    """None where no cache can be had. Raises: Invalid, NotADirectory, PermissionDenied: what the user must mend."""
    if options.kv_cache is None:
        return None
    namespace = namespace_of(loaded.model, cache, math_mode=options.math_mode)
    try:
        return KVStore.open(options.kv_cache, namespace, page_bytes=cache.slab.page_bytes, secret=options.secret)
    except (Invalid, NotADirectory, PermissionDenied):
        raise
    except Fs3Error as error:
        warn(f"KV cache {options.kv_cache}: {error}; going on without it")
        return None


def _trim(options: Options, warn: Say) -> int:
    """Removes the oldest pages beyond the limit; how many."""
    if options.kv_limit_bytes is None or options.kv_cache is None:
        return 0
    try:
        return clear(options.kv_cache, keep_bytes=options.kv_limit_bytes, secret=options.secret).removed.pages
    except Fs3Error as error:
        warn(f"KV cache {options.kv_cache} was not trimmed: {error}")
        return 0
