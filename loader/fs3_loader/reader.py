"""Reading many ranges of many files in one call: the port `RangeReader` and its implementations.

A batch goes down whole (DESIGN.md, D2): on fs3 it becomes one request per storage node, locally one `preadv` per run
of adjacent bytes, in file order, and on any other filesystem one `cat_ranges`. Of fs3 it can be had through the host's
I/O process (`fs3.usrbio`), which a training loop that keeps this process's interpreter busy does not slow down.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fs3 import usrbio
from fs3.client.file import OpenFile
from fs3.errors import Corrupt, Fs3Error, Invalid, NotFound
from fs3.user import process_user
from fs3.usrbio.reads import RingReads
from fs3_loader.location import Location, as_fs3_error, one_line

MAX_OPEN_FILES = 256


class RangeReader(Protocol):
    """Ranges of a fixed list of files, which are opened when first read."""

    def read_into(
        self,
        file_index: NDArray[np.int32],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        out: memoryview,
        out_offsets: NDArray[np.int64],
    ) -> None:
        """Fill `out[out_offsets[i]:][:lengths[i]]` from `offsets[i]` of file `file_index[i]`, for every i.

        All ranges are filled when it returns. Raises: an `Fs3Error` that names the file; then `out` holds anything.
        """

    def close(self) -> None:
        """Give back open files; the reader is not used afterwards."""


def open_reader(location: Location, files: Sequence[str], sizes: Sequence[int], *, usrbio: bool = False) -> RangeReader:
    """The reader that suits where `location` is, over its `files`, which must have `sizes` bytes.

    Raises: Invalid: through USRBIO only fs3 can be read; Unavailable: the I/O process cannot be started.
    """
    if usrbio:
        return UsrbioReader(location, files, sizes)
    if location.is_local:
        return LocalReader(location, files, sizes)
    if location.is_fs3:
        return Fs3Reader(location, files, sizes)
    return FsspecReader(location, files, sizes)


class LocalReader:
    """`preadv` on files kept open, the least recently used of them closed beyond `MAX_OPEN_FILES`, all when dropped."""

    def __init__(self, location: Location, files: Sequence[str], sizes: Sequence[int]) -> None:
        self._location = location
        self._files = files
        self._sizes = sizes
        self._open: OrderedDict[int, int] = OrderedDict()
        weakref.finalize(self, _close_all, self._open, os.getpid()).atexit = False

    def read_into(
        self,
        file_index: NDArray[np.int32],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        out: memoryview,
        out_offsets: NDArray[np.int64],
    ) -> None:
        """See `RangeReader.read_into`."""
        order = np.lexsort((offsets, file_index))
        for index, offset, length, start in merge_runs(
            file_index[order], offsets[order], lengths[order], out_offsets[order]
        ):
            done = 0
            descriptor = self._descriptor(index)
            while done < length:
                try:
                    got = os.preadv(descriptor, [out[start + done : start + length]], offset + done)
                except OSError as error:
                    raise as_fs3_error(error, self._location.show(self._files[index])) from None
                if not got:
                    raise _short(self._location.show(self._files[index]), offset + done, self._sizes[index])
                done += got

    def _descriptor(self, index: int) -> int:
        descriptor = self._open.get(index)
        if descriptor is not None:
            self._open.move_to_end(index)
            return descriptor
        name = self._files[index]
        path = self._location.path(name)
        descriptor = self._location.call(name, lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        try:
            _check_size(self._location.show(name), os.fstat(descriptor).st_size, self._sizes[index])
        except BaseException:
            os.close(descriptor)
            raise
        self._open[index] = descriptor
        if len(self._open) > MAX_OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def close(self) -> None:
        """See `RangeReader.close`."""
        _close_all(self._open, os.getpid())


class Fs3Reader:
    """fs3's own batched reads, one request per storage node inside."""

    def __init__(self, location: Location, files: Sequence[str], sizes: Sequence[int]) -> None:
        self._location = location
        self._files = files
        self._sizes = sizes
        self._client: Any = location.call("", lambda: location.fs.file_client)
        self._handles: dict[int, Any] = {}

    def read_into(
        self,
        file_index: NDArray[np.int32],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        out: memoryview,
        out_offsets: NDArray[np.int64],
    ) -> None:
        """See `RangeReader.read_into`."""
        used, local_index = np.unique(file_index, return_inverse=True)
        handles = self._opened(used.tolist())
        self._location.call(
            "",
            lambda: self._client.read_batch(
                handles, local_index.astype(np.int32).reshape(-1), offsets, lengths, out, out_offsets
            ),
        )

    def _opened(self, indexes: list[int]) -> list[Any]:
        """The handles of the files `indexes`; those not open yet are opened in one request."""
        missing = [index for index in indexes if index not in self._handles]
        if missing:
            opened = _open_shards(self._client.open_many, self._location, self._files, self._sizes, missing)
            self._handles.update(zip(missing, opened, strict=True))
        return [self._handles[index] for index in indexes]

    def close(self) -> None:
        """See `RangeReader.close`. The client belongs to the filesystem object, which fsspec shares and keeps."""
        self._handles.clear()


