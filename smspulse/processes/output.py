"""Output of long-running processes: a line that cannot be written, encoded or read by anybody stops no process."""

import contextlib
import errno
import io
import os
import select
import threading
from collections import deque
from typing import Final, TextIO

_MAX_WAITING: Final = 1_000
"""Writes that are kept until the output takes them again; the oldest are dropped."""
_PATIENCE_S: Final = 1.0
"""Time that a reader has to make room, before a write counts as waiting."""
_GONE_ERRORS: Final = {errno.EPIPE, errno.EBADF, errno.EIO, errno.ECONNRESET}
"""Nobody will ever read what is written: the reader has ended, or the terminal was closed."""


class TolerantStream(io.TextIOBase):
    """A text stream to a file descriptor that neither raises nor blocks for long.

    What the output does not take (the disk is full, or the reader has stopped reading) is kept, within a bound, and
    written with a later write. Once the reader has ended, everything is dropped. Characters that the encoding lacks are
    written as escapes.

    Args:
        descriptor: Of the output; None drops everything.
        encoding: Of the output.
    """

    def __init__(self, descriptor: int | None, encoding: str = "utf-8") -> None:
        super().__init__()
        self._descriptor = descriptor
        self._encoding = encoding
        self._queued_writes: deque[bytes] = deque()
        self._dropped_count = 0
        self._is_stuck = False
        # A signal handler may write while its thread is in here.
        self._lock = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override] # the base class has an attribute
        """The encoding of the output."""
        return self._encoding

    def fileno(self) -> int:
        """Return the descriptor.

        Raises:
            OSError: There is none.
        """
        if self._descriptor is None:
            raise io.UnsupportedOperation("fileno")  # noqa: EM101 - as every stream of Python says it
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether the output is a terminal."""
        return self._descriptor is not None and os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Write a text, or keep it until the output takes it; return its length."""
        with self._lock:
            if self._descriptor is not None and text:
                self._queued_writes.append(text.encode(self._encoding, "backslashreplace"))
                self._write_queued()
        return len(text)

    def flush(self) -> None:
        """Write what the output takes now."""
        with self._lock:
            self._write_queued()

    def _write_queued(self) -> None:
        try:
            while self._queued_writes and self._is_writable_now():
                self._write_oldest()
        except OSError as error:
            if error.errno in _GONE_ERRORS:
                self._descriptor = None
                self._queued_writes.clear()
                return
            self._is_stuck = True
        while len(self._queued_writes) > _MAX_WAITING:
            # The first one may be written in part already.
            del self._queued_writes[1]
            self._dropped_count += 1

    def _is_writable_now(self) -> bool:
        """Return whether a write of up to `PIPE_BUF` bytes will not block."""
        if self._descriptor is None:
            return False
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        self._is_stuck = not poll.poll(0 if self._is_stuck else _PATIENCE_S * 1000)
        return not self._is_stuck

    def _write_oldest(self) -> None:
        assert self._descriptor is not None  # noqa: S101 - a type guard
        first = self._queued_writes[0]
        written = os.write(self._descriptor, first[: select.PIPE_BUF])
        self._is_stuck = False
        if written < len(first):
            self._queued_writes[0] = first[written:]
            return
        self._queued_writes.popleft()
        if self._dropped_count:
            notice = f"({self._dropped_count} lines could not be written)\n".encode(self._encoding, "backslashreplace")
            self._queued_writes.appendleft(notice)
            self._dropped_count = 0


def make_tolerant(stream: TextIO | None) -> TextIO:
    """Return a stream to the same place that never raises; the stream itself if it has no file descriptor.

    Args:
        stream: Standard output or error; None where the process was started without.
    """
    if stream is None:
        return TolerantStream(None)  # type: ignore[return-value] # typeshed's TextIO is no base of TextIOBase
    try:
        descriptor = stream.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return stream
    with contextlib.suppress(OSError):  # what it holds cannot be written now
        stream.flush()
    return TolerantStream(descriptor, stream.encoding)  # type: ignore[return-value]
