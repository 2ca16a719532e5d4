"""Answers of the HTTP receiver: `POST /webhooks/{source}/{token}`, `/healthz`, `/readyz`, `/metrics`, `/openapi.json`.

A webhook is answered 202 when the sink has stored it durably. Otherwise the answer is an error: either the sender must
retry, or the error states why a retry does not help. Built on aiohttp's low-level server: five routes need no router,
and the path has a token, so no component that logs or shows paths is used.
"""

import asyncio
import logging
import re
import ssl
import time
from math import ceil
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import orjson
from aiohttp import hdrs, web
from uuid_utils import uuid7

from core import records
from core.basic_auth import basic_auth_password
from core.errors import where_raised
from core.records import WebhookRecord
from gateway.errors import Reason, UnreadablePayload
from gateway.events import MAX_NAME_LENGTH
from ingest import metrics
from ingest.client_limits import ClientFilter, HttpLimits, RateLimiter, SharedResult
from ingest.errors import NotStoredError
from ingest.http_connection import JSON, HttpServer, error_response
from ingest.request_body import PayloadRedactor, RefusedBodyError, receive_body, too_large_error
from ingest.settings import IngestSettings
from ingest.sink import StoreAndForward
from ingest.sources import SourceRegistry

log = logging.getLogger(__name__)
access_log = logging.getLogger("ingest.access")

_OPENAPI: Final = Path(__file__).with_name("openapi.json").read_bytes()
_ABSOLUTE_FORM: Final = re.compile(r"https?://[^/]+", re.IGNORECASE)
_NOT_FOUND: Final = 404
_CONNECTIONS_ADVICE: Final = (
    "if they are gateways, raise SMSPULSE_INGEST_MAX_CONNECTIONS or _TOTAL and the limit of open files, "
    "or name their proxy in SMSPULSE_INGEST_TRUSTED_PROXIES"
)
# Bytes from which parsing a body can take milliseconds.
_LARGE_BODY: Final = 16_384


