"""A result that concurrent requests share: it is computed once at a time, for any number of clients."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

_Result = TypeVar("_Result")

# Computing takes at most one part in this many of the time.
_SHARE: Final = 5


class SharedResult(Generic[_Result]):
    """Computes a result for all requests before its start, in the thread of the event loop.

    The first request after a pause is answered at once. A result is never older than its request.

    Args:
        compute: Returns the result. All waiting requests get its exception.
    """

    def __init__(self, compute: Callable[[], _Result]) -> None:
        self._compute = compute
        self._next: asyncio.Task[_Result] | None = None
        self._not_before = 0.0

    async def get(self) -> _Result:
        """Return a result that is computed after this call."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._compute_next())
        # Cancellation of one request must not cancel the result of the others.
        return await asyncio.shield(self._next)

    async def _compute_next(self) -> _Result:
        await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
        # Later requests need a new result.
        self._next = None
        begun = time.monotonic()
        try:
            return self._compute()
        finally:
            ended = time.monotonic()
            self._not_before = ended + (ended - begun) * (_SHARE - 1)
