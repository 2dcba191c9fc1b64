"""The files that a benchmark reads, in a directory of its own, which it takes away again."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable

from fs3.bench.job import Job
from fs3.client.connect import Client
from fs3.errors import Fs3Error
from fs3.layout import LayoutChoice

_PIECE = 4 << 20


class Dataset:
    """A fresh directory in `parent`, and its files."""

    def __init__(self, client: Client, parent: str, job: Job, layout: LayoutChoice | None = None) -> None:
        """Raises: NotFound, NotADirectory, PermissionDenied, ..."""
        self.path = f"{parent.rstrip('/')}/.fs3-bench-{secrets.token_hex(4)}"
        self._client = client
        self._job = job
        client.meta.mkdir(self.path, layout=layout)

    @property
    def paths(self) -> list[str]:
        return [f"{self.path}/{number:04}" for number in range(self._job.files)]

    def lay_out(self, written: Callable[[int], None]) -> None:
        """Write the files; `written` hears of each piece of so many bytes. Raises: Fs3Error."""
        piece = random.Random(1).randbytes(_PIECE)
        for path in self.paths:
            with self._client.files.create_writer(path) as writer:
                for at in range(0, self._job.file_bytes, _PIECE):
                    part = memoryview(piece)[: min(_PIECE, self._job.file_bytes - at)]
                    writer.write(part)
                    written(len(part))

    def remove(self) -> None:
        """All of it goes. Raises: Fs3Error, with what is left."""
        try:
            self._client.meta.remove(self.path, recursive=True)
        except Fs3Error as error:
            raise type(error)(f"{self.path} is left, remove it by hand: {error}") from error
