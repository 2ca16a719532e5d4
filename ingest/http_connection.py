"""HTTP server of every process: aiohttp's low-level server, hardened against untrusted clients.

Memory, time and connections are limited, answers are plain, no banner names a version, and no path is logged.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, cast

import orjson
from aiohttp import StreamReader, hdrs, web
from aiohttp.http import HttpProcessingError, HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from ingest.client_limits import HttpLimits, OpenConnections, PieceQueue, TooManyConnectionsError
from ingest.listening import TlsHandshake

log = logging.getLogger(__name__)

LINGER_S: Final = 1.0
"""Seconds for which the rest of a refused body is read and dropped. After an immediate close, a sender may not get the
answer."""
JSON: Final = {"Content-Type": "application/json"}
# Headers of a request. Each can have 8 KiB.
_MAX_HEADERS: Final = 64
# Bytes of all headers of a request.
_MAX_HEAD: Final = 32_768
# Bytes before the body that are neither names nor values of headers.
_REQUEST_LINE: Final = 10_240
# Bytes that are parsed at once. A piece of a chunked body waits in `PieceQueue` for its turn: a chunk of one byte
# costs about 5 µs.
_HEAD_PIECE: Final = 2_048
_BODY_PIECE: Final = 32_768
_CHUNKED_PIECE: Final = 1_024
# Most bytes on the wire for one byte of a body, in a chunk of its own: `1`, two line ends, and the byte.
_CHUNK_OVERHEAD: Final = 6
# Bytes of a body that wait for their reader. Twice as many pause the client.
_READ_BUFFER: Final = 65_536
# Bytes of the system's buffers of a connection, each way. Linux doubles them.
_SOCKET_BUFFER: Final = 65_536
# Seconds after which a connection is reset if its client reads nothing of the answer.
_STUCK_S: Final = 10.0


def error_response(status: int, text: str, *, closes: bool = False, **headers: str) -> web.Response:
    """Return the answer `{"error": text}`. The argument `Retry_After` is the header `Retry-After`.

    With `closes`, it is the last answer of its connection.
    """
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = web.Response(status=status, body=orjson.dumps({"error": text}), headers=JSON | named)
    if closes:
        response.force_close()
    return response


class HttpServer(web.Server):
    """aiohttp's low-level server with limits. The caller binds it to an address.

    Args:
        handle: Answers a request.
        limits: Limits of connections and times.
        program: Name of the process in log lines and errors: `ingest`, `the page`.
        tls: TLS context; None for plain HTTP.
        answer_headers: Headers of every answer, errors included.
    """

    def __init__(
        self,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        limits: HttpLimits,
        program: str,
        *,
        tls: ssl.SSLContext | None = None,
        answer_headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(handle, access_log=None, lingering_time=LINGER_S, keepalive_timeout=limits.idle_timeout_s)
        self.limits, self.program, self.tls, self.answer_headers = limits, program, tls, answer_headers or {}
        self.open_connections = OpenConnections(limits)
        self.piece_queue = PieceQueue()

    def __call__(self) -> Any:
        """Return the protocol of a new connection."""
        connection = HttpConnection(self, **self._kwargs)
        return connection if self.tls is None else TlsHandshake(connection, self.tls, self.limits.header_timeout_s)

    def _make_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return _HttpRequest(message, payload, protocol, writer, task, self._loop)


class _HttpRequest(web.BaseRequest):
    """A request whose answer names no versions, and closes a connection that asked for another protocol."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """Remove aiohttp's banner, which names versions, and add the headers of every answer."""
        connection = cast(HttpConnection, self._protocol)
        response.headers.pop(hdrs.SERVER, None)
        response.headers.update(connection.server.answer_headers)
        if connection._upgraded:
            response.force_close()


