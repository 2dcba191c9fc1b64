"""Reading a frozen dataclass from TOML, with errors that name the key, the file and the nearest known name."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from fs3.errors import Invalid

C = TypeVar("C")

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_bytes(text: str) -> int:
    """A size as people write it ("1MiB", "64 KiB", "512", "2G") in bytes. Raises: Invalid."""
    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text.strip()[len(number) :].strip().lower()
    try:
        size = int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = -1
    if size < 0:
        raise Invalid(f"size {text!r}: write a number with an optional unit, such as 512, 64KiB, 1MiB or 2GiB")
    return size


_SPANS_S = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


def parse_seconds(text: str) -> float:
    """A span of time as people write it ("90", "45m", "12h", "3d", "2w") in seconds. Raises: Invalid."""
    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text.strip()[len(number) :].strip().lower()
    try:
        span_s = float(number) * _SPANS_S[unit]
    except (ValueError, KeyError):
        span_s = -1.0
    if not 0 <= span_s < float("inf"):
        raise Invalid(f"time {text!r}: write a number with an optional unit, such as 90s, 45m, 12h, 3d or 2w")
    return span_s


def load_toml(path: Path | str, cls: type[C]) -> C:
    """The `cls` that the TOML file describes.

    Raises:
        Invalid: the file is missing, not TOML, or has a key that is unknown, missing or of a wrong type.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Invalid(f"config {path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Invalid(f"config {path}: {error}") from None
    return from_mapping(data, cls, where=f"config {path}")


def from_mapping(data: Mapping[str, Any], cls: type[C], *, where: str) -> C:
    """The `cls` that `data` describes; `where` opens every message. Raises: Invalid."""
    assert dataclasses.is_dataclass(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(fields)}"
            raise Invalid(f"{where}: unknown key {key!r}{hint}")
    types_of = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(data[name], types_of[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise Invalid(f"{where}: {name!r} is missing")
    return typing.cast(C, cls(**values))


def _convert(value: Any, wanted: Any, where: str) -> Any:
    origin = typing.get_origin(wanted)
    if origin in (types.UnionType, typing.Union):
        inner = [arm for arm in typing.get_args(wanted) if arm is not type(None)]
        return _convert(value, inner[0], where)
    if origin is tuple:
        if not isinstance(value, list):
            raise Invalid(f"{where}: expected a list, found {value!r}")
        return tuple(_convert(item, typing.get_args(wanted)[0], where) for item in value)
    if dataclasses.is_dataclass(wanted) and isinstance(value, dict):
        return from_mapping(value, typing.cast(type, wanted), where=where)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise Invalid(f"{where}: expected {wanted.__name__}, found {value!r}")
    return value
