"""Base errors of every package, and a short name of an error for logs."""

import traceback
from pathlib import Path


class SmspulseError(Exception):
    """Something that a person must hear of: the text is one line that says what happened, to what, and what to do."""

    is_permanent: bool = False
    """Whether a restart fails in the same way until a person changes something, as with a wrong setting."""


class SettingError(SmspulseError, ValueError):
    """A setting has a value that cannot be meant. The text names the setting's part and a value that works."""

    is_permanent = True


def where_raised(error: BaseException) -> str:
    """Name an error and the line that raised it, such as `RecursionError in payloads.py, line 206`, for logs.

    It is short, whatever the error is, and holds nothing of its text, which can quote what a sender wrote.
    """
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    place = f" in {Path(frames[0].filename).name}, line {frames[0].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
