"""Files as ranges of chunks: open by path, read in batches, write and publish.

An open file is a value: inode, length and stripe, with which offset -> (chain, chunk, range) is arithmetic, done for a
few ranges in open_file.py and for a whole batch in plan_core.py. Files are dense: every chunk within a file's length
exists, so one that is missing is damage, or the file was removed or replaced since; never zeros.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import Bytes, flat
from fs3.client import plan_core
from fs3.client.kept_places import FEW
from fs3.client.meta import MetaClient, Publish
from fs3.client.meta_files import FILES_AT_ONCE
from fs3.client.mgmtd import MgmtdClient
from fs3.client.open_file import OpenFile, few_ranges
from fs3.client.plan_core import I64, ChunkPlan, FileTable
from fs3.client.read_path import RangeCorrupt
from fs3.client.renewal import Renewal
from fs3.client.sending import Sending
from fs3.client.storage import ChunkUpdate, StorageClient
from fs3.client.updater import FileUpdater
from fs3.client.writer import FileWriter, chunk_update
from fs3.clock import lease_now_s
from fs3.errors import Corrupt, Fs3Error, Invalid, IsADirectory, NotFound, PermissionDenied
from fs3.ids import InodeId
from fs3.inode import Inode, InodeType
from fs3.layout import Layout, LayoutChoice, stripe_chains
from fs3.routing import Routing
from fs3.transport.messages import Records

__all__ = ["FileClient", "FileUpdater", "FileWriter", "OpenFile"]

BATCH_BYTES = 256 << 20  # how many bytes of small files are sent before their results are awaited


class FileClient:
    """Files of one cluster; thread-safe. Paths are absolute within the cluster."""

    def __init__(self, storage: StorageClient, meta: MetaClient, mgmtd: MgmtdClient) -> None:
        self.storage = storage
        self.meta = meta
        self._mgmtd = mgmtd
        self._renewal = Renewal(meta)
        self._sending = Sending(storage)

    def close(self) -> None:
        """End the threads of writers; unfinished writers fail. The clients below belong to whoever made them."""
        self._renewal.close()
        self._sending.close()

    def renew(self) -> None:
        """Renew the sessions of all open writers now; a thread does so every few seconds. Raises: Unavailable."""
        self._renewal.now()

    # -- reading

    def open_read(self, path: str) -> OpenFile:
        """The file at `path`, symlinks followed.

        Raises: NotFound, IsADirectory, NotADirectory, PermissionDenied (the user may not read it), Unavailable.
        """
        return self.open_many([path])[0]

    def open_many(self, paths: Sequence[str], *, timeout_s: float | None = None) -> list[OpenFile]:
        """The files at `paths`, all or none. Raises: as `open_read`, for the first that cannot be opened."""
        found = self.meta.stat(paths, access=os.R_OK, timeout_s=timeout_s)
        return [self._opened(path, one) for path, one in zip(paths, found, strict=True)]

    def _opened(self, path: str, found: Inode | Fs3Error) -> OpenFile:
        if isinstance(found, Fs3Error):
            raise found
        if found.type != InodeType.FILE or found.layout is None:
            raise IsADirectory(f"{path}: is a directory")
        chains = self._chains(found.layout)
        return OpenFile(found.inode_id, found.length, found.layout, chains, found.version, path)

    def _chains(self, layout: Layout) -> I64:
        return stripe_chains(layout, self._routing(layout).table(layout.chain_table, layout.chain_table_version))

    def _routing(self, layout: Layout) -> Routing:
        """The newest routing, fetched anew if it does not have the chain table yet."""
        routing = self._mgmtd.routing
        known = (layout.chain_table, layout.chain_table_version)
        return routing if known in routing.tables else self._mgmtd.fetch()

    def read_batch(
        self,
        handles: Sequence[OpenFile],
        file_index: NDArray[np.integer],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        out: Bytes,
        out_offsets: NDArray[np.int64] | None = None,
        *,
        deadline_s: float | None = None,
    ) -> None:
        """Read `lengths[i]` bytes at `offsets[i]` of `handles[file_index[i]]` into `out[out_offsets[i] :]`, for all i.

        Without `out_offsets` the ranges are laid one after the other. One request per storage node; when it returns,
        every byte is there and verified. When it raises, `out` holds anything.

        Raises:
            Invalid: a range is not within its file, does not fit into `out`, or overlaps with another there; `out` is
                read-only or not contiguous; the columns are not of one length, or hold other than whole numbers; the
                deadline is no number, or more than eleven days ahead.
            NotFound: a file was removed or replaced since it was opened.
            Corrupt: bytes are missing, or fail their checksum on every replica.
            Unavailable: not done before the deadline.
        """
        count = len(lengths)
        target = _target(out)
        columns = (file_index, offsets, lengths)
        if 0 < count <= FEW and self._read_few(handles, columns, out_offsets, target, deadline_s):
            return
        index = plan_core.column(file_index, count, "file numbers")
        offsets, lengths = plan_core.column(offsets, count, "offsets"), plan_core.column(lengths, count, "lengths")
        if not count:
            return
        table = self._table(handles, index, offsets, lengths)
        starts = plan_core.packed_offsets(lengths)
        if out_offsets is not None:
            starts = plan_core.column(out_offsets, count, "places in the buffer")
        plan = plan_core.plan_file_ranges(table, index, offsets, lengths, starts)
        try:
            results = self.storage.read(plan.ranges, target, plan.out_offsets, deadline_s=deadline_s)
        except RangeCorrupt as error:
            raise Corrupt(f"{handles[int(index[plan.source[error.place]])].path}: {error}") from None
        if not (results["length"] == plan.ranges["length"]).all():
            self._explain_missing(handles, index, plan, results)

    def _read_few(
        self,
        handles: Sequence[OpenFile],
        columns: Sequence[NDArray[Any]],
        out_offsets: NDArray[np.int64] | None,
        out: memoryview,
        deadline_s: float | None,
    ) -> bool:
        """As `read_batch`, a few ranges that are known to lie on this host, or a single one of one chunk.

        False: they are not that, or were not there.

        Raises: Corrupt, Unavailable.
        """
        count = len(columns[1])
        if count > 1 and not self.storage.keeps_places:
            return False
        found = few_ranges(handles, columns, out_offsets, out)
        if found is None:
            return False
        asked, outs = found
        if self.storage.read_kept(asked, outs) is not None:
            return True
        if count > 1:
            return False
        try:
            results = self.storage.read_one(asked[0], outs[0], deadline_s=deadline_s)
        except RangeCorrupt as error:
            raise Corrupt(f"{handles[int(columns[0][0])].path}: {error}") from None
        return int(results["length"][0]) == asked[0].length

    def _table(self, handles: Sequence[OpenFile], index: I64, offsets: I64, lengths: I64) -> FileTable:
        """The layouts of the files of a batch. Raises: Invalid: a range [n] is of no file, or not within its own."""
        if not len(index):
            return plan_core.file_table([], [], [], [])
        if int(index.min()) < 0 or int(index.max()) >= len(handles):
            raise Invalid(
                f"file numbers from {index.min()} to {index.max()}: there are {len(handles)} files, from 0 on"
            )
        table = file_table(handles)
        outside = plan_core.first_outside(table, index, offsets, lengths)
        if outside is not None:
            handle, begin = handles[int(index[outside])], int(offsets[outside])
            raise Invalid(
                f"{handle.path}: bytes {begin} to {begin + int(lengths[outside])} are not within the file, which has"
                f" {handle.length}"
            )
        return table

    def map_batch(
        self,
        handles: Sequence[OpenFile],
        file_index: NDArray[np.integer],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        *,
        deadline_s: float | None = None,
    ) -> list[memoryview]:
        """`lengths[i]` bytes at `offsets[i]` of `handles[file_index[i]]`, for all i, verified, as read-only memory.

        A range within one chunk that a daemon of this host and user has is that daemon's page cache, without a copy; it
        keeps its place on the disk, and a descriptor of this process, until the last view of it is gone. Any other
        range is read into memory of its own.

        Raises: as `read_batch`.
        """
        count = len(lengths)
        index = plan_core.column(file_index, count, "file numbers")
        offsets, lengths = plan_core.column(offsets, count, "offsets"), plan_core.column(lengths, count, "lengths")
        table = self._table(handles, index, offsets, lengths)
        starts = plan_core.packed_offsets(lengths)
        plan = plan_core.plan_file_ranges(table, index, offsets, lengths, starts)
        whole = np.flatnonzero(np.bincount(plan.source, minlength=count)[plan.source] == 1)
        found = self.storage.map(plan.ranges[whole], deadline_s=deadline_s)
        sources = plan.source[whole].tolist()
        views = {source: view for source, view in zip(sources, found, strict=True) if view is not None}
        rest = np.array([place for place in range(count) if place not in views], dtype=np.int64)
        if len(rest):
            copy = bytearray(int(lengths[rest].sum()))
            self.read_batch(handles, index[rest], offsets[rest], lengths[rest], copy, deadline_s=deadline_s)
            memory = memoryview(copy).toreadonly()
            ends = np.cumsum(lengths[rest]).tolist()
            for place, end in zip(rest.tolist(), ends, strict=True):
                views[place] = memory[end - int(lengths[place]) : end]
        return [views[place] for place in range(count)]

    def read(self, handle: OpenFile, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of one file, to its end without `length`. Raises: as `read_batch`."""
        length = handle.length - offset if length is None else length
        out = bytearray(min(max(length, 0), handle.length))  # no more than can be there
        one = (np.zeros(1, dtype=np.int64), np.array([offset]), np.array([length]))
        self.read_batch([handle], *one, out)
        return bytes(out)

    def _explain_missing(self, handles: Sequence[OpenFile], index: I64, plan: ChunkPlan, results: Records) -> None:
        """Raises: NotFound: the file is another one by now; PermissionDenied: that is not to be told; else Corrupt."""
        bad = int(np.argmax(results["length"] != plan.ranges["length"]))
        handle = handles[int(index[plan.source[bad]])]
        (now,) = self.meta.stat([handle.path])
        if isinstance(now, PermissionDenied):
            raise now  # it cannot be told what has become of the file
        if isinstance(now, NotFound) or (isinstance(now, Inode) and now.inode_id != handle.inode_id):
            raise NotFound(f"{handle.path}: was removed or replaced while it was read; open it again")
        if isinstance(now, Inode) and now.length < handle.length:
            raise NotFound(f"{handle.path}: was made shorter while it was read; open it again")
        chunk, has = int(plan.ranges["lo"][bad]), int(results["chunk_length"][bad])
        raise Corrupt(
            f"{handle.path}: chunk {chunk} on chain {int(plan.ranges['chain'][bad])} has {has} bytes, too few for a"
            f" file of {handle.length}; restore the file from its source"
        )

    # -- writing

    def create_writer(
        self, path: str, *, replace: bool = True, layout_choice: LayoutChoice | None = None
    ) -> FileWriter:
        """A writer of a new file, which `close` publishes at `path`.

        Raises: NotFound (the directory is missing), IsADirectory, NotADirectory, Invalid, Unavailable.
        """
        inode, share = self.meta.create_file(path, layout=layout_choice)
        assert inode.layout is not None
        return FileWriter(
            self._sending,
            self.meta,
            self._renewal,
            inode_id=inode.inode_id,
            layout=inode.layout,
            chains=self._chains(inode.layout),
            path=path,
            replace=replace,
            share=share,
        )

    def open_update(self, path: str, *, reading: bool = False, deadline_s: float | None = None) -> FileUpdater:
        """A writer of the file that is at `path`, which changes it in place; nobody else can until it is closed.

        `reading`: what is in it is to be read as well.

        Raises: InUse: somebody is writing it; NotFound, IsADirectory, NotADirectory, Corrupt, Unavailable;
            PermissionDenied: the user may not write it, or read it.
        """
        asked_s = lease_now_s()
        timeout_s = None if deadline_s is None else max(deadline_s - asked_s, 0.001)
        (inode,), lease_s = self.meta.open_for_writing([path], access=os.R_OK if reading else 0, timeout_s=timeout_s)
        assert inode.layout is not None
        try:
            chains = self._chains(inode.layout)
            self._renewal.add([inode.inode_id], asked_s=asked_s)
            updater = FileUpdater(
                self._sending,
                self.meta,
                self._renewal,
                inode=inode,
                chains=chains,
                path=path,
                lease_s=lease_s,
                deadline_s=deadline_s,
            )
            self._renewal.add([inode.inode_id], written=updater.written)
        except BaseException:
            self._renewal.abandon([inode.inode_id])
            raise
        return updater

    def opened(self, updater: FileUpdater) -> OpenFile:
        """What a file that is being updated has by now, to be read. Raises: Fs3Error: a piece could not be written."""
        updater.flush()
        inode, layout = updater.inode, updater.layout
        return OpenFile(inode.inode_id, updater.length, layout, self._chains(layout), inode.version, updater.path)

    def truncate(self, path: str, length: int) -> None:
        """Make a file longer, with zeros, or shorter, in place. Raises: as `open_update`; Invalid."""
        with self.open_update(path) as updater:
            updater.truncate(length)

    def create_batch(
        self,
        paths: Sequence[str],
        datas: Sequence[Bytes],
        *,
        replace: bool = True,
        layout_choice: LayoutChoice | None = None,
    ) -> list[Inode]:
        """Write whole files, many at once: one create, one write per storage node, one publish for every 512 of them.

        Empty ones need no more than the publish.

        Of each 512 all appear or none, of fewer if meta's store takes fewer at once (etcd: 32).

        Raises: as `create_writer`, and Exists without `replace`; SessionEnded: the write sessions were lost meanwhile.
        """
        done: list[Inode] = []
        for at in range(0, len(paths), FILES_AT_ONCE):
            part = slice(at, at + FILES_AT_ONCE)
            views = [flat(data) for data in datas[part]]
            done += self._create_some(paths[part], views, replace, layout_choice)
        return done

    def _create_some(
        self, paths: Sequence[str], datas: Sequence[memoryview], replace: bool, choice: LayoutChoice | None
    ) -> list[Inode]:
        full = [place for place, data in enumerate(datas) if len(data)]
        inodes = self.meta.create_files([paths[place] for place in full], layout=choice) if full else []
        numbers = [inode.inode_id for inode in inodes]
        named = {inode.inode_id: paths[place] for inode, place in zip(inodes, full, strict=True)}
        try:
            with self._renewal.during(numbers) if numbers else contextlib.nullcontext():
                updates: list[ChunkUpdate] = []
                size = 0
                for inode, place in zip(inodes, full, strict=True):
                    for update in self._updates(inode, datas[place]):
                        updates.append(update)
                        size += len(update.data)
                        if size >= BATCH_BYTES:
                            self._write_new(updates, named)
                            updates, size = [], 0
                if updates:
                    self._write_new(updates, named)
                written = dict(zip(full, numbers, strict=True))
                publishes = [
                    Publish(written.get(place, 0), path, len(data), replace)
                    for place, (path, data) in enumerate(zip(paths, datas, strict=True))
                ]
                return self.meta.publish_files(publishes, together=False, layout=choice)
        except BaseException:
            if numbers:
                self._renewal.abandon(numbers)
            raise

    def _write_new(self, updates: Sequence[ChunkUpdate], named: Mapping[InodeId, str]) -> None:
        """Raises: SessionEnded: one of these files was lost, and nothing more is to be sent, nor published."""
        self.storage.write(updates)
        for inode_id, path in named.items():
            self._renewal.check_new(inode_id, path)

    def _updates(self, inode: Inode, data: memoryview) -> list[ChunkUpdate]:
        layout = inode.layout
        assert layout is not None
        chains = self._chains(layout)
        return [
            chunk_update(inode.inode_id, layout, chains, at // layout.chunk_bytes, data[at : at + layout.chunk_bytes])
            for at in range(0, len(data), layout.chunk_bytes)
        ]


def file_table(handles: Sequence[OpenFile]) -> FileTable:
    """The layouts of `handles` as arrays."""
    return plan_core.file_table(
        [handle.inode_id for handle in handles],
        [handle.length for handle in handles],
        [handle.layout.chunk_bytes for handle in handles],
        [handle.chains for handle in handles],
    )


def _target(out: Bytes) -> memoryview:
    """A caller's buffer as bytes to be filled. Raises: Invalid; TypeError: it is no buffer."""
    view = memoryview(out)
    if not view.c_contiguous:
        raise Invalid("the buffer has gaps between its elements; read into a contiguous one")
    return flat(view)
