"""Decoding over pages: the tokens of the naive model, and the same bits whichever pages were loaded."""

import itertools

import pytest
import torch

from fs3.errors import Busy, Invalid
from fs3_trainer.infer import PagedCache, Runner, Sampler
from fs3_trainer.infer.prefill import forward, prefill


@torch.inference_mode()
def naive_greedy(model, prompt, new: int) -> list[int]:
    """The whole sequence through the training forward (expanded attention) for every token."""
    tokens = list(prompt)
    for _ in range(new):
        tokens.append(int(model.logits(model(torch.tensor([tokens])).hidden_BTD[0, -1]).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
@pytest.mark.parametrize("page_tokens", [1, 8, 64])
def test_greedy_tokens_are_the_naive_models(sharp, run, prompt_of, length, page_tokens):
    prompt = prompt_of(length)
    tokens, report, _ = run(prompt, page_tokens=page_tokens)
    assert tokens == naive_greedy(sharp, prompt, 12)
    assert len(set(tokens)) > 4
    assert (report.pages_loaded, report.pages_stored) == (0, 0)
    assert report.pages_computed == -(-length // page_tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [31, 32])
def test_any_pages_may_be_loaded_and_the_bits_stay(sharp, run, store, prompt_of, length, dtype):
    """Four pages of 8, the last full or not: for every subset of the stored ones that is lost."""
    prompt = prompt_of(length)
    tokens, first, _ = run(prompt, store, dtype=dtype)
    full = length // 8
    assert (first.pages_loaded, first.pages_computed, first.pages_stored) == (0, 4, full)
    stored, keys = dict(store.pages), sorted(store.pages, key=store.depths.__getitem__)
    for size in range(full + 1):
        for lost in itertools.combinations(range(full), size):
            store.lose = {keys[page] for page in lost}
            store.pages = {key: page for key, page in stored.items() if key not in store.lose}
            again, report, _ = run(prompt, store, dtype=dtype)
            assert again == tokens
            assert store.pages == stored, "a page computed after loaded ones has other bits"
            usable = set(range(full)) - set(lost) - {3}
            assert report.pages_loaded == len(usable)
            assert report.pages_computed == 4 - len(usable)
            assert report.pages_stored == len(lost)


@torch.inference_mode()
def test_loaded_and_computed_caches_are_the_same_memory(sharp, store, prompt_of, run):
    prompt = prompt_of(27)
    run(prompt, store)
    logits, latents = [], []
    for n in range(4):
        cache = PagedCache(sharp.config, pages=4, page_tokens=8)
        sequence = cache.sequence()
        sequence.reserve(27)
        for page, key in enumerate(sorted(store.pages, key=store.depths.__getitem__)[:n]):
            cache.slab.page(sequence.block_table[page])[:] = store.pages[key]
        logits.append(prefill(sharp, sequence, prompt, range(n)))
        latents.append(torch.stack([sequence.read(layer, 27) for layer in range(cache.layers)]))
    for other in range(1, 4):
        assert torch.equal(logits[0], logits[other])
        assert torch.equal(latents[0], latents[other])
    assert latents[0].abs().min() > 0


def test_a_longer_prompt_uses_the_pages_they_share(run, store, prompt_of):
    short, long = prompt_of(20), prompt_of(40)
    alone, _, _ = run(long)
    run(short, store)
    tokens, report, _ = run(long, store)
    assert tokens == alone
    assert (report.pages_loaded, report.pages_computed, report.pages_stored) == (2, 3, 3)
    assert sorted(store.depths.values()) == [0, 1, 2, 3, 4]


def test_loading_and_storing_take_one_batch_each(run, store, prompt_of):
    run(prompt_of(20), store)
    run(prompt_of(40), store)
    assert store.calls == [("get", 2), ("put", 2), ("get", 5), ("put", 3)]


def test_only_pages_of_the_prompt_are_stored(run, store, prompt_of):
    _, report, _ = run(prompt_of(7), store, new=30)
    assert store.pages == {}
    assert report.pages_stored == 0


def test_another_namespace_shares_nothing(sharp, tiny, run, store, prompt_of):
    from fs3_trainer.model import DeepseekV3

    prompt = prompt_of(32)
    run(prompt, store)
    before = len(store.pages)
    other = DeepseekV3.fresh(tiny, seed=9).eval()
    for change in ({"model": other}, {"page_tokens": 4}, {"dtype": torch.bfloat16}, {"mode": "COMPATIBLE"}):
        _, report, _ = run(prompt, store, **change)
        assert report.pages_loaded == 0, change
    assert len(store.pages) == before + 4 + 8 + 4 + 4


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_of_less_precision_make_other_pages(run, store, prompt_of, precision):
    prompt = prompt_of(32)
    run(prompt, store)
    torch.set_float32_matmul_precision(precision)
    try:
        _, report, _ = run(prompt, store)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert report.pages_loaded == 0
    assert run(prompt, store)[1].pages_loaded == 3


def test_a_page_may_lie_anywhere(sharp, prompt_of):
    """Two sequences take pages in turns, so that neither's lie in order; both continue as they would alone."""
    cache = PagedCache(sharp.config, pages=16, page_tokens=4)
    prompts = prompt_of(10, seed=1), prompt_of(10, seed=2)
    alone = [list(Runner(sharp, cache).generate(p, max_new_tokens=12, sampler=Sampler())) for p in prompts]
    runner = Runner(sharp, cache)
    cache.give_back(list(reversed(cache.take(16)))[::2] + list(range(0, 16, 2)))
    both = [runner.generate(p, max_new_tokens=12, sampler=Sampler()) for p in prompts]
    woven = list(zip(*both, strict=True))
    assert [list(tokens) for tokens in zip(*woven, strict=True)] == alone


@torch.inference_mode()
def test_pieces_of_any_size_agree_with_one_forward(sharp, prompt_of):
    """The absorbed form over pages is attention: against the training forward, for pieces that cross pages."""
    prompt = prompt_of(30)
    expanded = sharp.logits(sharp(torch.tensor([prompt])).hidden_BTD[0])
    for cuts in ([30], [5, 11, 29, 30], [1, 2, 3, 30]):
        sequence = PagedCache(sharp.config, pages=4, page_tokens=8).sequence()
        sequence.reserve(30)
        start = 0
        for end in cuts:
            logits = forward(sharp, sequence, prompt[start:end], start)
            torch.testing.assert_close(logits, expanded[end - 1], atol=1e-4, rtol=0)
            start = end


def test_a_stop_token_is_the_last(run, sharp, prompt_of):
    tokens, _, cache = run(prompt_of(9))
    stop = tokens[5]
    found = list(Runner(sharp, cache).generate(prompt_of(9), max_new_tokens=12, sampler=Sampler(), stop={stop}))
    assert found == tokens[: tokens.index(stop) + 1]


def test_a_full_cache_says_so_and_keeps_nothing(sharp, prompt_of):
    cache = PagedCache(sharp.config, pages=2, page_tokens=8)
    runner = Runner(sharp, cache)
    with pytest.raises(Busy, match="2 of 2 pages free, and 3 are needed"):
        list(runner.generate(prompt_of(16), max_new_tokens=2, sampler=Sampler()))
    assert cache.free_pages == 2
    stopped = runner.generate(prompt_of(8), max_new_tokens=9, sampler=Sampler())
    next(stopped)
    stopped.close()
    assert cache.free_pages == 2
    assert len(list(runner.generate(prompt_of(8), max_new_tokens=9, sampler=Sampler()))) == 9


def test_prompts_that_cannot_be_are_refused(sharp, prompt_of):
    runner = Runner(sharp, PagedCache(sharp.config, pages=1))

    def refused(prompt, new=1) -> str:
        with pytest.raises(Invalid) as caught:
            next(runner.generate(prompt, max_new_tokens=new, sampler=Sampler()))
        return str(caught.value)

    assert "the prompt is empty" in refused([])
    assert "token 256, and the model knows 256" in refused([1, 256])
    assert "1024 positions" in refused([1] * 1000, new=25)
    assert "at least 1" in refused([1], new=0)
