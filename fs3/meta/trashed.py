"""The trash: the directory /.trash, and a record of where each entry of it was, found by when it is due.

    DENT <.trash> "<expires>-<number>-<old name>"     the entry, as in any other directory
    TRSH <expires> <number>                           its record: where it was, when it was removed, by whom

Both are made together, and whoever takes the entry away (`fs3.meta.moving.take`), be it by hand, takes the record too.
What somebody puts into the directory by hand has no record, is not trash, and stays; so does the directory itself. The
number is drawn as those of inodes are, and is no inode's: an inode may have several names in the trash.
"""

from __future__ import annotations

import re

from google.protobuf.message import DecodeError

from fs3.errors import Corrupt, NotADirectory, NotPermitted
from fs3.ids import ROOT_INODE, InodeId
from fs3.inode import InodeType
from fs3.kv import keys
from fs3.kv.api import Transaction
from fs3.meta import dentry
from fs3.meta.dentry import MAX_NAME_BYTES
from fs3.meta.path import Place
from fs3.pb import meta_pb2

NAME = b".trash"
PATH = "/.trash"
MODE = 0o1777

_FORMAT = b"\x01"
_ENTRY = re.compile(rb"([0-9]{1,19})-([0-9]{1,19})-", re.ASCII)


def entry_name(key: bytes, record: meta_pb2.TrashRecord) -> bytes:
    """What the entry behind a record is called: as much of the old name as fits, in whole characters."""
    expires_s, number = keys.trash_of(key)
    begin = b"%d-%d-" % (expires_s, number)
    old = record.path.rpartition("/")[2].encode()
    return begin + old[: MAX_NAME_BYTES - len(begin)].decode(errors="ignore").encode()


def key_of(name: bytes) -> bytes | None:
    """The key of the record that an entry of this name would have, or None if it can have none."""
    found = _ENTRY.match(name)
    return None if found is None else keys.trash(int(found[1]), int(found[2]))


def encode(record: meta_pb2.TrashRecord) -> bytes:
    message: bytes = record.SerializeToString(deterministic=True)
    return _FORMAT + message


def decode(value: bytes) -> meta_pb2.TrashRecord:
    """Raises: Corrupt."""
    record = meta_pb2.TrashRecord()
    try:
        if value[:1] != _FORMAT:
            raise Corrupt(f"a record of the trash has format {value[:1].hex() or 'none'}, this fs3 reads format 01")
        record.MergeFromString(value[1:])
    except DecodeError as error:
        raise Corrupt(f"a record of the trash cannot be read: {error}") from None
    return record


async def load(txn: Transaction, name: bytes, *, snapshot: bool = False) -> tuple[bytes, meta_pb2.TrashRecord] | None:
    """The record of the entry of this name and its key, or None if there is none."""
    key = key_of(name)
    value = None if key is None else await txn.get(key, snapshot=snapshot)
    if key is None or value is None:
        return None
    record = decode(value)
    return (key, record) if entry_name(key, record) == name else None


async def directory(txn: Transaction, *, snapshot: bool = False) -> InodeId | None:
    """The inode of /.trash, or None before the first use. Raises: NotADirectory: it is something else."""
    entry = await dentry.load(txn, ROOT_INODE, NAME, snapshot=snapshot)
    if entry is None:
        return None
    if entry.type is not InodeType.DIRECTORY:
        raise NotADirectory(f"{PATH}: is a {entry.type.name.lower()}, and has to be a directory; move it away")
    return entry.inode_id


def inside(place: Place) -> bool:
    """Whether `place` is below /.trash."""
    return place.above[:1] == (NAME,)


def check_stays(place: Place, path: str) -> None:
    """Raises: NotPermitted if `place` is /.trash itself, which is not moved, removed or replaced."""
    if place.name == NAME and not place.above and place.dentry and place.dentry.type is InodeType.DIRECTORY:
        raise NotPermitted(f"{path}: is the trash, and stays; `fs3 trash empty` removes what is in it")


async def forget(txn: Transaction, place: Place) -> None:
    """The name at `place` goes; if it is an entry of the trash, so does its record."""
    found = await load(txn, place.name) if place.above == (NAME,) else None
    if found is not None:
        txn.delete(found[0])
