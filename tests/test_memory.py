"""Freed memory stays with the process, which the kernel's own count of page faults tells."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

GLIBC = platform.libc_ver()[0] == "glibc"
# Blocks of 20 MB, as a layer of 1,024 patches asks for and frees, together and again.
PROGRAM = """
import ctypes, resource, sys
from qsplit.memory import give_back_freed_memory, keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
SIZE = 20 * 2**20

def layer():
    blocks = [libc.malloc(SIZE) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, SIZE)
    for block in reversed(blocks):
        libc.free(block)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

kept = sys.argv[1] == "keep" and keep_freed_memory()
for _ in range(5):  # until the heap has room for all of them side by side
    layer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    layer()
faults, held = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, resident()
given_back = give_back_freed_memory()
print(int(kept), faults, int(given_back), (held - resident()) // SIZE)
"""


def measured(way: str, **environment: str) -> tuple[int, int, int, int]:
    """Whether memory is kept, page faults of ten rounds, whether it is given back then, and how many blocks of it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    kept, faults, given_back, blocks = map(int, done.stdout.split())
    return kept, faults, given_back, blocks


@pytest.mark.skipif(not GLIBC, reason="what is set is glibc's")
def test_memory_that_is_kept_costs_no_page_faults() -> None:
    kept, with_it, _, _ = measured("keep")
    _, without, _, _ = measured("leave")
    assert kept
    assert without > 10_000
    assert with_it < without / 20


@pytest.mark.skipif(not GLIBC, reason="what is set is glibc's")
def test_memory_that_is_kept_can_be_given_back() -> None:
    _, _, given_back, blocks = measured("keep")
    assert given_back
    assert blocks >= 7  # of 8


@pytest.mark.skipif(not GLIBC, reason="what is set is glibc's")
def test_who_set_malloc_by_the_environment_has_chosen() -> None:
    assert measured("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == 0
