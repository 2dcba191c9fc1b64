"""The lowest sequence number that the metadata of an engine may open with: what it is known to have synced.

RocksDB takes a log that is gone for one that was never there, and begins without the updates in it, though others rely
on them. So what was synced is noted in a file beside it: after the sync, and without one of its own. Such a note may be
behind what is durable, which is harmless, and never in front of it, which would condemn a good disk.
"""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path

from fs3 import checksum

_LOG = logging.getLogger("fs3.storage")
_NOTE = struct.Struct("<QI")  # the number, crc32c of its 8 bytes


class SequenceFloor:
    """The note in file `path`, which is made where there is none."""

    def __init__(self, path: Path) -> None:
        """Raises: OSError."""
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._tells = True
        self.number = _read(path, self._file)

    def synced(self, number: int) -> None:
        """All up to `number` are on stable storage. Never raises: an old note only sees less."""
        if number <= self.number:
            return
        try:
            os.pwrite(self._file, pack_number(number), 0)
            self.number = number
        except OSError as error:
            if self._tells:
                _LOG.warning("%s: %s; logs that go missing later may not be noticed", self._path, error.strerror)
            self._tells = False

    def close(self) -> None:
        os.close(self._file)


def _read(path: Path, file: int) -> int:
    """0 where nothing, or no note, is there."""
    raw = os.pread(file, _NOTE.size, 0)
    if not raw:
        return 0
    if (number := unpack_number(raw)) is not None:
        return number
    _LOG.warning("%s: damaged, and begun anew; a log that is missing now is not noticed", path)
    return 0


def pack_number(number: int) -> bytes:
    """A number with its sum."""
    raw = number.to_bytes(8, "little")
    return raw + checksum.crc(raw).to_bytes(4, "little")


def unpack_number(raw: bytes) -> int | None:
    """None if it does not match its sum, or is too short."""
    if len(raw) < _NOTE.size:
        return None
    number, crc = _NOTE.unpack_from(raw)
    return int(number) if crc == checksum.crc(raw[:8]) else None
