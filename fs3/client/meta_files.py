"""Files that are written: made, published, opened again, synced; a part of `fs3.client.meta.MetaClient`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

from fs3.client.meta_calls import MetaCalls, text
from fs3.errors import TooLarge
from fs3.inode import Inode, inode_from_pb
from fs3.layout import LayoutChoice, choice_to_pb
from fs3.pb import meta_pb2

FILES_AT_ONCE = 512

T = TypeVar("T")

Inodes: TypeAlias = list[Inode]
Numbers: TypeAlias = list[int]


@dataclass(frozen=True, slots=True)
class Publish:
    """A written file, where it is to appear, and how long it is; `replace` an existing file there.

    `inode_id` 0 is an empty file, made when it is published.
    """

    inode_id: int
    path: str
    length: int
    replace: bool = True


@dataclass(frozen=True, slots=True)
class Sync:
    """A file that is being written: its length, None if it is as before; whether bytes changed; whether it is closed.

    `epoch`: how often its session has made it shorter.
    """

    inode_id: int
    length: int | None = None
    written: bool = False
    close: bool = False
    epoch: int = 0


class Written(NamedTuple):
    """How far a file is written, 0 if that is not to be told, and how often its session has made it shorter."""

    length: int = 0
    epoch: int = 0


class Created(NamedTuple):
    """A new file, not visible yet, and which part of what can be published at once it is, at least."""

    inode: Inode
    share: float


class FileCalls(MetaCalls):
    """From a file's first byte to its last, as meta is told of it."""

    _files_at_once = FILES_AT_ONCE  # fewer once meta's store has turned out to take fewer

    def create_files(
        self,
        paths: Sequence[str],
        *,
        layout: LayoutChoice | None = None,
        mode: int = 0o644,
        timeout_s: float | None = None,
    ) -> Inodes:
        """An inode for each path, to be written and then published there; renew them while writing takes long."""

        def create(some: Sequence[str]) -> Inodes:
            reply = self._create(some, layout, mode, timeout_s)
            return [inode_from_pb(inode) for inode in reply.inodes]

        return self._in_parts(paths, create)

    def create_file(self, path: str, *, layout: LayoutChoice | None = None, mode: int = 0o644) -> Created:
        """`create_files` of one, for whoever means to publish it together with others."""
        reply = self._create([path], layout, mode, None)
        return Created(inode_from_pb(reply.inodes[0]), sum(reply.keys) / max(reply.most_keys, 1))

    def _create(
        self, paths: Sequence[str], layout: LayoutChoice | None, mode: int, timeout_s: float | None
    ) -> meta_pb2.CreateFilesReply:
        choice = choice_to_pb(layout or LayoutChoice())
        reply: meta_pb2.CreateFilesReply = self._change(
            "CreateFiles", meta_pb2.CreateFilesRequest, timeout_s, paths=paths, layout=choice, mode=mode
        )
        return reply

    def publish_files(
        self,
        files: Sequence[Publish],
        *,
        together: bool = True,
        layout: LayoutChoice | None = None,
        mode: int = 0o644,
        timeout_s: float | None = None,
    ) -> Inodes:
        """Make up to 512 files visible, all or none; or, not `together`, any number, and in parts if need be.

        `layout` and `mode` are those of the empty files that are made now.

        Raises:
            TooLarge: together they do not fit into one transaction of the metadata store.
            Exists: a name is taken and not to be replaced.
            NotFound: a directory is missing, or a write session was lost: write that file again.
            IsADirectory, NotADirectory, Invalid.
        """
        if not together:
            return self._in_parts(
                files, lambda some: self.publish_files(some, layout=layout, mode=mode, timeout_s=timeout_s)
            )
        wanted = [
            meta_pb2.PublishFile(inode_id=file.inode_id, path=text(file.path), length=file.length, replace=file.replace)
            for file in files
        ]
        choice = choice_to_pb(layout or LayoutChoice())
        reply = self._change(
            "PublishFiles", meta_pb2.PublishFilesRequest, timeout_s, files=wanted, layout=choice, mode=mode
        )
        return [inode_from_pb(inode) for inode in reply.inodes]

    def abandon(self, inode_ids: Iterable[int], *, timeout_s: float | None = None) -> None:
        """End sessions; unpublished files are given up, and their chunks collected."""
        self._change("AbandonFiles", meta_pb2.AbandonFilesRequest, timeout_s, inode_ids=list(inode_ids))

    def renew(self, files: Mapping[int, Written], *, timeout_s: float | None = None) -> Numbers:
        """Keep the write sessions of these inodes alive; due several times per lease of meta (60 s by default).

        Files that have a name and were shorter grow. Which sessions are lost.
        """
        reply = self._call(
            "RenewSessions",
            meta_pb2.RenewSessionsRequest,
            timeout_s,
            client_id=self.client_id,
            inode_ids=[*files],
            lengths=[written.length for written in files.values()],
            epochs=[written.epoch for written in files.values()],
        )
        return Numbers(reply.lost)

    def open_for_writing(
        self, paths: Sequence[str], *, access: int = 0, timeout_s: float | None = None
    ) -> tuple[Inodes, float]:
        """Begin a write session on each of up to 512 files, all or none; the inodes, and the lease in seconds.

        `access` is what must be allowed beside writing: os.R_OK. Raises: InUse: one is being written, by whomever;
        PermissionDenied, NotFound, IsADirectory, NotADirectory, Invalid.
        """
        reply = self._change("OpenForWriting", meta_pb2.OpenForWritingRequest, timeout_s, paths=paths, access=access)
        return [inode_from_pb(inode) for inode in reply.inodes], reply.lease_ms / 1_000

    def sync_files(self, files: Sequence[Sync], *, timeout_s: float | None = None) -> Inodes:
        """Tell how long files are, once their bytes are durable; all or none. Raises: NotFound: a session was lost."""
        syncs = [
            meta_pb2.FileSync(
                inode_id=file.inode_id, length=file.length, written=file.written, close=file.close, epoch=file.epoch
            )
            for file in files
        ]
        reply = self._change("SyncFiles", meta_pb2.SyncFilesRequest, timeout_s, files=syncs)
        return [inode_from_pb(inode) for inode in reply.inodes]

    def _in_parts(self, items: Sequence[T], call: Callable[[Sequence[T]], Inodes]) -> Inodes:
        """`call` for all items, as many at once as meta takes: when it says that these are too many, half as many."""
        done: Inodes = []
        while len(done) < len(items):
            some = items[len(done) : len(done) + self._files_at_once]
            try:
                done += call(some)
            except TooLarge:
                if len(some) == 1:
                    raise
                self._files_at_once = min(self._files_at_once, (len(some) + 1) // 2)
        return done
