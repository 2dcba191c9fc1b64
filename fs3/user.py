"""Who calls, as NFS's AUTH_SYS has it: a user's number and the numbers of their groups, stated by the client.

Nothing proves it: whoever holds the cluster's secret is believed. Its text, "UID:GID,GID,...", is what calls carry.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from fs3.errors import Invalid

MAX_GROUPS = 32  # AUTH_SYS: 17
MAX_NUMBER = (1 << 32) - 2  # the one above means nobody, or "leave it", in system calls


class User(NamedTuple):
    """`gids` are their groups, at least one; the first is that of new files."""

    uid: int
    gids: tuple[int, ...]

    @property
    def gid(self) -> int:
        return self.gids[0]

    @property
    def text(self) -> str:
        """As `parse_user` reads it."""
        return f"{self.uid}:{','.join(map(str, self.gids))}"


def process_user() -> User:
    """The effective user of this process now; of more than `MAX_GROUPS` groups the first."""
    gid = os.getegid()
    gids = (gid, *(other for other in sorted(os.getgroups()) if other != gid))
    return User(os.geteuid(), gids[:MAX_GROUPS])


def parse_user(text: str) -> User:
    """Raises: Invalid, saying why it is none."""
    uid, colon, gids = text.partition(":")
    numbers = [uid, *gids.split(",")]
    if not colon or not all(number.isascii() and number.isdecimal() and len(number) <= 10 for number in numbers):
        raise Invalid(f"user {text[:60]!r}: expected UID:GID or UID:GID,GID,..., numbers, such as 1000:1000,27")
    user = User(int(uid), tuple(map(int, numbers[1:])))
    if len(user.gids) > MAX_GROUPS:
        raise Invalid(
            f"user {user.uid}: {len(user.gids)} groups, at most {MAX_GROUPS} are taken; name those that matter"
        )
    if max(user.uid, *user.gids) > MAX_NUMBER:
        raise Invalid(f"user {text[:60]!r}: the numbers of users and groups go up to {MAX_NUMBER}")
    return user
