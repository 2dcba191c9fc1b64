"""The cluster's secret for `fs3://` URLs that are opened where nobody can hand it over, as torch opens checkpoints.

fsspec gives the options in its configuration to every filesystem that is made without them; programs that are not
ours can set it with the variable FSSPEC_FS3_SECRET (`fsspec.config`).
"""

from __future__ import annotations

from fsspec.config import conf


def use_secret(secret: str) -> None:
    """Let every fs3 filesystem of this process that is given no secret show this one; "" changes nothing."""
    if secret:
        conf.setdefault("fs3", {})["secret"] = secret
