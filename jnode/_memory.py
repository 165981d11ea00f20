"""How the C library keeps memory, and how many programs a process may keep."""

import ctypes
import sys
from pathlib import Path

import jax

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed, up to 2 GB, for what is asked for next.

    XLA's CPU backend frees its buffers after each run of a program. By default glibc
    gives large ones back to Linux, and each of their pages, asked for anew, costs an
    interrupt: about a sixth of a training step. All threads share one arena, as those
    of other threads than the main one give memory back whatever they are told. Does
    nothing elsewhere than on Linux.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def drop_programs_if_many(limit: int = 45_000) -> None:
    """Drops compiled programs before they use up the process's memory mappings.

    Each takes some, of which Linux allows 65,530 by default; past that LLVM aborts.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    with maps.open() as lines:
        many = sum(1 for _ in lines) > limit
    if many:
        jax.clear_caches()
