"""The HTTP server of every process: aiohttp's low-level one, made fit for untrusted clients.

Memory, time and connections are limited, answers are plain, no banner names a version, and no path is in a log.
"""

import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

from ingest.client_limits import ClientFilter, HttpLimits, OpenConnections
from ingest.http_connection import CallbackQueue, HttpConnection, HttpRequest
from ingest.tls import TlsHandshake

LINGER_S: Final = 1.0
"""How long the rest of a refused body is read and dropped: closed at once, a sender may never see the answer."""
_MAX_HEADERS: Final = 64
"""Of a request; each may have 8 KiB."""


class _HttpServer(web.Server):
    """aiohttp's low-level server with the classes above.

    Args:
        tls: How HTTPS is answered; None for plain HTTP.
        options: Of `HttpConnection`.
    """

    def __init__(
        self,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        tls: ssl.SSLContext | None,
        connections: OpenConnections,
        limits: HttpLimits,
        **options: Any,
    ) -> None:
        super().__init__(handle, connections=connections, limits=limits, callback_queue=CallbackQueue(), **options)
        self._tls, self._counted, self._limits = tls, connections, limits

    def __call__(self) -> Any:
        protocol = HttpConnection(self, loop=self._loop, **self._kwargs)
        if self._tls is None:
            return protocol
        return TlsHandshake(protocol, self._tls, self._counted, self._limits.header_timeout_s)

    def _make_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return HttpRequest(message, payload, protocol, writer, task, self._loop)


def build_http_server(
    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    limits: HttpLimits,
    program: str,
    *,
    tls: ssl.SSLContext | None = None,
    answer_headers: Mapping[str, str] | None = None,
) -> web.Server:
    """Return an HTTP server with the protection that all of smspulse have; the caller gives it an address.

    Args:
        handle: Answers a request.
        limits: Of connections and times.
        program: What it belongs to, for people: `ingest`, `the page`.
        tls: How HTTPS is answered; None for plain HTTP.
        answer_headers: Of every answer, errors included.
    """
    return _HttpServer(
        handle,
        tls=tls,
        access_log=None,
        lingering_time=LINGER_S,
        keepalive_timeout=limits.idle_timeout_s,
        max_headers=_MAX_HEADERS,
        connections=OpenConnections(limits.per_address, limits.total, ClientFilter((), limits.proxies)),
        limits=limits,
        program=program,
        answer_headers=answer_headers or {},
    )
