"""How a webhook and what is made of it travel through Kafka: keys, headers and the shape of values.

`sms.raw`
    key: `{source}:{sms_id}`, or none where the body cannot be read. value: the exact bytes received. Headers, each
    ASCII: `source`, `received_at` (milliseconds since 1970 UTC, in decimal), `ingest_id` (UUIDv7), `content_type`
    and, where the operator asks for it, `remote`.

`sms.messages`
    key: as in `sms.raw`, in the partition of the same number. value: JSON, one version of a message's lifecycle; see
    `streams.lifecycle`. A record without a value says that the stream has forgotten the message.

`sms.deadletters`
    key: as in `sms.raw`. value: the exact bytes of the record that could not be read. Headers: those of the record,
    and `reason`, `detail`, `origin` (`topic:partition:offset`).
"""

from typing import Final

HEADER_SOURCE: Final = "source"
HEADER_RECEIVED_AT: Final = "received_at"
HEADER_INGEST_ID: Final = "ingest_id"
HEADER_CONTENT_TYPE: Final = "content_type"
HEADER_REMOTE: Final = "remote"
HEADER_REASON: Final = "reason"
HEADER_DETAIL: Final = "detail"
HEADER_ORIGIN: Final = "origin"


def message_key(source: str, sms_id: int) -> bytes:
    """Return the key under which everything about one message travels: `{source}:{sms_id}`."""
    return f"{source}:{sms_id}".encode()


def origin(topic: str, partition: int, offset: int) -> bytes:
    """Name a record, for the header `origin`."""
    return f"{topic}:{partition}:{offset}".encode()
