"""Memory that was freed, but that the process still has."""

import ctypes
import sys
from typing import Final

# Only glibc has it. Other C libraries return free memory by themselves.
_trim_heaps: Final = getattr(ctypes.CDLL(None), "malloc_trim", None)


def return_free_memory() -> None:
    """Return freed memory to the operating system. Call it after work that took much, not more than once a second.

    DuckDB allocates large blocks from many threads. glibc has a heap for each of some threads, and returns only what is
    free at its end. So a process that reads the warehouse again and again would grow for an hour or more. pyarrow has
    an allocator of its own, which keeps free blocks, too.
    """
    # Not imported here: most processes do not use it.
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    if _trim_heaps is not None:
        _trim_heaps(0)
