"""The Prometheus endpoint of a daemon; the counters themselves live where they are counted.

A daemon owns one registry (no global one, so that several daemons can live in one test process) and serves it over
HTTP on a port of its own, on the host it listens on.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Info, start_http_server

from fs3 import __version__
from fs3.errors import Invalid


@dataclass(frozen=True, slots=True)
class MetricsServer:
    """A running endpoint; `address` is "host:port"."""

    address: str
    _server: WSGIServer
    _thread: Thread

    def close(self) -> None:
        """Stop serving and release the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def new_registry(daemon: str) -> CollectorRegistry:
    """A registry that already tells the software's version."""
    registry = CollectorRegistry()
    Info("fs3", "Version of the fs3 daemon", registry=registry).info({"version": __version__, "daemon": daemon})
    return registry


def serve(registry: CollectorRegistry, host: str, port: int) -> MetricsServer:
    """Serve `registry` on host:port (0 picks a free port). Raises: Invalid if the port is taken."""
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise Invalid(f"metrics port {host}:{port}: {error.strerror}; choose another metrics_port") from None
    return MetricsServer(f"{host}:{server.server_port}", server, thread)
