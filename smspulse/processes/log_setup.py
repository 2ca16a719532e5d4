"""One logger set-up for every command: a line a message, and under the supervisor a prefix a process."""

import atexit
import logging
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from smspulse.processes.log_budget import LogBudget, truncate_text
from smspulse.processes.output import make_tolerant
from smspulse.processes.terminal import escape_controls, escape_to_line

_COLOURS = {"broker": "magenta", "ingest": "cyan", "stream": "green", "lander": "blue", "smspulse": "white"}
_NOISY_LOGGERS = {
    # Faust and mode tell each start and stop of each of their services; aiokafka each failed try to connect.
    "faust": logging.ERROR,
    "mode": logging.ERROR,
    "streams.batch_consumer": logging.ERROR,
    "aiokafka": logging.ERROR,
    "kafka": logging.CRITICAL,
    "great_expectations": logging.WARNING,
    "asyncio": logging.ERROR,
}

_REPEAT_AFTER_S = 60


class _KafkaAwayFilter(logging.Filter):
    """Turns aiokafka's many lines on a broker that does not answer into one a minute."""

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
        record.msg, record.args = "Kafka does not answer; work goes on by itself when it is back", ()
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


def set_up_logging(*, verbose: bool, supervised: bool) -> None:
    """Log to standard error, with the time when a person reads it directly; `verbose` takes everything.

    Otherwise, what repeats is written once a minute: no client, and no fault, fills a disk with lines.
    """
    # A log that cannot be written, on a full disk or to a reader that has stopped, must hold up nothing.
    form = "%(levelname)s %(message)s" if supervised else "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, stream=make_tolerant(sys.stderr), force=True)
    handler = logging.getLogger().handlers[0]
    handler.setFormatter(PlainFormatter(form))
    if not verbose:
        handler.addFilter(_KafkaAwayFilter())
        handler.addFilter(log_budget := LogBudget(handler))
        atexit.register(log_budget.write_suppressed_counts)
        for name, level in _NOISY_LOGGERS.items():
            logging.getLogger(name).setLevel(level)


class PlainFormatter(logging.Formatter):
    """Writes a message as one line, with control characters as escapes: it can hold text from outside."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging
        """Return the line, without what follows it of an exception."""
        return escape_to_line(truncate_text(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - of logging
        """Return a traceback, without its middle if it is long."""
        return truncate_text(super().formatException(ei))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback below it if there is one."""
        return escape_controls(super().format(record))


class PrefixHandler(logging.Handler):
    """Shows the supervisor's own lines among those of its children."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(PlainFormatter())
        self.addFilter(LogBudget(self))

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        try:
            print_process_line(self._console, "smspulse", record.levelno, self.format(record))
        except Exception:  # whoever logs must not fail by it
            self.handleError(record)


def print_process_line(console: Console, name: str, level: int, text: str) -> None:
    """Show one line of a process."""
    style = "bold red" if level >= logging.ERROR else "yellow" if level >= logging.WARNING else ""
    line = Text.assemble((f"{name:>8} │ ", _COLOURS.get(name.partition("-")[0], "dim")), (escape_controls(text), style))
    console.print(line, soft_wrap=True)
