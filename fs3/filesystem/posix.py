"""What files of a POSIX system have and most of fsspec's have not: links, permission bits, owners, lengths."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fs3.client.connect import Client
from fs3.client.meta import Room
from fs3.errors import Fs3Error
from fs3.filesystem.os_errors import os_errors
from fs3.inode import InodeType


class PosixFace:
    """A part of `Fs3FileSystem`."""

    _strip_protocol: Callable[[str], str]

    if TYPE_CHECKING:

        @property
        def client(self) -> Client: ...

    def lexists(self, path: str, **_: Any) -> bool:
        """Whether the name is there, be it a symlink that leads nowhere."""
        return not isinstance(self.client.meta.stat([self._strip_protocol(path)], follow=False)[0], Fs3Error)

    def islink(self, path: str) -> bool:
        (found,) = self.client.meta.stat([self._strip_protocol(path)], follow=False)
        return not isinstance(found, Fs3Error) and found.type is InodeType.SYMLINK

    def symlink(self, src: str, dst: str, **_: Any) -> None:
        """Make `dst` a symlink to `src`, which is kept as it is written (a URL of fs3 as its path)."""
        target = self._strip_protocol(src) if src.startswith("fs3://") else src
        path = self._strip_protocol(dst)
        with os_errors(path):
            self.client.meta.symlink(path, target)

    def link(self, src: str, dst: str, **_: Any) -> None:
        """Give the file `src` a further name, `dst`."""
        path = self._strip_protocol(dst)
        with os_errors(path):
            self.client.meta.link(self._strip_protocol(src), path)

    def readlink(self, path: str) -> str:
        path = self._strip_protocol(path)
        with os_errors(path):
            return self.client.meta.readlink(path)

    def access(self, path: str, mode: int = os.F_OK) -> bool:
        """Whether the user may do all of `mode`, of os.R_OK, os.W_OK and os.X_OK, as os.access tells it."""
        path = self._strip_protocol(path)
        with os_errors(path):
            (found,) = self.client.meta.stat([path], access=mode)
        return not isinstance(found, Fs3Error)

    def chmod(self, path: str, mode: int) -> None:
        path = self._strip_protocol(path)
        with os_errors(path):
            self.client.meta.set_attributes(path, mode=mode)

    def chown(self, path: str, uid: int | None = None, gid: int | None = None, *, follow: bool = True) -> None:
        """Change owner and group; None leaves one as it is."""
        path = self._strip_protocol(path)
        with os_errors(path):
            self.client.meta.set_attributes(path, uid=uid, gid=gid, follow=follow)

    def room(self, path: str = "/") -> Room:
        """How many bytes and inodes there is room for at `path`, by the disks and by quotas, as statvfs(3) tells it."""
        path = self._strip_protocol(path)
        with os_errors(path):
            return self.client.meta.room(path)

    def truncate(self, path: str, length: int) -> None:
        """Make a file longer, with zeros, or shorter, in place."""
        path = self._strip_protocol(path)
        with os_errors(path):
            self.client.files.truncate(path, length)
