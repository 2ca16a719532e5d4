"""Errors of the checks. Each means that the checks have no result."""

from pathlib import Path

from core.errors import SmspulseError


class MissingExtraError(SmspulseError):
    """Great Expectations is not installed."""

    def __init__(self) -> None:
        super().__init__("Great Expectations is not installed: pip install 'smspulse[expectations]'")


class UnreadableDataError(SmspulseError):
    """A query over the data failed."""

    def __init__(self, data: Path, detail: str) -> None:
        super().__init__(
            f"{data} cannot be checked: {detail}. If a file is damaged, move it out of the data folder; "
            "if a column is missing, start `smspulse land` once, which writes the views again."
        )


class ExpectationFailedToRunError(SmspulseError):
    """Great Expectations could not evaluate an expectation."""

    def __init__(self, expectation: str, detail: str) -> None:
        super().__init__(f"expectation {expectation} could not be evaluated: {detail}")
