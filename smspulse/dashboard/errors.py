"""Errors of the page."""

from core.errors import SmspulseError


class PageError(SmspulseError):
    """The page cannot be served. The text has the reason and the fix."""


class NoPasswordError(PageError):
    """Other machines would reach the page without a password."""

    is_permanent = True
