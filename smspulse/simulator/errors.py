"""Errors of the simulator."""

from core.errors import SmspulseError


class SimulationError(SmspulseError):
    """The simulation could not go on. The truth file has the webhooks accepted until then."""


class TruthError(SmspulseError):
    """The truth file cannot be used. The text has the reason and the fix."""
