"""The body of a webhook's request: read within bounds of size and time, decoded, parsed once, and redacted.

Redaction removes personal data before a webhook is logged, spooled or written to Kafka. If the settings remove
anything, a webhook's JSON is written again from the event that `gateway.payloads` reads: ids as numbers, times in ISO
8601. So an unknown field passes no data on, and neither does an unread part of a known field.
Guarantee: `gateway.payloads` reads the new JSON as the same event without the removed data, with the same flaws. Of a
body that cannot be read, only the reason and the length are kept.
"""

import asyncio
import hmac
import zlib
from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple

import orjson
from aiohttp import StreamReader, hdrs, web

from core.errors import SmspulseError, where_raised
from gateway.errors import Reason, UnreadablePayload, unforeseen_error
from gateway.events import Event, IncomingMessage, StatusReport
from gateway.payload_times import rewrite_time
from gateway.payloads import build_withheld_body, parse_payload, parse_with_fields
from gateway.statuses import STATUSES
from ingest.settings import IngestSettings

_ACCEPTED_CODINGS: Final = "gzip, deflate"
_GZIP: Final = "gzip"
_ALIASES: Final = {"x-gzip": _GZIP, "gzip": _GZIP, "deflate": "deflate"}
# Each coding costs the decoding of a whole body. Real senders use one at most.
_MAX_CODINGS: Final = 2
# zlib reads a gzip header if 16 is added to the size of the window.
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
# The rest behind each member is copied, so thousands of empty members would take seconds.
_MAX_GZIP_MEMBERS: Final = 8

# The Content-Type of a rewritten body. It replaces the sender's.
_REWRITTEN_TYPE: Final = b"application/json"
_KNOWN_TYPES: Final = frozenset({"text", "img"})
_SHOWN_DIGITS: Final = 4
# 128 bits: a collision of two phone numbers is practically impossible.
_HASH_CHARS: Final = 32


class RefusedBodyError(SmspulseError):
    """A body that ingest does not take. The text is for the sender.

    Args:
        status: HTTP status of the answer.
        text: Reason.
        headers: Headers of the answer, with `_` for `-`.
    """

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers


def too_large_error(limit: int) -> RefusedBodyError:
    """Return the error of a body above the limit, in bytes."""
    return RefusedBodyError(413, f"the body is larger than {limit} bytes")


async def receive_body(request: web.BaseRequest, settings: IngestSettings) -> tuple[bytes, tuple[str, ...]]:
    """Return the body of a request without its content codings, and the codings that were removed.

    Raises:
        RefusedBodyError: The body is too large, too late or incomplete, or has a coding that is not supported.
    """
    codings = parse_codings(request.headers.getall(hdrs.CONTENT_ENCODING, ()))
    return remove_codings(await _read_body(request, settings), codings, settings.max_body_bytes)


async def _read_body(request: web.BaseRequest, settings: IngestSettings) -> bytes:
    if request.content.is_eof():
        # Most bodies arrive with their headers.
        return await _read_chunks(request.content, settings.max_body_bytes)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                # It is not a part of the answer.
                request.writer.output_size = 0
            return await _read_chunks(request.content, settings.max_body_bytes)
    except TimeoutError as error:
        raise RefusedBodyError(408, f"the body took longer than {settings.body_timeout_s:g} s") from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise RefusedBodyError(400, "the body did not arrive whole") from error


async def _read_chunks(content: StreamReader, limit: int) -> bytes:
    chunk = await content.readany()
    if content.at_eof() and len(chunk) <= limit:
        return chunk
    # A bytes object would be copied with each chunk, and a chunk may be one byte.
    body = bytearray()
    while chunk:
        body += chunk
        if len(body) > limit:
            raise too_large_error(limit)
        chunk = await content.readany()
    return bytes(body)


def parse_codings(values: Iterable[str]) -> tuple[str, ...]:
    """Return the codings of `Content-Encoding` headers, in the order in which they were applied.

    Raises:
        RefusedBodyError: A coding is not supported, or there are too many.
    """
    named = [name.strip().lower() for value in values for name in value.split(",")]
    codings = tuple(_ALIASES.get(name, "") for name in named if name not in {"", "identity"})
    if len(codings) > _MAX_CODINGS or "" in codings:
        text = f"Content-Encoding must be one of {_ACCEPTED_CODINGS}, or left out"
        # RFC 9110, 15.5.16 requires the header.
        raise RefusedBodyError(415, text, Accept_Encoding=_ACCEPTED_CODINGS)
    return codings


def remove_codings(body: bytes, codings: tuple[str, ...], limit: int) -> tuple[bytes, tuple[str, ...]]:
    """Return a body without its content codings, and the codings that were removed.

    It never takes more memory than the limit, whatever the decoded size. A body that does not match its header is kept
    as it was received, like every body that cannot be read.

    Args:
        body: The bytes received.
        codings: As `parse_codings` returns them.
        limit: The largest decoded size, in bytes.

    Raises:
        RefusedBodyError: The body is larger than the limit after one of the codings.
    """
    decoded = body
    try:
        for coding in reversed(codings):
            decoded = _decode_gzip(decoded, limit) if coding == _GZIP else _decode_deflate(decoded, limit)
    except zlib.error:
        return body, ()
    return decoded, codings


def _decode_gzip(body: bytes, limit: int) -> bytes:
    """Decode gzip, which can have several members."""
    decoded = b""
    rest = body
    for _ in range(_MAX_GZIP_MEMBERS):
        decompressor = zlib.decompressobj(_GZIP_WINDOW)
        decoded += _decompress_bounded(decompressor, rest, limit, limit - len(decoded))
        rest = decompressor.unused_data
        if not rest:
            return decoded
    msg = "too many members"
    raise zlib.error(msg)


