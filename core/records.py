"""How a webhook and what is made of it travel through Kafka: keys, headers and the shape of values.

`sms.raw`
    key: `{source}:{sms_id}`, or none where the body cannot be read. value: the exact bytes received, in the charset in
    which they were sent (see `gateway.json_body`), or what `ingest.redaction` leaves of them. The body of a request
    with a `Content-Encoding` is stored decoded. Headers, each ASCII: `source`, `received_at` (milliseconds since 1970,
    in decimal), `ingest_id` (UUIDv7), `content_type`; where they apply, `content_encoding` (the codings that ingest has
    decoded, such as `gzip`); and, where the operator asks for it, `remote`. What a sender chooses of them is cut at 255
    characters. `spooled` is on those that ingest forwarded from its spool: of each, there may be another record, with
    the same `ingest_id`.

`sms.messages`
    key: as in `sms.raw`, in the partition of the same number. value: JSON, one version of a message's lifecycle; see
    `streams.lifecycle`. A record without a value says that the stream has forgotten the message; under the key
    `{source}:incoming:{sms_id}`, that it has counted an incoming message.

`sms.outcomes`
    key: `{source}:{device_id}`, or `{source}:-` where no report names a device. value: JSON: `source`, `sms_id`,
    `outcome`, `failure_class`, `last_status_id`, `is_ended`, `device_id`, `channel_id`, `first_seen_at`, `ended_at`,
    `attempts`, the four latencies, `correction` and `previous`. One record a message, at its first end, and one more
    whenever its outcome is another one than told last: those have `correction` true and `previous` the outcome told.

`sms.activity`
    key: as on `sms.outcomes`. What a run of reports did to one device and channel: see
    `streams.device_processor.DeviceActivity`.

`sms.devices`
    key: `{source}:{device_id}:{channel_id}`, with `-` for what is not known, in the partition of the device's activity.
    value: JSON, the state of the device's channel; see `streams.device_processor`. With `*` for the channel, or for
    both, what is known of the device or the source as a whole.

`sms.alerts`
    key and value: see `core.alerts`. The newest record of a key is how the alert stands.

`sms.deadletters`
    key: as in `sms.raw`. value: the first 4,096 bytes of the record that could not be read; the record itself, which
    `origin` names, has all of them. Headers: those of the record, and `reason`, `detail`, `origin`
    (`topic:partition:offset`).
"""

from typing import Final

MAX_OBSERVATIONS: Final = 100
"""How many different reports one message holds: the first ones in the order of `sms.raw`. A real one has some five for
each attempt. Further ones are dead letters: each version holds all of them, so what a sender makes us store grows with
their square."""

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


def message_key(source: str, sms_id: int) -> bytes:
    """Return the key under which everything about one message travels: `{source}:{sms_id}`."""
    return f"{source}:{sms_id}".encode()


def incoming_key(source: str, sms_id: int) -> bytes:
    """Return the key under which an incoming message is known to be counted: `{source}:incoming:{sms_id}`."""
    return f"{source}:incoming:{sms_id}".encode()


def device_key(source: str, device_id: int | None) -> bytes:
    """Return the key under which everything about one device travels: `{source}:{device_id}`."""
    return f"{source}:{'-' if device_id is None else device_id}".encode()


def format_origin(topic: str, partition: int, offset: int) -> bytes:
    """Name a record, for the header `origin`."""
    return f"{topic}:{partition}:{offset}".encode()
