"""The side of a program that is driven (driven.py): of the standard library alone, so that it runs anywhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def obey(answers: Mapping[str, Callable[..., Mapping[str, Any]]], **ready: Any) -> None:
    """Say that this program is ready; then do each command's "do" with its other fields, until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    print(json.dumps(ready), file=out, flush=True)
    for line in sys.stdin:
        what = json.loads(line)
        print(json.dumps(answers[what.pop("do")](**what)), file=out, flush=True)


def timed_calls(call: Callable[[int], float], seconds: float) -> dict[str, Any]:
    """`call(0)`, `call(1)`, ... for so long; the amount, and the CPU seconds of this process."""
    begin_s, cpu_s = time.perf_counter(), time.process_time()
    done, number = 0.0, 0
    while True:
        done += call(number)
        number += 1
        elapsed_s = time.perf_counter() - begin_s
        if elapsed_s >= seconds:
            return {"amount": done, "seconds": elapsed_s, "client_cpu_s": time.process_time() - cpu_s}
