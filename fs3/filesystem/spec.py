"""The fsspec filesystem: `fs3://HOST:PORT[,HOST:PORT...]/path`.

The hosts are the cluster's mgmtds; one instance is one cluster, and its paths are absolute within that ("/a/b").
Batches stay batches: `cat_ranges` and `cat` of many files are one request per storage node, `pipe` of many files one
create, one write per node and one publish. `mv` is one rename, `rm` of a tree one operation of the metadata service;
so is `trash`, which can be undone.
"""

from __future__ import annotations

import contextlib
import datetime
import io
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from fs3.client.connect import Client, connect
from fs3.client.file import FileClient, OpenFile
from fs3.errors import (
    Exists,
    Fs3Error,
    Invalid,
    NotADirectory,
    NotFound,
)
from fs3.filesystem.asynchronous import AsyncFace
from fs3.filesystem.cat import CatFace
from fs3.filesystem.facts import describe_all, time_of
from fs3.filesystem.files import ReadFile, WriteFile
from fs3.filesystem.listings import MAX_ENTRIES, Listings
from fs3.filesystem.os_errors import os_errors
from fs3.filesystem.posix import PosixFace
from fs3.filesystem.transaction import Fs3Transaction
from fs3.filesystem.trash import TrashFace
from fs3.filesystem.tree import TreeFace
from fs3.filesystem.update_file import UpdateFile
from fs3.filesystem.urls import cluster_of, path_of
from fs3.filesystem.wrapped import WrappedFace
from fs3.inode import Inode
from fs3.layout import LayoutChoice
from fs3.user import parse_user

T = TypeVar("T")
COPY_BYTES = 16 << 20  # pieces in which files are streamed from and to other places


