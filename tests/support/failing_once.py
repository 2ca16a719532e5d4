"""A task that fails at its first start."""

import asyncio


class FailingOnce:
    """A task that raises at its first start and does nothing at later ones.

    Attributes:
        started_again: Set at the second start.
    """

    def __init__(self) -> None:
        self.started_again = asyncio.Event()
        self._has_failed = False

    async def __call__(self, *_: object) -> None:
        """Raise at the first start; set `started_again` at the second."""
        if not self._has_failed:
            self._has_failed = True
            msg = "an unforeseen error"
            raise RuntimeError(msg)
        self.started_again.set()
