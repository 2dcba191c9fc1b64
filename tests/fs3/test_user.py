"""Users as text: what is read and written, what is refused, and whom a process says to be."""

from __future__ import annotations

import os

import pytest

from fs3.errors import Invalid
from fs3.user import MAX_GROUPS, User, parse_user, process_user


@pytest.mark.parametrize("user", [User(0, (0,)), User(1_000, (1_000, 27)), User(2**32 - 2, tuple(range(MAX_GROUPS)))])
def test_text_and_back(user: User) -> None:
    assert parse_user(user.text) == user and user.gid == user.gids[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1000", "expected UID:GID"),
        ("", "expected UID:GID"),
        ("1000:", "expected UID:GID"),
        (":5", "expected UID:GID"),
        ("anna:users", "expected UID:GID"),
        ("1000:5,", "expected UID:GID"),
        ("1000:-5", "expected UID:GID"),
        ("1000:+5", "expected UID:GID"),
        ("1000: 5", "expected UID:GID"),
        ("1:²", "expected UID:GID"),
        (f"{2**32 - 1}:0", "go up to 4294967294"),
        (f"0:{2**32 - 1}", "go up to 4294967294"),
        ("0:" + "9" * 11, "expected UID:GID"),
        ("7:" + ",".join("1" * (MAX_GROUPS + 1)), "user 7: 33 groups, at most 32"),
    ],
)
def test_what_is_none_is_told_so(text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        parse_user(text)


def test_a_process_is_its_effective_user() -> None:
    user = process_user()
    assert (user.uid, user.gid) == (os.geteuid(), os.getegid())
    assert set(user.gids) <= {os.getegid(), *os.getgroups()} and len(user.gids) <= MAX_GROUPS
    assert parse_user(user.text) == user