class Fs3FileSystem(CatFace, TreeFace, TrashFace, PosixFace, WrappedFace, AsyncFace):
    """fs3 through fsspec.

    `mgmtd` is "host:port" or several, separated by commas; `secret` the cluster's, if it has one; `user` whom to call
    for, "UID:GID,GID,...", or else whoever the process is at each call; `layout` what new files get instead of what
    their directory says; with `auto_mkdir` a file that is written gets the directories above it, as object stores do,
    and as fsspec's local files with the same option. Without `same_host` everything is read over the network, also what
    daemons of this host and user could show (docs/operations.md).

    `use_listings_cache`: directories that were listed are kept, those used last, up to `max_entries` entries of up to
    `max_paths` directories in all. It is asked at each use whether they are still right, so nothing has to expire, and
    `listings_expiry_time` means nothing.
    """

    protocol: ClassVar[str] = "fs3"
    root_marker = "/"
    blocksize = COPY_BYTES
    transaction_type = Fs3Transaction
    cachable = True

    def __init__(
        self,
        mgmtd: str = "",
        *,
        secret: str = "",
        user: str = "",
        layout: LayoutChoice | None = None,
        auto_mkdir: bool = False,
        same_host: bool = True,
        use_listings_cache: bool = True,
        max_paths: int | None = None,
        max_entries: int = MAX_ENTRIES,
        **options: Any,
    ) -> None:
        if not mgmtd:
            raise ValueError(
                "this names no cluster; write fs3://HOST:PORT/path, or give mgmtd='HOST:PORT' (everywhere:"
                " FSSPEC_FS3_MGMTD=HOST:PORT)"
            )
        super().__init__(**options)
        try:
            self.user = parse_user(user) if user else None
        except Invalid as error:
            raise ValueError(str(error)) from None
        self.mgmtd = ",".join(address.strip() for address in mgmtd.split(","))
        self.layout = layout
        self.auto_mkdir = auto_mkdir
        self._secret = secret
        self._same_host = same_host
        self._listings = Listings(max_entries=max_entries if use_listings_cache else 0, max_paths=max_paths)

    # -- where we are

    @property
    def client(self) -> Client:
        """The process's client of this cluster; made again after a fork."""
        with os_errors():
            return connect(self.mgmtd.split(","), secret=self._secret, user=self.user, same_host=self._same_host)

    @property
    def secret(self) -> str:
        """That it shows to the cluster."""
        return self._secret

    @property
    def file_client(self) -> FileClient:
        """Batched reads and writes of files, below fsspec."""
        return self.client.files

    @property
    def fsid(self) -> str:
        return f"fs3-{self.client.mgmtd.cluster_info.cluster_id}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        return path_of(str(path))

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        return cluster_of(path)

    def unstrip_protocol(self, name: str) -> str:
        return f"fs3://{self.mgmtd}{self._strip_protocol(name)}"

    # -- looking

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """One entry, of a symlink that which it leads to; raises FileNotFoundError, also where it leads nowhere."""
        (found,) = self.infos([path])
        if isinstance(found, Exception):
            raise found
        return found

    def infos(self, paths: Sequence[str]) -> list[dict[str, Any] | Exception]:
        with os_errors():
            return describe_all([self._strip_protocol(path) for path in paths], self.client.meta.stat)

    def ls(self, path: str, detail: bool = True, refresh: bool = False, **_: Any) -> list[Any]:
        """The entries of a directory, sorted by name; of a file, itself. `refresh`: whatever is kept of it.

        A symlink among them is itself (type "other"), with the size of what it leads to, as with local files.
        """
        path = self._strip_protocol(path)
        with os_errors(path):
            try:
                listed, kept = self._listings.listed(path, self.client.meta.list_pages, refresh=refresh)
            except NotADirectory:
                listed, kept = [self.info(path)], False
            if not detail:
                return [entry["name"] for entry in listed]
            found = [entry.copy() for entry in listed] if kept else list(listed)
            self._add_sizes([entry for entry in found if entry["type"] == "other"])
        return found

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget the listing of `path`, or all; never needed to see what is there."""
        self._listings.forget(None if path is None else self._strip_protocol(path))

    def exists(self, path: str, **_: Any) -> bool:
        try:
            self.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def created(self, path: str) -> datetime.datetime:
        return time_of(self.info(path)["created"])

    def modified(self, path: str) -> datetime.datetime:
        return time_of(self.info(path)["mtime"])

    def ukey(self, path: str) -> str:
        """Changes whenever the file does."""
        info = self.info(path)
        return f"{info['ino']:x}-{info['version']:x}"

    checksum = ukey

    def du(self, path: str, total: bool = True, maxdepth: int | None = None, **options: Any) -> Any:
        path = self._strip_protocol(path)
        if not total or maxdepth is not None:
            return super().du(path, total=total, maxdepth=maxdepth, **options)
        with os_errors(path):
            return self.client.meta.usage(path).bytes

    # -- reading

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, autocommit: bool = True, **_: Any) -> Any:
        path = self._strip_protocol(path)
        with os_errors(path):
            if mode == "rb":
                return ReadFile(self, self._open_read(path), path)
            if mode == "xb" and self.exists(path):  # closing looks again
                raise Exists(f"{path}: it exists already")
            if mode in ("wb", "xb"):
                return self._open_new(path, replace=mode == "wb", autocommit=autocommit)
            if mode in ("ab", "r+b") and autocommit and not self._intrans:
                return self._open_update(path, mode)
            if mode == "ab":
                return self._open_append(path, autocommit=autocommit)
        within = " in a transaction" if mode == "r+b" else ""
        raise io.UnsupportedOperation(
            f"{path}: mode {mode!r} is not supported{within}; open fs3 files 'rb', 'wb', 'xb', 'ab' or, outside of"
            " transactions, 'r+b'"
        )

    def _open_new(self, path: str, *, replace: bool, autocommit: bool) -> WriteFile:
        """Raises: TooLarge: the transaction holds no more files."""
        file = WriteFile(self, self._create(path, replace=replace), path, autocommit=autocommit)
        if not autocommit and self._intrans:
            self.transaction.admit(file)
        return file

    def _open_update(self, path: str, mode: str) -> UpdateFile:
        """The file itself; to append to it, an empty one is made first if there is none."""
        reading = mode == "r+b"
        try:
            updater = self.file_client.open_update(path, reading=reading)
        except NotFound:
            if reading:
                raise
            self._make_empty(path)
            updater = self.file_client.open_update(path)
        return UpdateFile(self, updater, path, mode)

    def _open_append(self, path: str, *, autocommit: bool) -> WriteFile:
        """A new file, which begins with what the old one has, for a transaction: of two that append at once one is
        lost. Raises: UnsupportedOperation: one of this transaction is not published yet, and would be lost."""
        if not autocommit and self.transaction.has(path):
            raise io.UnsupportedOperation(
                f"{path}: this transaction has written it already; append in one piece, or end the transaction first"
            )
        with contextlib.ExitStack() as stack:
            before = None
            with contextlib.suppress(NotFound):
                before = stack.enter_context(ReadFile(self, self._open_read(path), path))
            file = self._open_new(path, replace=True, autocommit=autocommit)
            if before is not None:
                _stream(before, file)
        return file

    # -- writing

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self._write_files({self._strip_protocol(path): value}, replace=mode != "create")

    def pipe(self, path: Any, value: bytes | None = None, mode: str = "overwrite", **_: Any) -> None:
        """Many small files in one batch; all of them appear at once, with mode "create" over none that is there."""
        if isinstance(path, str):
            assert value is not None
            self.pipe_file(path, value, mode=mode)
        else:
            files = {self._strip_protocol(name): data for name, data in path.items()}
            self._write_files(files, replace=mode != "create")

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy within the cluster, through this client."""
        if self.isdir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        with self.open(path1, "rb") as source, self.open(path2, "wb") as target:
            _stream(source, target)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """An empty file; one that exists is emptied, unless `truncate` is false: then it is left as it is."""
        if truncate:
            self.pipe_file(path, b"")
        elif not self.exists(path):
            self._make_empty(self._strip_protocol(path))

    # -- inside

    def _add_sizes(self, links: list[dict[str, Any]]) -> None:
        """Of what each symlink leads to; 0 where it leads nowhere."""
        for link, found in zip(links, self.client.meta.stat([link["name"] for link in links]), strict=True):
            link["size"] = 0 if isinstance(found, Fs3Error) or not found.is_file else found.length

    def _stat(self, path: str) -> Inode:
        return self.client.meta.stat_one(path)

    def _open_read(self, path: str) -> OpenFile:
        return self.file_client.open_read(path)

    def _create(self, path: str, *, replace: bool) -> Any:
        return self._with_parents(
            [path], lambda: self.file_client.create_writer(path, replace=replace, layout_choice=self.layout)
        )

    def _write_files(self, files: dict[str, bytes], *, replace: bool) -> None:
        paths, contents = list(files), list(files.values())
        if self._intrans:
            for path, data in files.items():
                with self.open(path, "wb" if replace else "xb") as file:
                    file.write(data)
            return
        with os_errors(paths[0] if len(paths) == 1 else None):
            self._with_parents(
                paths,
                lambda: self.file_client.create_batch(paths, contents, replace=replace, layout_choice=self.layout),
            )

    def _make_empty(self, path: str) -> None:
        """An empty file, unless somebody has made one there meanwhile, which then stays as it is."""
        with contextlib.suppress(FileExistsError):
            self._write_files({path: b""}, replace=False)

    def _with_parents(self, paths: list[str], create: Callable[[], T]) -> T:
        """Create these files. Raises: NotFound where a directory is missing, unless `auto_mkdir` makes it."""
        try:
            return create()
        except NotFound as error:
            parents = sorted({self._parent(path) for path in paths})
            if not self.auto_mkdir:
                missing = next((parent for parent in parents if not self.exists(parent)), parents[0])
                raise NotFound(f"{missing}: no such directory; make it first (fs3 mkdir -p)") from error
        for parent in parents:
            self.makedirs(parent, exist_ok=True)
        return create()


def _stream(source: ReadFile, target: WriteFile) -> None:
    buffer = bytearray(min(COPY_BYTES, source.size))
    while count := source.readinto(buffer):
        target.write(memoryview(buffer)[:count])
