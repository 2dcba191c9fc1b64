"""A page store in this process, and models whose attention and choices are far from uniform."""

import dataclasses

import pytest
import torch

from fs3.kvcache import PageSlab
from fs3_trainer.infer import Offload, PagedCache, Runner, Sampler
from fs3_trainer.infer.offload import namespace_of
from fs3_trainer.model import DeepseekV3


class DictStore:
    """Keeps pages in a dict; `lose` are keys that it does not give out (lost, late, damaged: a miss is a miss)."""

    def __init__(self) -> None:
        self.pages: dict[bytes, bytes] = {}
        self.depths: dict[bytes, int] = {}
        self.lose: set[bytes] = set()
        self.calls: list[tuple[str, int]] = []

    def get_rows(self, keys, slab: PageSlab, rows) -> list[bool]:
        self.calls.append(("get", len(keys)))
        hits = [key in self.pages and key not in self.lose for key in keys]
        for key, row, hit in zip(keys, rows, hits, strict=True):
            # What is not a hit is undefined: poison it, so that nobody gets away with using it.
            slab.page(row)[:] = self.pages[key] if hit else b"\x7f" * slab.page_bytes
        return hits

    def put_rows(self, keys, slab: PageSlab, rows, *, depths) -> list[bool]:
        self.calls.append(("put", len(keys)))
        for key, row, depth in zip(keys, rows, depths, strict=True):
            self.pages.setdefault(key, bytes(slab.page(row)))
            self.depths.setdefault(key, depth)
        return [True] * len(keys)


@pytest.fixture
def store() -> DictStore:
    return DictStore()


@pytest.fixture(scope="session")
def sharp(tiny) -> DeepseekV3:
    return DeepseekV3.fresh(dataclasses.replace(tiny, initializer_range=0.3), seed=4).eval()


@pytest.fixture
def prompt_of(tiny):
    """Random tokens, the same for the same seed; a longer prompt begins like a shorter one."""

    def make(length: int, seed: int = 5) -> list[int]:
        return torch.randint(0, tiny.vocab_size, (512,), generator=torch.Generator().manual_seed(seed))[
            :length
        ].tolist()

    return make


@pytest.fixture
def run(sharp):
    """A prompt through a new runner, as a new process would: `run(prompt, store)` is (tokens, report, cache)."""

    def go(prompt, store=None, *, new=12, page_tokens=8, dtype=torch.float32, sampler=None, model=sharp, mode=""):
        from fs3_trainer.infer import Generation

        pages = -(-(len(prompt) + new) // page_tokens)
        cache = PagedCache(model.config, pages=pages, page_tokens=page_tokens, dtype=dtype)
        space = namespace_of(model, cache, math_mode=mode).digest()
        runner = Runner(model, cache, Offload(cache, store, space) if store is not None else None)
        report = Generation(len(prompt))
        tokens = list(runner.generate(prompt, max_new_tokens=new, sampler=sampler or Sampler(), report=report))
        assert cache.free_pages == cache.pages
        return tokens, report, cache

    return go
