"""Whether a metadata store hangs together: every record of one snapshot is taken in, then what is wrong is told.

    entries     lead from a directory, alive or waiting to be taken apart, to an inode of the type (and permissions, if
                they say any) that they say
    inodes      have as many names as they count, or a write session; a directory has one, in its `parent`
    dead ones   have no inode record any more
    the rest    sessions, times and listings of directories, and attributes belong to an inode, which counts their bytes
    the trash   has the entry of each of its records
    quotas      count what is there (fsck_quotas.py)
    the tree    every directory is below the root, or below a dead one
    counters    no inode has an id that is still to be given out

Memory is in proportion to the number of inodes (about half a kilobyte each).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass

from fs3.errors import Fs3Error, Invalid
from fs3.ids import ROOT_INODE
from fs3.inode import Inode, InodeType
from fs3.kv import keys
from fs3.kv.occ_core import decode_counter
from fs3.meta import dentry, inode, trashed
from fs3.meta.access import Permissions, permissions_of
from fs3.meta.dentry import Dentry
from fs3.meta.fsck_quotas import QuotaSums

_NUMBERED_BYTES = 12  # a kind and a number


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, with the inode that it is about; 0 for none."""

    inode_id: int
    text: str

    def __str__(self) -> str:
        return f"inode {self.inode_id}: {self.text}" if self.inode_id else self.text


@dataclass(frozen=True, slots=True)
class _Known:
    """What is needed of an inode's record."""

    type: InodeType
    nlink: int
    parent: int
    xattr_bytes: int
    rewritten: bool
    lost_name: bool
    permissions: Permissions | None  # of a directory


