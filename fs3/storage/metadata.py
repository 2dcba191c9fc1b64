"""The chunk records of an engine in RocksDB: keys, values, atomic batches, and refusing a damaged log.

Keys, all integers big-endian so that chunks sort by target and id:

    C target u32, chunk id 16 B         the committed version, or the tombstone of a removal
    P target u32, chunk id 16 B         the pending version
    X target u32, chunk id 16 B         the committed version whose bytes are known to fail their sums
    D target u32, client u64, channel u32   the result of the channel's last update
    S target u32, name                  the write path's own state of a target
    T target u32                        a target

Values are fixed-size, little-endian structs; docs/formats.md has them, tests/golden holds bytes.

rocksdict 0.3.29, what to know: `write(batch)` holds the GIL, so it goes unsynced and `flush_wal(True)`, which does not,
makes it durable. The default recovery silently drops everything after a flipped bit in the log: the mode set here
refuses, and only a torn tail, which no acknowledged batch can be part of, is cut off. No mode misses a log that is
gone (the option that would is not to be had): see sequence_floor.py. `items()` silently ends at a
damaged table block (630 of 2,000 records were returned): `scan` asks an iterator's status where it ended. An iterator
reads its upper bound from the ReadOptions that it was made with, and does not keep them: they must outlive it, or it
ends wherever the memory that was the bound says. `close()` flushes without the GIL, and whoever reads meanwhile gets
errors of other kinds; an iterator that is alive keeps the store locked, so that it cannot be opened again: readers are
inside a gate, and leave no iterator behind. A store that met a full disk takes nothing more until it is opened again,
which needs room of its own, for tables of what is in the logs. Opening it to read needs none: it reads the logs into
memory, and writes nothing.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import struct
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from rocksdict import AccessType, BlockBasedOptions, Cache, DBRecoveryMode, Options, Rdict, ReadOptions, WriteBatch

from fs3 import ids
from fs3.errors import Corrupt, Fs3Error, NoSpace, Unavailable
from fs3.storage.gate import Gate
from fs3.storage.raw_file import sync_folder
from fs3.storage.sequence_floor import SequenceFloor

Put = tuple[bytes, bytes | None]  # key, value; None deletes

_LOG = logging.getLogger("fs3.storage")

COMMITTED, PENDING, DAMAGED, RESULT_OF, STATE, TARGET = b"C", b"P", b"X", b"D", b"S", b"T"

FLAG_REMOVED = 1  # a tombstone (committed), or a removal to come (pending)
FLAG_OS = 2  # written without syncs: after a power loss its sums must be checked before it is believed

CHUNK = np.dtype(
    [
        ("format", "u1"),
        ("flags", "u1"),
        ("reserved", "<u2"),
        ("chain_version", "<u4"),
        ("version", "<u8"),
        ("length", "<u4"),
        ("file", "<i4"),  # -1: no block (a removal, or no bytes)
        ("slot", "<u4"),
        ("crc", "<u4"),  # of the coarse sums
    ]
)
PENDING_CHUNK = np.dtype(
    [
        *[(name, CHUNK[name]) for name in CHUNK.names or ()],
        ("client", "<u8"),
        ("seq", "<u8"),
        ("channel", "<u4"),
        ("reserved_2", "<u4"),
    ]
)
CHUNK_KEY = np.dtype([("kind", "S1"), ("target", ">u4"), ("hi", ">u8"), ("lo", ">u8")])
_CHUNK = struct.Struct("<BBHIQIiII")
_ORIGIN = struct.Struct("<QQII")
_FORMAT = 1
_ROOM_BYTES = 4 << 20  # what opening may need beyond as much as is in the logs
_RESULT = struct.Struct("<QQIHH")  # seq, version, length, status, reserved
_RESULT_KEY = struct.Struct(">4xQI")
_TARGET = struct.Struct("<II")  # chain, reserved
_U32 = struct.Struct(">I")
_U64 = struct.Struct("<Q")
assert CHUNK.itemsize == _CHUNK.size == 32
assert CHUNK_KEY.itemsize == 21
assert PENDING_CHUNK.itemsize == 56


class Version(NamedTuple):
    """One version of a chunk, as its record has it."""

    version: int
    chain_version: int
    length: int
    file: int  # -1: no block
    slot: int
    crc: int
    flags: int
    client: int = 0  # of a pending version: whose update it is, so that its result is recorded whoever commits it
    channel: int = 0
    seq: int = 0

    @property
    def removed(self) -> bool:
        return bool(self.flags & FLAG_REMOVED)

    def pack(self) -> bytes:
        return _CHUNK.pack(
            _FORMAT,
            self.flags,
            0,
            self.chain_version,
            self.version,
            self.length,
            self.file,
            self.slot,
            self.crc,
        )

    def pack_pending(self) -> bytes:
        return self.pack() + _ORIGIN.pack(self.client, self.seq, self.channel, 0)


def unpack_version(raw: bytes) -> Version:
    """Raises: Corrupt."""
    if len(raw) != _CHUNK.size or raw[0] != _FORMAT:
        raise Corrupt(f"chunk record of format {raw[0] if raw else 'none'}; this fs3 reads format {_FORMAT}")
    _, flags, _, chain_version, version, length, file, slot, crc = _CHUNK.unpack(raw)
    return Version(version, chain_version, length, file, slot, crc, flags)


def unpack_pending(raw: bytes) -> Version:
    """Raises: Corrupt."""
    if len(raw) != PENDING_CHUNK.itemsize:
        raise Corrupt(f"pending chunk record of {len(raw)} bytes; this fs3 reads {PENDING_CHUNK.itemsize}")
    client, seq, channel, _ = _ORIGIN.unpack_from(raw, _CHUNK.size)
    return unpack_version(raw[: _CHUNK.size])._replace(client=client, channel=channel, seq=seq)


def target_prefix(kind: bytes, target: int) -> bytes:
    return kind + _U32.pack(target)


def chunk_key(kind: bytes, target: int, hi: int, lo: int) -> bytes:
    return kind + _U32.pack(target) + ids.chunk_bytes(hi, lo)


def result_key(target: int, client: int, channel: int) -> bytes:
    return RESULT_OF + _U32.pack(target) + client.to_bytes(8, "big") + _U32.pack(channel)


def unpack_result_key(key: bytes) -> tuple[int, int, int]:
    """(target, client, channel)."""
    client, channel = _RESULT_KEY.unpack(key[1:])
    return _U32.unpack_from(key, 1)[0], client, channel


def pack_result(seq: int, version: int, length: int, status: int) -> bytes:
    return _RESULT.pack(seq, version, length, status, 0)


def unpack_result(raw: bytes) -> tuple[int, int, int, int]:
    """(seq, version, length, status)."""
    seq, version, length, status, _ = _RESULT.unpack(raw)
    return seq, version, length, status


def pack_mark(version: int) -> bytes:
    """The value of a DAMAGED record."""
    return _U64.pack(version)


def unpack_mark(raw: bytes) -> int:
    version: int = _U64.unpack(raw)[0]
    return version


def pack_target(chain_id: int) -> bytes:
    return _TARGET.pack(chain_id, 0)


def unpack_target(raw: bytes) -> int:
    """The chain's id."""
    chain: int = _TARGET.unpack(raw)[0]
    return chain


