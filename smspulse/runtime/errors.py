"""Errors of the pipeline and of erasure."""

from core.errors import SmspulseError


class PipelineError(SmspulseError):
    """The pipeline could not be started, or could not go on."""


class EraseError(SmspulseError):
    """The erasure is not complete. The same command completes it."""
