"""Settings from TOML and JSON into frozen dataclasses: an unknown key fails and names the nearest known one.

A misspelt setting that is silently ignored costs a training run. So a table is checked against the dataclass that
it fills: names, types, and that nothing required is missing.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from fs3.errors import Corrupt, Invalid, NotFound

T = TypeVar("T")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """A hint such as `; did you mean 'hidden_size'?`, or the list of what is known when nothing is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}"


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """`cls(**table)`, checked.

    Args:
        where: what to call the source in an error, such as `run.toml [model]`.

    Raises:
        Invalid: an unknown key, a missing one, or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key, value in table.items():
        if key not in fields:
            raise Invalid(f"{where}: unknown key {key!r}{nearest(key, fields)}")
        if not _fits(value, hints[key]):
            raise Invalid(f"{where}: {key} must be {_spell(hints[key])}, not {value!r}")
    missing = [
        name
        for name, f in fields.items()
        if name not in table and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise Invalid(f"{where}: missing {', '.join(missing)}")
    return cls(**{k: float(v) if hints[k] is float else v for k, v in table.items()})


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        NotFound: there is no such file.
        Invalid: it is a directory, unreadable, or not TOML; the message has the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{path}: not TOML: {error}") from None


def object_of(value: Any, where: str) -> dict[str, Any]:
    """`value` if it is a JSON object.

    Raises:
        Corrupt: it is something else.
    """
    if not isinstance(value, dict):
        raise Corrupt(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_fits(value, arm) for arm in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _spell(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(arm) for arm in typing.get_args(hint))
    if isinstance(hint, types.UnionType):
        return " or ".join(_spell(arm) for arm in typing.get_args(hint))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}.get(hint, "none")
