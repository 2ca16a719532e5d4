"""What is kept of personal data. It is taken out of a webhook before that is logged, spooled or written to Kafka.

Where anything is to be taken out, a webhook's JSON is written anew from the fields that its kind is known to have, so
that a field that nobody thought of carries nothing along. Guarantee: read by `gateway.payloads`, the new one is the
same event but for the address, the text and the image, and has the same flaws. Of what cannot be read only the reason
is kept, and the length.
"""

import hmac
from typing import Any, Final, Literal

import orjson

from gateway import json_body
from gateway.errors import UnreadablePayload
from gateway.payloads import Event, StatusReport, withheld

_STATUS_FIELDS: Final = (
    *("sms_id", "status_id", "status_message", "sendto", "senttime", "channel_id", "sim", "device_id"),
)
_INCOMING_FIELDS: Final = (
    *("sms_id", "type", "address", "date", "date_sent", "body", "internal_id", "img_url"),
    *("channel_id", "sim", "device_id", "device_name"),
)
_TIME_FIELDS: Final = ("date", "timezone")
_SHOWN_DIGITS: Final = 4
_HASH_CHARS: Final = 32
"""128 bits: no two numbers of the world meet."""


class Privacy:
    """Takes out of webhooks what is not to be kept.

    Args:
        numbers: `keep`; `mask`: the last four digits; `hmac`: a keyed hash of the number in one spelling.
        bodies: `keep` or `drop` texts and links to images.
        key: For `hmac`.
    """

    def __init__(
        self, numbers: Literal["keep", "mask", "hmac"], bodies: Literal["keep", "drop"], key: str = ""
    ) -> None:
        self._numbers, self._drops, self._key = numbers, bodies == "drop", key.encode()

    def apply(self, body: bytes, read: Event | UnreadablePayload) -> bytes:
        """Return what may be stored of a body.

        Args:
            body: In UTF-8, as `gateway.json_body.to_utf8` makes it.
            read: What `gateway.payloads.parse` made of them.
        """
        if self._numbers == "keep" and not self._drops:
            return body
        if isinstance(read, UnreadablePayload):
            return withheld(read, len(body))
        received = json_body.load(body)
        if isinstance(read, StatusReport):
            kept = _known(received, _STATUS_FIELDS, read.flaws)
            self._hide(kept, "sendto", read.recipient)
        else:
            kept = _known(received, _INCOMING_FIELDS, read.flaws)
            self._hide(kept, "address", read.sender)
            if self._drops and read.text:
                kept["body"] = None
            if self._drops and read.image_url:
                kept["img_url"] = "dropped"  # and not null: it makes an image of a message without a type
        return orjson.dumps(kept)

    def _hide(self, kept: dict[str, Any], field: str, address: str | None) -> None:
        if not address or self._numbers == "keep":
            return
        if self._numbers == "hmac":
            kept[field] = f"hmac:{hmac.digest(self._key, address.encode(), 'sha256').hex()[:_HASH_CHARS]}"
        else:
            kept[field] = "****" + "".join(filter(str.isdecimal, address))[-_SHOWN_DIGITS:]


def rewritten_type(content_type: bytes) -> bytes:
    """Return the Content-Type of a body that `Privacy.apply` has written: the one received, unless it is not UTF-8."""
    return content_type if json_body.charset_of(content_type) is None else b"application/json"


def _known(received: dict[str, Any], fields: tuple[str, ...], flaws: tuple[str, ...]) -> dict[str, Any]:
    kept = {}
    for field in fields:
        if field in received:
            value = received[field]
            if field in flaws and value is not None:
                value = True  # as unreadable as what was there
            elif isinstance(value, list):
                value = True  # no field has one; and some are nested deeper than can be written
            elif isinstance(value, dict):
                value = {part: value[part] for part in _TIME_FIELDS if isinstance(value.get(part), str)}
            kept[field] = value
    return kept
