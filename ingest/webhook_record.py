"""The record of `sms.raw` for a webhook, its form in the spool, and its wait until it is stored."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

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
    return orjson.dumps(
        [
            (
                key.decode("latin-1") if key is not None else None,
                body.decode("latin-1"),
                [(name, value.decode("latin-1")) for name, value in headers],
                received_at,
            )
            for key, body, headers, received_at in webhooks
        ]
    )


def decode_webhook(row: list[Any]) -> WebhookRecord:
    """Return a webhook from its entry in the decoded JSON text."""
    key, body, headers, received_at = row
    return WebhookRecord(
        key.encode("latin-1") if key is not None else None,
        body.encode("latin-1"),
        [(name, value.encode("latin-1")) for name, value in headers],
        received_at,
    )


class PendingWebhook(NamedTuple):
    """A webhook to store, the time of its arrival on the loop's clock, and the future of its acknowledgement."""

    webhook: WebhookRecord
    queued_at: float
    stored: asyncio.Future[None]

    def confirm(self) -> None:
        """Report that it is stored, if a request still waits."""
        if not self.stored.done():
            self.stored.set_result(None)

    def fail_with(self, error: Exception) -> None:
        """Report that it is not stored, if a request still waits."""
        if not self.stored.done():
            self.stored.set_exception(error)
            # Marks the exception as retrieved, so that asyncio does not log it if no request waits any more.
            self.stored.exception()


class PendingQueue:
    """Webhooks that wait for one writer, in order of arrival. `filled` is set while there are any."""

    def __init__(self) -> None:
        self.waiting: list[PendingWebhook] = []
        self.filled = asyncio.Event()

    def add(self, webhooks: Iterable[PendingWebhook]) -> None:
        """Add webhooks at the end."""
        self.waiting += webhooks
        if self.waiting:
            self.filled.set()

    def take_all(self) -> list[PendingWebhook]:
        """Remove and return all webhooks."""
        taken, self.waiting = self.waiting, []
        self.filled.clear()
        return taken
