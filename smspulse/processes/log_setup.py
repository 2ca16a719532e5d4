"""Log setup of every command: one line for each message, and under the supervisor a prefix for each process."""

import atexit
import logging
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from smspulse.processes.log_budget import LogBudget, truncate_text
from smspulse.processes.output import make_tolerant
from smspulse.processes.terminal import escape_controls, escape_to_line

# Each process has a colour of its own in `smspulse up`.
_COLOURS = {"broker": "magenta", "ingest": "cyan", "stream": "green", "lander": "blue", "smspulse": "white"}
# Lowest levels of libraries whose lines would hide those of smspulse.
_NOISY_LOGGERS = {
    # Faust and mode log each start and stop of their services. aiokafka logs each failed connection attempt.
    "faust": logging.ERROR,
    "mode": logging.ERROR,
    "streams.batch_consumer": logging.ERROR,
    "aiokafka": logging.ERROR,
    "kafka": logging.CRITICAL,
    "great_expectations": logging.WARNING,
    "asyncio": logging.ERROR,
}

# A lasting outage of Kafka is logged once in this time.
_REPEAT_AFTER_S = 60


class _KafkaAwayFilter(logging.Filter):
    """Replaces the many lines of aiokafka about a broker that does not answer with one line a minute."""

    _MESSAGE_PREFIXES = (
        "Unable connect",
        "Unable to update metadata",
        "Failed fetch messages",
        "Group Coordinator",
        "Heartbeat",
    )

    def __init__(self) -> None:
        super().__init__()
        self._reported_at: float | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep a record, rewrite it, or drop it."""
        if not record.name.startswith("aiokafka") or not str(record.msg).startswith(self._MESSAGE_PREFIXES):
            return True
        if self._reported_at is not None and record.created - self._reported_at < _REPEAT_AFTER_S:
            return False
        self._reported_at = record.created
        record.msg, record.args = "Kafka does not answer; work continues by itself when it is back", ()
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


def set_up_logging(*, verbose: bool, supervised: bool) -> None:
    """Log to standard error, with the time unless a supervisor reads it. `verbose` logs everything.

    Otherwise, a repeated line is written once a minute, so that no client and no fault fills the disk.
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
