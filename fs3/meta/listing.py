"""Whether a listing that a client has is still what a fresh one would be.

A directory's validator is its inode id, its stamp (`DSTM`, fs3/meta/inode.py) and the change that `LVER` names. The
stamp tells of every change of the entries. `LVER` is put, without being read, by what alters what a listing with
attributes shows and leaves the stamp as it is, or sets it back; its value is the id of that request, and no other's.

    mkdir, publish, symlink     a new entry, or a replaced one: stamp (the directories that `mkdir` makes are new)
    link                        a new entry: stamp of the target's directory; one more name: LVER of the source's
    rename, remove              stamp of the directories that lost or got the entry
    set_attributes              of a file or symlink: LVER of its directory; a directory's mtime is its stamp, which may
                                so be one that it had before: LVER of the directory itself
    extended attributes         of a file or symlink: LVER of its directory
    open for writing            the file is `rewritten` from now on: LVER of its directory
    create, abandon             nothing that has a name
    the collector               nothing that a path leads to, but for the names of files with several

What is left out is what a validator cannot tell, so a client must not keep a listing that shows it (`may_keep` in
fs3/filesystem/listings.py): an inode with several names may change through another directory, a subdirectory's mtime
changes with its entries, and the length of a file that is, or was, written in place with renewals and syncs, which know
it by number. Whatever makes an inode one of these has to change the validator, as `link` and opening for writing do.
"""

from __future__ import annotations

import struct

from fs3.ids import InodeId
from fs3.kv import keys
from fs3.kv.api import Transaction
from fs3.pb import meta_pb2

_DIRECTORY = struct.Struct(">Q")
_REQUEST = struct.Struct(">QQ")


def changed(txn: Transaction, directory: InodeId, request: meta_pb2.RequestId) -> None:
    """Note that a listing of `directory` shows something else after this request, whose stamp may not tell it."""
    txn.put(keys.listing(directory), _REQUEST.pack(request.client_id, request.request_id))


async def validator(txn: Transaction, directory: InodeId) -> bytes:
    """What tells apart all that listings of `directory` have shown: its inode id, and stamp and LVER if it has them."""
    parts = await txn.get_many([keys.stamp(directory), keys.listing(directory)], snapshot=True)
    return _DIRECTORY.pack(directory) + b"".join(part for part in parts if part is not None)