class Fsck:
    """`take` every pair of the store, in any order; then `findings`."""

    def __init__(self) -> None:
        self._inodes: dict[int, _Known] = {}
        self._dead: dict[int, _Known] = {}
        self._names: Counter[int] = Counter()
        self._entries: list[tuple[int, bytes, Dentry]] = []
        self._having: dict[bytes, set[int]] = {keys.SESSION: set(), keys.STAMP: set(), keys.LISTING: set()}
        self._xattr_bytes: Counter[int] = Counter()
        self._trash: list[bytes] = []
        self._uncounted: set[bytes] = set()
        self._quotas = QuotaSums()
        self._next_inode = 0
        self._unreadable: list[Finding] = []

    @property
    def inodes(self) -> int:
        """How many there are, without those that wait to be collected."""
        return len(self._inodes)

    @property
    def dead(self) -> int:
        """How many wait to be collected."""
        return len(self._dead)

    def take(self, key: bytes, value: bytes) -> None:
        """Take in one pair."""
        try:
            self._take(key, value)
        except Fs3Error as error:
            self._unreadable.append(Finding(0, f"key {key!r}: {error}"))

    def _take(self, key: bytes, value: bytes) -> None:
        kind = key[:4]
        if kind == keys.COUNTER:
            if key == keys.NEXT_INODE:
                self._next_inode = decode_counter(value)
            return
        if kind == keys.IDEMPOTENCY or key in (keys.CLUSTER, keys.COLLECTOR):
            return
        if kind == keys.TRASH:
            known = trashed.decode(value)
            self._trash.append(trashed.entry_name(key, known))
            if known.uncounted:
                self._uncounted.add(self._trash[-1])
            return
        if len(key) < _NUMBERED_BYTES:
            raise Invalid("no key of a metadata store")
        number = int.from_bytes(key[4:_NUMBERED_BYTES], "big")
        if kind in (keys.INODE, keys.GC_QUEUE):
            self._take_inode(self._inodes if kind == keys.INODE else self._dead, number, inode.decode(value))
        elif kind == keys.DENTRY:
            self._entries.append((number, keys.dentry_name(key), dentry.decode(value)))
        elif kind in (keys.QUOTA, keys.QUOTA_USE):
            self._quotas.take(key, value)
        elif kind in self._having:
            self._having[kind].add(number)
        elif kind == keys.XATTR:
            self._xattr_bytes[number] += len(keys.xattr_name(key)) + len(value)
        else:
            raise Invalid("no key of a metadata store")

    def _take_inode(self, where: dict[int, _Known], number: int, found: Inode) -> None:
        if found.inode_id != number:
            raise Invalid(f"holds inode {found.inode_id}")
        permissions = permissions_of(found) if found.is_directory else None
        where[number] = _Known(
            found.type,
            found.nlink,
            found.parent,
            found.xattr_bytes,
            found.rewritten,
            found.lost_name,
            permissions,
        )
        if where is self._inodes:
            self._quotas.take_inode(found)

    def findings(self) -> list[Finding]:
        """All that is wrong, by inode."""
        found = [
            *self._unreadable,
            *self._of_entries(),
            *self._of_inodes(),
            *self._of_the_rest(),
            *self._of_the_trash(),
            *self._of_the_quotas(),
            *self._of_the_tree(),
        ]
        return sorted(found, key=lambda one: (one.inode_id, one.text))

    def _of_entries(self) -> Iterator[Finding]:
        self._names.clear()
        for parent, name, entry in self._entries:
            number, kind, permissions = entry.inode_id, entry.type, entry.permissions
            what = _entry(parent, name)
            holder = self._inodes.get(parent) or self._dead.get(parent)
            child = self._inodes.get(number)
            if holder is None or holder.type is not InodeType.DIRECTORY:
                yield Finding(parent, f"has the entry {name.decode(errors='replace')!r}, and is no directory")
            if child is None:
                yield Finding(number, f"does not exist, and is named by {what}")
                continue
            self._names[number] += 1
            if child.type is not kind:
                yield Finding(number, f"is a {child.type.name.lower()}; {what} says {kind.name.lower()}")
            if permissions not in (None, child.permissions):
                yield Finding(number, f"has {child.permissions}; {what} says {permissions}")
            if child.type is InodeType.DIRECTORY and child.parent != parent:
                yield Finding(number, f"has directory {child.parent} for its parent, and is {what}")

    def _of_inodes(self) -> Iterator[Finding]:
        if self._inodes and ROOT_INODE not in self._inodes:
            yield Finding(ROOT_INODE, "the root directory is missing")
        for number, one in self._inodes.items():
            names = self._names[number]
            if number in self._dead:
                yield Finding(number, "waits to be collected, and is still there")
            if number >= self._next_inode and number != ROOT_INODE:
                yield Finding(number, f"has an id that is still to be given out, from {self._next_inode} on")
            if one.type is InodeType.DIRECTORY:
                expected = 0 if number == ROOT_INODE else 1
                if names != expected:
                    yield Finding(number, f"is a directory with {names} names")
            elif names != one.nlink:
                yield Finding(number, f"counts {one.nlink} names, and has {names}")
            elif not names and number not in self._having[keys.SESSION]:
                yield Finding(number, "has neither a name nor a write session")
            if self._xattr_bytes[number] != one.xattr_bytes:
                yield Finding(
                    number, f"counts {one.xattr_bytes} bytes of attributes, and has {self._xattr_bytes[number]}"
                )

    def _of_the_rest(self) -> Iterator[Finding]:
        for number in self._having[keys.SESSION]:
            one = self._inodes.get(number)
            if one is None or one.type is not InodeType.FILE or (one.nlink and not one.rewritten):
                yield Finding(number, "has a write session, and is no file that is being written")
        of_directories = {"time of a directory's last change": keys.STAMP, "version of a listing": keys.LISTING}
        for what, kind in of_directories.items():
            for number in self._having[kind]:
                holder = self._inodes.get(number) or self._dead.get(number)
                if holder is None or holder.type is not InodeType.DIRECTORY:
                    yield Finding(number, f"has the {what}, and is no directory")
        for number in self._xattr_bytes.keys() - self._inodes.keys():
            yield Finding(number, "has attributes, and does not exist")

    def _of_the_trash(self) -> Iterator[Finding]:
        at = {entry.inode_id for parent, name, entry in self._entries if (parent, name) == (ROOT_INODE, trashed.NAME)}
        there = {name for parent, name, _ in self._entries if parent in at}
        for name in self._trash:
            if name not in there:
                yield Finding(0, f"the trash remembers {name.decode(errors='replace')!r}, and does not have it")

    def _of_the_quotas(self) -> Iterator[Finding]:
        for number, text in self._quotas.findings():
            yield Finding(number, text)
        trash = {
            entry.inode_id for parent, name, entry in self._entries if (parent, name) == (ROOT_INODE, trashed.NAME)
        }
        uncounted = {
            entry.inode_id for parent, name, entry in self._entries if parent in trash and name in self._uncounted
        }
        for parent, name, entry in self._entries:
            child = self._inodes.get(entry.inode_id)
            if child is None:
                continue
            if entry.has_quota != self._quotas.has_own(entry.inode_id):
                says, has = ("one", "none") if entry.has_quota else ("none", "one")
                yield Finding(entry.inode_id, f"has {has} quota of its own, and {_entry(parent, name)} says {says}")
            several = child.type is not InodeType.DIRECTORY and (child.nlink > 1 or child.lost_name)
            placed = parent in self._inodes and parent not in trash and not several
            if placed and self._quotas.differs(parent, entry.inode_id) and not self._is_below(parent, uncounted):
                yield Finding(entry.inode_id, f"is {_entry(parent, name)}; other quotas count what is in there")

    def _is_below(self, directory: int, tops: Set[int]) -> bool:
        """Whether a directory is one of these, or below one."""
        seen: set[int] = set()
        while directory in self._inodes and directory not in seen:
            if directory in tops:
                return True
            seen.add(directory)
            directory = self._inodes[directory].parent
        return False

    def _of_the_tree(self) -> Iterator[Finding]:
        """Directories whose parents never end at the root or at one that is being taken apart."""
        fine = {int(ROOT_INODE), *self._dead}
        for number, one in self._inodes.items():
            if one.type is not InodeType.DIRECTORY:
                continue
            above: set[int] = set()
            at = number
            while at not in fine and at not in above and at in self._inodes:
                above.add(at)
                at = self._inodes[at].parent
            if at in fine:
                fine |= above
            else:
                yield Finding(number, "is a directory that nothing leads to from the root")


def _entry(parent: int, name: bytes) -> str:
    return f"entry {name.decode(errors='replace')!r} of directory {parent}"
