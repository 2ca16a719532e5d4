"""Conversion of Kafka's records to the columns of their dataset, in Python's values.

It does not depend on who wrote a record, or what is in it: values that cannot be read are null.
"""

from collections.abc import Callable, Sequence
from datetime import tzinfo
from operator import itemgetter
from typing import Any, Final, NamedTuple, Protocol

import orjson

from core import records as rec
from core import topics
from gateway.errors import Reason
from gateway.events import StatusReport
from gateway.json_body import charset_of
from gateway.payloads import parse_payloads
from warehouse.partition_log import UNKNOWN_INCARNATION
from warehouse.schemas import ALERTS_SCHEMA, MESSAGES_SCHEMA, POSITION_FIELDS

KIND_STATUS: Final = "status"
KIND_INCOMING: Final = "incoming"
KIND_UNREADABLE: Final = "unreadable"
# More digits do not fit into a 64-bit integer.
_MAX_DIGITS: Final = 19
# In C, because they are called for each header of each record.
_HEADER_NAME: Final[Callable[[tuple[str, bytes | None]], str]] = itemgetter(0)
_HEADER_VALUE: Final[Callable[[tuple[str, bytes | None]], bytes | None]] = itemgetter(1)


class SourceRecord(Protocol):
    """One record of Kafka."""

    @property
    def topic(self) -> str:
        """Name of the topic."""

    @property
    def partition(self) -> int:
        """Number of the partition."""

    @property
    def offset(self) -> int:
        """Offset in the partition."""

    @property
    def timestamp(self) -> int:
        """Milliseconds since 1970 UTC, or -1."""

    @property
    def key(self) -> bytes | None:
        """Key of the record."""

    @property
    def value(self) -> bytes | None:
        """Value of the record; None in a tombstone."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """Name and value of each header."""


class PartitionRecords(NamedTuple):
    """Records of one partition in the order of their offsets, by column. Fields are those of `SourceRecord`.

    `incarnation` is that of the topic (`warehouse.partition_log`).
    """

    topic: str
    partition: int
    offsets: Sequence[int]
    timestamps: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Sequence[tuple[str, bytes | None]]]
    incarnation: str = UNKNOWN_INCARNATION

    @classmethod
    def from_records(cls, records: Sequence[SourceRecord]) -> "PartitionRecords":
        """Turn records, at least one and all of one partition, into columns."""
        fields = [(r.offset, r.timestamp, r.key, r.value, r.headers) for r in records]
        offsets, timestamps, keys, values, headers = zip(*fields, strict=True)
        return cls(records[0].topic, records[0].partition, offsets, timestamps, keys, values, headers)

    def select_record(self, row: int) -> "PartitionRecords":
        """Return one of the records as a run of its own."""
        return self._replace(
            offsets=self.offsets[row : row + 1],
            timestamps=self.timestamps[row : row + 1],
            keys=self.keys[row : row + 1],
            values=self.values[row : row + 1],
            headers=self.headers[row : row + 1],
        )


DatasetColumns = dict[str, Any]
"""By field: a sequence of Python's values, or one value for all rows. Bytes can stand for text.

