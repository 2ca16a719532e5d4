"""Output of long-running processes. A line that cannot be written, encoded or read stops no process."""

import contextlib
import errno
import io
import os
import select
import threading
from collections import deque
from typing import Final, TextIO

# Writes that are kept until the output accepts them again. The oldest are dropped.
_MAX_WAITING: Final = 1_000
# Seconds that a reader has to read, before a write is queued.
_PATIENCE_S: Final = 1.0
# Errors of an output without a reader: it has ended, or the terminal was closed.
_GONE_ERRORS: Final = {errno.EPIPE, errno.EBADF, errno.EIO, errno.ECONNRESET}


class TolerantStream(io.TextIOBase):
    """A text stream to a file descriptor that neither raises nor blocks for long.

    Text that the output does not accept (the disk is full, or the reader has stopped) is kept, up to a limit, and
    written with a later write. Once the reader has ended, everything is dropped. Characters that the encoding does not
    have are written as escapes.

    Args:
        descriptor: Descriptor of the output; None drops everything.
        encoding: Encoding of the output.
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
            OSError: The stream has none.
        """
        return super().fileno() if self._descriptor is None else self._descriptor

    def isatty(self) -> bool:
        """Return whether the output is a terminal."""
        return self._descriptor is not None and os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Write a text, or keep it until the output accepts it; return its length."""
        with self._lock:
            if self._descriptor is not None and text:
                self._queued_writes.append(text.encode(self._encoding, "backslashreplace"))
                self._write_queued()
        return len(text)

    def flush(self) -> None:
        """Write the queued text that the output accepts now."""
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
            # The first write may be written in part already.
            del self._queued_writes[1]
            self._dropped_count += 1

    def _is_writable_now(self) -> bool:
        """Return whether a write of up to `PIPE_BUF` bytes will not block."""
        # A stuck output is not waited for a second time.
        poll = select.poll()
        poll.register(self, select.POLLOUT)
        self._is_stuck = not poll.poll(0 if self._is_stuck else _PATIENCE_S * 1000)
        return not self._is_stuck

    def _write_oldest(self) -> None:
        first = self._queued_writes[0]
        written = os.write(self.fileno(), first[: select.PIPE_BUF])
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
    """Return a stream to the same output that never raises; the stream itself if it has no file descriptor.

    Args:
        stream: Standard output or error; None if the process was started without one.
    """
    if stream is None:
        return TolerantStream(None)  # type: ignore[return-value] # typeshed's TextIO is no base of TextIOBase
    try:
        descriptor = stream.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return stream
    # Its buffer may not be writable now.
    with contextlib.suppress(OSError):
        stream.flush()
    return TolerantStream(descriptor, stream.encoding)  # type: ignore[return-value]
