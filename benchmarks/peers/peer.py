"""Peers: what a user could have instead of fs3, run beside it for as long as its row is measured.

A peer is a context manager with the processes whose CPU seconds are its server's. What keeps it from running here it
says by raising Missing, and its rows then name it and the reason; none is ever made up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TypeVar

import psutil


class Missing(Exception):
    """A peer cannot be had here; the message, which is for people, says why."""


class Peer(Protocol):
    """Started by entering it. Raises: Missing."""

    @property
    def processes(self) -> list[psutil.Process]: ...

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


P = TypeVar("P", bound=Peer)


class Peers:
    """Those of one row, or of several. `absent`: why some are not there, by name."""

    def __init__(self, stack: contextlib.ExitStack, servers: list[Peer]) -> None:
        """They end with `stack`, and are in `servers` until then."""
        self._stack = stack
        self._servers = servers
        self.absent: dict[str, str] = {}

    def start(self, name: str, make: Callable[[], P]) -> P | None:
        """The peer, started; None, and its reason noted, where it cannot be had."""
        try:
            peer = make()
            self._stack.enter_context(peer)
        except Missing as missing:
            self.absent[name] = str(missing)
            return None
        self._servers.append(peer)
        self._stack.callback(self._servers.remove, peer)
        return peer
