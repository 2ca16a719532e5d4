"""Listening on an address, and HTTPS: handshakes with a time limit, and renewal of the certificate."""

import asyncio
import logging
import socket
import ssl
from typing import TYPE_CHECKING, Final, cast

from aiohttp import web

from core.errors import SettingError, where_raised
from ingest.settings import IngestSettings

if TYPE_CHECKING:
    from ingest.http_connection import HttpConnection

log = logging.getLogger(__name__)

BACKLOG: Final = 1_024
ASYNCIO_BACKLOG: Final = 128
"""For asyncio's own event loop: it accepts that many connections before it can refuse the first."""


async def start_listening(
    runner: web.BaseRunner, host: str, port: int, *, share_port: bool = False, backlog: int = BACKLOG
) -> int:
    """Let a server listen, and return its port. `::` is every address, also of IPv4 if the system supports it.

    Args:
        runner: Runner of the server, set up.
        host: Name or address.
        port: Port; 0 takes a free one.
        share_port: Let other processes listen there too.
        backlog: Connections that wait in the system until they are accepted.

    Raises:
        OSError: The address is taken or not available.
    """
    if host == "::" and socket.has_dualstack_ipv6():
        # asyncio would restrict a socket of IPv6 to IPv6.
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6, backlog=backlog, reuse_port=share_port, dualstack_ipv6=True
        )
        await web.SockSite(runner, listener, backlog=backlog).start()
    else:
        await web.TCPSite(runner, host, port, backlog=backlog, reuse_port=share_port or None).start()
    return int(runner.addresses[0][1])


class TlsHandshake(asyncio.Protocol):
    """A connection during its TLS handshake. It is counted from its beginning, and has a time limit.

    asyncio would pass it to a server only after the handshake.
    """

    def __init__(self, connection: "HttpConnection", context: ssl.SSLContext, limit_s: float) -> None:
        self._connection, self._context, self._limit_s = connection, context, limit_s
        self._task: asyncio.Task[None] | None = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake, if the connection is admitted."""
        # Transports of uvloop are not a subclass.
        connected = cast(asyncio.Transport, transport)
        if self._connection.admit_connection(connected):
            # TLS resumes it.
            connected.pause_reading()
            self._task = asyncio.get_running_loop().create_task(self._perform_handshake(connected))

    def data_received(self, data: bytes) -> None:
        """Keep the first bytes of the handshake: uvloop does not pause a transport that has not begun to read."""
        self._received += data

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop counting it."""
        self._connection.stop_counting()

    async def _perform_handshake(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        handshake = loop.create_task(
            loop.start_tls(
                transport, self._connection, self._context, server_side=True, ssl_handshake_timeout=self._limit_s
            )
        )
        # In the first step of the task, TLS becomes the protocol of the transport, and schedules its own start.
        await asyncio.sleep(0)
        if self._received:
            # Runs after that start, and before anything else can be read.
            loop.call_soon(_feed_protocol, transport, self._received)
            self._received = b""
        encrypted = None
        try:
            encrypted = await handshake
        except OSError as error:
            log.debug("a TLS handshake failed: %s", error)
        except Exception as error:
            log.error("a TLS handshake failed with an internal error: %s", where_raised(error))
        if encrypted is None:
            self._connection.stop_counting()
            transport.abort()
            return
        self._connection.connection_made(encrypted)


def _feed_protocol(transport: asyncio.Transport, data: bytes) -> None:
    """Pass bytes that were read already to the protocol of a transport, which is that of TLS."""
    protocol = cast(asyncio.BufferedProtocol, transport.get_protocol())
    while data and not transport.is_closing():
        buffer = memoryview(protocol.get_buffer(len(data)))
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]


def load_tls_context(settings: IngestSettings) -> ssl.SSLContext | None:
    """Return the TLS context, or None for plain HTTP.

    Raises:
        SettingError: The certificate or its key cannot be used.
    """
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key, password="")
    except OSError as error:
        files = f"{cert} with the key {key}" if key else f"{cert}, which must contain its key too,"
        why = error.strerror or error
        msg = f"the certificate {files} cannot be used: {why}; see SMSPULSE_INGEST_TLS_CERT and _TLS_KEY"
        raise SettingError(msg) from error
    return context


async def renew_certificate(context: ssl.SSLContext | None, settings: IngestSettings) -> None:
    """Load the certificate again when its files change, for new connections. After an error, the former one stays.

    Runs until cancelled.
    """
    cert, key = settings.tls_cert, settings.tls_key
    if context is None or cert is None:
        return

    def read_mtimes() -> list[int]:
        return [path.stat().st_mtime_ns for path in (cert, key) if path and path.exists()]

    known = read_mtimes()
    while True:
        await asyncio.sleep(settings.tls_renewal_s)
        if (found := read_mtimes()) != known:
            known = found
            try:
                # Checked first in another context: a pair that does not match would make this one useless.
                load_tls_context(settings)
                context.load_cert_chain(cert, key, password="")
                log.info("the renewed certificate %s is used from now on", cert)
            except (SettingError, OSError) as error:
                log.error("%s; the former one is used until it can be", error)
