"""Callbacks of all connections that share the event loop fairly."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

# A piece of a chunked body takes up to 1 ms: 170 chunks of one byte at about 5 µs each.
_CALLBACKS_PER_ITERATION: Final = 8


class CallbackQueue:
    """Queue of callbacks. A few run in one iteration of the event loop, so that other connections are served."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Add a callback, which runs in its turn, never at once."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._call_next)
        self._waiting.append(callback)

    def _call_next(self) -> None:
        callbacks = [self._waiting.popleft() for _ in range(min(_CALLBACKS_PER_ITERATION, len(self._waiting)))]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._call_next)
        for callback in callbacks:
            callback()
