"""Memory of tensors on the CPU."""

import ctypes
import os

# of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Have glibc keep memory that was freed for the next tensor, instead of giving it back to the system.

    Large tensors would otherwise be new pages every time, which the system clears first: up to a fifth of a training
    step. The process then holds on to the most memory that it ever used. Nothing is done with another C library, or
    where the user has set glibc's environment variables.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD")):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and (mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
