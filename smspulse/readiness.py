"""How a command tells the supervisor that it is ready: a byte on a pipe whose number is in the environment."""

import os

VARIABLE = "SMSPULSE_READY_FD"


def tell_ready() -> None:
    """Tell the supervisor, if one started us; once, and later calls do nothing."""
    descriptor = os.environ.pop(VARIABLE, "")
    if descriptor.isdecimal():
        os.write(int(descriptor), b"1")
        os.close(int(descriptor))
