"""The number of a daemon's run (its generation), which must be larger than that of every run before.

By it mgmtd tells a run from those before and after it, also from their heartbeats that arrive late. The machine's clock
gives one that is larger as a rule; but clocks are set back, and a machine may boot with another. So the disks keep the
last one too, in file RUN of each. A daemon all of whose disks were replaced has the clock alone.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from fs3.storage.sequence_floor import pack_number, unpack_number

_LOG = logging.getLogger("fs3.storage")
_RUN = "RUN"


def last_run(folder: Path) -> int:
    """The number of the last run on the disk in `folder`; 0 where none, or no note, is there."""
    try:
        raw = (folder / _RUN).read_bytes()
    except OSError:
        return 0
    if (number := unpack_number(raw)) is not None:
        return number
    _LOG.warning("%s: damaged, and begun anew; late heartbeats of earlier runs may cost a lease", folder / _RUN)
    return 0


def note_run(folder: Path, number: int) -> None:
    """Remember the number of this run, durably; in place, as a full disk has room for that. Never raises."""
    try:
        file = os.open(folder / _RUN, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(file, pack_number(number), 0)
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        _LOG.warning("%s: %s; the next run knows its number by the clock alone", folder / _RUN, error.strerror)
