"""fsspec's transactions: the files written in one appear together when it ends, or none of them."""

from __future__ import annotations

from typing import Any

from fsspec.transaction import Transaction

from fs3.client.meta_files import FILES_AT_ONCE
from fs3.errors import TooLarge
from fs3.filesystem.files import WriteFile
from fs3.filesystem.os_errors import os_errors


class Fs3Transaction(Transaction):  # type: ignore[misc]
    """`with fs.transaction:`; of two files of one name the later counts. What removes and renames is not deferred.

    Raises at its end, with nothing published:
        OSError: TooLarge, more files than the metadata store takes at once: 512, on etcd fewer.
        FileExistsError, FileNotFoundError, ...: as when a single file is closed.
    """

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
        if len(last) > FILES_AT_ONCE:
            with os_errors():
                raise TooLarge(f"a transaction of {len(last)} files; one has up to {FILES_AT_ONCE}")
        if not last:
            return
        with os_errors():
            publishes = [file.writer.finish() for file in last.values()]
            inodes = fs.client.meta.publish_files(publishes)
        for file, inode in zip(last.values(), inodes, strict=True):
            file.published(inode)
