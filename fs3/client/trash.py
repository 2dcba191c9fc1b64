"""The trash, as a client sees it: a part of `fs3.client.meta.MetaClient`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fs3.client.meta_calls import MetaCalls
from fs3.errors import Invalid
from fs3.inode import Inode, inode_from_pb
from fs3.pb import meta_pb2

TRASH = "/.trash"
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Trashed:
    """Something in the trash: the name of its entry in `TRASH`, the path that it had, and how long it stays.

    It is due at `expires_ns`, by the clock of the meta daemon that took it, and goes for good some minutes later.
    `uid` is that of who removed it, if it is known.
    """

    name: str
    path: str
    removed_ns: int
    expires_ns: int
    inode: Inode
    client_id: int = 0
    uid: int | None = None


class TrashCalls(MetaCalls):
    """Removing so that it can be undone."""

    def trash(self, path: str, *, keep_s: float | None = None, timeout_s: float | None = None) -> Trashed:
        """Move a file, symlink or directory with all that is in it into the trash, for `keep_s` (three days).

        Raises: NotFound, NotADirectory, NotPermitted (the trash itself); Invalid: the root, or in the trash already.
        """
        if keep_s is not None and not 1 <= keep_s < 1 << 32:
            raise Invalid(f"{path}: cannot be kept for {keep_s} s; at least 1 s")
        keep = 0 if keep_s is None else int(keep_s)
        return _trashed(self._change("Trash", meta_pb2.TrashRequest, timeout_s, path=path, keep_s=keep).trashed)

    def list_trash(self, *, page: int = _PAGE, timeout_s: float | None = None) -> Iterator[list[Trashed]]:
        """What is in the trash, what is due first comes first, in pages; the deadline is a page's."""
        after = ""
        while True:
            reply = self._call("ListTrash", meta_pb2.ListTrashRequest, timeout_s, after=after, limit=page)
            yield [_trashed(one) for one in reply.trashed]
            if not reply.more:
                return
            after = reply.after

    def restore_trash(self, name: str, target: str = "", *, timeout_s: float | None = None) -> str:
        """Move the entry of that name back to where it was, or to `target`, which is free; the path that it has then.

        Raises: NotFound: no such entry, or the directory that it goes to is missing; Exists, NotADirectory, Invalid.
        """
        request = meta_pb2.RestoreTrashRequest
        return str(self._change("RestoreTrash", request, timeout_s, name=name, target=target).path)

    def empty_trash(
        self, name: str = "", *, removed_before_ns: int | None = None, timeout_s: float | None = None
    ) -> int:
        """Remove for good: all, what was removed before a time, or the entry of that name; how many entries.

        It goes on in parts, each under the deadline; what comes meanwhile may go or not. Raises: NotFound.
        """
        removed, after = 0, ""
        while True:
            reply = self._change(
                "EmptyTrash",
                meta_pb2.EmptyTrashRequest,
                timeout_s,
                name=name,
                removed_before_ns=removed_before_ns,
                after=after,
            )
            removed += int(reply.removed)
            if not reply.more:
                return removed
            after = reply.after


def _trashed(told: meta_pb2.Trashed) -> Trashed:
    record = told.record
    inode = inode_from_pb(told.inode)
    uid = record.uid if record.HasField("uid") else None
    return Trashed(told.name, record.path, record.removed_ns, told.expires_ns, inode, record.client_id, uid)
