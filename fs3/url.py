"""The one place where an `fs3://` URL is taken apart: `fs3://HOST:PORT[,HOST:PORT...]/path`.

The authority names mgmtds of the cluster (any that answers will do), the rest is an absolute path within it. Nothing is
percent-decoded: a path is what stands there, as fsspec has it.
"""

from __future__ import annotations

from fs3.errors import Invalid

SCHEME = "fs3://"
_EXAMPLE = "write fs3://HOST:PORT/path, for example fs3://127.0.0.1:7300/data"


def parse_url(url: str) -> tuple[tuple[str, ...], str]:
    """The mgmtd addresses ("host:port") and the absolute path of an `fs3://` URL.

    Raises:
        Invalid: it is not one; the message names the part that is wrong.
    """
    if not url.startswith(SCHEME):
        raise Invalid(f"{url!r} is not an fs3 URL; {_EXAMPLE}")
    authority, slash, path = url.removeprefix(SCHEME).partition("/")
    if not authority:
        raise Invalid(f"{url!r} names no cluster; {_EXAMPLE}")
    addresses = tuple(_address(part.strip(), url) for part in authority.split(","))
    return tuple(dict.fromkeys(addresses)), slash + path or "/"


def check_local(path: str) -> None:
    """Refuse `fs3:/x` and the like, which was meant as a URL, where anything that is no URL is a local path.

    Raises:
        Invalid: the path begins with "fs3:"; "./fs3:..." names such a local file.
    """
    if path.startswith(SCHEME.rstrip("/")) and not path.startswith(SCHEME):
        raise Invalid(f"{path!r} is not an fs3 URL; {_EXAMPLE}")


def make_url(addresses: tuple[str, ...], path: str = "") -> str:
    """The URL of `path` ("" for none, else absolute) in the cluster behind `addresses`."""
    assert not path or path.startswith("/"), path
    return SCHEME + ",".join(addresses) + path


def parse_address(text: str, *, where: str) -> tuple[str, int]:
    """The host and port of "host:port" ("[::1]:7300" for IPv6); `where` opens the message. Raises: Invalid."""
    host, colon, port = text.rpartition(":")
    bare_ipv6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if not colon or not host or bare_ipv6 or "@" in host or " " in host:
        raise Invalid(f"{where}: {text!r} is not HOST:PORT")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise Invalid(f"{where}: port {port!r} is not a number between 1 and 65535")
    return host.strip("[]"), int(port)


def _address(part: str, url: str) -> str:
    try:
        parse_address(part, where=repr(url))
    except Invalid as error:
        raise Invalid(f"{error}; {_EXAMPLE}") from None
    return part
