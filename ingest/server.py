"""The HTTP receiver: `POST /webhooks/{source}/{token}`, `/healthz`, `/readyz`, `/metrics`; `/openapi.json` has them.

A webhook is answered 202 when its sink has it safe, and otherwise with an error that asks its sender to come again, or
says why it need not. Built on aiohttp's low-level server: five routes need no router, and a token is in the path, so
whatever would log or show a path is kept out.
"""

import asyncio
import base64
import binascii
import contextlib
import errno
import gc
import logging
import os
import re
import signal
import ssl
import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import orjson
import uvloop
from aiohttp import StreamReader, hdrs, web
from uuid_utils import uuid7

from core.background_tasks import keep_running
from core.errors import where_raised
from core.kafka_settings import KafkaSettings
from core.records import (
    HEADER_CONTENT_ENCODING,
    HEADER_CONTENT_TYPE,
    HEADER_INGEST_ID,
    HEADER_RECEIVED_AT,
    HEADER_REMOTE,
    HEADER_SOURCE,
    message_key,
)
from gateway.errors import UnreadablePayload
from gateway.json_body import to_utf8
from gateway.payloads import MAX_NAME_LENGTH, REASON_FAULT, REASON_UNVERIFIED_SHAPE, parse_payload, unforeseen_error
from ingest import metrics
from ingest.client_limits import ClientFilter, RateLimiter
from ingest.content_coding import (
    ACCEPTED_CODINGS,
    CorruptBodyError,
    DecodedBodyTooLargeError,
    UnknownCodingError,
    decode_body,
    parse_codings,
)
from ingest.errors import PORT_TAKEN, CannotListenError, NotStoredError
from ingest.http_server import (
    JSON,
    LINGER_S,
    HttpLimits,
    build_http_server,
    close_connection_after,
    error_response,
    load_tls_context,
    renew_certificate,
)
from ingest.listening import start_listening
from ingest.redaction import REWRITTEN_TYPE, PayloadRedactor
from ingest.settings import IngestSettings
from ingest.shared_result import SharedResult
from ingest.sink import StoreAndForward, WebhookSink
from ingest.sources import SourceRegistry
from ingest.spool import WebhookRecord

log = logging.getLogger(__name__)
access_log = logging.getLogger("ingest.access")

_OPENAPI: Final = Path(__file__).with_name("openapi.json").read_bytes()
_ABSOLUTE_FORM: Final = re.compile(r"https?://[^/]+", re.IGNORECASE)
_TEST_LOG_EVERY_S: Final = 60.0
_CONNECTIONS_ADVICE: Final = (
    "if they are gateways, raise SMSPULSE_INGEST_MAX_CONNECTIONS or _TOTAL and the limit of open files, "
    "or name their proxy in SMSPULSE_INGEST_TRUSTED_PROXIES"
)
_LARGE_BODY: Final = 16_384
"""Bytes of a body from which parsing it may take milliseconds."""
_ACKS_ON_STOP_S: Final = 0.5
"""How long Kafka's acknowledgements are waited for when ingest is stopped, before the spool answers for them."""


class _TooLargeError(Exception):
    """The body grew over the limit while it was read."""


class _BrokenBodyError(Exception):
    """The body did not arrive whole."""


class _LateBodyError(Exception):
    """The body took too long."""


_BODY_ERRORS: Final = (
    _TooLargeError,
    _BrokenBodyError,
    _LateBodyError,
    DecodedBodyTooLargeError,
    UnknownCodingError,
)


