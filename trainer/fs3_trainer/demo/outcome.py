"""What a stage hands back: checks, each a claim with what was seen, and figures for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class FellShort(Exception):
    """A stage could not go on; the message is one line that names what, where and what was seen."""


@dataclass(frozen=True, slots=True)
class Check:
    """One claim that was put to the test."""

    claim: str
    seen: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """One number for people, with its unit in the text."""

    label: str
    value: str


class Outcome(Protocol):
    """The result of a stage; each stage has its own dataclass with more in it."""

    @property
    def checks(self) -> tuple[Check, ...]:
        """What was checked; the stage passes if all hold."""

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What was measured on the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRun:
    """One stage as it went: exactly one of `outcome` and `failure` is there, neither if it was not reached."""

    name: str
    title: str
    about: str
    seconds: float = 0.0
    outcome: Outcome | None = None
    failure: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome is not None and all(check.ok for check in self.outcome.checks)

    @property
    def verdict(self) -> str:
        if self.outcome is None:
            return "fell short" if self.failure else "not run"
        return "passed" if self.ok else "fell short"

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it fell short, one line each."""
        if self.failure:
            return (self.failure,)
        if self.outcome is None:
            return ()
        return tuple(f"{check.claim}: {check.seen}" for check in self.outcome.checks if not check.ok)
