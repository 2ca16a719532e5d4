"""A budget for logs: a repeated warning or error is written once a minute, with a count."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

# A repeated line is written once in this time.
_WINDOW_S: Final = 60.0
# Different texts of one line of code in a minute. More are only counted, so no client can fill a log.
_MAX_TEXTS: Final = 10
_MAX_LINES: Final = 30
# Limits of a traceback: lines, half of them from its end with the error; and characters of each line.
_MAX_LINE_LENGTH: Final = 1_000


@dataclass(slots=True)
class _LogLocation:
    """A line of code that logs.

    Args:
        ends_at: End of its minute.
        texts: Texts that were written in this minute.
        suppressed_count: Number of records that were not written.
        last: The last of those records.
    """

    ends_at: float
    texts: set[str] = field(default_factory=set)
    suppressed_count: int = 0
    last: logging.LogRecord | None = None


class LogBudget(logging.Filter):
    """A filter for warnings and errors: a handler writes each once a minute, and at most 10 of one line of code.

    At the end of the minute, a line with the count of suppressed records is written, even if nothing else is logged.
    Lines of lower levels pass: clients cannot cause them.

    Args:
        handler: Writes the counts.
        clock: Returns monotonic seconds.
        call_later: Calls a function after so many seconds, in any thread.
    """

    def __init__(
        self,
        handler: logging.Handler,
        clock: Callable[[], float] = time.monotonic,
        call_later: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        super().__init__()
        self._handler, self._clock = handler, clock
        self._call_later = call_later or _start_timer
        self._locations: dict[tuple[str, str, int], _LogLocation] = {}
        # Reentrant: a log handler or a signal handler that logs gets here again in the same thread.
        self._lock = threading.RLock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record."""
        if record.levelno < logging.WARNING:
            return True
        # The line of code, because texts contain values of clients.
        key = (record.name, record.pathname, record.lineno)
        text = _format_record_text(record)
        now = self._clock()
        with self._lock:
            location = self._locations.get(key)
            if location is None or (now >= location.ends_at and not location.suppressed_count):
                self._locations[key] = location = _LogLocation(now + _WINDOW_S)
            if text not in location.texts and len(location.texts) < _MAX_TEXTS:
                location.texts.add(text)
                return True
            location.suppressed_count += 1
            location.last = record
            if location.suppressed_count > 1:
                return False
        self._call_later(max(0.0, location.ends_at - now), lambda: self._end_window(key))
        return False

    def write_suppressed_counts(self) -> None:
        """Write all counts now, before the process ends."""
        for key in list(self._locations):
            self._end_window(key)

    def _end_window(self, key: tuple[str, str, int]) -> None:
        with self._lock:
            location = self._locations.pop(key, None)
        if location is None or location.last is None:
            return
        last = location.last
        text = "%s (%d lines like this were left out in a minute)"
        count = logging.LogRecord(
            last.name,
            last.levelno,
            last.pathname,
            last.lineno,
            text,
            (_format_record_text(last), location.suppressed_count),
            None,
        )
        with self._handler.lock or contextlib.nullcontext():
            # Not `handle`, which would call this filter.
            self._handler.emit(count)


def _format_record_text(record: logging.LogRecord) -> str:
    """Return a record's message and error, shortened to a maximum."""
    message = record.getMessage()[:_MAX_LINE_LENGTH]
    error = record.exc_info[1] if record.exc_info else None
    return message if error is None else f"{message}: {repr(error)[:_MAX_LINE_LENGTH]}"


def truncate_text(text: str) -> str:
    """Return at most `_MAX_LINES` lines of `_MAX_LINE_LENGTH` characters, with a mark for the missing part."""
    if len(text) <= _MAX_LINE_LENGTH:
        return text
    lines = text.split("\n")
    if (missing := len(lines) - _MAX_LINES) > 0:
        half = _MAX_LINES // 2
        lines[half:-half] = [f"  … {missing} lines are left out here …"]
    return "\n".join(f"{line[:_MAX_LINE_LENGTH]}…" if len(line) > _MAX_LINE_LENGTH else line for line in lines)


def _start_timer(seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    # It must not keep the process alive.
    timer.daemon = True
    timer.start()