def _decode_deflate(body: bytes, limit: int) -> bytes:
    """Decode deflate: in a zlib container, as RFC 9110 defines it, or bare, as many clients send it."""
    try:
        return _decompress_bounded(zlib.decompressobj(zlib.MAX_WBITS), body, limit, limit)
    except zlib.error:
        return _decompress_bounded(zlib.decompressobj(-zlib.MAX_WBITS), body, limit, limit)


def _decompress_bounded(decompressor: "zlib._Decompress", body: bytes, limit: int, left: int) -> bytes:
    # One byte above the limit shows that there is more. zlib stops there.
    decoded = decompressor.decompress(body, left + 1)
    if len(decoded) > left:
        raise too_large_error(limit)
    if not decompressor.eof:
        msg = "it ends too early"
        raise zlib.error(msg)
    return decoded


class RedactedBody(NamedTuple):
    """What is stored of a body: bytes and Content-Type; and what was read: an event or an error.

    `fault` is the place of an unexpected error of ours, or empty.
    """

    body: bytes
    content_type: bytes
    read: Event | UnreadablePayload
    fault: str


class PayloadRedactor:
    """Parses webhooks, and removes personal data from them.

    Args:
        numbers: `keep`; `mask`: keep the last four digits; `hmac`: a keyed hash of the number in normal spelling.
        bodies: `keep` or `drop` texts and links to images.
        key: Key of `hmac`.
    """

    def __init__(
        self, numbers: Literal["keep", "mask", "hmac"], bodies: Literal["keep", "drop"], key: str = ""
    ) -> None:
        self._numbers, self._drops_bodies, self._key = numbers, bodies == "drop", key.encode()

    def redact_body(self, body: bytes, content_type: bytes) -> RedactedBody:
        """Return a body without the data that must not be stored. Raises nothing, whatever the bytes are.

        Args:
            body: The body without content codings.
            content_type: The header of its request.
        """
        keeps_all = self._numbers == "keep" and not self._drops_bodies
        event: Event | None = None
        try:
            if keeps_all:
                return RedactedBody(body, content_type, parse_payload(body, content_type=content_type), "")
            received, event = parse_with_fields(body, content_type=content_type)
            return RedactedBody(self._rewrite_event(received, event), _REWRITTEN_TYPE, event, "")
        except UnreadablePayload as error:
            problem, fault = error, error.detail if error.reason == Reason.FAULT else ""
        except Exception as error:
            # A webhook is never refused because of an internal error. With privacy, nothing of its body is kept.
            problem, fault = unforeseen_error(error), where_raised(error)
        if keeps_all:
            return RedactedBody(body, content_type, problem, fault)
        return RedactedBody(build_withheld_body(problem, len(body)), _REWRITTEN_TYPE, event or problem, fault)

    def _rewrite_event(self, received: dict[str, Any], event: Event) -> bytes:
        if isinstance(event, StatusReport):
            kept = self._rewrite_status_report(received, event)
        else:
            kept = self._rewrite_incoming_message(received, event)
        # A field that cannot be read stays a flaw.
        kept |= {field: True for field in event.flaws if received.get(field) is not None}
        return orjson.dumps({field: value for field, value in kept.items() if value is not None})

    def _rewrite_status_report(self, received: dict[str, Any], report: StatusReport) -> dict[str, Any]:
        kept = {
            "sms_id": report.sms_id,
            "status_id": report.status_id,
            "status_message": report.status_message,
            "sendto": received.get("sendto"),
            "senttime": _rewrite_field_time(received, "senttime", report),
            **_device_and_channel(received, report),
        }
        if self._numbers != "keep":
            self._hide_number(kept, "sendto", report.recipient)
            kept["status_message"] = _mask_unknown_status_text(report)
        return kept

    def _rewrite_incoming_message(self, received: dict[str, Any], message: IncomingMessage) -> dict[str, Any]:
        kept = {
            "sms_id": message.sms_id,
            "type": message.content_type,
            "date": _rewrite_field_time(received, "date", message),
            "date_sent": _rewrite_field_time(received, "date_sent", message),
            "address": received.get("address"),
            # An empty text has no data. The link becomes "dropped": null would be an image without a link, a flaw.
            "body": None if self._drops_bodies and message.text else message.text,
            "img_url": "dropped" if self._drops_bodies and message.image_url else message.image_url,
            **_device_and_channel(received, message),
        }
        if self._numbers == "keep":
            return kept | {"internal_id": message.internal_id, "device_name": message.device_name}
        self._hide_number(kept, "address", message.sender)
        if message.content_type not in _KNOWN_TYPES:
            kept["type"] = "other"
        return kept

    def _hide_number(self, kept: dict[str, Any], field: str, address: str | None) -> None:
        if not address:
            return
        if self._numbers == "hmac":
            kept[field] = f"hmac:{hmac.digest(self._key, address.encode(), 'sha256').hex()[:_HASH_CHARS]}"
        else:
            kept[field] = "****" + "".join(filter(str.isdecimal, address))[-_SHOWN_DIGITS:]


def _device_and_channel(received: dict[str, Any], event: Event) -> dict[str, Any]:
    """Return device and channel as the numbers that were read. Of two names of a channel, one is read."""
    channel = "channel_id" if "channel_id" in received else "sim"
    return {channel: event.channel_id, "device_id": event.device_id}


def _rewrite_field_time(received: dict[str, Any], field: str, event: Event) -> str | None:
    return None if field in event.flaws else rewrite_time(received.get(field))


def _mask_unknown_status_text(report: StatusReport) -> str | None:
    """Return the text of an undocumented status without its digits. Other texts repeat the meaning of their id."""
    if report.status_id in STATUSES or report.status_message is None:
        return None
    return "".join("*" if char.isdigit() else char for char in report.status_message)
