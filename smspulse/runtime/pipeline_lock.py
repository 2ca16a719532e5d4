"""The lock of `smspulse up`: one at a time runs on a data folder."""

import fcntl
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from core.errors import SmspulseError

LOCK_FILE_NAME: Final = "up.lock"


class AlreadyRunningError(SmspulseError):
    """Another `smspulse up` runs on the data folder."""

    is_permanent = True


class PipelineLock(AbstractContextManager["PipelineLock"]):
    """The lock of a data folder, held for a context. The kernel releases it with the process, however that ends.

    Attributes:
        predecessor_was_killed: The last holder did not release the lock. Its children may still be ending.

    Raises:
        AlreadyRunningError: Another process holds it.
        OSError: The folder cannot be written.
    """

    def __init__(self, data: Path) -> None:
        self._descriptor = os.open(data / LOCK_FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        holder = os.pread(self._descriptor, 20, 0).decode(errors="replace")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            who = f"process {holder}" if holder else "another process"
            msg = f"`smspulse up` already runs on {data}: {who}; stop it, or choose another folder with --data"
            raise AlreadyRunningError(msg) from None
        # A process that ends by itself empties the file.
        self.predecessor_was_killed = holder != ""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
