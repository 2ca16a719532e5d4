"""Errors of processes and their data folder."""

from core.errors import SmspulseError


class SupervisorError(SmspulseError):
    """A process did not become ready."""

    is_permanent = True


class MetricsPortError(SmspulseError):
    """The port for `/metrics` is not available."""


class DataFolderError(SmspulseError):
    """The data folder cannot be created, read or written."""

    is_permanent = True
