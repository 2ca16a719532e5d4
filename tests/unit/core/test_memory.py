"""Freed memory goes back to the operating system."""

import ctypes
import subprocess
import sys

import pytest

OWN_KB = """
from pathlib import Path

def own_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
"""

# Blocks from glibc's heap. The last one stays, so glibc by itself returns nothing. Prints kB before and after.
SMALL_BLOCKS = """
from core.memory import return_free_memory

blocks = [bytes(2000) for _ in range(50_000)]
last = blocks[-1]
del blocks
print(own_kb())
return_free_memory()
print(own_kb())
"""


needs_glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library returns memory by itself"
)


def run_python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", OWN_KB + program], capture_output=True, text=True, check=True).stdout


@needs_glibc
def test_memory_that_was_freed_is_returned() -> None:
    before, after = map(int, run_python(SMALL_BLOCKS).split())
    assert before - after > 80_000


# glibc raises its limit when the first block is freed. The last of the others stays at the end of the heap.
LARGE_BLOCKS = """
from core.memory import return_large_blocks_at_once

if {is_called}:
    return_large_blocks_at_once()
first = bytes(16 << 20)
del first
blocks = [b"x" * (1 << 20) for _ in range(100)]
last = blocks[-1]
del blocks
print(own_kb())
"""


@needs_glibc
def test_large_blocks_are_returned_when_they_are_freed() -> None:
    kept, returned = (int(run_python(LARGE_BLOCKS.format(is_called=is_called))) for is_called in (False, True))
    assert kept - returned > 80_000
