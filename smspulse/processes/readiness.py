"""A command's reports to the supervisor: a byte on a pipe whose number is in the environment."""

import os
from typing import Final

READY_FD_VARIABLE: Final = "SMSPULSE_READY_FD"
READY: Final = b"1"
NEVER_READY: Final = b"0"


def report_ready() -> None:
    """Tell the supervisor, if one started us; once, and later calls do nothing."""
    _write_report_byte(READY)


def report_permanent_failure() -> None:
    """Report that a restart would fail too, as with a wrong setting. After `report_ready` it does nothing."""
    _write_report_byte(NEVER_READY)


def _write_report_byte(byte: bytes) -> None:
    descriptor = os.environ.pop(READY_FD_VARIABLE, "")
    if not descriptor.isdecimal():
        return
    try:
        os.write(int(descriptor), byte)
    except BrokenPipeError:
        pass  # the supervisor has ended, and we are about to
    finally:
        os.close(int(descriptor))
