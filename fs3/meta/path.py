"""From a path to a place in the tree: the walk over directory entries, through symlinks, within limits.

Each entry on the way is read in the transaction, so whoever renames or removes a directory, or changes its permissions,
which lie in its entry, conflicts with every operation that walked through it. Symlink targets may hold "." and "..";
paths of requests may not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from fs3.errors import Fs3Error, Invalid, NotADirectory, NotFound, SymlinkLoop
from fs3.ids import ROOT_INODE, InodeId
from fs3.inode import Inode, InodeType
from fs3.kv.api import Transaction
from fs3.meta import dentry, inode
from fs3.meta.access import SEARCH, SUPERUSER, Caller, Permissions, permissions_of
from fs3.meta.dentry import MAX_NAME_BYTES, Dentry, check_name

MAX_DEPTH = 64
MAX_SYMLINKS = 40  # as Linux


class Place(NamedTuple):
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
    def entry(self) -> tuple[InodeId, bytes] | None:
        """The directory and the name under which the thing lies, also where it has no `name` here; None of the root."""
        if self.name:
            return self.parent, self.name
        return (self.parents[-2], self.above[-1]) if self.above else None

    @property
    def parent(self) -> InodeId:
        return self.parents[-1]


_Seen = tuple[Place, bytes, Dentry | None]  # inside which directory, the name, what it stands for
_NOWHERE = Place((), b"", None)
_CLOSER = Dentry(InodeId(0), InodeType.FILE)  # stands for what takes a closer look
_ROOT = Dentry(ROOT_INODE, InodeType.DIRECTORY)
_NO_NAMES = (b"", b".", b"..")


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
    """Walks in one transaction, remembering the directories that it passed, so that a batch reads each only once.

    A directory is searched for names only if `caller` may. Every walk may raise PermissionDenied beside what it names.
    """

    __slots__ = ("_folders", "_loaded", "_passed", "_searched", "_snapshot", "_txn", "caller")

    def __init__(self, txn: Transaction, caller: Caller = SUPERUSER, *, snapshot: bool = False) -> None:
        self.caller = caller
        self._txn = txn
        self._snapshot = snapshot
        self._loaded: dict[InodeId, Permissions] = {}  # of the root, and where an entry lacks them
        self._searched: set[InodeId] = set()  # directories in which the caller may look names up
        self._passed: dict[tuple[InodeId, bytes], Dentry] = {}
        self._folders: dict[str, Place] = {}

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
        links, asked = 0, not self.caller.superuser
        while left:
            if asked and parents[-1] not in self._searched:
                await self._search(path, self._entry_of(parents, above), above)
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
        return Place(tuple(parents), b"", self._entry_of(parents, above), (), tuple(above))

    async def permissions(self, directory: Dentry) -> Permissions:
        """As the directory's entry tells them, or else its inode."""
        found = directory.permissions or self._loaded.get(directory.inode_id)
        if found is None:
            found = self._loaded[directory.inode_id] = permissions_of(await self.load(directory.inode_id))
        return found

    def holding(self, place: Place) -> Dentry:
        """What stands for the directory that holds `place`, which this walker has found."""
        return self._entry_of(place.parents, place.above)

    def above(self, place: Place) -> list[Dentry]:
        """What stands for the directories from the root down to the one that holds `place`, without the root."""
        return [self._passed[one] for one in zip(place.parents, place.above, strict=False)]

    def _entry_of(self, parents: Sequence[InodeId], above: Sequence[bytes]) -> Dentry:
        return self._passed[parents[-2], above[-1]] if above else _ROOT

    async def load(self, inode_id: InodeId) -> Inode:
        """The inode, read as this walk reads entries. Raises: Corrupt if it is gone."""
        return await inode.load(self._txn, inode_id, snapshot=self._snapshot)

    async def _search(self, path: str, directory: Dentry, above: Sequence[bytes]) -> None:
        """Raises: PermissionDenied unless the caller may look names up in `directory`, whose path is `above`."""
        self.caller.require(await self.permissions(directory), SEARCH, within(path, above))
        self._searched.add(directory.inode_id)

    async def existing(self, path: str, *, follow: bool) -> tuple[Place, Dentry]:
        """The place of something that is there. Raises: NotFound; as `find`."""
        place = await self.find(path, follow=follow)
        if place.dentry is None:
            raise _missing(path)
        return place, place.dentry

    async def existing_many(self, paths: Sequence[str], *, follow: bool) -> list[Dentry | Fs3Error]:
        """What is at each path, or its error in its place; names are read together, their directories once each.

        Raises: Fs3Error that is to be tried again.
        """
        if len(paths) == 1:
            return [await self._existing(paths[0], follow)]
        return [
            await self._existing(path, follow) if entry is _CLOSER else entry or _missing(path)
            for path, (_, _, entry) in zip(paths, await self._look(paths, follow), strict=True)
        ]

    async def _existing(self, path: str, follow: bool) -> Dentry | Fs3Error:
        """Raises: Fs3Error that is to be tried again."""
        place = await self._found(path, follow)
        if isinstance(place, Fs3Error):
            return place
        return place.dentry or _missing(path)

    async def holder(self, path: str, *, follow: bool) -> Place:
        """A place whose directory exists, for something that may be there or not. Raises: NotFound; as `find`."""
        return _held(path, await self.find(path, follow=follow))

    async def holder_many(self, paths: Sequence[str], *, follow: bool) -> list[Place]:
        """`holder` of each path. Raises: as `holder`, of the first path that has an error."""
        return [_held(path, one) for path, one in zip(paths, await self.find_many(paths, follow=follow), strict=True)]

    async def find_many(self, paths: Sequence[str], *, follow: bool) -> list[Place | Fs3Error]:
        """`find` of each path, its error in its place; names are read together, their directories once each.

        Raises: Fs3Error that is to be tried again.
        """
        return [
            await self._found(path, follow)
            if entry is _CLOSER
            else Place(inside.parents, name, entry, (), inside.above)
            for path, (inside, name, entry) in zip(paths, await self._look(paths, follow), strict=True)
        ]

    async def _look(self, paths: Sequence[str], follow: bool) -> list[_Seen]:
        """What the last name of each path stands for; `_CLOSER` where that is not all there is to it."""
        places = [await self._plain(path) for path in paths]
        entries = iter(
            await dentry.load_many(
                self._txn, [(inside.parent, name) for inside, name in places if name], snapshot=self._snapshot
            )
        )
        seen: list[_Seen] = []
        for inside, name in places:
            entry = next(entries) if name else _CLOSER
            if entry is not None and follow and entry.type is InodeType.SYMLINK:
                entry = _CLOSER
            seen.append((inside, name, entry))
        return seen

    async def _found(self, path: str, follow: bool) -> Place | Fs3Error:
        """Raises: Fs3Error that is to be tried again."""
        try:
            return await self.find(path, follow=follow)
        except Fs3Error as error:
            if error.retryable:
                raise
            return error

    async def _plain(self, path: str) -> tuple[Place, bytes]:
        """The directory in which the last name of `path` is to be looked for, and the name; none if the path needs a
        closer look."""
        folder, _, last = path.rpartition("/")
        try:
            name = last.encode()
        except UnicodeEncodeError:
            return _NOWHERE, b""
        if not path.startswith("/") or name in _NO_NAMES or b"\0" in name or len(name) > MAX_NAME_BYTES:
            return _NOWHERE, b""
        inside = self._folders.get(folder)
        if inside is None:
            inside = self._folders[folder] = await self._folder(folder or "/")
        return inside, b"" if inside is _NOWHERE else name

    async def _folder(self, path: str) -> Place:
        """The place of what is in the directory `path`, without a name; `_NOWHERE` if there is no such directory."""
        place = await self._found(path, True)
        if isinstance(place, Fs3Error) or place.dentry is None or place.dentry.type is not InodeType.DIRECTORY:
            return _NOWHERE
        if not self.caller.superuser and not self.caller.may(await self.permissions(place.dentry), SEARCH):
            return _NOWHERE
        if not place.name:
            parents, above = place.parents, place.above
        else:
            parents, above = (*place.parents, place.dentry.inode_id), (*place.above, place.name)
        if len(parents) > MAX_DEPTH or path.count("/") >= MAX_DEPTH:
            return _NOWHERE
        return Place(parents, b"", None, (), above)

    async def _entry(self, parent: InodeId, name: bytes) -> Dentry | None:
        passed = self._passed.get((parent, name))
        if passed is not None:
            return passed
        entry = await dentry.load(self._txn, parent, name, snapshot=self._snapshot)
        if entry is not None and entry.type is InodeType.DIRECTORY:
            self._passed[parent, name] = entry
        return entry


def within(path: str, above: Sequence[bytes]) -> str:
    """How an error names the directory in which a walk to `path` came no further."""
    return f"{path}: in the directory /{b'/'.join(above).decode()}"


def _missing(path: str) -> NotFound:
    return NotFound(f"{path}: no such file or directory")


def _held(path: str, found: Place | Fs3Error) -> Place:
    """Raises: NotFound: the directory is missing; the error that was found instead of a place."""
    if isinstance(found, Fs3Error):
        raise found
    if found.rest:
        raise NotFound(f"{path}: the directory {found.name.decode()} in its path does not exist; create it first")
    return found