class IngestHandler:
    """Answers requests.

    Args:
        settings: Limits.
        sources: Who may send.
        sink: Where webhooks become safe.
    """

    def __init__(self, settings: IngestSettings, sources: SourceRegistry, sink: WebhookSink) -> None:
        self._settings = settings
        self._sources = sources
        self._sink = sink
        self._client_filter = ClientFilter(settings.allow, settings.trusted_proxies)
        self._webhook_limiter = RateLimiter(settings.rate_per_s, settings.rate_burst)
        self._byte_limiter = RateLimiter(settings.rate_bytes_per_s, settings.rate_burst_bytes)
        self._redactor = PayloadRedactor(settings.privacy, settings.bodies, settings.privacy_key.get_secret_value())
        self._retry_after = str(settings.retry_after_s)
        self._in_flight = 0
        self._idle: asyncio.Event | None = None
        self._test_logged_at: dict[str, float] = {}
        self._exposition = SharedResult(self._render_metrics)
        self._large_body_lock = asyncio.Lock()

    def build_server(self, tls: ssl.SSLContext | None = None) -> web.Server:
        """Return the HTTP server that has this answer; the caller gives it an address.

        Args:
            tls: How HTTPS is answered; None for plain HTTP.
        """
        settings = self._settings
        limits = HttpLimits(
            header_timeout_s=settings.header_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            per_address=settings.max_connections,
            total=settings.max_connections_total,
            proxies=settings.trusted_proxies,
            advice=_CONNECTIONS_ADVICE,
        )
        return build_http_server(self.handle_request, limits, "ingest", tls=tls)

    async def wait_until_drained(self) -> None:
        """Return when no webhook is in flight. From now on each answer closes its connection."""
        self._idle = asyncio.Event()
        if self._in_flight:
            await self._idle.wait()

    async def handle_request(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        start = time.monotonic()
        parts = _path_segments(request.raw_path)
        try:
            match parts:
                case ["", "webhooks", source, *rest] if len(rest) < 2:  # noqa: PLR2004 - source, or source and token
                    response = await self._answer_webhook(request, source, rest[0] if rest else "")
                case ["", "healthz" | "readyz" | "metrics" | "openapi.json" as route]:
                    response = await self._answer_state(request, route)
                case _:
                    response = error_response(404, "nothing is here: webhooks go to POST /webhooks/{source}/{token}")
        except ConnectionError:
            raise
        except Exception as error:
            # Answered here and not by the HTTP server, so that it is counted as every other answer is.
            log.error("a request failed inside ingest: %s", where_raised(error))
            response = close_connection_after(error_response(500, "a fault inside ingest: its log says more"))
        if self._idle is not None:
            response.force_close()
        # Of the path only what holds no secret: a source's name may be a token that was pasted at its place.
        shown = "?" if response.status == 404 else parts[1]  # noqa: PLR2004 - an HTTP status
        elapsed_s = time.monotonic() - start
        metrics.count_request(shown, response.status, elapsed_s)
        if access_log.isEnabledFor(logging.DEBUG):
            access_log.debug("%s /%s %d %.1f ms", request.method, shown, response.status, elapsed_s * 1000)
        return response

    async def _answer_state(self, request: web.BaseRequest, route: str) -> web.Response:
        if request.method not in {"GET", "HEAD"}:
            return error_response(405, f"/{route} answers GET and HEAD", Allow="GET, HEAD")
        if route == "healthz":
            return web.Response(body=b'{"alive":true}', headers=JSON)
        if route == "openapi.json":
            return web.Response(body=_OPENAPI, headers=JSON)
        if route == "metrics":
            return web.Response(body=await self._exposition.get(), headers={"Content-Type": metrics.CONTENT_TYPE})
        problem = self._sink.problem
        body = {"ready": problem is None} | self._sink.read_state() | ({"error": problem} if problem else {})
        return web.Response(status=200 if problem is None else 503, body=orjson.dumps(body), headers=JSON)

    def _render_metrics(self) -> bytes:
        in_flight = {"webhooks_in_flight": ("Webhooks not yet answered by this process.", self._in_flight)}
        return metrics.render_exposition(self._sink.read_gauges() | in_flight)

    async def _answer_webhook(self, request: web.BaseRequest, source: str, token: str) -> web.Response:
        refusal = self._refuse_unread(request, source, token)
        if refusal is not None:
            return refusal
        self._in_flight += 1
        try:
            ingest_id = await self._store_webhook(request, source)
        except _BODY_ERRORS as error:
            return self._refuse_body(error)
        except NotStoredError as error:
            return self._answer_unavailable(str(error))
        finally:
            self._in_flight -= 1
            if self._idle is not None and not self._in_flight:
                self._idle.set()
        body = b'{"ingest_id":"%s"}' % ingest_id
        return web.Response(status=self._settings.success_status, body=body, headers=JSON)

    def _refuse_unread(self, request: web.BaseRequest, source: str, token: str) -> web.Response | None:
        """Return the answer to a webhook whose body need not be read, or None."""
        if request.method != "POST":
            return error_response(405, "webhooks are sent by POST", Allow="POST")
        if not self._client_filter.may_send(self._find_sender(request)):
            return error_response(403, "this address may not send webhooks")
        if (request.content_length or 0) > self._settings.max_body_bytes:
            return self._answer_too_large()
        if not self._sources.accepts_token(source, unquote(token) or _basic_auth_password(request)):
            challenge = 'Basic realm="smspulse", charset="UTF-8"'
            return error_response(401, "unknown source or wrong token", WWW_Authenticate=challenge)
        if self._in_flight >= self._settings.max_in_flight:
            return self._answer_unavailable("too many webhooks at once")
        # The bytes first: a webhook that they refuse takes no place among those of the second.
        wait, what = ceil(self._byte_limiter.take_or_wait_s(source)), "bytes"
        if not wait:
            wait, what = ceil(self._webhook_limiter.take_or_wait_s(source)), "webhooks"
        why = f"not stored, send it again: too many {what} a second"
        return error_response(429, why, Retry_After=str(wait)) if wait else None

    def _find_sender(self, request: web.BaseRequest) -> str:
        return self._client_filter.find_sender(request.remote or "", request.headers.getall(hdrs.X_FORWARDED_FOR, ()))

    async def _store_webhook(self, request: web.BaseRequest, source: str) -> bytes:
        """Hand the webhook to the sink, and return its ingest_id when it is safe."""
        codings = parse_codings(request.headers.getall(hdrs.CONTENT_ENCODING, ()))
        received, codings = self._remove_codings(await self._read_body(request), codings)
        # Only now is the size known, also of a body without a declared one. The next webhook waits for it.
        self._byte_limiter.take_tokens(source, len(received))
        content_type = _header_value(request.headers.get(hdrs.CONTENT_TYPE, ""))
        if len(received) > _LARGE_BODY:
            # One a round of the event loop: a thousand of them would hold up everybody else.
            async with self._large_body_lock:
                await asyncio.sleep(0)
                key, body, content_type = self._redact_body(source, received, content_type)
        else:
            key, body, content_type = self._redact_body(source, received, content_type)
        received_at = time.time_ns() // 1_000_000
        ingest_id = str(uuid7()).encode()
        headers = [
            (HEADER_SOURCE, source.encode()),
            (HEADER_RECEIVED_AT, b"%d" % received_at),
            (HEADER_INGEST_ID, ingest_id),
            (HEADER_CONTENT_TYPE, content_type),
        ]
        if codings:
            headers.append((HEADER_CONTENT_ENCODING, ", ".join(codings).encode()))
        if self._settings.store_remote:
            headers.append((HEADER_REMOTE, _header_value(self._find_sender(request))))
        await self._sink.store_webhook(WebhookRecord(key, body, headers, received_at))
        return ingest_id

    async def _read_body(self, request: web.BaseRequest) -> bytes:
        if request.content.is_eof():  # it came with its headers, as most do
            return await self._read_chunks(request.content)
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
                    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    request.writer.output_size = 0  # no part of the answer
                return await self._read_chunks(request.content)
        except TimeoutError as error:
            raise _LateBodyError from error
        except (web.RequestPayloadError, ConnectionError) as error:
            raise _BrokenBodyError from error

    async def _read_chunks(self, content: StreamReader) -> bytes:
        chunk = await content.readany()
        if content.at_eof() and len(chunk) <= self._settings.max_body_bytes:
            return chunk
        # Not bytes: they would be copied with each chunk, and a chunk may be one byte.
        body = bytearray()
        while chunk:
            body += chunk
            if len(body) > self._settings.max_body_bytes:
                raise _TooLargeError
            chunk = await content.readany()
        return bytes(body)

    def _remove_codings(self, body: bytes, codings: tuple[str, ...]) -> tuple[bytes, tuple[str, ...]]:
        """Return a body without its content codings, and the codings that were removed.

        A body that is not what its header says is kept as it came, like everything that cannot be read.
        """
        if not codings:
            return body, ()
        try:
            return decode_body(body, codings, self._settings.max_body_bytes), codings
        except CorruptBodyError:
            return body, ()

    def _redact_body(self, source: str, received: bytes, content_type: bytes) -> tuple[bytes | None, bytes, bytes]:
        """Return a webhook's key, what may be kept of its body, and the Content-Type of that."""
        text = to_utf8(received, content_type)
        key = None
        try:
            event = parse_payload(text)
            key = message_key(source, event.sms_id)
            kept = self._redactor.redact_body(text, event)
        except UnreadablePayload as error:
            if error.reason == REASON_UNVERIFIED_SHAPE:
                self._log_test_webhook(source)
            if error.reason == REASON_FAULT:
                self._count_fault(error.detail)
            kept = self._redactor.redact_body(text, error)
        except Exception as error:
            # A webhook is never refused for what its body does in here. With privacy, nothing of the body is kept.
            self._count_fault(where_raised(error))
            kept = self._redactor.redact_body(text, unforeseen_error(error))
        if kept is text:
            return key, received, content_type
        return key, kept, REWRITTEN_TYPE

    def _count_fault(self, what: str) -> None:
        metrics.FAULTS.inc()
        log.error("the body of a webhook could not be processed, and is stored as unreadable: %s", what)

    def _log_test_webhook(self, source: str) -> None:
        now = time.monotonic()
        if now >= self._test_logged_at.get(source, now - _TEST_LOG_EVERY_S) + _TEST_LOG_EVERY_S:
            self._test_logged_at[source] = now
            log.info("a test webhook arrived from source %s: its URL and token are set up correctly", source)

    def _refuse_body(self, error: Exception) -> web.Response:
        """Return the answer to a webhook whose body is not taken; some of it may not have been read."""
        if isinstance(error, _BrokenBodyError):
            return close_connection_after(error_response(400, "the body did not arrive whole"))
        if isinstance(error, _LateBodyError):
            return close_connection_after(
                error_response(408, f"the body took longer than {self._settings.body_timeout_s:g} s")
            )
        if isinstance(error, UnknownCodingError):
            return close_connection_after(error_response(415, str(error), Accept_Encoding=ACCEPTED_CODINGS))
        return self._answer_too_large()

    def _answer_too_large(self) -> web.Response:
        return close_connection_after(
            error_response(413, f"the body is larger than {self._settings.max_body_bytes} bytes")
        )

    def _answer_unavailable(self, why: str) -> web.Response:
        return error_response(503, f"not stored, send it again: {why}", Retry_After=self._retry_after)


def _header_value(text: str) -> bytes:
    """Return what a record's header keeps of a text that a sender chose."""
    return text[:MAX_NAME_LENGTH].encode("ascii", "replace")


def _path_segments(target: str) -> list[str]:
    """Return the segments of a request target's path, the first one empty; one slash at the end does not count.

    Proxies send the target in absolute form (RFC 9112, 3.2.2), and a receiver has to accept it.
    """
    path = target.partition("?")[0]
    if not path.startswith("/"):
        origin = _ABSOLUTE_FORM.match(path)
        path = path[origin.end() :] if origin else path
    segments = path.split("/")
    if len(segments) > 2 and not segments[-1]:  # noqa: PLR2004 - the empty one, a name, and behind the last slash
        segments.pop()
    return segments


def _basic_auth_password(request: web.BaseRequest) -> str:
    """Return the password of HTTP Basic authentication, or an empty text."""
    scheme, _, credentials = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(credentials, validate=True).decode(errors="replace").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


async def serve_ingest(
    settings: IngestSettings,
    kafka: KafkaSettings,
    data: Path,
    *,
    ready: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Receive webhooks until `stop` is set; then finish those in flight.

    Listens at once, whether Kafka is there or not.

    Args:
        settings: Of the receiver.
        kafka: Where Kafka is.
        data: The data folder, for its `sources.json`.
        ready: Called with the base URL, such as `http://127.0.0.1:8080`, once it is listened on.
        stop: Ends the service; without it, it runs until cancelled.

    Raises:
        CannotListenError: The address is taken or not to be had.
        SourcesError: The sources cannot be read.
        KafkaFilesError: A TLS file for Kafka cannot be read.
        CertificateError: The certificate or its key cannot be used.
        SpoolError: The spool cannot be opened.
    """
    context = load_tls_context(settings)
    sources = SourceRegistry(data, settings.sources.get_secret_value())
    sink = StoreAndForward(kafka, data, settings)
    handler = IngestHandler(settings, sources, sink)
    async with sink.run_in_background() as storing:
        runner = web.ServerRunner(handler.build_server(context), shutdown_timeout=LINGER_S)
        await runner.setup()
        try:
            site, port = await _start_site(runner, settings)
            if not len(sources):
                log.warning("no source may send yet: add one with `smspulse source add NAME`")
            if ready is not None:
                host = f"[{settings.host}]" if ":" in settings.host else settings.host
                ready(f"{'https' if context else 'http'}://{host}:{port}")
            stopped = asyncio.create_task((stop or asyncio.Event()).wait())
            renewing = asyncio.create_task(
                keep_running("the renewal of the certificate", lambda: renew_certificate(context, settings))
            )
            await asyncio.wait({stopped, storing}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            renewing.cancel()
            await site.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settings.stop_timeout_s):
                    drained = asyncio.create_task(handler.wait_until_drained())
                    await asyncio.wait({drained}, timeout=_ACKS_ON_STOP_S)
                    sink.switch_to_spool_permanently()
                    await drained
        finally:
            await runner.cleanup()


async def _start_site(runner: web.BaseRunner, settings: IngestSettings) -> tuple[web.BaseSite, int]:
    try:
        return await start_listening(runner, settings.host, settings.port, share_port=settings.share_port)
    except OSError as error:
        why = {
            errno.EADDRINUSE: PORT_TAKEN,
            errno.EACCES: "this user may not take the port",
            errno.EADDRNOTAVAIL: "this machine has no such address",
        }.get(error.errno or 0, os.strerror(error.errno) if error.errno and error.errno > 0 else str(error))
        raise CannotListenError(settings.host, settings.port, why) from error


def run_ingest(
    settings: IngestSettings, kafka: KafkaSettings, data: Path, *, ready: Callable[[str], None] | None = None
) -> None:
    """Receive webhooks until SIGTERM or SIGINT; arguments and errors as those of `serve_ingest`."""

    async def until_signalled() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve_ingest(settings, kafka, data, ready=ready, stop=stop)

    # Requests make few cycles, and to walk over all that lives again and again takes a twentieth of the time.
    gc.freeze()
    gc.set_threshold(100_000)
    uvloop.run(until_signalled())
