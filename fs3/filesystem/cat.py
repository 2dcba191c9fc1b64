"""Bytes of many files at once through fsspec: one request per storage node, however many files they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fs3.client.file import FileClient, OpenFile
from fs3.errors import Corrupt, Fs3Error, NotFound, PermissionDenied, Unavailable, to_os_error
from fs3.filesystem.os_errors import os_errors


class CatFace:
    """A part of `Fs3FileSystem`."""

    _strip_protocol: Callable[[str], str]

    if TYPE_CHECKING:

        @property
        def file_client(self) -> FileClient: ...

        def expand_path(self, path: Any, recursive: bool = False) -> list[str]: ...

        def isfile(self, path: str) -> bool: ...

        def _open_read(self, path: str) -> OpenFile: ...

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        result = self.cat_ranges([path], [start], [end], on_error="raise")[0]
        assert isinstance(result, bytes)
        return result

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[bytes | Exception]:
        """Many ranges of many files in one batch; negative and missing bounds as in slices.

        `max_gap` is accepted and not needed: ranges are read exactly. Raises: as `open`, if `on_error` is "raise".
        """
        count = len(paths)
        starts = list(starts) if isinstance(starts, (list, tuple, np.ndarray)) else [starts] * count
        ends = list(ends) if isinstance(ends, (list, tuple, np.ndarray)) else [ends] * count
        if len(starts) != count or len(ends) != count:
            raise ValueError(f"{count} paths, {len(starts)} starts and {len(ends)} ends: the numbers must agree")
        stripped = [self._strip_protocol(path) for path in paths]
        handles, failed = self._open_all(list(dict.fromkeys(stripped)), on_error)
        good = [i for i, path in enumerate(stripped) if path in handles]
        number = {path: i for i, path in enumerate(handles)}
        bounds = [slice(starts[i], ends[i]).indices(handles[stripped[i]].length) for i in good]
        offsets = np.array([begin for begin, _, _ in bounds], dtype=np.int64)
        lengths = np.maximum(np.array([end for _, end, _ in bounds], dtype=np.int64) - offsets, 0)
        packed = memoryview(bytearray(int(lengths.sum())))
        out: list[bytes | Exception] = [failed.get(path, OSError(path)) for path in stripped]
        if good:
            index = np.array([number[stripped[i]] for i in good], dtype=np.int32)
            try:
                self.file_client.read_batch(list(handles.values()), index, offsets, lengths, packed)
            except Fs3Error as error:
                if on_error == "raise":
                    raise to_os_error(error, stripped[good[0]] if len(handles) == 1 else None) from error
                # What became of one file is no other's concern; a cluster that is away is everybody's.
                alone = len(good) > 1 and isinstance(error, (Corrupt, NotFound, PermissionDenied))
                for i in good:
                    out[i] = self._cat_alone(paths[i], starts[i], ends[i]) if alone else to_os_error(error, stripped[i])
                return out
        cuts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        for position, i in enumerate(good):
            out[i] = bytes(packed[cuts[position] : cuts[position + 1]])
        return out

    def _cat_alone(self, path: str, start: int | None, end: int | None) -> bytes | Exception:
        return self.cat_ranges([path], [start], [end], on_error="return")[0]

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **options: Any) -> Any:
        paths = self.expand_path(path, recursive=recursive)
        if len(paths) == 1 and not isinstance(path, list) and paths[0] == self._strip_protocol(path):
            return self.cat_file(paths[0], **options)
        if recursive:
            paths = [name for name in paths if self.isfile(name)]
        results = self.cat_ranges(
            paths, options.get("start"), options.get("end"), on_error="raise" if on_error == "raise" else "return"
        )
        pairs = zip(paths, results, strict=True)
        return {name: data for name, data in pairs if on_error != "omit" or not isinstance(data, Exception)}

    def _open_all(self, paths: list[str], on_error: str) -> tuple[dict[str, OpenFile], dict[str, OSError]]:
        """Handles of all paths that can be opened, by one call if all can; errors of the others unless they raise."""
        try:
            return dict(zip(paths, self.file_client.open_many(paths), strict=True)), {}
        except Unavailable as error:  # everybody's: to ask for each would be to wait for each
            if on_error == "raise":
                raise to_os_error(error, paths[0] if len(paths) == 1 else None) from error
            return {}, {path: to_os_error(error, path) for path in paths}
        except Fs3Error:
            pass  # one of them is the reason; each for itself tells which
        handles: dict[str, OpenFile] = {}
        failed: dict[str, OSError] = {}
        for path in paths:
            try:
                with os_errors(path):
                    handles[path] = self._open_read(path)
            except OSError as error:
                if on_error == "raise":
                    raise
                failed[path] = error
        return handles, failed
