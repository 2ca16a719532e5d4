"""A request to stop that a signal handler can make, and work that is left when it comes."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

_T = TypeVar("_T")

_POLL_S: Final = 0.05


class StopRequested(Exception):  # noqa: N818 - no fault, but what was asked for
    """The process was asked to stop while it waited for something else."""


class StopRequest:
    """A flag that a signal handler may set while the thread that it interrupts waits for it.

    `threading.Event` must not be used for that: its lock is not reentrant, so a handler that sets the event waits for
    ever when it interrupts `Event.wait` at the wrong instruction. `SimpleQueue.put` is reentrant by its documentation.
    Any number of threads may wait and set.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._wakeups: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Ask to stop. A second time does nothing more."""
        self._is_set = True
        self._wakeups.put(None)

    def is_set(self) -> bool:
        """Return whether somebody has asked to stop."""
        return self._is_set

    def wait(self, timeout_s: float) -> bool:
        """Wait until somebody asks to stop, or the time is over. Return whether somebody has."""
        if not self._is_set:
            with suppress(Empty):
                self._wakeups.get(timeout=timeout_s)
                self._wakeups.put(None)  # for the next thread that waits
        return self._is_set


def run_until_stopped(work: Callable[[], _T], stop: StopRequest) -> _T:
    """Run work that cannot be interrupted, in a thread of its own, and return its result.

    When a stop is requested, the work is left to itself. Its thread does not keep the process from ending.

    Args:
        work: What to run. It starts no process that has to outlive the call.
        stop: The request.

    Raises:
        StopRequested: A stop is requested. Otherwise what the work raises.
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
