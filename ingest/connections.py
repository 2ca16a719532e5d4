"""aiohttp's low-level server, made fit for strangers: limits, plain answers, no banner, no path in a log."""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage

from ingest.errors import CertificateError
from ingest.limits import Address, Connections, Senders
from ingest.settings import IngestSettings

log = logging.getLogger(__name__)

JSON: Final = {"Content-Type": "application/json"}
LINGER_S: Final = 1.0
"""How long the rest of a refused body is read and dropped: closed at once, a sender may never see the answer."""
_MAX_HEADERS: Final = 64
"""Of a request; each may have 8 KiB."""


def error_response(status: int, text: str, **headers: str) -> web.Response:
    """Return an answer that is `{"error": text}`; `Retry_After` is the header `Retry-After`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(status=status, body=orjson.dumps({"error": text}), headers=JSON | named)


def closing(response: web.Response) -> web.Response:
    """Let an answer be the last of its connection."""
    response.force_close()
    return response


class _Request(web.BaseRequest):
    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """Take off aiohttp's banner, which names versions."""
        response.headers.pop(hdrs.SERVER, None)


class _Protocol(web.RequestHandler):
    """A connection. It is closed unread when its address has too many, or when its first request is late.

    Each later request has aiohttp's `keepalive_timeout`, from the answer before to the end of its headers.
    """

    __slots__ = ("_connections", "_first_timeout", "_late", "_site")

    def __init__(self, server: web.Server, connections: Connections, header_timeout_s: float, **options: Any) -> None:
        super().__init__(server, **options)
        self._connections, self._first_timeout = connections, header_timeout_s
        self._site: int | Address | None = None
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it, and give it time for one request."""
        super().connection_made(transport)
        try:
            self._site = self._connections.enter(transport.get_extra_info("peername")[0])
        except OverflowError:
            self.force_close()
        else:
            self._late = self._loop.call_later(self._first_timeout, self._end_if_silent)

    def data_received(self, data: bytes) -> None:
        """Drop what comes behind nonsense: aiohttp would keep up to 32 pieces of it, some 8 MiB, with their errors."""
        if not self._messages or isinstance(self._messages[-1][0], RawRequestMessage):
            super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Count it no more."""
        super().connection_lost(exc)
        if self._late is not None:
            self._late.cancel()
        self._connections.leave(self._site)
        self._site = None

    def _end_if_silent(self) -> None:
        if not self._request_count:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP, and what went wrong in here, as everything else is answered."""
        if request.writer.output_size > 0:
            msg = "an answer is under way already"
            raise ConnectionError(msg)
        if status == 500:  # noqa: PLR2004 - an HTTP status
            log.error("a request failed inside ingest", exc_info=exc)
            return closing(error_response(500, "a fault inside ingest: its log says more"))
        log.debug("a request that is no valid HTTP: %s", type(exc).__name__)
        return closing(error_response(status, "the request is no valid HTTP"))


class _Server(web.Server):
    """aiohttp's low-level server with the two classes above."""

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)

    def _make_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return _Request(message, payload, protocol, writer, task, self._loop)


def http_server(
    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], settings: IngestSettings
) -> web.Server:
    """Return the HTTP server of a receiver; the caller gives it an address."""
    return _Server(
        handle,
        access_log=None,
        auto_decompress=False,  # what is stored is what was received
        lingering_time=LINGER_S,
        keepalive_timeout=settings.idle_timeout_s,
        max_headers=_MAX_HEADERS,
        header_timeout_s=settings.header_timeout_s,
        connections=Connections(settings.max_connections, Senders((), settings.trusted_proxies)),
    )


def tls_context(settings: IngestSettings) -> ssl.SSLContext | None:
    """Return how HTTPS is answered, or None for plain HTTP.

    Raises:
        CertificateError: The certificate or its key cannot be used.
    """
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except OSError as error:
        raise CertificateError(settings.tls_cert, settings.tls_key, error.strerror or str(error)) from error
    return context


async def renew_certificate(context: ssl.SSLContext | None, settings: IngestSettings) -> None:
    """Take a certificate up that was renewed in its files, for connections from then on; the former stays if it fails.

    Runs until cancelled.
    """
    cert, key = settings.tls_cert, settings.tls_key
    if context is None or cert is None:
        return

    def written() -> list[int]:
        return [path.stat().st_mtime_ns for path in (cert, key) if path and path.exists()]

    known = written()
    while True:
        await asyncio.sleep(settings.tls_renewal_s)
        if (found := written()) != known:
            known = found
            try:
                tls_context(settings)  # tried first on another: a pair that does not fit would leave this one useless
                context.load_cert_chain(cert, key, password="")
                log.info("the renewed certificate %s is used from now on", cert)
            except (CertificateError, OSError) as error:
                log.error("%s; the former one is used until it can be", error)
