"""Background work of a process: an exception is logged, and the work starts again or the process ends."""

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from core.errors import SmspulseError

_log = logging.getLogger(__name__)

# The pause doubles with each failure, up to the longest one.
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_FAILED: Final = 2


async def keep_running(name: str, work: Callable[[], Awaitable[object]]) -> None:
    """Run work until it returns or is cancelled. An exception is logged, and the work starts again after a pause.

    Args:
        name: Name of the work, for the log.
        work: Returns a new awaitable for each run of the work.
    """
    pause = _FIRST_PAUSE_S
    while True:
        try:
            await work()
        except Exception as error:
            text, trace = _error_with_trace(error)
            _log.error("%s failed and starts again in %g s: %s", name, pause, text, exc_info=trace)
        else:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)


def end_process_if_a_thread_fails() -> None:
    """Log an exception that ends a thread, and end the process: otherwise its work would stop unnoticed."""
    threading.excepthook = _end_process


def _end_process(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_type is SystemExit:
        return
    name = failure.thread.name if failure.thread else "a thread"
    end_process(f"the thread {name} failed, and the process ends", failure.exc_value or failure.exc_type())


def end_process(what: str, error: BaseException) -> NoReturn:
    """Log what happened and the error, and end the process at once. Its supervisor starts it again."""
    text, trace = _error_with_trace(error)
    _log.critical("%s: %s", what, text, exc_info=trace)
    logging.shutdown()
    os._exit(_FAILED)


def _error_with_trace(error: BaseException) -> tuple[str, BaseException | None]:
    """Return an error's text, and the error if its traceback is needed."""
    # The text of an `SmspulseError` names the remedy. Any other error is a bug, and its traceback locates it.
    return (str(error), None) if isinstance(error, SmspulseError) else (repr(error), error)
