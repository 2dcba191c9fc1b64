"""What the file commands share: a place is a local path or a URL, and a failure is one line as coreutils print it.

`fs3 cp` and its siblings go on after an operand that failed and exit 1 at the end, as coreutils do.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fs3.errors import Fs3Error, Invalid
from fs3.filesystem.secret import use_secret
from fs3.filesystem.urls import filesystem_of
from fs3.url import check_local


@dataclass(frozen=True, slots=True)
class Place:
    """A path on a filesystem; `text` is what the user wrote, and what messages show."""

    fs: Any
    path: str
    text: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def says_directory(self) -> bool:
        """Whether the user wrote a trailing slash."""
        return self.text.endswith("/")

    def child(self, name: str) -> Place:
        return Place(self.fs, f"{self.path.rstrip('/')}/{name}", f"{self.text.rstrip('/')}/{name}")

    def shares_filesystem(self, other: Place) -> bool:
        """Whether both lie in one filesystem: in one cluster, by whichever of its addresses each is named.

        Raises: OSError.
        """
        clusters = self.fs.protocol == other.fs.protocol == "fs3"
        return bool(self.fs == other.fs or (clusters and self.fs.fsid == other.fs.fsid))

    def info(self) -> dict[str, Any]:
        """Raises: OSError."""
        found: dict[str, Any] = self.fs.info(self.path)
        return found

    def kind(self) -> str | None:
        """What stands there: "file", "directory", "other", or None if nothing does. Raises: OSError."""
        try:
            return str(self.info()["type"])
        except (FileNotFoundError, NotADirectoryError):
            return None


def place(text: str) -> Place:
    """The place a user named: `fs3://...` (or another fsspec URL), else a local path.

    Raises:
        Invalid, OSError: it is neither, or its cluster cannot be reached.
    """
    if "://" in text:
        use_secret(os.environ.get("FS3_SECRET", ""))
        return Place(*filesystem_of(text), text)
    check_local(text)
    return Place(fsspec.filesystem("file"), os.path.abspath(text), text)


def check_trash(at: Place) -> None:
    """Raises: Invalid if there is no trash where `at` is."""
    if not hasattr(at.fs, "trash"):
        raise Invalid(f"{at.text}: only clusters have a trash; name something as fs3://HOST:PORT/path")


class Failures:
    """Counts and prints what went wrong with single operands: `with failures.of("cannot remove", place): ...`."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.count = 0

    def say(self, line: str) -> None:
        self.count += 1
        print(f"fs3 {self.command}: {line}", file=sys.stderr)

    @contextlib.contextmanager
    def of(self, what: str, text: str) -> Iterator[None]:
        """Print a failure inside as "fs3 COMMAND: WHAT 'TEXT': reason" and go on behind the block."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            self.say(f"{what} '{text}': {reason(error)}")
        except (Fs3Error, ValueError) as error:
            self.say(f"{what} '{text}': {error}")

    def exit_code(self, code: int = 1) -> int:
        return code if self.count else 0


def walk(top: Place, failures: Failures, *, without: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """What is below a directory, each as its path within it and what `info` tells; directories come before their own.

    A directory that cannot be read is a failure. Of its own entries `top` gives all but `without`.
    """
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        at = top.child(inside) if inside else top
        found: dict[str, dict[str, Any]] = {}
        with failures.of("cannot read directory", at.text):
            for entry in at.fs.ls(at.path, detail=True):
                name = entry["name"].rstrip("/").rpartition("/")[2]
                if entry["name"].rstrip("/") != at.path.rstrip("/") and (inside or name != without):
                    found[f"{inside}/{name}" if inside else name] = entry
        yield from sorted(found.items())
        waiting += [name for name in sorted(found, reverse=True) if found[name]["type"] == "directory"]


def reason(error: OSError) -> str:
    """Why, in words; the system's own for plain errors of local files."""
    return error.strerror or str(error) or type(error).__name__
