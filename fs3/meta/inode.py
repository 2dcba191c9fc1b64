"""Inodes in the store: a format byte and the protobuf message; what happens when the last name of one goes.

A directory's mtime does not lie in its inode but under a key of its own, which every change in the directory puts
blindly: two creates in one directory so never conflict with each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from fs3.errors import Corrupt
from fs3.ids import InodeId
from fs3.inode import Inode, InodeType, inode_from_pb, inode_to_pb
from fs3.kv import keys
from fs3.kv.api import Transaction
from fs3.meta import session
from fs3.meta.dentry import Dentry
from fs3.meta.quota import Charges
from fs3.pb import meta_pb2

_FORMAT = b"\x01"


def encode(inode: Inode) -> bytes:
    message: bytes = inode_to_pb(inode).SerializeToString(deterministic=True)
    return _FORMAT + message


def decode(value: bytes) -> Inode:
    """Raises: Corrupt."""
    message = meta_pb2.Inode()
    decode_into(message, value)
    try:
        return inode_from_pb(message)
    except ValueError as error:
        raise Corrupt(f"an inode record cannot be read: {error}") from None


def decode_into(message: meta_pb2.Inode, value: bytes) -> None:
    """Fill an empty message, as of a reply; batches are answered so, without an `Inode` in between. Raises: Corrupt."""
    if value[:1] != _FORMAT:
        raise Corrupt(f"an inode record has format {value[:1].hex() or 'none'}, this fs3 reads format 01")
    try:
        message.MergeFromString(value[1:])
    except DecodeError as error:
        raise Corrupt(f"an inode record cannot be read: {error}") from None


async def load(txn: Transaction, inode_id: int, *, snapshot: bool = False) -> Inode:
    """The inode as stored (a directory's mtime is its creation's; see `load_stat`). Raises: Corrupt if it is gone."""
    return decode(_there(inode_id, await txn.get(keys.inode(inode_id), snapshot=snapshot)))


async def load_values(txn: Transaction, inode_ids: Sequence[int], *, snapshot: bool = False) -> list[bytes]:
    """The inodes as stored (see `decode_into`), in order. Raises: Corrupt if one is gone."""
    values = await txn.get_many([keys.inode(inode_id) for inode_id in inode_ids], snapshot=snapshot)
    return [_there(inode_id, value) for inode_id, value in zip(inode_ids, values, strict=True)]


async def load_stats_into(
    txn: Transaction, wanted: Sequence[tuple[Dentry, meta_pb2.Inode]], *, snapshot: bool = False
) -> None:
    """Fill each message with the inode as a user sees it. Raises: Corrupt."""
    values = await load_values(txn, [entry.inode_id for entry, _ in wanted], snapshot=snapshot)
    for (_, message), value in zip(wanted, values, strict=True):
        decode_into(message, value)
    directories = [message for entry, message in wanted if entry.type is InodeType.DIRECTORY]
    if not directories:
        return
    stamps = await txn.get_many([keys.stamp(message.inode_id) for message in directories], snapshot=snapshot)
    for message, stamp in zip(directories, stamps, strict=True):
        if stamp is not None:
            message.mtime_ns = int.from_bytes(stamp, "big")


async def load_stat(txn: Transaction, inode_id: int, *, snapshot: bool = False) -> Inode:
    """The inode as a user sees it, with the time of a directory's last change."""
    inode = await load(txn, inode_id, snapshot=snapshot)
    if not inode.is_directory:
        return inode
    stamp = await txn.get(keys.stamp(inode_id), snapshot=snapshot)
    return inode if stamp is None else inode._replace(mtime_ns=int.from_bytes(stamp, "big"))


def store(txn: Transaction, inode: Inode) -> None:
    txn.put(keys.inode(inode.inode_id), encode(inode))


def store_message(txn: Transaction, message: meta_pb2.Inode) -> None:
    txn.put(keys.inode(message.inode_id), encode_message(message))


def encode_message(message: meta_pb2.Inode) -> bytes:
    encoded: bytes = message.SerializeToString(deterministic=True)
    return _FORMAT + encoded


def stamp_directory(txn: Transaction, directory: InodeId, now_ns: int) -> None:
    """Note that an entry of `directory` changed."""
    txn.put(keys.stamp(directory), now_ns.to_bytes(8, "big"))


def changed(inode: Inode, now_ns: int) -> Inode:
    """As after a change of the inode itself: its ctime rises, also where another daemon's clock was ahead."""
    return inode._replace(ctime_ns=max(now_ns, inode.ctime_ns + 1), version=inode.version + 1)


async def drop_name(txn: Transaction, inode: Inode, now_ns: int, charges: Charges) -> None:
    """One name of a file or symlink is gone; with the last one it dies, and a file's chunks wait for collection.

    A file that is being written lives on without a name until its session ends; no quota counts it then.
    """
    if inode.nlink > 1:
        store(txn, changed(inode, now_ns)._replace(nlink=inode.nlink - 1, lost_name=True))
        return
    charges.release(inode)
    if inode.rewritten and await session.load(txn, inode.inode_id) is not None:
        store(txn, changed(inode, now_ns)._replace(nlink=0, quotas=()))
    elif inode.is_file:
        queue(txn, inode)
    else:
        _forget(txn, inode)


def end_session(txn: Transaction, inode: Inode) -> None:
    """Nobody writes the file any more; if it has no name, it dies."""
    session.end(txn, inode.inode_id)
    if not inode.nlink:
        queue(txn, inode)


async def drop_empty_directory(txn: Transaction, inode_id: int, charges: Charges) -> None:
    """The only name of an empty directory is gone; conflicts with whoever is changing the directory's attributes."""
    directory = await load(txn, inode_id)
    charges.release(directory)
    _forget(txn, directory)
    forget_listing(txn, directory.inode_id)


def forget_listing(txn: Transaction, directory: int) -> None:
    """What is kept of a directory beside its inode and entries, which are gone, goes too."""
    txn.delete(keys.stamp(directory))
    txn.delete(keys.listing(directory))


def queue(txn: Transaction, inode: Inode) -> None:
    """Hand an inode, which nothing names and no quota counts any more, to the collector."""
    _forget(txn, inode)
    txn.put(keys.gc_queue(inode.inode_id), encode(inode._replace(quota=0, quotas=())))


async def drop_tree(txn: Transaction, inode: Inode, now_ns: int, charges: Charges) -> None:
    """One name of anything is gone; the collector takes apart what is in a directory, which counts until then."""
    if inode.is_directory:
        charges.release(inode)
        queue(txn, inode)
    else:
        await drop_name(txn, inode, now_ns, charges)


def _forget(txn: Transaction, inode: Inode) -> None:
    """The inode's record goes, and with it its extended attributes: each is written together with the inode."""
    txn.delete(keys.inode(inode.inode_id))
    if inode.xattr_bytes:
        txn.delete_range(*keys.xattrs(inode.inode_id))


def known_length(inode: Inode) -> int | None:
    """How far the chunks of a dead file can reach, or None if nobody was told."""
    return inode.length if inode.nlink and not inode.rewritten else None


def _there(inode_id: int, value: bytes | None) -> bytes:
    if value is None:
        raise Corrupt(f"a directory entry names inode {inode_id}, which does not exist")
    return value
