"""The trash through fsspec: removing so that it can be undone, which fsspec has no methods for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fs3.client.connect import Client
from fs3.client.trash import TRASH
from fs3.filesystem.facts import describe
from fs3.filesystem.os_errors import os_errors


class TrashFace:
    """A part of `Fs3FileSystem`. What is in the trash lies in the directory /.trash, where it can be looked at."""

    _strip_protocol: Callable[[str], str]

    if TYPE_CHECKING:

        @property
        def client(self) -> Client: ...

    def trash(self, path: str, keep_s: float | None = None) -> str:
        """Move a file, or a directory with all that is in it, into the trash in one step; its path there.

        It goes for good after `keep_s` (three days, at most a year).
        """
        path = self._strip_protocol(path)
        with os_errors(path):
            return f"{TRASH}/{self.client.meta.trash(path, keep_s=keep_s).name}"

    def trashed(self, path: str = "/") -> list[dict[str, Any]]:
        """What was thrown away at or below `path` and can be restored; what is due first comes first.

        Each as `info` tells it (`name` is its path in the trash), with "was" (its path before), "removed" and "expires"
        in seconds since 1970, and "by", the uid of who removed it, or None if that is not known.
        """
        path = self._strip_protocol(path)
        with os_errors(path):
            return [
                {
                    **describe(f"{TRASH}/{one.name}", one.inode),
                    "was": one.path,
                    "removed": one.removed_ns / 1e9,
                    "by": one.uid,
                    "expires": one.expires_ns / 1e9,
                }
                for page in self.client.meta.list_trash()
                for one in page
                if f"{one.path}/".startswith(f"{path.rstrip('/')}/")
            ]

    def restore(self, path: str, target: str | None = None) -> str:
        """Move something out of the trash to where it was, or to `target`; never over something. The path that it has.

        `path` is its path in the trash; or the one that it had: of several that had it, what was thrown away last.
        """
        path = self._strip_protocol(path)
        name = path.removeprefix(f"{TRASH}/")
        if name == path:
            known = [one for one in self.trashed(path) if one["was"] == path]
            if not known:
                raise FileNotFoundError(2, "nothing in the trash was there (`fs3 trash list` shows what it has)", path)
            name = max(known, key=lambda one: float(one["removed"]))["name"].removeprefix(f"{TRASH}/")
        with os_errors(path):
            return self.client.meta.restore_trash(name, self._strip_protocol(target) if target else "")

    def empty_trash(self, path: str = "/", *, removed_before_s: float | None = None) -> int:
        """Remove for good what was thrown away at or below `path`, before a time (since 1970) or ever; or the one thing
        that has this path in the trash. How many.
        """
        path = self._strip_protocol(path)
        before_ns = None if removed_before_s is None else int(removed_before_s * 1e9)
        with os_errors(path):
            meta = self.client.meta
            if path in ("/", TRASH):
                return meta.empty_trash(removed_before_ns=before_ns)
            if path.startswith(f"{TRASH}/"):
                return meta.empty_trash(path.removeprefix(f"{TRASH}/"))
            names = [
                one["name"].removeprefix(f"{TRASH}/")
                for one in self.trashed(path)
                if removed_before_s is None or one["removed"] < removed_before_s
            ]
            return sum(meta.empty_trash(name) for name in names)
