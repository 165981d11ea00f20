"""How the C library keeps memory."""

import ctypes
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed, up to 2 GB, for what is asked for next.

    XLA's CPU backend frees its buffers after each run of a program. By default glibc
    gives large ones back to Linux, and each of their pages, asked for anew, costs an
    interrupt: about a sixth of a training step. Does nothing elsewhere than on Linux.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