class IngestHandler:
    """Request handler of ingest.

    Args:
        settings: Settings of ingest.
        sources: Sources and their tokens.
        sink: Stores webhooks durably.
    """

    def __init__(self, settings: IngestSettings, sources: SourceRegistry, sink: StoreAndForward) -> None:
        self._settings = settings
        self._sources = sources
        self._sink = sink
        self._client_filter = ClientFilter(settings.allow, settings.trusted_proxies)
        self._webhook_limiter = RateLimiter(settings.rate_per_s, settings.rate_burst)
        self._byte_limiter = RateLimiter(settings.rate_bytes_per_s, settings.rate_burst_bytes)
        self._redactor = PayloadRedactor(settings.privacy, settings.bodies, settings.privacy_key.get_secret_value())
        self._in_flight = 0
        self._idle: asyncio.Event | None = None
        self._exposition = SharedResult(self._render_metrics)
        self._large_body_lock = asyncio.Lock()

    def build_server(self, tls: ssl.SSLContext | None = None) -> HttpServer:
        """Return the HTTP server of this handler. The caller binds it to an address.

        Args:
            tls: TLS context; None for plain HTTP.
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
        return HttpServer(self.handle_request, limits, "ingest", tls=tls)

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
                case ["", "webhooks", source, *rest] if not rest[1:]:
                    response = await self._answer_webhook(request, source, rest[0] if rest else "")
                case ["", "healthz" | "readyz" | "metrics" | "openapi.json" as route]:
                    response = await self._answer_state(request, route)
                case _:
                    response = error_response(_NOT_FOUND, "not found: send webhooks to POST /webhooks/{source}/{token}")
        except ConnectionError:
            raise
        except Exception as error:
            # Answered here and not by the HTTP server, so that the metrics count it.
            log.error("a request failed inside ingest: %s", where_raised(error))
            response = error_response(500, "internal error of ingest; see its log", closes=True)
        if self._idle is not None:
            response.force_close()
        # Only the route is logged: a token can be pasted in place of the source's name.
        shown = "?" if response.status == _NOT_FOUND else parts[1]
        elapsed_s = time.monotonic() - start
        metrics.count_request(shown, response.status, elapsed_s)
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
        gauges = self._sink.read_gauges() | {metrics.IN_FLIGHT: self._in_flight}
        return metrics.render_exposition(gauges, self._settings.metrics_folder)

    async def _answer_webhook(self, request: web.BaseRequest, source: str, token: str) -> web.Response:
        try:
            refusal = self._refuse_unread(request, source, token)
            if refusal is not None:
                return refusal
            self._in_flight += 1
            try:
                ingest_id = await self._store_webhook(request, source)
            finally:
                self._in_flight -= 1
                if self._idle is not None and not self._in_flight:
                    self._idle.set()
        except RefusedBodyError as error:
            # A part of the body may be unread, so the connection cannot be used for another request.
            return error_response(error.status, str(error), closes=True, **error.headers)
        except NotStoredError as error:
            why = f"not stored, send it again: {error}"
            return error_response(503, why, Retry_After=str(self._settings.retry_after_s))
        body = b'{"ingest_id":"%s"}' % ingest_id
        return web.Response(status=self._settings.success_status, body=body, headers=JSON)

    def _refuse_unread(self, request: web.BaseRequest, source: str, token: str) -> web.Response | None:
        """Return the answer to a webhook that is refused without its body, or None.

        Raises:
            RefusedBodyError: The body is declared too large.
            NotStoredError: Too many webhooks are in flight.
        """
        if request.method != "POST":
            return error_response(405, "send webhooks by POST", Allow="POST")
        if not self._client_filter.may_send(self._find_sender(request)):
            return error_response(403, "this address may not send webhooks")
        if (request.content_length or 0) > self._settings.max_body_bytes:
            raise too_large_error(self._settings.max_body_bytes)
        authorization = request.headers.get(hdrs.AUTHORIZATION, "")
        if not self._sources.accepts_token(source, unquote(token) or basic_auth_password(authorization)):
            challenge = 'Basic realm="smspulse", charset="UTF-8"'
            return error_response(401, "unknown source or wrong token", WWW_Authenticate=challenge)
        if self._in_flight >= self._settings.max_in_flight:
            msg = "too many webhooks at once"
            raise NotStoredError(msg)
        # Bytes are checked first: a webhook that is refused for them takes no token of the webhooks.
        wait, what = ceil(self._byte_limiter.take_or_wait_s(source)), "bytes"
        if not wait:
            wait, what = ceil(self._webhook_limiter.take_or_wait_s(source)), "webhooks"
        why = f"not stored, send it again: too many {what} a second"
        return error_response(429, why, Retry_After=str(wait)) if wait else None

    def _find_sender(self, request: web.BaseRequest) -> str:
        return self._client_filter.find_sender(request.remote or "", request.headers.getall(hdrs.X_FORWARDED_FOR, ()))

    async def _store_webhook(self, request: web.BaseRequest, source: str) -> bytes:
        """Store the webhook in the sink, and return its ingest_id."""
        received, codings = await receive_body(request, self._settings)
        # Only now the size is known, also of a body without a declared one. The next webhook waits for its tokens.
        self._byte_limiter.take_tokens(source, len(received))
        content_type = _header_value(request.headers.get(hdrs.CONTENT_TYPE, ""))
        if len(received) > _LARGE_BODY:
            # One per iteration of the event loop: a thousand of them would delay all other requests.
            async with self._large_body_lock:
                await asyncio.sleep(0)
        key, body, content_type = self._redact_body(source, received, content_type)
        received_at = time.time_ns() // 1_000_000
        ingest_id = str(uuid7()).encode()
        headers = [
            (records.HEADER_SOURCE, source.encode()),
            (records.HEADER_RECEIVED_AT, b"%d" % received_at),
            (records.HEADER_INGEST_ID, ingest_id),
            (records.HEADER_CONTENT_TYPE, content_type),
        ]
        if codings:
            headers.append((records.HEADER_CONTENT_ENCODING, ", ".join(codings).encode()))
        if self._settings.store_remote:
            headers.append((records.HEADER_REMOTE, _header_value(self._find_sender(request))))
        await self._sink.store_webhook(WebhookRecord(key, body, headers, received_at))
        return ingest_id

    def _redact_body(self, source: str, received: bytes, content_type: bytes) -> tuple[bytes | None, bytes, bytes]:
        """Return a webhook's key, its body without the data that must not be kept, and the Content-Type of that."""
        body, content_type, read, fault = self._redactor.redact_body(received, content_type)
        if fault:
            metrics.FAULTS.inc()
            log.error("the body of a webhook could not be processed, and is stored as unreadable: %s", fault)
        if not isinstance(read, UnreadablePayload):
            return records.message_key(source, read.sms_id), body, content_type
        if read.reason == Reason.UNVERIFIED_SHAPE:
            # The log has a repeated line once an hour, so a sender cannot fill it.
            log.info("a test webhook arrived from source %s: its URL and token are set up correctly", source)
        return None, body, content_type


def _header_value(text: str) -> bytes:
    """Return the value of a record's header for a text that a sender chose."""
    return text[:MAX_NAME_LENGTH].encode("ascii", "replace")


def _path_segments(target: str) -> list[str]:
    """Return the segments of a request target's path. The first one is empty, and one slash at the end is ignored.

    Proxies send the target in absolute form (RFC 9112, 3.2.2), and a server must accept it.
    """
    path = target.partition("?")[0]
    if not path.startswith("/"):
        origin = _ABSOLUTE_FORM.match(path)
        path = path[origin.end() :] if origin else path
    segments = path.split("/")
    if segments[2:] and not segments[-1]:
        segments.pop()
    return segments
