"""Removal of personal data from a webhook before it is logged, spooled or written to Kafka.

If the settings remove anything, a webhook's JSON is written again from the event that `gateway.payloads` reads: ids as
numbers, times in ISO 8601. So an unknown field passes no data on, and neither does an unread part of a known field.
Guarantee: `gateway.payloads` reads the new JSON as the same event without the removed data, with the same flaws. Of a
body that cannot be read, only the reason and the length are kept.
"""

import hmac
from typing import Any, Final, Literal

import orjson

from gateway import json_body
from gateway.errors import UnreadablePayload
from gateway.events import Event, IncomingMessage, StatusReport
from gateway.payload_times import rewrite_time
from gateway.payloads import build_withheld_body
from gateway.statuses import STATUSES

REWRITTEN_TYPE: Final = b"application/json"
"""Content-Type of a body that `PayloadRedactor.redact_body` has rewritten. It replaces the sender's."""

_KNOWN_TYPES: Final = frozenset({"text", "img"})
_OTHER_TYPE: Final = "other"
_SHOWN_DIGITS: Final = 4
# 128 bits: a collision of two phone numbers is practically impossible.
_HASH_CHARS: Final = 32


class PayloadRedactor:
    """Removes personal data from webhooks.

    Args:
        numbers: `keep`; `mask`: keep the last four digits; `hmac`: a keyed hash of the number in normal spelling.
        bodies: `keep` or `drop` texts and links to images.
        key: Key of `hmac`.
    """

    def __init__(
        self, numbers: Literal["keep", "mask", "hmac"], bodies: Literal["keep", "drop"], key: str = ""
    ) -> None:
        self._numbers, self._drops_bodies, self._key = numbers, bodies == "drop", key.encode()

    def redact_body(self, body: bytes, read: Event | UnreadablePayload) -> bytes:
        """Return a body without the data that must not be stored.

        Args:
            body: The body in UTF-8, as `gateway.json_body.to_utf8` returns it.
            read: The event that `gateway.payloads.parse_payload` returned, or its error.
        """
        if self._numbers == "keep" and not self._drops_bodies:
            return body
        if isinstance(read, UnreadablePayload):
            return build_withheld_body(read, len(body))
        received = json_body.load_json(body)
        kept = (
            self._rewrite_status_report(received, read)
            if isinstance(read, StatusReport)
            else self._rewrite_incoming_message(received, read)
        )
        # A field that cannot be read stays a flaw.
        kept |= {field: True for field in read.flaws if received.get(field) is not None}
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
            kept["type"] = _OTHER_TYPE
        return kept

    def _hide_number(self, kept: dict[str, Any], field: str, address: str | None) -> None:
        if not address or self._numbers == "keep":
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