A missing field is null in each row.
"""
# Columns of a `StatusReport`, in the order of its fields.
_STATUS_FIELDS: Final = (
    *("sms_id", "status_id", "device_id", "channel_id"),
    *("sent_at", "address", "status_message", "flaws"),
)
# Columns of an `IncomingMessage`, in the order of its fields.
_INCOMING_FIELDS: Final = (
    *("sms_id", "message_type", "device_id", "channel_id", "sent_at", "phone_received_at"),
    *("address", "text", "image_url", "internal_id", "device_name", "flaws"),
)


def raw_columns(run: PartitionRecords, zone: tzinfo) -> DatasetColumns:
    """Return the columns of `raw`: each webhook as received, and the fields that can be read of it."""
    rows = len(run.offsets)
    headers = _collect_headers(run)
    content_types = headers.get(rec.HEADER_CONTENT_TYPE)
    declares_charset = any(map(charset_of, set(content_types or ())))
    read = parse_payloads([value or b"" for value in run.values], zone, content_types if declares_charset else None)
    columns = _position_columns(run) | _receipt_columns(headers) | dict(zip(_STATUS_FIELDS, read.reports, strict=False))
    spooled = headers.get(rec.HEADER_SPOOLED)
    columns |= {
        "content_type": content_types,
        "remote": headers.get(rec.HEADER_REMOTE),
        "spooled": [value is not None for value in spooled] if spooled else False,
        "body": run.values,
        "kind": KIND_STATUS,
        "flaws": [()] * rows,
    }
    # Nearly always, all records are status reports of the usual form.
    if not read.others and not read.unreadable:
        return columns
    columns |= {"kind": [KIND_STATUS] * rows, "reason": [None] * rows}
    for row, event in read.others.items():
        is_status = type(event) is StatusReport
        if not is_status:
            columns["kind"][row] = KIND_INCOMING
        for name, value in zip(_STATUS_FIELDS if is_status else _INCOMING_FIELDS, event, strict=True):
            columns.setdefault(name, [None] * rows)[row] = value
    for row, (reason, field) in read.unreadable.items():
        columns["kind"][row] = KIND_UNREADABLE
        columns["reason"][row] = reason
        columns["flaws"][row] = [field] if field else []
    return columns


_NOT_FROM_VALUE: Final = {"message_key", "observations", "is_forgotten", *(field.name for field in POSITION_FIELDS)}
_VALUE_FIELDS: Final = tuple(field.name for field in MESSAGES_SCHEMA if field.name not in _NOT_FROM_VALUE)


def message_columns(run: PartitionRecords, zone: tzinfo) -> DatasetColumns:
    """Return the columns of `messages`: each version of each lifecycle, and each tombstone."""
    values = [_parse_json_object(value) for value in run.values]
    columns = _position_columns(run)
    columns["message_key"] = run.keys
    columns["is_forgotten"] = [value is None for value in run.values]
    columns["observations"] = [v.get("observations") for v in values]
    for name in _VALUE_FIELDS:
        columns[name] = [v.get(name) for v in values]
    for row, (key, value) in enumerate(zip(run.keys, run.values, strict=True)):
        # A tombstone has no value. Its key names the message, with `:incoming` after the source of an incoming one.
        if value is None and key is not None:
            source, _, sms_id = key.rpartition(b":")
            columns["source"][row] = source.removesuffix(b":incoming")
            columns["sms_id"][row] = _parse_integer(sms_id)
    return columns


def deadletter_columns(run: PartitionRecords, zone: tzinfo) -> DatasetColumns:
    """Return the columns of `deadletters`: each record that could not be read, with its reason and origin."""
    headers = _collect_headers(run)
    named = headers.get(rec.HEADER_ORIGIN) or [None] * len(run.offsets)
    origins = [((name or b"").rsplit(b":", 2) + [None] * 2)[:3] for name in named]
    return (
        _position_columns(run)
        | _receipt_columns(headers)
        | {
            "reason": headers.get(rec.HEADER_REASON),
            "detail": headers.get(rec.HEADER_DETAIL),
            "origin_topic": [topic or None for topic, _, _ in origins],
            "origin_partition": [_parse_integer(partition) for _, partition, _ in origins],
            "origin_offset": [_parse_integer(offset) for _, _, offset in origins],
            "body": run.values,
        }
    )


_ALERT_FIELDS: Final = tuple(
    field.name
    for field in ALERTS_SCHEMA
    if field.name not in {"alert_id", "errors", *(each.name for each in POSITION_FIELDS)}
)


def alert_columns(run: PartitionRecords, zone: tzinfo) -> DatasetColumns:
    """Return the columns of `alerts`: each change of each alert."""
    values = [_parse_json_object(value) for value in run.values]
    columns = _position_columns(run) | {name: [v.get(name) for v in values] for name in _ALERT_FIELDS}
    errors = [v.get("errors") for v in values]
    columns["errors"] = [list(each.items()) if type(each) is dict else None for each in errors]
    columns["alert_id"] = [None if key is None else key.decode(errors="replace") for key in run.keys]
    return columns


def unconverted_columns(run: PartitionRecords) -> DatasetColumns:
    """Return the columns of any dataset that need no conversion. The table ignores those that its schema lacks."""
    headers = {name: value for name, value in run.headers[0] if isinstance(value, bytes)}
    return _position_columns(run) | {
        "source": [headers.get(rec.HEADER_SOURCE)],
        "ingest_id": [headers.get(rec.HEADER_INGEST_ID)],
        "received_at": [_parse_integer(headers.get(rec.HEADER_RECEIVED_AT))],
        "body": run.values,
        "kind": KIND_UNREADABLE if run.topic == topics.RAW else None,
        "reason": Reason.FAULT.value,
        "flaws": [()],
        "message_key": run.keys,
        "alert_id": run.keys,
        "is_forgotten": False,
    }


def _position_columns(run: PartitionRecords) -> DatasetColumns:
    return {
        "topic": run.topic,
        "partition": run.partition,
        "offset": run.offsets,
        "recorded_at": [None if t < 0 else t for t in run.timestamps],
        "incarnation": run.incarnation or None,
    }


def _receipt_columns(headers: dict[str, Sequence[bytes | None]]) -> DatasetColumns:
    return {
        "source": headers.get(rec.HEADER_SOURCE),
        "ingest_id": headers.get(rec.HEADER_INGEST_ID),
        "received_at": [_parse_integer(value) for value in headers.get(rec.HEADER_RECEIVED_AT, ())] or None,
    }


def _collect_headers(run: PartitionRecords) -> dict[str, Sequence[bytes | None]]:
    """Return the values of each header by its name."""
    # Nearly always, all records have the same headers in the same order. That takes a third of the time.
    first = [name for name, _ in run.headers[0]]
    if len(set(first)) == len(first) and set(map(len, run.headers)) == {len(first)}:
        columns = list(zip(*run.headers, strict=True))
        if all(set(map(_HEADER_NAME, column)) == {name} for name, column in zip(first, columns, strict=True)):
            return {name: list(map(_HEADER_VALUE, column)) for name, column in zip(first, columns, strict=True)}
    found = [dict(headers) for headers in run.headers]
    return {name: [headers.get(name) for headers in found] for name in {name for each in found for name in each}}


def _parse_integer(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() and len(value) <= _MAX_DIGITS else None


def _parse_json_object(value: bytes | None) -> dict[str, Any]:
    try:
        found = orjson.loads(value or b"null")
    # Usually a JSONDecodeError. Whatever it is, the record is landed without the values.
    except Exception:
        return {}
    return found if type(found) is dict else {}


CONVERTERS: Final[dict[str, Callable[[PartitionRecords, tzinfo], DatasetColumns]]] = {
    topics.RAW: raw_columns,
    topics.MESSAGES: message_columns,
    topics.ALERTS: alert_columns,
    topics.DEADLETTERS: deadletter_columns,
}
"""Conversion of each topic's records. The zone is that of payload times that name none."""
