"""Keeping freed memory in the process, which makes a training step on CPUs up to three times faster.

By default glibc maps every tensor above 128 KiB from the kernel and unmaps it when freed: each step then pays page
faults and zeroing for all its activations again. Measured on two cores: RMSNorm forward and backward of 2048 x 256
floats 5.0 ms by default, 1.5 ms with the memory kept.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Tells the C library to keep and reuse what is freed; whether it is one that can (glibc)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
