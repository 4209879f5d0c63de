"""Memory that a training step frees is memory its next operation wants.

glibc gives large blocks back to the system when they are freed and asks for them anew, and the
system zeroes every page each time: a tenth of a small model's step.
"""

from __future__ import annotations

import ctypes
import functools
import sys

# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_KEPT_BYTES = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees for its own next use; it holds no more than its
    highest need. False where the C library has no such switch."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))
