"""Errors of commands."""

from core.errors import SmspulseError


class StatementError(SmspulseError):
    """The statement cannot be run."""
