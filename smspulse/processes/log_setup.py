"""Log setup of every command: one line for each message, and under the supervisor a prefix for each process."""

import atexit
import contextlib
import copy
import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from smspulse.processes.output import make_tolerant
from smspulse.processes.terminal import escape_controls, escape_to_line

# Each process has a colour of its own in `smspulse up`.
_COLOURS = {"broker": "magenta", "ingest": "cyan", "stream": "green", "lander": "blue", "smspulse": "white"}
# Lowest levels of libraries whose lines would hide those of smspulse.
_NOISY_LOGGERS = {
    # Faust and mode log each start and stop of their services. aiokafka logs each failed connection attempt.
    **dict.fromkeys(("faust", "mode", "streams.batch_consumer", "aiokafka", "asyncio"), logging.ERROR),
    "kafka": logging.CRITICAL,
    "great_expectations": logging.WARNING,
}
# A repeated warning or error, and a lasting outage of Kafka, are logged once in this time.
_WINDOW_S: Final = 60.0
# A repeated line about normal operation is logged once in this time.
_INFO_WINDOW_S: Final = 3600.0
# Different texts of one line of code in a window. More warnings are only counted, so no client can fill a log.
_MAX_TEXTS: Final = 10
# Limits of a traceback: lines, half of them from its end with the error; and characters of each line.
_MAX_LINES: Final = 30
_MAX_LINE_LENGTH: Final = 1_000


# Starts of the lines of aiokafka about a broker that does not answer.
_KAFKA_AWAY: Final = re.compile("Unable (connect|to update metadata)|Failed fetch messages|Group Coordinator|Heartbeat")


class _KafkaAwayFilter(logging.Filter):
    """Replaces the many lines of aiokafka about a broker that does not answer with one line a minute."""

    # In seconds since 1970, as of `LogRecord.created`.
    _reported_at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep a record, rewrite it, or drop it."""
        if not record.name.startswith("aiokafka") or not _KAFKA_AWAY.match(str(record.msg)):
            return True
        if record.created - self._reported_at < _WINDOW_S:
            return False
        self._reported_at = record.created
        record.msg, record.args = "Kafka does not answer; work continues by itself when it is back", ()
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


def set_up_logging(*, verbose: bool, supervised: bool) -> None:
    """Log to standard error, with the time unless a supervisor reads it. `verbose` logs everything.

    Otherwise, a repeated line is written once an hour, or once a minute if it is a warning or an error, so that no
    client and no fault fills the disk.
    """
    # A log that cannot be written, because of a full disk or a stopped reader, must not block anything.
    form = "%(levelname)s %(message)s" if supervised else "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, stream=make_tolerant(sys.stderr), force=True)
    handler = logging.getLogger().handlers[0]
    handler.setFormatter(PlainFormatter(form))
    if not verbose:
        handler.addFilter(_KafkaAwayFilter())
        handler.addFilter(log_budget := LogBudget(handler))
        # The last counts, when the process ends within their minute.
        atexit.register(log_budget.write_suppressed_counts)
        for name, level in _NOISY_LOGGERS.items():
            logging.getLogger(name).setLevel(level)


class PlainFormatter(logging.Formatter):
    """Formats a message as one line, with control characters as escapes: it can contain text of clients."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging
        """Return the line without the traceback."""
        return escape_to_line(truncate_text(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - of logging
        """Return a traceback, without its middle if it is long."""
        return truncate_text(super().formatException(ei))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback below it if there is one."""
        return escape_controls(super().format(record))


class PrefixHandler(logging.Handler):
    """Prints the supervisor's own lines among those of its children."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(PlainFormatter())
        self.addFilter(LogBudget(self))

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            print_process_line(self._console, "smspulse", record.levelno, self.format(record))
        # A failure of the log must not become one of the caller.
        except Exception:
            self.handleError(record)


def print_process_line(console: Console, name: str, level: int, text: str) -> None:
    """Print one line of a process."""
    style = "bold red" if level >= logging.ERROR else "yellow" if level >= logging.WARNING else ""
    line = Text.assemble((f"{name:>8} │ ", _COLOURS.get(name.partition("-")[0], "dim")), (escape_controls(text), style))
    console.print(line, soft_wrap=True)


_LocationKey = tuple[str, str, int, int]
"""Logger, file, line number and level."""


@dataclass(slots=True)
class _LogLocation:
    """A line of code that logs at one level.

    Args:
        ends_at: End of its window: an hour for lines about normal operation, a minute for warnings and errors.
        texts: Texts that were written in this window.
        suppressed_count: Number of records that were not written.
        last: The last of those records.
    """

    ends_at: float
    texts: set[str] = field(default_factory=set)
    suppressed_count: int = 0
    last: logging.LogRecord | None = None


class LogBudget(logging.Filter):
    """A filter for repeated lines: a handler writes each warning and error once a minute, and other lines once an hour.

    At the end of the window, a line with the count of suppressed records is written, even if nothing else is logged.
    One line of code writes at most 10 different warnings and errors a minute. Different lines of lower levels pass:
    clients cannot cause them.

    Args:
        handler: Writes the counts.
    """

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler
        self._locations: dict[_LocationKey, _LogLocation] = {}
        # Reentrant: a log handler or a signal handler that logs gets here again in the same thread.
        self._lock = threading.RLock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record."""
        # The line of code, because texts contain values of clients. Some lines log at different levels.
        key = (record.name, record.pathname, record.lineno, record.levelno)
        text = _format_record_text(record)
        now = time.monotonic()
        with self._lock:
            location = self._locations.get(key)
            if location is None or (now >= location.ends_at and not location.suppressed_count):
                self._locations[key] = location = _LogLocation(now + _window_s(record))
            if text not in location.texts and len(location.texts) < _MAX_TEXTS:
                location.texts.add(text)
                return True
            if text not in location.texts and record.levelno < logging.WARNING:
                # Nothing repeats in these. They are not remembered, to bound the memory.
                return True
            location.suppressed_count += 1
            location.last = record
            if location.suppressed_count > 1:
                return False
        _start_timer(max(0.0, location.ends_at - now), lambda: self._end_window(key))
        return False

    def write_suppressed_counts(self) -> None:
        """Write all counts now, before the process ends."""
        for key in list(self._locations):
            self._end_window(key)

    def _end_window(self, key: _LocationKey) -> None:
        with self._lock:
            location = self._locations.pop(key, None)
            if location is None or location.last is None:
                return
            if location.last.levelno < logging.WARNING:
                # The count is the one line of the next hour too, so its texts stay suppressed.
                ends_at = time.monotonic() + _INFO_WINDOW_S
                self._locations[key] = _LogLocation(ends_at, location.texts)
        count = copy.copy(location.last)
        count.msg = "%s (%d lines like this were left out in %s)"
        window = "an hour" if count.levelno < logging.WARNING else "a minute"
        count.args = (_format_record_text(location.last), location.suppressed_count, window)
        count.exc_info = count.exc_text = None
        with self._handler.lock or contextlib.nullcontext():
            # Not `handle`, which would call this filter.
            self._handler.emit(count)


def _window_s(record: logging.LogRecord) -> float:
    """Return the seconds in which a record like this one is written once."""
    return _INFO_WINDOW_S if record.levelno < logging.WARNING else _WINDOW_S


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
