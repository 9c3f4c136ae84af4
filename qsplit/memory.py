"""Freed memory is kept for the next layer, instead of going to and fro between the process and the kernel.

glibc hands the end of its heap back as soon as some tens of megabytes are free there. A vision half frees and asks for
as much again in every layer, and the kernel clears each page of it first: some 20,000 page faults a layer at 1,024
patches of 1,280 values, which cost up to a quarter of the whole time. No bit of any result depends on it.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["KEPT", "give_back_freed_memory", "keep_freed_memory"]

KEPT = 512 * 1024**2  # bytes of freed memory that stay with the process at most
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the parameters' numbers in malloc.h
_LARGEST_OF_OLDER = 32 * 1024**2  # half of an arena: older versions take no more as the second
_OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")  # of who runs the process


def keep_freed_memory() -> bool:
    """Have the C library keep up to `KEPT` bytes of what is freed, for the whole process; False where it cannot.

    Blocks of up to that size then come from the heap as well. Whoever set malloc's own environment variables has chosen
    otherwise, and nothing is changed.
    """
    if any(name in os.environ for name in _OWN_CHOICE):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    mapped = mallopt(_MMAP_THRESHOLD, KEPT) or mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLDER)
    return bool(mapped and mallopt(_TRIM_THRESHOLD, KEPT))


def give_back_freed_memory() -> bool:
    """Hand what is free to the kernel now; False where the C library cannot. For after what is rarely as large."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False
