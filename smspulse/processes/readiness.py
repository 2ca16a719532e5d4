"""A command's reports to the supervisor: a byte on a pipe whose number is in the environment."""

import os
from typing import Final

VARIABLE: Final = "SMSPULSE_READY_FD"
READY: Final = b"1"
NEVER_READY: Final = b"0"


def tell_ready() -> None:
    """Tell the supervisor, if one started us; once, and later calls do nothing."""
    _report(READY)


def report_permanent_failure() -> None:
    """Report that a restart would fail in the same way, as with a wrong setting. After `tell_ready` it does nothing."""
    _report(NEVER_READY)


def _report(byte: bytes) -> None:
    descriptor = os.environ.pop(VARIABLE, "")
    if not descriptor.isdecimal():
        return
    try:
        os.write(int(descriptor), byte)
    except BrokenPipeError:
        pass  # the supervisor has ended, and we are about to
    finally:
        os.close(int(descriptor))
