"""Kafka records of webhooks, messages and devices: keys, headers and the shape of values.

`sms.raw`
    key: `{source}:{sms_id}`, or none if the body cannot be read. value: the exact bytes received, in the charset in
    which they were sent (see `gateway.json_body`), or the part of them that ingest keeps with privacy. The body of a
    request with a `Content-Encoding` is stored decoded. Headers, each ASCII: `source`, `received_at` (milliseconds
    since 1970, in decimal), `ingest_id` (UUIDv7), `content_type`; `content_encoding` (the codings that ingest has
    decoded, such as `gzip`) if there were any; `remote` if `SMSPULSE_INGEST_STORE_REMOTE` is set. Values that a sender
    chooses are cut at 255 characters. Records that ingest forwarded from its spool have `spooled`. Each of them can
    exist twice, with the same `ingest_id`.

`sms.messages`
    key: as in `sms.raw`, in the partition of the same number. value: JSON, one version of a message's lifecycle; see
    `streams.lifecycle`. A record without a value means that the stream has evicted the message.

`sms.outcomes`
    key: `{source}:{device_id}`, or `{source}:-` if no report names a device. value: JSON: `source`, `sms_id`,
    `outcome`, `failure_class`, `last_status_id`, `is_ended`, `device_id`, `channel_id`, `first_seen_at`, `ended_at`,
    `attempts`, the four latencies, `correction` and `previous`. One record per attempt, at its first end, and one more
    at each change of its outcome. Those have `correction` true, and the last outcome as `previous`. If the stream had
    evicted the message before its first report here, `late` is true; the others do not have that field. The number of
    the attempt is `attempt`; records of first attempts do not have that field.

`sms.devices`
    key: `{source}:{device_id}:{channel_id}`, with `-` for an unknown part, in the partition of the device's outcomes.
    value: JSON, the state of the device's channel; see `streams.device_processor.EntityState`. With `*` for the
    channel, or for both, the state of the device or of the source.

`sms.alerts`
    key and value: see `core.alerts`. The newest record of a key is the current state of the alert.

`sms.deadletters`
    key: as in `sms.raw`. value: the first 4,096 bytes of the record that could not be read. `origin` names the record
    itself, which has all of them. Headers: those of the record, and `reason`, `detail`, `origin`
    (`topic:partition:offset`).
"""

from typing import Final, NamedTuple

MAX_OBSERVATIONS: Final = 100
"""Most different reports of one message, the first ones in the order of `sms.raw`. A real message has about five per
attempt. Further reports are dead letters: each version holds all reports, so storage grows with their square."""

HEADER_SOURCE: Final = "source"
HEADER_RECEIVED_AT: Final = "received_at"
HEADER_INGEST_ID: Final = "ingest_id"
HEADER_CONTENT_TYPE: Final = "content_type"
HEADER_CONTENT_ENCODING: Final = "content_encoding"
HEADER_REMOTE: Final = "remote"
HEADER_SPOOLED: Final = "spooled"
HEADER_REASON: Final = "reason"
HEADER_DETAIL: Final = "detail"
HEADER_ORIGIN: Final = "origin"


class WebhookRecord(NamedTuple):
    """One record of `sms.raw`. `received_at` is in milliseconds since 1970 UTC."""

    key: bytes | None
    body: bytes
    headers: list[tuple[str, bytes]]
    received_at: int


def message_key(source: str, sms_id: int) -> bytes:
    """Return the key of all records about one message: `{source}:{sms_id}`."""
    return f"{source}:{sms_id}".encode()


def device_key(source: str, device_id: int | None) -> bytes:
    """Return the key of all records about one device: `{source}:{device_id}`."""
    return f"{source}:{'-' if device_id is None else device_id}".encode()


def format_origin(topic: str, partition: int, offset: int) -> bytes:
    """Return the value of the header `origin` that names a record."""
    return f"{topic}:{partition}:{offset}".encode()
