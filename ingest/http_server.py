"""HTTP server of every process: aiohttp's low-level server, hardened against untrusted clients.

Memory, time and connections are limited, answers are plain, no banner names a version, and no path is logged.
"""

import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

from ingest.callback_queue import CallbackQueue
from ingest.client_limits import ClientFilter, HttpLimits, OpenConnections
from ingest.http_connection import HttpConnection, HttpRequest
from ingest.tls import TlsHandshake

LINGER_S: Final = 1.0
"""Seconds for which the rest of a refused body is read and dropped. After an immediate close, a sender may not get the
answer."""
# Headers of a request. Each can have 8 KiB.
_MAX_HEADERS: Final = 64


class _HttpServer(web.Server):
    """aiohttp's low-level server with hardened connections.

    Args:
        tls: TLS context; None for plain HTTP.
        options: Further options of `HttpConnection`.
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
    """Return an HTTP server with limits. The caller binds it to an address.

    Args:
        handle: Answers a request.
        limits: Limits of connections and times.
        program: Name of the process in log lines and errors: `ingest`, `the page`.
        tls: TLS context; None for plain HTTP.
        answer_headers: Headers of every answer, errors included.
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