class HttpConnection(web.RequestHandler):
    """A connection that is bounded in memory and time, whatever its client does.

    - No byte behind a request is parsed before the request is answered: at most one read is kept, and the rest stays
      with the client.
    - The headers of a request have at most `_MAX_HEAD` bytes. Bytes that are neither headers nor body have a limit too.
    - It is closed unread at the limit of connections, closed if its first request is late, and reset if its client
      reads nothing of an answer for `_STUCK_S`. Each later request has aiohttp's `keepalive_timeout`, from the answer
      before to the end of its headers.
    """

    def __init__(self, server: HttpServer, **options: Any) -> None:
        super().__init__(server, loop=server._loop, **options)
        self.server = server
        self._is_admitted = self._is_broken = False
        self._is_unanswered = self._is_chunked = self._is_parsing_scheduled = False
        self._unparsed = b""
        # Whether bytes can follow the present request. False means that there are none.
        self._has_more = False
        self._received = 0
        self._payload: StreamReader = EMPTY_PAYLOAD
        self._socket: asyncio.Transport | None = None
        self._unsent = 0
        self._timer_handle: asyncio.TimerHandle | None = None
        # aiohttp's own parser would read on behind a request, and decode bodies, which `request_body` does in bounds.
        options = {"payload_exception": web.RequestPayloadError, "auto_decompress": False, "max_msg_queue_size": 1}
        self._parser = HttpRequestParser(self, self._loop, _READ_BUFFER, max_headers=_MAX_HEADERS, **options)

    def admit_connection(self, transport: asyncio.Transport) -> bool:
        """Count the connection and return True, or reset it and return False."""
        peer = transport.get_extra_info("peername")
        try:
            # None if the client has disconnected already.
            if peer:
                self.server.open_connections.add_connection(self, peer[0])
                self._is_admitted = True
        except TooManyConnectionsError as error:
            text = "%s to %s, the limit; more are closed unread: %s"
            log.warning(text, error, self.server.program, self.server.limits.advice)
        if not self._is_admitted:
            transport.abort()
            return False
        # The buffers of the system take memory of the machine.
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
        return True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the time limit of the first request, if the connection is admitted."""
        # Transports of uvloop are not a subclass.
        connected = cast(asyncio.Transport, transport)
        if not self._is_admitted and not self.admit_connection(connected):
            return
        super().connection_made(connected)
        self._socket = connected
        self._timer_handle = self._loop.call_later(self.server.limits.header_timeout_s, self._end_if_silent)
        # These bytes arrived with the end of the TLS handshake.
        if self._unparsed:
            self.data_received(b"")

    def stop_counting(self) -> None:
        """Count it no more, if it was counted."""
        self.server.open_connections.remove_connection(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop counting it."""
        super().connection_lost(exc)
        if self._timer_handle is not None:
            self._timer_handle.cancel()
        self.stop_counting()
        self._unparsed = b""
        self._socket = None

    def data_received(self, data: bytes) -> None:
        """Parse the bytes of the present request, and keep the rest until that is answered."""
        if self._is_broken or self._force_close or self._close or self._upgraded:
            self._unparsed = b""
            return
        if self._unparsed:
            data, self._unparsed = self._unparsed + data, b""
        elif (
            len(data) <= _HEAD_PIECE and not self._is_unanswered and not self._has_to_wait() and self._payload.is_eof()
        ):
            # A shortcut for one whole request, which is nearly every case. The result is the same as below.
            self._parse_piece(data)
            if self._buffer_paused:
                self._resume_reading_for_buffer()
            return
        while not self._has_to_wait():
            size = _HEAD_PIECE if self._payload.is_eof() else _CHUNKED_PIECE if self._is_chunked else _BODY_PIECE
            piece, data = data[:size], data[size:]
            self._parse_piece(piece)
            if not data:
                break
            if self._is_chunked and not self._payload.is_eof() and not self._is_parsing_scheduled:
                self._is_parsing_scheduled = True
                self.server.piece_queue.add_connection(self)
        if data and not self._is_broken:
            self._unparsed = data
            if not self._buffer_paused and self.transport is not None:
                self._pause_reading_for_buffer()
        elif self._buffer_paused:
            self._resume_reading_for_buffer()

    def continue_parsing(self) -> None:
        """Parse the next piece of a chunked body."""
        self._is_parsing_scheduled = False
        self.data_received(b"")

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write an answer; then parse the next request."""
        finished = await super().finish_response(request, resp, start_time)
        self._received = 0
        # After the last answer, the rest of a body is still read and dropped, but no other request.
        self._is_unanswered = not resp.keep_alive
        if self._has_more or self._unparsed:
            self.data_received(b"")
        return finished

    def idle_since(self) -> float | None:
        """Return the time when it became idle, or None; see `ingest.client_limits.OpenConnections`."""
        is_waiting = self._waiter is not None and not self._messages and self._request_count
        if not is_waiting or self._received or self._unparsed or self._force_close:
            return None
        return self._next_keepalive_close_time

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer invalid HTTP and internal errors in the form of all other answers."""
        if request.writer.output_size > 0:
            msg = "a part of the answer is sent already"
            raise ConnectionError(msg)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("a request failed inside %s", self.server.program, exc_info=exc)
            return error_response(500, f"internal error of {self.server.program}; see its log", closes=True)
        log.debug("a request is not valid HTTP: %s", type(exc).__name__)
        if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            return error_response(status, f"the headers are larger than {_MAX_HEAD} bytes", closes=True)
        return error_response(status, "the request is not valid HTTP", closes=True)

    def _resume_reading_if_drained(self) -> None:
        """Do nothing: aiohttp would resume before the answer. `finish_response` resumes after it."""

    def _has_to_wait(self) -> bool:
        """Return whether received bytes cannot be parsed yet."""
        if self._reading_paused or self._is_parsing_scheduled or self.transport is None:
            return True
        return self._is_unanswered and self._payload.is_eof()

    def _parse_piece(self, piece: bytes) -> None:
        """Parse at most one request with aiohttp, and check the size of everything except its body.

        The parser keeps the bytes behind the request, a part of a piece.
        """
        was_in_body = not self._payload.is_eof()
        super().data_received(piece)
        if self._messages:
            message, payload = self._messages[-1]
            if not isinstance(message, RawRequestMessage):
                self._is_broken = self._is_unanswered = True
                # The frames of the traceback keep all received bytes.
                message.exc.__traceback__ = None
                return
            if not self._is_unanswered:
                # A request in one piece, and not behind another one, cannot exceed the limit.
                may_be_long = self._has_more or self._received > 0
                self._is_unanswered, self._payload, self._received = True, payload, len(piece)
                self._is_chunked = message.chunked
                self._has_more = may_be_long or not _is_whole_request(piece, payload)
                if may_be_long and sum(len(name) + len(value) for name, value in message.raw_headers) > _MAX_HEAD:
                    self._messages.pop()
                    self._refuse_headers()
                return
        if was_in_body and self._payload.is_eof():
            self._received = 0
            if not self._is_unanswered:
                # The answer did not wait for the body. The parser keeps the bytes behind it until its next call, so
                # this call must fetch them.
                self._parse_piece(b"")
            return
        self._received += len(piece)
        if was_in_body and self._received > _MAX_HEAD + _CHUNK_OVERHEAD * self._payload.total_bytes:
            self.force_close()
        elif not was_in_body and self._received > _MAX_HEAD + _REQUEST_LINE:
            self._refuse_headers()

    def _refuse_headers(self) -> None:
        error = HttpProcessingError(code=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message="headers too large")
        self._messages.append((_ErrInfo(error.code, error, error.message), EMPTY_PAYLOAD))
        self._is_broken = self._is_unanswered = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end_if_silent(self) -> None:
        if not self._request_count and not self._is_broken:
            self.force_close()
        self._timer_handle = self._loop.call_later(_STUCK_S, self._abort_if_stuck)

    def _abort_if_stuck(self) -> None:
        """Reset it if its client has read none of the unsent bytes since the last call."""
        if self._socket is None:
            return
        unsent = self._socket.get_write_buffer_size()
        if 0 < self._unsent <= unsent:
            self._socket.abort()
            return
        self._unsent = unsent
        self._timer_handle = self._loop.call_later(_STUCK_S, self._abort_if_stuck)


def _is_whole_request(piece: bytes, payload: StreamReader) -> bool:
    """Return whether a piece is exactly one request with its headers and its body."""
    return payload.is_eof() and piece.find(b"\r\n\r\n") + 4 + payload.total_bytes == len(piece)
