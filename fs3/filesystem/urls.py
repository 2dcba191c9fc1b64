"""`fs3://` URLs as fsspec takes them apart: which cluster, and the path within.

A URL says which cluster if what stands before its path has a port; else the option `mgmtd` says it, as some libraries
drop what we put there: "fs3:///a/b", which pathlib makes "fs3://a/b", are "/a/b".
"""

from __future__ import annotations

from typing import Any

import fsspec

from fs3.errors import Invalid
from fs3.url import SCHEME, parse_url


def path_of(text: str) -> str:
    """The absolute path of a URL or path, without a slash at its end."""
    if text.startswith(SCHEME):
        text = text.removeprefix(SCHEME)
        text = text.partition("/")[2] if _names_cluster(text) else text
    return "/" + "/".join(part for part in text.split("/") if part not in ("", "."))


def cluster_of(url: str) -> dict[str, str]:
    """The option `mgmtd` that a URL stands for, if it names a cluster. Raises: ValueError: not by valid addresses."""
    if not url.startswith(SCHEME) or not _names_cluster(url.removeprefix(SCHEME)):
        return {}
    try:
        addresses, _ = parse_url(url)
    except Invalid as error:
        raise ValueError(str(error)) from None
    return {"mgmtd": ",".join(addresses)}


def filesystem_of(url: str) -> tuple[Any, str]:
    """The filesystem of a path or URL of any kind that fsspec knows, and the path within it.

    Raises:
        Invalid: there is no such kind, its package is not installed, or it takes more than a URL to make one.
        OSError: what its filesystem finds, as that a cluster cannot be reached.
    """
    try:
        fs, path = fsspec.url_to_fs(url)
    except ImportError as error:  # it says what to install
        raise Invalid(f"cannot open {url}: {_one_line(error)}") from None
    except ValueError as error:
        what = _one_line(error)
        known = url in what  # by who looked at it
        raise Invalid(
            what if known else f"cannot open {url}: {what}; name a path, or a URL that fsspec knows"
        ) from None
    except (TypeError, AttributeError):  # arguments that fsspec lacks, or finds to be None
        scheme = url.partition("://")[0]
        raise Invalid(f"cannot open {url}: {scheme}:// takes more than a URL; give one of what is below it") from None
    return fs, path


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _names_cluster(rest: str) -> bool:
    return ":" in rest.partition("/")[0]
