"""Cutting the stream of tokens into samples: fixed windows that overlap by one token.

    stream    t0 t1 t2 t3 t4 t5 t6 t7 t8 ...       documents end to end, each followed by the end-of-document token
    sample 0  t0 t1 t2 t3 t4                       seq_len = 4: predicts t1..t4
    sample 1              t4 t5 t6 t7 t8           predicts t5..t8

So every token but the first is predicted exactly once, whatever seq_len is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Invalid


class Packer:
    """Takes tokens in pieces of any length and gives the windows that are complete."""

    __slots__ = ("_rest", "num_tokens", "seq_len")

    def __init__(self, seq_len: int) -> None:
        """Raises: Invalid if `seq_len` is less than 1."""
        if seq_len < 1:
            raise Invalid(f"seq_len must be at least 1, not {seq_len}")
        self.seq_len = seq_len
        self._rest = np.empty(0, dtype=np.uint32)
        self.num_tokens = 0

    def add(self, tokens: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The windows that `tokens` complete, uint32 [n, seq_len + 1], a view; n may be 0."""
        self.num_tokens += len(tokens)
        stream = np.concatenate((self._rest, tokens))
        count = max(0, (len(stream) - 1) // self.seq_len)
        self._rest = stream[count * self.seq_len :].copy()
        if not count:
            return np.empty((0, self.seq_len + 1), dtype=np.uint32)
        windows = np.lib.stride_tricks.sliding_window_view(stream, self.seq_len + 1)
        return windows[: (count - 1) * self.seq_len + 1 : self.seq_len]

    @property
    def unpredicted(self) -> int:
        """Tokens at the end of the stream that no complete window predicts: they fill no sample."""
        return len(self._rest) - 1 if self.num_tokens > self.seq_len else len(self._rest)
