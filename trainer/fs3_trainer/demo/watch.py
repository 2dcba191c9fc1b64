"""How many targets serve, noted at every change of the routing: the cluster's own view of a failure and its repair."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from fs3.client.connect import Client
from fs3.errors import Fs3Error
from fs3.routing import NodeKind, Routing, TargetState

LOOK_S = 0.25


@dataclass(frozen=True, slots=True)
class Seen:
    """The cluster at one moment (seconds since 1970), by one routing version."""

    time: float
    version: int
    serving: int
    targets: int
    nodes_alive: int

    @property
    def whole(self) -> bool:
        """Whether every target of every chain serves."""
        return 0 < self.targets == self.serving


def see(routing: Routing, now: float) -> Seen:
    """What `routing` says at `now`."""
    return Seen(
        time=now,
        version=routing.version,
        serving=sum(target.state == TargetState.SERVING for target in routing.targets.values()),
        targets=len(routing.targets),
        nodes_alive=sum(node.kind == NodeKind.STORAGE and node.alive for node in routing.nodes.values()),
    )


class Watch:
    """Follows the routing from a thread of its own between `start` and `stop`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._seen = [see(client.mgmtd.routing, time.time())]
        self._thread = threading.Thread(target=self._follow, name="watch")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def now(self) -> Seen:
        """The newest view."""
        return self._seen[-1]

    def stop(self) -> tuple[Seen, ...]:
        """End; every view in order."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        return tuple(self._seen)

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                routing = self._client.mgmtd.refresh(self._seen[-1].version, LOOK_S)
            except Fs3Error:
                return  # the client was closed
            if routing.version != self._seen[-1].version:
                self._seen.append(see(routing, time.time()))
