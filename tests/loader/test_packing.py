"""Windows: every token but the first predicted exactly once, however the stream arrives in pieces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.errors import Invalid
from fs3_loader.packing_core import Packer


@given(seq_len=st.integers(1, 9), pieces=st.lists(st.integers(0, 25), max_size=8))
def test_predicts_every_token_once(seq_len: int, pieces: list[int]) -> None:
    stream = np.arange(sum(pieces), dtype=np.uint32)
    packer, windows, at = Packer(seq_len), [], 0
    for length in pieces:
        windows += packer.add(stream[at : at + length]).tolist()
        at += length
    predicted = [token for window in windows for token in window[1:]]
    assert predicted == list(range(1, len(predicted) + 1))
    assert all(window == list(range(window[0], window[0] + seq_len + 1)) for window in windows)
    assert packer.num_tokens == len(stream)
    left = len(stream) - 1 - len(predicted) if windows else len(stream)
    assert packer.unpredicted == left
    assert left <= seq_len


def test_refuses_an_empty_window() -> None:
    with pytest.raises(Invalid, match="at least 1"):
        Packer(0)
