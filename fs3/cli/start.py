"""The console scripts: what comes before a command's first import, so that Ctrl-C ends it quietly at any time.

Importing takes a part of a second, and Python answers a Ctrl-C meanwhile with a traceback from wherever it is. Nothing
was begun then that must be undone: the process ends at once, with the status that an interrupted command has later.
This module imports nothing that takes time, and knows the commands of all packages by name only. What is left is the
start of the interpreter itself, some hundredths of a second.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType

_INTERRUPTED = 130


def fs3() -> None:
    """`fs3`"""
    _run("fs3.cli.main")


def fs3_dataset() -> None:
    """`fs3-dataset`"""
    _run("fs3_loader.cli")


def fs3_train() -> None:
    """`fs3-train`"""
    _run("fs3_trainer.cli.train")


def fs3_generate() -> None:
    """`fs3-generate`"""
    _run("fs3_trainer.cli.generate")


def _run(module: str) -> None:
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not where the caller ignores Ctrl-C
    if heeded:
        signal.signal(signal.SIGINT, _leave)
    main = importlib.import_module(module).main
    try:
        if heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)
