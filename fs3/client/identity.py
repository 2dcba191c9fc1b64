"""Who a process is to the storage daemons while it changes data: its session with mgmtd, and the session's channels.

Every storage client on one MgmtdClient shares them: two that gave out channels of one session, each by itself, would
have their updates taken for one another's. When a session has ended, the next one begins with channels of its own; what
is on its way under the old one ends there. A forked child begins without any.
"""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass
from typing import Protocol

from fs3.client.channels import Channels
from fs3.runtime import SYSTEM, Runtime


class Sessions(Protocol):
    """What of MgmtdClient is used here."""

    def session_id(self, deadline_s: float | None = None) -> int: ...
    def session_lost(self, session_id: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """A session (or a client id that was given), and its update channels."""

    client_id: int
    channels: Channels


_guard = threading.Lock()  # only ever held for an instant
_identities: weakref.WeakKeyDictionary[Sessions, Identity] = weakref.WeakKeyDictionary()


def identity_of(sessions: Sessions, deadline_s: float | None = None, *, runtime: Runtime = SYSTEM) -> Identity:
    """The one under which changes are made now; opens a session if there is none. Blocks.

    Raises: Unavailable: no mgmtd that decides has answered before `deadline_s` (default: 10 s from now).
    """
    client_id = sessions.session_id(deadline_s)
    with _guard:
        known = _identities.get(sessions)
        # Ids only rise: a lower one is what another thread has already seen end. Its channels must not begin anew.
        if known is None or known.client_id < client_id:
            known = _identities[sessions] = Identity(client_id, Channels(runtime=runtime))
        return known


def forget_all() -> None:
    """As in a forked child: nobody has changed anything yet."""
    global _guard
    _guard = threading.Lock()
    _identities.clear()


os.register_at_fork(after_in_child=forget_all)
