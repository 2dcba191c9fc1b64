"""From a path to a place in the tree: the walk over directory entries, through symlinks, within limits.

Each entry on the way is read in the transaction, so whoever renames or removes a directory conflicts with every
operation that walked through it. Symlink targets may hold "." and ".."; paths of requests may not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from fs3.errors import Invalid, NotADirectory, NotFound, SymlinkLoop
from fs3.ids import ROOT_INODE, InodeId
from fs3.inode import InodeType
from fs3.kv.api import Transaction
from fs3.meta import dentry, inode
from fs3.meta.dentry import Dentry, check_name

MAX_DEPTH = 64
MAX_SYMLINKS = 40  # as Linux


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads.

    `parents` are the directories from the root to the one that holds `name`; `dentry` is what is there, if anything.
    `rest` are the components after `name`, when `name` itself is missing. The root, and a symlink that ends in "..",
    have no `name`: then the last of `parents` is the directory itself. `above` are the names of `parents`, without the
    root's.
    """

    parents: tuple[InodeId, ...]
    name: bytes
    dentry: Dentry | None
    rest: tuple[bytes, ...] = ()
    above: tuple[bytes, ...] = ()

    @property
    def path(self) -> str:
        """The path to it through directories only."""
        return "/" + b"/".join([*self.above, *([self.name] if self.name else [])]).decode()

    @property
    def parent(self) -> InodeId:
        return self.parents[-1]


def split(path: str) -> list[bytes]:
    """The names of an absolute path; [] is the root. Raises: Invalid."""
    if not path.startswith("/"):
        raise Invalid(f"path {path!r}: must be absolute, such as /data/corpus")
    try:
        names = [check_name(part) for part in path.split("/") if part]
    except Invalid as error:
        raise Invalid(f"path {path!r}: {error}") from None
    if len(names) > MAX_DEPTH:
        raise Invalid(f"path {path[:60]!r}...: {len(names)} levels deep, at most {MAX_DEPTH} are allowed")
    return names


class Walker:
    """Walks in one transaction, remembering the directories that it passed, so that a batch reads each only once."""

    __slots__ = ("_passed", "_snapshot", "_txn")

    def __init__(self, txn: Transaction, *, snapshot: bool = False) -> None:
        self._txn = txn
        self._snapshot = snapshot
        self._passed: dict[tuple[InodeId, bytes], Dentry] = {}

    async def find(self, path: str, *, follow: bool) -> Place:
        """Where `path` leads, as far as it exists; a final symlink is followed only if `follow`.

        Raises:
            Invalid: the path is none, or leads too deep.
            SymlinkLoop: it goes through too many symlinks.
            NotADirectory: a file stands in its way.
        """
        left = deque(split(path))
        parents: list[InodeId] = [ROOT_INODE]
        above: list[bytes] = []
        links = 0
        while left:
            name = left.popleft()
            if name == b"..":
                del parents[max(len(parents) - 1, 1) :]
                del above[-1:]
                continue
            if name == b".":
                continue
            entry = await self._entry(parents[-1], name)
            final = not left
            if entry is None or (final and not (follow and entry.type is InodeType.SYMLINK)):
                return Place(tuple(parents), name, entry, tuple(left), tuple(above))
            if entry.type is InodeType.DIRECTORY:
                parents.append(entry.inode_id)
                above.append(name)
                if len(parents) > MAX_DEPTH + 1:
                    raise Invalid(f"{path}: leads more than {MAX_DEPTH} levels deep")
            elif entry.type is InodeType.SYMLINK:
                links += 1
                if links > MAX_SYMLINKS:
                    raise SymlinkLoop(f"{path}: goes through more than {MAX_SYMLINKS} symlinks")
                target = (await inode.load(self._txn, entry.inode_id, snapshot=self._snapshot)).symlink
                if target.startswith("/"):
                    parents, above = [ROOT_INODE], []
                left.extendleft(part.encode() for part in reversed(target.split("/")) if part)
            else:
                raise NotADirectory(f"{path}: {name.decode()} is a file, not a directory")
        return Place(tuple(parents), b"", Dentry(parents[-1], InodeType.DIRECTORY), (), tuple(above))

    async def existing(self, path: str, *, follow: bool) -> tuple[Place, Dentry]:
        """The place of something that is there. Raises: NotFound; as `find`."""
        place = await self.find(path, follow=follow)
        if place.dentry is None:
            raise NotFound(f"{path}: no such file or directory")
        return place, place.dentry

    async def holder(self, path: str, *, follow: bool) -> Place:
        """A place whose directory exists, for something that may be there or not. Raises: NotFound; as `find`."""
        place = await self.find(path, follow=follow)
        if place.rest:
            raise NotFound(f"{path}: the directory {place.name.decode()} in its path does not exist; create it first")
        return place

    async def _entry(self, parent: InodeId, name: bytes) -> Dentry | None:
        passed = self._passed.get((parent, name))
        if passed is not None:
            return passed
        entry = await dentry.load(self._txn, parent, name, snapshot=self._snapshot)
        if entry is not None and entry.type is InodeType.DIRECTORY:
            self._passed[parent, name] = entry
        return entry