class UsrbioReader:
    """fs3's batched reads, by the I/O process of this host; one ring in use at a time."""

    def __init__(self, location: Location, files: Sequence[str], sizes: Sequence[int]) -> None:
        """Raises: Invalid, Unavailable."""
        check_usrbio(location)
        self._location = location
        self._files = files
        self._sizes = sizes
        io = usrbio.open(location.fs.unstrip_protocol("/"), secret=location.fs.secret)
        self._reads = RingReads(io)
        self._set = usrbio.Files()
        self._places = np.full(len(files), -1, dtype=np.int64)  # in the set

    def read_into(
        self,
        file_index: NDArray[np.int32],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        out: memoryview,
        out_offsets: NDArray[np.int64],
    ) -> None:
        """See `RangeReader.read_into`."""
        missing = np.unique(file_index[self._places[file_index] < 0])
        if len(missing):
            opened = _open_shards(self._reads.open_many, self._location, self._files, self._sizes, missing.tolist())
            first = self._set.add(opened)
            self._places[missing] = np.arange(first, len(self._set))
        self._reads.read_batch(self._set, self._places[file_index], offsets, lengths, out, out_offsets)

    def close(self) -> None:
        """See `RangeReader.close`. The I/O process stays for others, and for a while."""
        self._reads.close()


def check_usrbio(location: Location) -> None:
    """Raises: Invalid: USRBIO cannot read from there."""
    if not location.is_fs3:
        raise Invalid(f"{location.url}: USRBIO reads from fs3:// URLs only; leave it off for others")
    if location.fs.user not in (None, process_user()):
        raise Invalid(f"{location.url}: USRBIO reads as the user of this process only; leave `user` away")


class FsspecReader:
    """`cat_ranges` of whatever filesystem fsspec knows."""

    def __init__(self, location: Location, files: Sequence[str], sizes: Sequence[int]) -> None:
        self._location = location
        self._files = files
        self._sizes = sizes

    def read_into(
        self,
        file_index: NDArray[np.int32],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        out: memoryview,
        out_offsets: NDArray[np.int64],
    ) -> None:
        """See `RangeReader.read_into`."""
        indexes = file_index.tolist()
        paths = [self._location.path(self._files[index]) for index in indexes]
        starts, ends = offsets.tolist(), (offsets + lengths).tolist()
        fs = self._location.fs
        parts = self._location.call("", lambda: fs.cat_ranges(paths, starts, ends, on_error="return"))
        for index, start, end, part, at in zip(indexes, starts, ends, parts, out_offsets.tolist(), strict=True):
            name = self._location.show(self._files[index])
            if isinstance(part, OSError):
                raise as_fs3_error(part, name)
            if isinstance(part, Exception):  # many a client of an object store has a tree of its own
                raise Fs3Error(f"{name}: {one_line(part)}")
            if len(part) != end - start:
                raise _short(name, start + len(part), self._sizes[index])
            out[at : at + len(part)] = part

    def close(self) -> None:
        """See `RangeReader.close`."""


def merge_runs(
    file_index: NDArray[np.int32],
    offsets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    out_offsets: NDArray[np.int64],
) -> list[tuple[int, int, int, int]]:
    """Neighbouring ranges that continue each other in file and buffer, as one: (file, offset, length, out offset)."""
    if not len(offsets):
        return []
    breaks = (
        (file_index[1:] != file_index[:-1])
        | (offsets[1:] != offsets[:-1] + lengths[:-1])
        | (out_offsets[1:] != out_offsets[:-1] + lengths[:-1])
    )
    firsts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    totals = np.add.reduceat(lengths, firsts)
    return list(
        zip(
            file_index[firsts].tolist(),
            offsets[firsts].tolist(),
            totals.tolist(),
            out_offsets[firsts].tolist(),
            strict=True,
        )
    )


def _close_all(files: OrderedDict[int, int], pid: int) -> None:
    """In a forked child they are left alone: it may have closed them, and have others of the same numbers."""
    while files and pid == os.getpid():
        os.close(files.popitem()[1])


def _open_shards(
    open_many: Callable[[Sequence[str]], list[OpenFile]],
    location: Location,
    files: Sequence[str],
    sizes: Sequence[int],
    indexes: Sequence[int],
) -> list[OpenFile]:
    """The handles of `files[indexes]`, in one request. Raises: NotFound, Corrupt: it is not the dataset it was."""
    try:
        opened = open_many([location.path(files[index]) for index in indexes])
    except NotFound as error:
        raise NotFound(f"{error}; {location.url} lacks a shard: import the dataset again") from None
    for index, handle in zip(indexes, opened, strict=True):
        _check_size(location.show(files[index]), int(handle.length), sizes[index])
    return opened


def _check_size(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise Corrupt(f"shard {name} has {found} bytes, its manifest says {expected}; import the dataset again")


def _short(name: str, at: int, expected: int) -> Corrupt:
    return Corrupt(f"shard {name} ends at byte {at}, its manifest says {expected}; import the dataset again")
