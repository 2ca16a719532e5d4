"""Base errors of every package, and a short name of an error for logs."""

import traceback
from pathlib import Path


class SmspulseError(Exception):
    """An error that a person meets. Its text is one line: the event, the object, and the remedy."""

    is_permanent: bool = False
    """Whether a restart fails in the same way until a person changes something, such as a setting."""


class SettingError(SmspulseError, ValueError):
    """A setting has an invalid value. The text names the part at fault and a valid value."""

    is_permanent = True


def where_raised(error: BaseException) -> str:
    """Return an error's type and the line that raised it, for logs: `RecursionError in payloads.py, line 206`.

    The text of the error is left out: it can be long, and can quote input of a sender.
    """
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    place = f" in {Path(frames[0].filename).name}, line {frames[0].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
