"""A task that fails at its first start."""

import asyncio


class FailingOnce:
    """Stands for a task: it raises at its first start, and does nothing from then on.

    Attributes:
        started_again: Set at the second start.
    """

    def __init__(self) -> None:
        self.started_again = asyncio.Event()
        self._has_failed = False

    async def __call__(self, *_: object) -> None:
        """Raise, or note that it was started again."""
        if not self._has_failed:
            self._has_failed = True
            msg = "nobody foresaw this"
            raise RuntimeError(msg)
        self.started_again.set()
