"""Who may do what: permission bits as POSIX and Linux read them. Pure; which bits an operation wants is its own matter.

The superuser is uid 0, and the user whose meta daemon it is: who starts a cluster owns all of it. Nothing is read or
compared for the superuser. So is whoever does not say who they are: clients of before there were users, and daemons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fs3.errors import NotPermitted, PermissionDenied
from fs3.inode import Inode
from fs3.user import User

READ, WRITE, SEARCH = 4, 2, 1  # SEARCH of a directory is to execute a file
SET_UID, SET_GID, STICKY = 0o4000, 0o2000, 0o1000
GROUP_RUNS = 0o010
_WORDS = {READ: "read", WRITE: "write", SEARCH: "search (x)"}


class Permissions(NamedTuple):
    """What an inode, or a directory's entry, says of who may use it."""

    mode: int
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"mode {self.mode:04o}, owner {self.uid}:{self.gid}"


def permissions_of(inode: Inode) -> Permissions:
    return Permissions(inode.mode, inode.uid, inode.gid)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose call it is."""

    user: User
    superuser: bool

    def is_member(self, gid: int) -> bool:
        return self.superuser or gid in self.user.gids

    def owns(self, uid: int) -> bool:
        """Whether they may do what is an owner's."""
        return self.superuser or uid == self.user.uid

    def may(self, found: Permissions, wanted: int) -> bool:
        """Whether all bits of `wanted` are given to the first of owner, group and others that the caller is."""
        if self.superuser:
            return True
        shift = 6 if found.uid == self.user.uid else 3 if found.gid in self.user.gids else 0
        return not wanted & ~(found.mode >> shift)

    def require(self, found: Permissions, wanted: int, where: str) -> None:
        """`where` says what it is about: "/a/b", "/a: the directory /". Raises: PermissionDenied."""
        if not self.may(found, wanted):
            needed = " and ".join(word for bit, word in _WORDS.items() if wanted & bit)
            raise PermissionDenied(
                f"{where}: uid {self.user.uid} may not {needed} here ({found}); the owner or the superuser can allow"
                " it: fs3 chmod, fs3 chown"
            )

    def require_owner(self, uid: int, what: str) -> None:
        """`what` says what only the owner may do, and where. Raises: NotPermitted."""
        if not self.owns(uid):
            raise NotPermitted(f"{what}, and uid {self.user.uid} is neither the owner, {uid}, nor the superuser")

    def require_superuser(self, what: str) -> None:
        """`what` says what it would tell or change. Raises: NotPermitted."""
        if not self.superuser:
            raise NotPermitted(
                f"{what}, and uid {self.user.uid} is not the superuser; call as root, or as the user that meta runs as"
            )

    def born(self, above: Permissions, mode: int, *, directory: bool = False) -> Permissions:
        """What something new in the directory `above` has: its group if that is setgid, and a directory then is too."""
        if not above.mode & SET_GID:
            return Permissions(mode, self.user.uid, self.user.gid)
        if directory:
            mode |= SET_GID
        elif mode & GROUP_RUNS and not self.is_member(above.gid):
            mode &= ~SET_GID
        return Permissions(mode, self.user.uid, above.gid)


SUPERUSER = Caller(User(0, (0,)), superuser=True)


def caller_of(user: User | None, owner_uid: int) -> Caller:
    """The caller who said to be `user`, at a daemon that runs as `owner_uid`."""
    return SUPERUSER if user is None else Caller(user, user.uid in (0, owner_uid))
