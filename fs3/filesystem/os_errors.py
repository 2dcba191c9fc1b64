"""fs3's errors as the standard library raises them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fs3.errors import Fs3Error, to_os_error


@contextlib.contextmanager
def os_errors(path: str | None = None) -> Iterator[None]:
    """Turn fs3's errors into the standard library's, as callers of fsspec expect."""
    try:
        yield
    except Fs3Error as error:
        raise to_os_error(error, path) from error
