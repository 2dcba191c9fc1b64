"""Text and compression around the files that are written: they appear, and are given up, as binary ones are.

The wrappers there are do not see to that: compressors such as `GzipFile` leave the file that they were given open, so
that it would never be published, and `TextIOWrapper` closes it also when its `with` block fails, so that half a text
would replace a whole one.
"""

from __future__ import annotations

import contextlib
import io
from types import TracebackType
from typing import Any

from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.spec import AbstractFileSystem

from fs3.filesystem.files import WriteFile
from fs3.filesystem.update_file import UpdateFile

_TEXT_OPTIONS = ("encoding", "errors", "newline")


class CompressedFile(io.BufferedIOBase):
    """What is written goes through a compressor into `file`, and is published with it."""

    def __init__(self, compressor: Any, file: WriteFile | UpdateFile) -> None:
        self.fs = file.fs
        self.path = file.path
        self.mode = file.mode
        self.autocommit = file.autocommit
        self._compressor = compressor
        self._file = file

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        """Bytes written so far, before they are compressed (as far as the compressor counts those)."""
        return int(self._compressor.tell())

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        return int(self._compressor.write(data))

    def flush(self) -> None:
        if not self._compressor.closed:
            self._compressor.flush()

    def discard(self) -> None:
        """Give up what was written, as `file` does, and close both."""
        self._file.discard()
        self._file.close()
        with contextlib.suppress(ValueError):  # the end of what is compressed has nowhere to go
            self._compressor.close()
        super().close()

    def close(self) -> None:
        if self.closed:
            return
        try:
            with self._file:  # which gives up what has no end
                self._compressor.close()
        finally:
            super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        # As with the file below: one that nobody closed was interrupted, unless a transaction says when it ends.
        if hasattr(self, "_file") and not self.autocommit:
            self.close()


class TextFile(io.TextIOWrapper):
    """Text that is written into a file of fs3; if a `with` block fails, it is given up."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._below.discard()
            self._below.close()  # before what is kept here gets there
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(ValueError):  # there is no file: it was detached, or the options were wrong
            if not self._below.autocommit:
                self.close()

    @property
    def _below(self) -> CompressedFile | WriteFile | UpdateFile:
        below = self.buffer
        assert isinstance(below, (CompressedFile, WriteFile, UpdateFile))
        return below


class WrappedFace(AbstractFileSystem):  # type: ignore[misc]
    """A part of `Fs3FileSystem`."""

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: dict[str, Any] | None = None,
        compression: str | None = None,
        **options: Any,
    ) -> Any:
        """As fsspec's. A file that is written appears when it is closed, and not if a `with` block fails: text and
        what is compressed, too."""
        compression = get_compression(path, compression)
        text = "b" not in mode
        binary = mode.replace("t", "") + "b" if text else mode
        reading = binary.startswith("r") and (compression is not None or "+" not in binary)
        if reading or not (text or compression):
            return super().open(path, mode, block_size, cache_options, compression, **options)
        wrapping = {name: options.pop(name) for name in _TEXT_OPTIONS if text and name in options}
        file = super().open(path, binary, block_size, cache_options, **options)
        if compression is not None:
            file = CompressedFile(compr[compression](file, mode=binary[0]), file)
        return TextFile(file, **wrapping) if text else file
