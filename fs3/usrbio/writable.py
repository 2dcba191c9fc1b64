"""Files that an application has open for writing, through its I/O process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fs3.errors import Invalid
from fs3.usrbio.iov import next_number

# Asks the I/O process that there is by now; None if there is none.
Ask = Callable[[dict[str, Any]], dict[str, Any] | None]


class WritableFiles:
    """Files that ranges to be written name by their place here. Nobody else can write them until this is closed.

    Use it as a context manager, or close it. When the application dies, so do its write sessions.
    """

    def __init__(self, application: str, ask: Ask, paths: Sequence[str], inode_ids: Sequence[int]) -> None:
        self.number = next_number()
        self.paths = tuple(paths)
        self._application = application
        self._ask = ask
        self._inode_ids = list(inode_ids)
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def __len__(self) -> int:
        return len(self.paths)

    def message(self, first: int, last: int) -> dict[str, Any]:
        """See `FileSet`; a process that does not have the files opens them when it first writes into them."""
        some = list(zip(self.paths, self._inode_ids, strict=True))[first:last]
        return {
            "kind": "writable files",
            "application": self._application,
            "number": self.number,
            "first": first,
            "files": some,
        }

    def sync(self) -> None:
        """Have meta know the files' exact lengths and times; what batches have made longer it knows already.

        Raises: Fs3Error: of the first file that could not be synced.
        """
        self.check()
        self._tell(close=False)

    def close(self) -> None:
        """`sync`, and let others write them; any number of times. Batches under way are waited for.

        Raises: Fs3Error: of the first file that could not be synced; they are all closed nevertheless.
        """
        if not self._closed:
            self._closed = True
            self._tell(close=True)

    def check(self) -> None:
        """Raises: Invalid: they are closed."""
        if self._closed:
            raise Invalid("these files are closed; open them for writing again")

    def __enter__(self) -> WritableFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _tell(self, *, close: bool) -> None:
        self._ask({"kind": "sync", "application": self._application, "paths": list(self.paths), "close": close})