def _up_to(prefix: bytes) -> ReadOptions:
    """Options of an iterator that ends where the keys of `prefix` do."""
    options = ReadOptions()
    above = prefix.rstrip(b"\xff")
    if above:
        options.set_iterate_upper_bound(above[:-1] + bytes([above[-1] + 1]))
    return options


class MetadataStore(Protocol):
    """What an engine asks of its metadata; the methods of `Metadata`, whose docstrings hold for every store."""

    @property
    def damage(self) -> Corrupt | None: ...
    def apply(self, puts: Iterable[Put]) -> None: ...
    def sync(self) -> None: ...
    def reopen(self) -> None: ...
    def get(self, key: bytes) -> bytes | None: ...
    def scan(self, prefix: bytes, start: bytes = b"", limit: int = sys.maxsize) -> list[tuple[bytes, bytes]]: ...
    def close(self) -> None: ...


class Metadata:
    """The store of one engine. `apply` and `sync` are for one thread (commit.py), reading is for any."""

    def __init__(self, path: Path, *, write_buffer_bytes: int) -> None:
        """Raises: Corrupt, Unavailable (in use, or unreadable)."""
        self._path = path
        self._write_buffer_bytes = write_buffer_bytes
        self._damage: Corrupt | None = None
        self._gate = Gate()  # readers are inside; alone is who closes the store
        self._applied = 0  # the number of the last update that was taken
        self._reads_only = False  # for want of room
        try:
            self._floor = SequenceFloor(path.parent / "SYNCED")
        except OSError as error:
            raise Unavailable(f"{path.parent / 'SYNCED'}: {error.strerror}; the daemon must write there") from None
        try:
            self._db = self._open()
        except BaseException:
            self._floor.close()
            raise

    def _open(self, *, reads_only: bool = False) -> Rdict:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
        options.set_paranoid_checks(True)
        options.set_write_buffer_size(self._write_buffer_bytes)
        options.set_max_total_wal_size(4 * self._write_buffer_bytes)
        options.set_max_background_jobs(2)
        options.set_keep_log_file_num(4)
        options.set_max_log_file_size(4 << 20)
        tables = BlockBasedOptions()
        tables.set_bloom_filter(10, False)
        tables.set_block_cache(Cache(16 << 20))
        options.set_block_based_table_factory(tables)
        access = AccessType.read_only(False) if reads_only else AccessType.read_write()
        try:
            db = Rdict(str(self._path), options, access_type=access)
        except Exception as error:  # noqa: BLE001 (rocksdict raises nothing more exact)
            raise self._error(error, "cannot be opened") from None
        if (number := db.latest_sequence_number()) < self._floor.number:
            db.close()
            raise self._damaged(f"it ends at update {number} and had synced {self._floor.number}: a log is gone")
        return db

    def _error(self, error: Exception, what: str) -> Fs3Error:
        text = str(error)
        if "Corruption" in text or "No such file" in text:
            return self._damaged(text)
        if "No space" in text or "quota exceeded" in text:
            return NoSpace(f"metadata in {self._path} {what}: the disk is full; remove data or add a disk")
        return Unavailable(f"metadata in {self._path} {what}: {text}")

    def _damaged(self, how: str) -> Corrupt:
        text = (
            f"metadata in {self._path} is damaged ({how}); nothing was dropped or changed. Its chunks are on the "
            f"other replicas: move this disk's folder away and start again, and recovery refills it"
        )
        # Not the one that is raised: its traceback would keep iterators, and with them the store's lock.
        self._damage = self._damage or Corrupt(text)
        return Corrupt(text)

    @property
    def damage(self) -> Corrupt | None:
        """What was first found damaged, by whichever call; None while all is well."""
        return self._damage

    def apply(self, puts: Iterable[Put]) -> None:
        """One atomic batch, not yet durable. Raises: NoSpace, Unavailable, Corrupt."""
        batch = WriteBatch(raw_mode=True)
        for key, value in puts:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        try:
            self._db.write(batch)
        except Exception as error:  # noqa: BLE001
            raise self._error(error, "cannot be written") from None
        self._applied = self._db.latest_sequence_number()

    def sync(self) -> None:
        """Every batch applied so far is on stable storage after this. Raises: NoSpace, Unavailable, Corrupt."""
        try:
            number = self._db.latest_sequence_number()
            self._sync_logs() if self._reads_only else self._db.flush_wal(True)
        except Exception as error:  # noqa: BLE001
            raise self._error(error, "cannot be synced") from None
        self._floor.synced(number)

    def _sync_logs(self) -> None:
        """Raises: OSError."""
        for log in self._path.glob("*.log"):
            file = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        sync_folder(self._path)

    def reopen(self) -> None:
        """After an error of writing: a store that met one takes no more. Readers wait. The batch that failed, or whose
        sync did, is in the store afterwards or will never be; all before it are.

        Raises: NoSpace: there is only room to read. So it is open, can be read and synced, and must be opened again
            before anything is applied. Unavailable, Corrupt: it may be closed.
        """
        room = self._has_room()
        if room or not self._reads_only:
            with self._gate.alone():
                self._close_db()
                room = room and self._opened_to_write()
                if not room:
                    self._db = self._open(reads_only=True)
        self._reads_only = not room
        number, before = self._db.latest_sequence_number(), self._applied
        if number < before:
            raise Unavailable(f"metadata in {self._path} lost its last {before - number} updates as the disk filled up")
        self._applied = number
        if not room:
            raise NoSpace(f"metadata in {self._path} cannot be written: the disk is full; make room on it")

    def _has_room(self) -> bool:
        """Whether the store can be opened to write; the disk itself is asked, as quotas count too."""
        try:
            logs = sum(log.stat().st_size for log in self._path.glob("*.log"))
            with tempfile.TemporaryFile(dir=self._path.parent) as file:
                os.posix_fallocate(file.fileno(), 0, logs + _ROOM_BYTES)
        except OSError as error:
            return error.errno not in (errno.ENOSPC, errno.EDQUOT)  # any other is told by the opening
        return True

    def _opened_to_write(self) -> bool:
        """False: somebody has taken the room meanwhile. Raises: as the constructor."""
        try:
            self._db = self._open()
        except NoSpace:
            return False
        return True

    def get(self, key: bytes) -> bytes | None:
        """Raises: Corrupt, Unavailable."""
        with self._gate:
            try:
                value: bytes | None = self._db.get(key)
            except Exception as error:  # noqa: BLE001
                raise self._error(error, "cannot be read") from None
        return value

    def scan(self, prefix: bytes, start: bytes = b"", limit: int = sys.maxsize) -> list[tuple[bytes, bytes]]:
        """The first `limit` (key, value) of `prefix` from key `prefix + start` on, in order.

        Raises: Corrupt, Unavailable.
        """
        if limit <= 0:
            return []
        begin = prefix + start
        options = _up_to(prefix)
        pairs = iterator = None
        with self._gate:
            try:
                pairs = cast(Any, self._db.items(from_key=begin, read_opt=options))
                found: list[tuple[bytes, bytes]] = list(itertools.islice(pairs, limit))
                if len(found) < limit:  # the end of the prefix, or of what can be read
                    iterator = self._db.iter(options)
                    iterator.seek(found[-1][0] if found else begin)
                    if found and iterator.valid():
                        iterator.next()
                    iterator.status()
            except Exception as error:  # noqa: BLE001
                raise self._error(error, "cannot be read") from None
            finally:
                pairs = iterator = None  # inside the gate; the frame may live on in an error's traceback
        return found

    def close(self) -> None:
        """Never raises: what the last flush could not write is in the log, and an earlier error is told once more."""
        with self._gate.alone():
            self._close_db()
        self._floor.close()

    def _close_db(self) -> None:
        try:
            self._db.close()
        except Exception as error:  # noqa: BLE001
            _LOG.warning("closing metadata in %s: %s", self._path, error)
