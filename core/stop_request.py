"""A stop request that a signal handler can set, and work that is abandoned when it is set."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

_T = TypeVar("_T")

# A future cannot be awaited together with a stop request, so the request is checked at this interval.
_POLL_S: Final = 0.05


class StopRequested(Exception):  # noqa: N818 - a stop is no error
    """A stop was requested while the process waited for something else."""


class StopRequest:
    """A flag that a signal handler may set while the thread that it interrupts waits for it.

    `threading.Event` must not be used for that. Its lock is not reentrant: a handler that interrupts `Event.wait` at
    the wrong instruction blocks for ever in `Event.set`. `SimpleQueue.put` is documented as reentrant. Any number of
    threads may wait and set.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._wakeups: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Request a stop. Further calls have no effect."""
        self._is_set = True
        self._wakeups.put(None)

    def is_set(self) -> bool:
        """Return whether a stop is requested."""
        return self._is_set

    def wait(self, timeout_s: float) -> bool:
        """Wait for a stop request or the time-out. Return whether a stop is requested."""
        if not self._is_set:
            with suppress(Empty):
                self._wakeups.get(timeout=timeout_s)
                # Wakes the next thread that waits.
                self._wakeups.put(None)
        return self._is_set


def run_until_stopped(work: Callable[[], _T], stop: StopRequest) -> _T:
    """Run work that cannot be interrupted, in a thread of its own, and return its result.

    On a stop request the work is abandoned. It runs in a daemon thread, so the process can end.

    Args:
        work: The work. It must not start a process that has to outlive the call.
        stop: The stop request.

    Raises:
        StopRequested: A stop is requested. The exceptions of the work are raised too.
    """
    outcome: Future[_T] = Future()

    def run_work() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run_work, name="interruptible work", daemon=True).start()
    while not stop.is_set():
        if wait([outcome], timeout=_POLL_S).done:
            return outcome.result()
    raise StopRequested
