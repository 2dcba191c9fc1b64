"""Memory of an application's that an I/O process reads into and writes from, and the files that it reads."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fs3.client.file import OpenFile
from fs3.errors import Invalid
from fs3.usrbio import control
from fs3.usrbio.memory import SharedMemory

if TYPE_CHECKING:
    import torch

_numbers = itertools.count(1)


def next_number() -> int:
    """By which an I/O process knows a piece of memory, or a set of files, of this process's."""
    return next(_numbers)


class FileSet(Protocol):
    """Files as a batch names them."""

    @property
    def number(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def __len__(self) -> int: ...
    def message(self, first: int, last: int) -> dict[str, Any]:
        """What tells the I/O process of those from `first` to before `last`."""


class Mapping(Protocol):
    """An I/O process that has mapped an `Iov`, as the application sees it."""

    def forget(self, iov: Iov) -> None:
        """Have it unmapped. Called by any thread."""


class Iov:
    """Shared memory of `nbytes` at least, its pages already there, huge ones if the machine gives them.

    What reads into it, or writes from it, needs no copy; a view of it stays good as long as somebody holds it, also
    after `close`.
    """

    def __init__(self, nbytes: int) -> None:
        """Raises: NoSpace: the machine has not so much to spare; Invalid."""
        if nbytes < 1:
            raise Invalid(f"shared memory of {nbytes} bytes: there must be at least one")
        self.number = next_number()
        self._lent: set[tuple[int, int]] = set()  # to which batches of which rings
        self._mappings: weakref.WeakSet[Mapping] = weakref.WeakSet()
        self._memory = SharedMemory.make(nbytes, "fs3-iov")
        self.nbytes = self._memory.size
        self.address = int(np.frombuffer(self._memory.view, dtype=np.uint8).ctypes.data)

    @property
    def view(self) -> memoryview:
        """All of it, writable."""
        self._check()
        return self._memory.view

    @property
    def descriptor(self) -> int:
        """The file it lies in."""
        self._check()
        return self._memory.descriptor

    def array(self, dtype: DTypeLike = np.uint8, shape: Sequence[int] | int = -1, offset: int = 0) -> NDArray[Any]:
        """A part of it as an array, without a copy. Raises: Invalid: it has not so many bytes."""
        kind = np.dtype(dtype)
        try:
            if shape == -1:
                return np.frombuffer(self.view, kind, (self.nbytes - offset) // kind.itemsize, offset)
            return np.ndarray(shape, kind, self.view, offset)
        except (TypeError, ValueError) as error:
            raise Invalid(f"no array of {kind}, {shape} at {offset} in {self.nbytes} bytes: {error}") from None

    def tensor(self) -> torch.Tensor:
        """All of it as a uint8 tensor [nbytes], without a copy."""
        import torch

        return torch.frombuffer(self.view, dtype=torch.uint8)

    def place_of(self, memory: memoryview) -> int | None:
        """Where in it `memory` begins, if all of `memory` lies in it."""
        if not len(memory) or self.closed:
            return None
        at = int(np.frombuffer(memory, dtype=np.uint8).ctypes.data) - self.address
        return at if 0 <= at <= self.nbytes - memory.nbytes else None

    def lend(self, ring: object, batch: int) -> None:
        """A batch reads into it, or writes from it, from now on."""
        self._lent.add((id(ring), batch))

    def take_back(self, ring: object, batch: int) -> None:
        """It no longer does."""
        self._lent.discard((id(ring), batch))

    def mapped_by(self, mapping: Mapping) -> None:
        """An I/O process has it in its memory from now on."""
        self._mappings.add(mapping)

    @property
    def closed(self) -> bool:
        return self._memory.descriptor < 0

    def close(self) -> None:
        """Have it no more, and no I/O process either. Raises: Invalid: batches that were submitted still use it."""
        if self._lent:
            raise Invalid(f"{len(self._lent)} batches that use this memory are under way: wait for them first")
        self._memory.close()
        for mapping in list(self._mappings):
            mapping.forget(self)

    def __enter__(self) -> Iov:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._lent:
            self.close()

    def _check(self) -> None:
        if self.closed:
            raise Invalid("this shared memory is closed")


class Files(Sequence[OpenFile]):
    """Open files, which ranges name by their place here; more can be added at any time. Nothing to close."""

    def __init__(self, files: Sequence[OpenFile] = ()) -> None:
        self.number = next_number()
        self._files = list(files)

    @property
    def closed(self) -> bool:
        """Never."""
        return False

    def add(self, files: Sequence[OpenFile]) -> int:
        """Put more at the end; the place of the first of them."""
        first = len(self._files)
        self._files += files
        return first

    def message(self, first: int, last: int) -> dict[str, Any]:
        """See `FileSet`."""
        some = [control.file_to_json(file) for file in self._files[first:last]]
        return {"kind": "files", "number": self.number, "first": first, "files": some}

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, place: Any) -> Any:
        return self._files[place]

    def __iter__(self) -> Iterator[OpenFile]:
        return iter(self._files)
