"""Background work of a process: an exception in it is logged, and the work starts again or the process ends."""

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Final

from core.errors import SmspulseError

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_FAILED: Final = 2


async def keep_running(
    name: str, work: Callable[[], Awaitable[object]], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Run work until it returns or is cancelled. An exception is logged, and the work starts again after a pause.

    Args:
        name: Of the work, for people.
        work: Returns the work as an awaitable, each time anew.
        sleep: Waits so many seconds.
    """
    pause = _FIRST_PAUSE_S
    while True:
        try:
            await work()
        except Exception as error:
            # An error of ours says what to do; any other is a fault of the program, which its traceback finds.
            trace = None if isinstance(error, SmspulseError) else error
            _log.error("%s failed and starts again in %g s: %s", name, pause, _error_text(error), exc_info=trace)
        else:
            return
        await sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)


def end_process_if_a_thread_fails() -> None:
    """Have an exception that ends a thread logged, and end the process: nobody else would notice what is not done."""
    threading.excepthook = _end_process


def _end_process(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_type is SystemExit:
        return
    name = failure.thread.name if failure.thread else "a thread"
    error = failure.exc_value or failure.exc_type()
    _log.critical("the thread %s failed, and the process ends: %s", name, _error_text(error), exc_info=error)
    logging.shutdown()
    os._exit(_FAILED)


def _error_text(error: BaseException) -> str:
    return str(error) if isinstance(error, SmspulseError) else repr(error)
