"""How the host's memory is handed out."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Have this process keep large blocks that it frees, and reuse them, instead of giving them back to the system.

    A step on the CPU frees and takes the same large tensors again and again. By default glibc asks the system for
    every one over 32 MiB and hands it back at once, so that each of its pages is mapped and zeroed anew when it is
    first written to. Afterwards the process holds the most memory that it ever needed until it ends. It is for
    programs, not for libraries: it holds for all of the process.

    Returns:
        Whether it was done: it is glibc's alone, and other allocators (jemalloc, tcmalloc) keep memory anyway.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    most = 2**31 - 1
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, most), (_M_TOP_PAD, 64 * 2**20))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings)
