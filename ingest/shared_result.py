"""A result that all who wait share: however many clients want it, it is computed one time after another."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

_Result = TypeVar("_Result")

_SHARE: Final = 5
"""Computing takes one part in so many of the time at most."""


class SharedResult(Generic[_Result]):
    """Computes something for everybody who asked before it began, in the thread of the event loop.

    The first request after a pause is answered at once. A result is never older than the request for it.

    Args:
        compute: What is computed. What it raises, everybody gets who waits.
    """

    def __init__(self, compute: Callable[[], _Result]) -> None:
        self._compute = compute
        self._next: asyncio.Task[_Result] | None = None
        self._not_before = 0.0

    async def get(self) -> _Result:
        """Return a result that was computed after this call."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._compute_next())
        return await asyncio.shield(self._next)  # whoever goes away leaves it to the others

    async def _compute_next(self) -> _Result:
        await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
        self._next = None  # from here on a request is too late for this one
        begun = time.monotonic()
        try:
            return self._compute()
        finally:
            ended = time.monotonic()
            self._not_before = ended + (ended - begun) * (_SHARE - 1)
