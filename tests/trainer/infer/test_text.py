"""Text as it streams: whole characters only, and together exactly what decoding everything at once gives."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fs3.errors import Corrupt, Invalid
from fs3_trainer.infer.text import UNFINISHED, Text


@pytest.fixture(scope="module")
def text() -> Text:
    """A byte-level BPE with few merges, so that characters are spread over tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["def f(x): return x\n" * 9], trainer)
    return Text(tokenizer.to_str(), "here")


def streamed(text: Text, tokens: list[int]) -> list[str]:
    stream = text.stream()
    return [*(stream.push(token) for token in tokens), stream.finish()]


@pytest.mark.parametrize(
    "original", ["plain", "naïve café", "日本語 text", "🙂🙃 ok", "a\ufffdb", "<|endoftext|> typed"]
)
def test_characters_come_whole(text, original):
    tokens = text.encode(original)
    pieces = streamed(text, tokens)
    assert "".join(pieces) == original
    if UNFINISHED not in original:
        assert not any(UNFINISHED in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 1


@pytest.mark.parametrize("seed", range(40))
def test_any_tokens_stream_to_what_they_decode_to(text, seed):
    """Also bytes that are no UTF-8, and special tokens in between."""
    tokens = random.Random(seed).choices(range(280), k=60)
    assert "".join(streamed(text, tokens)) == text.decode(tokens)


def test_documents_end(text):
    assert text.ends == {0}
    assert text.encode("<|endoftext|>") != [0]


def test_a_broken_tokenizer_is_named():
    with pytest.raises(Corrupt, match=r"here: its tokenizer\.json cannot be read"):
        Text("{}", "here")


def test_bytes_of_a_shell_that_are_no_text_are_refused(text):
    with pytest.raises(Invalid, match="not UTF-8"):
        text.encode(b"caf\xe9".decode("utf-8", "surrogateescape"))
