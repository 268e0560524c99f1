"""Keep the C allocator from returning memory to the system between training steps."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Have glibc reuse freed memory rather than return it to the system; call once, when a process starts.

    A training step of a small model on the CPU makes and frees buffers of some MB. By default glibc maps and unmaps
    each of them, and the page faults cost 15 to 40% of the step. After this call, the process never shrinks.

    Returns:
        Whether this had an effect: false on systems without glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    most = 2**31 - 1  # mallopt takes a C int
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, 2**30) and libc.mallopt(_M_TRIM_THRESHOLD, most))
