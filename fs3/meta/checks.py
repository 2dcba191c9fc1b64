"""What operations ask of a caller beside the walk, as Linux does; the superuser costs no read.

What is read for a check is read as the walk reads, so that a change of permissions conflicts with what they allowed.
"""

from __future__ import annotations

from fs3.errors import NotPermitted, PermissionDenied
from fs3.inode import Inode
from fs3.meta import trashed
from fs3.meta.access import (
    GROUP_RUNS,
    READ,
    SEARCH,
    SET_GID,
    SET_UID,
    STICKY,
    WRITE,
    Caller,
    Permissions,
    permissions_of,
)
from fs3.meta.dentry import Dentry
from fs3.meta.path import Place, Walker, within

_ANYBODY_RUNS = 0o111


async def may_add(walker: Walker, place: Place, path: str) -> None:
    """That the caller may make names in the directory that holds `place`.

    Raises: PermissionDenied; NotPermitted: the trash, where no quota would count them.
    """
    if not walker.caller.superuser:
        if place.above == (trashed.NAME,):
            raise NotPermitted(f"{path}: only `fs3 rm --trash` puts things into the trash")
        await _may_write_in(walker, place, path)


async def may_take(walker: Walker, place: Place, entry: Dentry, path: str) -> None:
    """That the caller may remove, move or replace `entry`, which is at `place`.

    Raises: PermissionDenied; NotPermitted: the directory is sticky, and they own neither it nor what is there.
    """
    if walker.caller.superuser:
        return
    await _may_write_in(walker, place, path)
    above = await walker.permissions(walker.holding(place))
    if above.mode & STICKY and not walker.caller.owns(above.uid):
        owner = (await walker.load(entry.inode_id)).uid
        walker.caller.require_owner(owner, f"{path}: in a sticky directory only the owner removes or renames")


async def may_replace(walker: Walker, place: Place, entry: Dentry, path: str) -> None:
    """That the caller may put something in the place of `entry`. Raises: as `may_add` and `may_take`."""
    await may_add(walker, place, path)
    await may_take(walker, place, entry, path)


async def _may_write_in(walker: Walker, place: Place, path: str) -> None:
    above = await walker.permissions(walker.holding(place))
    walker.caller.require(above, WRITE | SEARCH, within(path, place.above))


def may_move_away(caller: Caller, moved: Inode, path: str) -> None:
    """That it may go to another directory: of a directory the ".." is written. Raises: PermissionDenied."""
    if moved.is_directory:
        caller.require(permissions_of(moved), WRITE, path)


def may_empty(caller: Caller, directory: Inode, path: str) -> None:
    """That the caller may empty the top of a subtree; what lies deeper goes with it.

    Raises: PermissionDenied; NotPermitted: it is sticky, where not all may be theirs.
    """
    caller.require(permissions_of(directory), READ | WRITE | SEARCH, path)
    if directory.mode & STICKY:
        caller.require_owner(directory.uid, f"{path}: is sticky, and only the owner removes it with what is in it")


async def may_list(walker: Walker, directory: Dentry, path: str) -> bool:
    """That the caller may read the names in `directory`; whether also what they stand for. Raises: PermissionDenied."""
    if walker.caller.superuser:
        return True
    found = await walker.permissions(directory)
    walker.caller.require(found, READ, path)
    return walker.caller.may(found, SEARCH)


def may_link(caller: Caller, named: Inode, path: str) -> None:
    """That `named` may get a further name: of others' files only what could be written as well (protected_hardlinks).

    Else whoever may write in a directory could keep others from ever removing a file that they do not even own.
    Raises: NotPermitted.
    """
    safe = named.is_file and not named.mode & SET_UID and named.mode & (SET_GID | GROUP_RUNS) != SET_GID | GROUP_RUNS
    if not (safe and caller.may(permissions_of(named), READ | WRITE)):
        caller.require_owner(named.uid, f"{path}: only the owner links what they may not both read and write")


def may_annotate(caller: Caller, named: Inode, path: str) -> None:
    """That the caller may change its extended attributes.

    Raises: PermissionDenied; NotPermitted: a symlink or sticky directory, whose bits would allow it to everybody.
    """
    if (named.is_directory and named.mode & STICKY) or not (named.is_file or named.is_directory):
        what = "sticky directory" if named.is_directory else "symlink"
        caller.require_owner(named.uid, f"{path}: only the owner changes the attributes of a {what}")
    caller.require(permissions_of(named), WRITE, path)


def may_write(caller: Caller, named: Inode, wanted: int, path: str) -> int:
    """That the file may be opened for writing, and its mode from then on.

    What others than the superuser write runs as nobody else, as on Linux (which waits for the first byte).

    Raises: PermissionDenied.
    """
    caller.require(permissions_of(named), wanted, path)
    runs = SET_GID if named.mode & GROUP_RUNS else 0
    return named.mode if caller.superuser else named.mode & ~(SET_UID | runs)


def may_use(caller: Caller, found: Permissions, wanted: int, path: str, *, is_file: bool) -> None:
    """As access(2) has it: the superuser, too, executes only files that somebody may. Raises: PermissionDenied."""
    caller.require(found, wanted, path)
    if is_file and wanted & SEARCH and not found.mode & _ANYBODY_RUNS:
        raise PermissionDenied(f"{path}: nobody may execute it ({found}); its owner can allow it: fs3 chmod")
