"""Closed by default: a daemon that can be reached from other machines wants a secret, or to be told to go without."""

from __future__ import annotations

import ipaddress

from fs3.errors import Invalid


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; a name other than localhost is taken for reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(host: str, *, secret: str, insecure: bool) -> None:
    """Raises: Invalid if a daemon would listen on `host` beyond loopback with neither a secret nor `insecure`."""
    if not is_loopback(host) and not secret and not insecure:
        raise Invalid(
            f"listen_host {host!r} can be reached from other machines: set `secret` to the cluster's secret,"
            " or `insecure = true` to go without one"
        )
