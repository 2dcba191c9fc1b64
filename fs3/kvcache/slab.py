"""Room for pages in one buffer, in the form in which they are stored: a page is read into and written from its row.

    row 0: payload | footer      row 1: payload | footer      ...

An engine keeps its cache in such a buffer (or stages it there for a GPU), and no byte of a page is copied on its way
between the socket and the cache.
"""

from __future__ import annotations

from fs3.checksum import Bytes, flat
from fs3.errors import Invalid
from fs3.kvcache.page_core import FOOTER_BYTES


class PageSlab:
    """`count` rows of `page_bytes` and a footer's room each, in `memory` if it is given (writable, large enough)."""

    def __init__(self, count: int, page_bytes: int, memory: Bytes | None = None, *, owner: object = None) -> None:
        """`owner` lives as long as the slab: whose the memory is."""
        self.count = count
        self.page_bytes = page_bytes
        self._owner = owner
        self.row_bytes = self.row_size(page_bytes)
        self.memory = bytes_of(bytearray(count * self.row_bytes) if memory is None else memory)
        if self.memory.readonly or len(self.memory) < count * self.row_bytes:
            raise Invalid(
                f"{count} KV pages of {page_bytes} bytes need {count * self.row_bytes} writable bytes with their "
                f"footers, got {len(self.memory)}{' read-only' if self.memory.readonly else ''}"
            )

    @staticmethod
    def row_size(page_bytes: int) -> int:
        """Bytes of a row."""
        return page_bytes + FOOTER_BYTES

    def offset(self, row: int) -> int:
        """Where `row` begins in `memory`."""
        assert 0 <= row < self.count, (row, self.count)
        return row * self.row_bytes

    def row(self, row: int) -> memoryview:
        """Payload and footer of `row`."""
        return self.memory[self.offset(row) :][: self.row_bytes]

    def page(self, row: int) -> memoryview:
        """The payload of `row`."""
        return self.row(row)[: self.page_bytes]

    def footer(self, row: int) -> memoryview:
        """The footer of `row`."""
        return self.row(row)[self.page_bytes :]


def bytes_of(memory: Bytes) -> memoryview:
    """All of it, as bytes, without a copy. Raises: Invalid: it is no memory, or does not lie together."""
    try:
        return flat(memory)
    except (TypeError, ValueError, BufferError) as error:
        raise Invalid(f"KV pages lie in contiguous memory, as of a bytearray or an array: {error}") from None
