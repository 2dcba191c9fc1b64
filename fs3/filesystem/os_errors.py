"""fs3's errors as the standard library raises them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fs3.errors import Busy, Conflict, Fs3Error, Unavailable, to_os_error

_NO_ANSWERS = {kind.errno for kind in (Unavailable, Busy, Conflict, Fs3Error)}


@contextlib.contextmanager
def os_errors(path: str | None = None) -> Iterator[None]:
    """Turn fs3's errors into the standard library's, as callers of fsspec expect."""
    try:
        yield
    except Fs3Error as error:
        raise to_os_error(error, path) from error


def is_answer(error: OSError) -> bool:
    """Whether it says what is there: that a cluster is away, or failed, says nothing of it."""
    return error.errno not in _NO_ANSWERS
