"""Memory that was freed, but that the process still has."""

import ctypes
import sys
from typing import Final

# Only glibc has these. Other C libraries return free memory by themselves.
_libc: Final = ctypes.CDLL(None)
_trim_heaps: Final = getattr(_libc, "malloc_trim", None)
_set_option: Final = getattr(_libc, "mallopt", None)
# M_MMAP_THRESHOLD of glibc's malloc.h, and its default in bytes.
_MMAP_THRESHOLD: Final = -3
_LARGE_BLOCK: Final = 128 * 1024


def return_large_blocks_at_once() -> None:
    """Return each block of 128 KiB or more to the operating system when it is freed. For long-running processes.

    glibc begins so. But each large block that is freed raises the limit to its size, up to 32 MiB, and glibc keeps
    twice as much free memory at the end of each heap (mallopt(3), M_MMAP_THRESHOLD). There are eight heaps a core.
    """
    # Android has a `mallopt` with other options, and no `malloc_trim`.
    if _set_option is not None and _trim_heaps is not None:
        _set_option(_MMAP_THRESHOLD, _LARGE_BLOCK)


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
