"""Backups: the whole store as it is at one moment, written to a file here, and fetched from it piece by piece.

A snapshot cannot wait for a slow reader, so it is read at once, into a compressed file without a name, of which one may
be fetched at a time. Left out is what is of no use later: answers to requests, and which daemon collects.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from pathlib import Path
from typing import IO

from fs3 import __version__
from fs3.clock import lease_now_s
from fs3.errors import Busy, NotFound
from fs3.kv import keys
from fs3.kv.api import KVEngine
from fs3.meta.backup_format import BackupHeader, Writer

_PAGE = 2_048
_PIECE_BYTES = 4 << 20
_IDLE_S = 60.0
_END = b"\xff"  # every key begins with a letter
_LEFT_OUT = (keys.IDEMPOTENCY, keys.COLLECTOR)


class Backups:
    """The backups that one daemon hands out: one at a time."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where the file lies; by default where the system keeps temporary files."""
        self._folder = folder
        self._token = 0
        self._file: IO[bytes] | None = None
        self._used_s = 0.0

    async def begin(self, kv: KVEngine, cluster_id: str, now_ns: int) -> tuple[int, int]:
        """Read the store; (the token to fetch the backup by, its bytes).

        Raises: Busy: another one is being made or fetched. Conflict: the store has let its snapshot expire.
        """
        if self._file is not None and lease_now_s() - self._used_s < _IDLE_S:
            raise Busy("another backup is being made or fetched; try again later")
        self._drop()
        self._used_s = lease_now_s()
        self._file = file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # it is kept
        try:
            writer = Writer(BackupHeader(cluster_id, __version__, now_ns))
            txn, at = kv.begin(patient=True), b""
            while True:
                page = await txn.range(at, _END, limit=_PAGE, snapshot=True)
                kept = [pair for pair in page if not pair[0].startswith(_LEFT_OUT)]
                await asyncio.to_thread(_write, file, writer, kept)
                self._used_s = lease_now_s()
                if len(page) < _PAGE:
                    break
                at = page[-1][0] + b"\0"
            file.write(writer.finish())
        except BaseException:
            self._drop()
            raise
        self._token = secrets.randbits(63) + 1
        return self._token, file.tell()

    def piece(self, token: int, offset: int) -> bytes:
        """What of the backup begins at `offset`; b"" at its end, after which it is gone. Raises: NotFound."""
        if self._file is None or token != self._token:
            raise NotFound("this daemon has no such backup, or not any more; begin again")
        self._used_s = lease_now_s()
        self._file.seek(offset)
        data = self._file.read(_PIECE_BYTES)
        if not data:
            self._drop()
        return data

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._token = None, 0


def _write(file: IO[bytes], writer: Writer, pairs: list[tuple[bytes, bytes]]) -> None:
    file.write(writer.pairs(pairs))
