"""Reports of a command to its supervisor: a byte on a pipe whose descriptor is in the environment."""

import os
from typing import Final

READY_FD_VARIABLE: Final = "SMSPULSE_READY_FD"
READY: Final = b"1"
NEVER_READY: Final = b"0"


def report_ready() -> None:
    """Report to the supervisor that the process is ready. Without a supervisor, and on later calls, it does nothing."""
    _write_report_byte(READY)


def report_permanent_failure() -> None:
    """Report that a restart would fail too, as with a wrong setting. After `report_ready` it does nothing."""
    _write_report_byte(NEVER_READY)


def _write_report_byte(byte: bytes) -> None:
    # Removed, so that children do not report for this process.
    descriptor = os.environ.pop(READY_FD_VARIABLE, "")
    if not descriptor.isdecimal():
        return
    try:
        os.write(int(descriptor), byte)
    # The supervisor has ended, and this process is about to.
    except BrokenPipeError:
        pass
    finally:
        os.close(int(descriptor))
