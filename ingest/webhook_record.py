"""The record of `sms.raw` for a webhook, and its form in the spool."""

from collections.abc import Sequence
from operator import methodcaller
from typing import NamedTuple

import orjson


class WebhookRecord(NamedTuple):
    """One record of `sms.raw`; see `core.records`. `received_at` is in milliseconds since 1970 UTC."""

    key: bytes | None
    body: bytes
    headers: list[tuple[str, bytes]]
    received_at: int


def encode_webhooks(webhooks: Sequence[WebhookRecord]) -> bytes:
    """Return webhooks as one JSON text."""
    # Latin-1 has one character per byte, so JSON can represent any body exactly.
    return orjson.dumps([tuple(webhook) for webhook in webhooks], default=methodcaller("decode", "latin-1"))


def decode_webhooks(data: bytes) -> list[WebhookRecord]:
    """Return the webhooks of a JSON text."""
    return [
        WebhookRecord(
            key.encode("latin-1") if key is not None else None,
            body.encode("latin-1"),
            [(name, value.encode("latin-1")) for name, value in headers],
            received_at,
        )
        for key, body, headers, received_at in orjson.loads(data)
    ]
