"""Where a dataset lives: a local path or any fsspec URL, with the few operations that a dataset needs of it.

Every failure becomes one line from fs3's error tree that names the path, whatever the filesystem behind raised.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar, cast

from fs3.errors import (
    BY_CODE,
    Exists,
    Fs3Error,
    Invalid,
    IsADirectory,
    NoSpace,
    NotADirectory,
    NotFound,
    PermissionDenied,
)
from fs3.filesystem import urls
from fs3.url import check_local

T = TypeVar("T")

_BY_ERRNO = {
    errno.ENOENT: NotFound,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.ENOTDIR: NotADirectory,
    errno.EISDIR: IsADirectory,
    errno.ENOSPC: NoSpace,
}
_BY_ERRNO = {**{cls.errno: cls for cls in reversed(BY_CODE.values()) if cls is not Fs3Error}, **_BY_ERRNO}


@dataclass(frozen=True, slots=True)
class Location:
    """A folder: `url` as the user gave it, the filesystem, and the folder's path within it."""

    url: str
    fs: Any
    root: str

    @classmethod
    def parse(cls, url: str | os.PathLike[str]) -> Location:
        """The folder that `url`, an fsspec URL or a local path, names; touches a network at most to connect.

        Raises: Invalid if no filesystem knows the URL; Unavailable if its cluster cannot be reached.
        """
        url = os.fspath(url)
        if not url:
            raise Invalid("an empty path names no dataset; give a folder or a URL such as fs3://HOST:PORT/corpus")
        check_local(url)
        fs, root = filesystem_of(url)
        return cls(url.rstrip("/") or "/", fs, root.rstrip("/") or "/")

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's own filesystem."""
        return "file" in protocols(self.fs)

    @property
    def is_fs3(self) -> bool:
        """Whether the folder is on an fs3 cluster."""
        return "fs3" in protocols(self.fs)

    def path(self, name: str) -> str:
        """The path, within the filesystem, of the file `name` in the folder."""
        return f"{self.root.rstrip('/')}/{name}"

    def show(self, name: str) -> str:
        """The file `name` as a user would write it."""
        return f"{self.url.rstrip('/')}/{name}"

    def call(self, name: str, function: Callable[[], T]) -> T:
        """`function()`, with its failure told as one about the file `name` of the folder."""
        try:
            return function()
        except OSError as error:
            raise as_fs3_error(error, self.show(name) if name else self.url) from None

    def kind(self) -> str:
        """What is there: "directory", "file" or "nothing"."""

        def ask() -> str:
            try:
                return str(self.fs.info(self.root)["type"])
            except FileNotFoundError:
                return "nothing"

        return self.call("", ask)

    def names(self) -> dict[str, int]:
        """The files in the folder and their sizes in bytes; nothing if there is no folder."""
        try:
            entries = self.call("", lambda: self.fs.ls(self.root, detail=True))
        except NotFound:
            return {}
        return {e["name"].rstrip("/").rsplit("/", 1)[-1]: int(e["size"] or 0) for e in entries if e["type"] == "file"}

    def read(self, name: str) -> bytes:
        """The whole file `name`. Raises: NotFound and its kin."""
        return cast(bytes, self.call(name, lambda: self.fs.cat_file(self.path(name))))

    def make(self) -> None:
        """Create the folder and those above it."""
        self.call("", lambda: self.fs.makedirs(self.root, exist_ok=True))

    def create(self, name: str) -> BinaryIO:
        """The new file `name`, opened for writing. Raises: Exists, here or when it is closed."""

        def ask() -> Any:
            if self.is_local or self.is_fs3:
                return self.fs.open(self.path(name), "xb")
            if self.fs.exists(self.path(name)):  # many an object store does not know "xb"
                raise Exists(f"{self.show(name)}: it exists already")
            return self.fs.open(self.path(name), "wb")

        return cast(BinaryIO, self.call(name, ask))

    def write(self, name: str, data: bytes) -> None:
        """Make `name` hold `data`, durably; a failure may leave a part of it."""

        def ask() -> None:
            with self.fs.open(self.path(name), "wb") as file:
                file.write(data)
                self.sync(file)

        self.call(name, ask)

    def remove(self, name: str) -> None:
        """Remove the file `name`, if it is there."""

        def ask() -> None:
            try:
                self.fs.rm_file(self.path(name))
            except FileNotFoundError:
                return

        self.call(name, ask)

    def publish(self, name: str, data: bytes) -> None:
        """Make `name` hold `data` at once or not at all, over what it held, and last through a crash.

        A local file is finished beside the old one and renamed over it; fs3 and object stores put whole files anyway.
        """
        if not self.is_local:
            self.call(name, lambda: self.fs.pipe_file(self.path(name), data))
            return
        part = name + ".part"
        try:
            self.write(part, data)
            self.call(name, lambda: self.fs.mv(self.path(part), self.path(name)))
        except BaseException:
            self.remove(part)
            raise
        self.sync_folder()

    def discard(self, file: BinaryIO) -> None:
        """Give up a file that is open for writing; outside of fs3 its name is left, to be removed."""
        if self.is_fs3:
            cast(Any, file).discard()
            return
        with contextlib.suppress(OSError):
            file.close()

    def sync(self, file: BinaryIO) -> None:
        """Bring a local file to the disk. Other filesystems promise that when they close it."""
        if self.is_local:
            file.flush()
            os.fsync(file.fileno())

    def sync_folder(self) -> None:
        """Bring the names in a local folder to the disk."""
        if self.is_local:
            folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def filesystem_of(url: str) -> tuple[Any, str]:
    """The filesystem of `url`, an fsspec URL or a local path, and the path within it.

    Raises: Invalid: no filesystem knows it, or it takes more than a URL to make one; Unavailable and its kin.
    """
    try:
        return urls.filesystem_of(os.path.abspath(url) if "://" not in url else url)
    except OSError as error:
        raise as_fs3_error(error, url) from None


def as_fs3_error(error: OSError, name: str) -> Fs3Error:
    """The error of fs3's tree for `error`, which befell the path or URL `name`."""
    cause = error.__cause__
    if isinstance(cause, Fs3Error):
        return cause
    known = isinstance(error, FileNotFoundError)
    cls = NotFound if known else _BY_ERRNO.get(error.errno or 0, Fs3Error)
    why = error.strerror or (os.strerror(errno.ENOENT) if known else one_line(error))
    return cls(f"{name}: {why}" if name not in why else why)


def one_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def protocols(fs: Any) -> tuple[str, ...]:
    """The names under which fsspec knows the filesystem `fs`."""
    protocol = fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
