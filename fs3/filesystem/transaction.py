"""fsspec's transactions: the files written in one appear together when it ends, or none of them."""

from __future__ import annotations

from typing import Any

from fsspec.transaction import Transaction

from fs3.client.meta_files import FILES_AT_ONCE
from fs3.errors import TooLarge
from fs3.filesystem.files import WriteFile
from fs3.filesystem.os_errors import os_errors

_ROUNDING = 1e-9  # of a sum of up to 512 shares


class Fs3Transaction(Transaction):  # type: ignore[misc]
    """`with fs.transaction:`; of two files of one name the later counts. What removes and renames is not deferred.

    What it has written cannot be appended to before it ends.

    It has up to 512 files, on etcd up to 40 new ones or 23 that replace others: opening one more raises OSError
    (TooLarge), and so does its end if those in it turn out to be too many for the metadata store.

    Raises at its end, with nothing published:
        OSError: TooLarge.
        FileExistsError, FileNotFoundError, ...: as when a single file is closed.
    """

    def admit(self, file: WriteFile) -> None:
        """A file was opened, and will be one of `files`. Raises: TooLarge: there is no room; the file is given up."""
        shares = {one.path: one.writer.share for one in [*self.files, file] if not one.settled}
        if len(shares) > FILES_AT_ONCE or sum(shares.values()) > 1 + _ROUNDING:
            file.discard()
            raise TooLarge(
                f"{file.path}: the transaction has {len(shares) - 1} files, and the metadata store takes no more at"
                " once; end it and begin another"
            )

    def has(self, path: str) -> bool:
        """Whether it is to publish a file of this name."""
        return any(file.path == path and not file.settled for file in self.files)

    def complete(self, commit: bool = True) -> None:
        """End it: publish all files, or give all of them up."""
        fs = self.fs
        files: list[WriteFile] = [file for file in self.files if not file.settled]
        self.files.clear()
        try:
            if commit:
                self._publish(fs, files)
        finally:
            for file in files:
                file.discard()  # unless it is published
            fs._intrans = False
            fs._transaction = None

    def _publish(self, fs: Any, files: list[WriteFile]) -> None:
        last = {file.path: file for file in files}
        if not last:
            return
        with os_errors():
            publishes = [file.writer.finish() for file in last.values()]
            inodes = fs.client.meta.publish_files(publishes)
        for file, inode in zip(last.values(), inodes, strict=True):
            file.published(inode)
