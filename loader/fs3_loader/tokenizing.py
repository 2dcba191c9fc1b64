"""The tokenizer of an import: a byte-level BPE learned from the sources, or a tokenizer.json that exists.

Byte-level BPE as in GPT-2 (Radford et al. 2019, section 2.2): every text round-trips, and no token is unknown. Learning
is deterministic: pairs of equal count are merged in the order of their ids. A text that happens to spell the
end-of-document token is tokenized as text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fs3.errors import Invalid
from fs3_loader.location import one_line

END_OF_DOCUMENT = "<|endoftext|>"
KNOWN_ENDS = (
    END_OF_DOCUMENT,
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|end_of_text|>",
    "<|im_end|>",
    "</s>",
    "<eos>",
    "[SEP]",
)
BYTE_TOKENS = 256
SMALLEST_BPE = BYTE_TOKENS + 2
LARGEST_BPE = 1 << 20


@dataclass(frozen=True, slots=True)
class DatasetTokenizer:
    """A tokenizer ready to import with, and what the dataset stores of it."""

    tokenizer: Tokenizer
    spec: str
    text: str
    end_of_document: int

    @property
    def sha256(self) -> str:
        """Digest of the stored file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The tokens of each text, without any special ones."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """`--tokenizer`, understood: a BPE of `bpe_size` tokens to learn, or else the file `path`."""

    text: str
    bpe_size: int | None
    path: Path | None

    @classmethod
    def parse(cls, text: str) -> TokenizerSpec:
        """From `bpe:N` or `file:PATH`. Raises: Invalid."""
        kind, _, value = text.partition(":")
        if kind == "bpe" and value.isdecimal() and SMALLEST_BPE <= int(value) <= LARGEST_BPE:
            return cls(text, int(value), None)
        if kind == "file" and value:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise Invalid(f"tokenizer file {value!r} has no UTF-8 name, which a dataset keeps; rename it") from None
            return cls(text, None, Path(value))
        raise Invalid(
            f"tokenizer {text!r} is not understood: write bpe:N to learn N tokens ({SMALLEST_BPE} to {LARGEST_BPE}), "
            "or file:PATH of a tokenizer.json"
        )


def learn_bpe(spec: TokenizerSpec, texts: Iterator[str]) -> DatasetTokenizer:
    """A byte-level BPE of `spec.bpe_size` tokens, fewer if the texts have no more pairs to merge.

    Token 0 is the end of a document, 1..256 are the bytes.
    """
    assert spec.bpe_size is not None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.bpe_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _ready(tokenizer, spec, END_OF_DOCUMENT)


def load_tokenizer(spec: TokenizerSpec, end_of_document: str | None) -> DatasetTokenizer:
    """The tokenizer in `spec.path`. Raises: Invalid if there is none or it has no end-of-document token."""
    assert spec.path is not None
    try:
        text = spec.path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"tokenizer file {spec.path} cannot be read: {one_line(error)}") from None
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001  (the package raises bare Exception)
        raise Invalid(f"tokenizer file {spec.path} is no tokenizer.json: {one_line(error)}") from None
    names = (end_of_document,) if end_of_document is not None else KNOWN_ENDS
    for name in names:
        if tokenizer.token_to_id(name) is not None:
            return _ready(tokenizer, spec, name)
    raise Invalid(
        f"tokenizer file {spec.path} has no token {' or '.join(names)}; name its end-of-document token with --eod"
    )


def _ready(tokenizer: Tokenizer, spec: TokenizerSpec, end_of_document: str) -> DatasetTokenizer:
    text = tokenizer.to_str(pretty=False)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    end_id = tokenizer.token_to_id(end_of_document)
    assert end_id is not None
    return DatasetTokenizer(tokenizer, spec.text, text, end_id)
