"""Memory of the process: what the C library keeps of what was freed."""

from __future__ import annotations

import ctypes


def trim_memory() -> None:
    """Give freed memory back to the system.

    glibc keeps pieces below its mapping threshold (32 MB at most), hundreds of megabytes after
    gradients or generation, which the large arrays of the next step cannot use. Other C libraries
    have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
