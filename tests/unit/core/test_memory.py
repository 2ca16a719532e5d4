"""Freed memory goes back to the operating system."""

import ctypes
import subprocess
import sys

import pytest

# Blocks from glibc's heap. The last one stays, so glibc by itself returns nothing. Prints kB before and after.
PROGRAM = """
from pathlib import Path
from core.memory import return_free_memory

def own_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

blocks = [bytes(2000) for _ in range(50_000)]
last = blocks[-1]
del blocks
print(own_kb())
return_free_memory()
print(own_kb())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library returns memory by itself")
def test_memory_that_was_freed_is_returned() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before - after > 80_000
