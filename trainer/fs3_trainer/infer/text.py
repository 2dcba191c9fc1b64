"""Text to tokens and, as they come, tokens to text."""

from __future__ import annotations

from tokenizers import Tokenizer

from fs3.errors import Corrupt, Invalid
from fs3_loader.tokenizing import KNOWN_ENDS

UNFINISHED = "\ufffd"  # how a decoder shows bytes that are no character yet
WINDOW = 8


class Text:
    """A checkpoint's tokenizer, used as the import of its data set used it: no special tokens are added or parsed."""

    def __init__(self, tokenizer_json: str, where: str) -> None:
        """Raises: Corrupt, naming `where`, if it is no tokenizer."""
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # noqa: BLE001  (the package raises bare Exception)
            raise Corrupt(f"{where}: its tokenizer.json cannot be read: {' '.join(str(error).split())}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True

    @property
    def ends(self) -> set[int]:
        """The tokens that end a document."""
        found = (self._tokenizer.token_to_id(name) for name in KNOWN_ENDS)
        return {token for token in found if token is not None}

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`. Raises: Invalid: as the bytes of a shell may, it is no UTF-8."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Invalid("the prompt is not UTF-8 text") from None
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: list[int]) -> str:
        """The text of `tokens`, without special ones."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def stream(self) -> TextStream:
        """The text of tokens that come one by one."""
        return TextStream(self)


class TextStream:
    """Hands out text as soon as its characters are whole: a character may be spread over several tokens.

    A token is decoded together with a few before it, as its text may depend on them (a decoder's leading space), and
    what was handed out of those is taken off.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        self._tokens: list[int] = []
        self._begin = 0  # the window: tokens from here on are decoded, those before `_shown` were handed out
        self._shown = 0

    def push(self, token: int) -> str:
        """The text that `token` completes, perhaps none."""
        self._tokens.append(token)
        new = self._new()
        if new.endswith(UNFINISHED):
            return ""
        self._shown = len(self._tokens)
        self._begin = max(self._begin, self._shown - WINDOW)
        while self._begin > 0 and self._text.decode(self._tokens[self._begin : self._shown]).startswith(UNFINISHED):
            self._begin -= 1
        return new

    def finish(self) -> str:
        """What is left at the end: bytes that never became a character, as the decoder shows them."""
        return self._new()

    def _new(self) -> str:
        before = self._text.decode(self._tokens[self._begin : self._shown])
        return self._text.decode(self._tokens[self._begin :])[len(before) :]
