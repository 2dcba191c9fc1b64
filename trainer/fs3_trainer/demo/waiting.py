"""Waiting for something to become true, with a deadline and a look at what could make it impossible."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fs3_trainer.demo.outcome import FellShort

LOOK_S = 0.05


def wait_until(
    condition: Callable[[], bool], *, what: str, timeout_s: float, on_look: Callable[[], None] = lambda: None
) -> float:
    """Wait until `condition()`; the seconds it took. `on_look` runs before every look, and may raise to give up.

    Raises:
        FellShort: not true after `timeout_s`; the message says `what` did not happen.
    """
    began_s = time.monotonic()
    pause = threading.Event()
    while True:
        on_look()
        if condition():
            return time.monotonic() - began_s
        if time.monotonic() - began_s >= timeout_s:
            raise FellShort(f"{what} did not happen within {timeout_s:g} s")
        pause.wait(LOOK_S)
