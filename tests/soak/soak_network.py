"""Network namespaces for a soak: one per daemon and per client, all on one bridge, whose links can be cut and spoiled.

A link is cut one way by telling the sender a hardware address that nobody has: its packets leave and are lost without a
word, as on a broken cable, while the other way goes on. That needs no firewall. Lost packets want `nft` or a kernel
with netem, late ones netem, slow links tbf; what is not there is named once and left out.

Nothing is made in the namespace of this machine: the bridge has one of its own, and deleting the namespaces deletes
all of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence

_NOBODY = "02:00:00:00:ff:ff"
_CLONE_NEWNET = 0x40000000


class Missing(Exception):
    """Something a soak cannot do without is not here; the message is for people."""


def missing() -> str:
    """What keeps namespaces from being made here, or ""."""
    if os.geteuid() != 0:
        return "network namespaces need root; run this as root"
    if shutil.which("ip") is None:
        return "there is no `ip` here; install the package iproute2"
    probe = f"fs3-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"this kernel or container makes no network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], check=False)
    return ""


class Network:
    """Namespaces with these names; `address` of each is its only one, besides loopback."""

    def __init__(self, names: Sequence[str]) -> None:
        why = missing()
        if why:
            raise Missing(why)
        self._prefix = f"fs3-{os.getpid()}"
        self._number = {name: number for number, name in enumerate(names, start=1)}
        self._dead: set[tuple[str, str]] = set()
        self.cannot: dict[str, str] = {}  # kind of trouble -> what is missing for it
        try:
            self._make()
            self._probe()
        except BaseException:
            self.close()
            raise

    def address(self, name: str) -> str:
        """The address of a namespace."""
        return f"10.83.{self._number[name] >> 8}.{self._number[name] & 0xFF}"

    def namespace(self, name: str) -> str:
        """What `ip netns` knows it by."""
        return f"{self._prefix}-{name}"

    def command(self, name: str, arguments: Sequence[str]) -> list[str]:
        """`arguments`, to be run in a namespace; the process is the one that was started."""
        return ["ip", "netns", "exec", self.namespace(name), *arguments]

    def enter(self, name: str) -> None:
        """Move this thread, and what it starts, into a namespace."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/var/run/netns/{self.namespace(name)}", "rb") as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def cut(self, sender: str, receiver: str) -> None:
        """Lose what `sender` sends to `receiver`; the other way stays."""
        self._dead.add((sender, receiver))
        self._neighbour(sender, receiver, _NOBODY)

    def mend(self, sender: str, receiver: str) -> None:
        """End a `cut`."""
        self._dead.discard((sender, receiver))
        self._neighbour(sender, receiver, self._hardware(receiver))

    def lose(self, name: str, percent: int) -> None:
        """Lose so many of the packets that `name` sends."""
        if shutil.which("nft"):
            dice = ("numgen", "random", "mod", "100", "<", str(percent), "drop")
            self._in(name, "nft", "add", "rule", "inet", "soak", "out", *dice)
            return
        self._in(name, "tc", "qdisc", "replace", "dev", "eth0", "root", "netem", "loss", f"{percent}%")

    def delay(self, name: str, by_ms: int) -> None:
        """Have what `name` sends arrive later."""
        self._in(
            name, "tc", "qdisc", "replace", "dev", "eth0", "root", "netem", "delay", f"{by_ms}ms", f"{by_ms // 3}ms"
        )

    def throttle(self, name: str, megabits: int) -> None:
        """Let `name` send no more than so much."""
        shape = ("rate", f"{megabits}mbit", "burst", "64kb", "latency", "400ms")
        self._in(name, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *shape)

    def clear(self, name: str) -> None:
        """End `lose`, `delay` and `throttle`."""
        if "loss" not in self.cannot and shutil.which("nft"):
            self._in(name, "nft", "flush", "chain", "inet", "soak", "out")
        self._in(name, "tc", "qdisc", "del", "dev", "eth0", "root", check=False)

    def heal(self) -> None:
        """End everything."""
        for sender, receiver in list(self._dead):
            self.mend(sender, receiver)
        for name in self._number:
            self.clear(name)

    def close(self) -> None:
        """Delete the namespaces; whatever runs in them must have ended."""
        for name in [*self._number, "hub"]:
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "delete", self.namespace(name)], capture_output=True, check=False)

    def _make(self) -> None:
        _ip("netns", "add", self.namespace("hub"))
        _ip("-n", self.namespace("hub"), "link", "add", "br0", "type", "bridge")
        _ip("-n", self.namespace("hub"), "link", "set", "br0", "up")
        for name, number in self._number.items():
            namespace, port = self.namespace(name), f"v{number}"
            _ip("netns", "add", namespace)
            ends = ("type", "veth", "peer", "name", "eth0", "address", self._hardware(name), "netns", namespace)
            _ip("-n", self.namespace("hub"), "link", "add", port, *ends)
            _ip("-n", self.namespace("hub"), "link", "set", port, "master", "br0", "up")
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", namespace, "address", "add", f"{self.address(name)}/16", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")
        for name in self._number:
            for other in self._number:
                if other != name:
                    self._neighbour(name, other, self._hardware(other))

    def _probe(self) -> None:
        """Learn what cannot be done here, on the first namespace."""
        name = next(iter(self._number))
        for kind, way in (("delay", lambda: self.delay(name, 1)), ("throttle", lambda: self.throttle(name, 100))):
            try:
                way()
            except Missing as error:
                self.cannot[kind] = str(error)
        if shutil.which("nft"):
            try:
                for one in self._number:
                    self._in(one, "nft", "add", "table", "inet", "soak")
                    hook = "{ type filter hook output priority 0; policy accept; }"
                    self._in(one, "nft", "add", "chain", "inet", "soak", "out", hook)
                self.lose(name, 1)
            except Missing as error:
                self.cannot["loss"] = str(error)
        elif "delay" in self.cannot:
            self.cannot["loss"] = "neither `nft` (package nftables) nor netem in this kernel"
        self.clear(name)

    def _hardware(self, name: str) -> str:
        number = self._number[name]
        return f"02:00:00:00:{number >> 8:02x}:{number & 0xFF:02x}"

    def _neighbour(self, name: str, other: str, hardware: str) -> None:
        where = ("neighbour", "replace", self.address(other), "lladdr", hardware, "dev", "eth0", "nud", "permanent")
        _ip("-n", self.namespace(name), *where)

    def _in(self, name: str, *command: str, check: bool = True) -> None:
        done = subprocess.run(self.command(name, command), capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise Missing(
                f"{' '.join(command[:1])}: {done.stderr.strip().splitlines()[0] if done.stderr else 'failed'}"
            )


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
