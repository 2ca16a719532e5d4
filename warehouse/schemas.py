"""The datasets: which topic each lands, the schema of its files, and how records become columns.

Every field's description is in its Arrow metadata, and so in every file. Converting never fails: whoever wrote a
record, and whatever is in it, what cannot be read or stored is null. A record whose conversion raises an error that
nobody foresaw is a row of its position and its bytes, and the rows of the others are what they would be without it.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from operator import itemgetter
from typing import Any, Final, NamedTuple, Protocol

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from core import records as rec
from core import topics
from core.errors import where_raised
from gateway.errors import REASON_FAULT
from gateway.events import StatusReport
from gateway.json_body import charset_of, to_utf8
from gateway.payloads import parse_payloads
from warehouse import metrics
from warehouse.partition_log import UNKNOWN_INCARNATION

_log = logging.getLogger(__name__)

KIND_STATUS: Final = "status"
KIND_INCOMING: Final = "incoming"
KIND_UNREADABLE: Final = "unreadable"

_TIME: Final = pa.timestamp("ms", tz="UTC")
_TEXTS: Final = pa.list_(pa.string())
# Years 1 to 9999: what Python and pandas can show. One time beyond would fail every query that reads it.
_MIN_MS: Final = -62_135_596_800_000
_MAX_MS: Final = 253_402_300_799_999
_MAX_DIGITS: Final = 19
_HEADER_NAME: Final[Callable[[tuple[str, bytes | None]], str]] = itemgetter(0)
_HEADER_VALUE: Final[Callable[[tuple[str, bytes | None]], bytes | None]] = itemgetter(1)


class SourceRecord(Protocol):
    """One record of Kafka. Its timestamp is in milliseconds since 1970 UTC, or -1."""

    @property
    def topic(self) -> str: ...  # noqa: D102 - Kafka's terms
    @property
    def partition(self) -> int: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def timestamp(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...  # noqa: D102


class PartitionRecords(NamedTuple):
    """Records of one partition in the order of their offsets, by column; a record's fields are those of `SourceRecord`.

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
"""By field: a sequence of Python's values, where bytes stand for text too, or one value for all rows.

A field that is not there is null in each row.
"""


def _field(name: str, kind: pa.DataType, description: str) -> "pa.Field[Any]":
    return pa.field(name, kind, metadata={"description": description})


_POSITION: Final = (
    _field("topic", pa.string(), "Kafka topic of the record."),
    _field("partition", pa.int32(), "Kafka partition of the record."),
    _field("offset", pa.int64(), "Kafka offset of the record; with topic, partition and incarnation, its identity."),
    _field("recorded_at", _TIME, "Kafka's timestamp of the record, UTC."),
    _field("incarnation", pa.string(), "Life of the topic that the offset belongs to; null from releases up to 0.1."),
)
_RECEIPT: Final = (
    _field("source", pa.string(), "Gateway account, as the webhook's path named it."),
    _field("ingest_id", pa.string(), "UUIDv7 given on receipt."),
    _field("received_at", _TIME, "When the webhook was accepted, UTC."),
)

RAW_SCHEMA: Final = pa.schema(
    [
        *_POSITION,
        *_RECEIPT,
        _field("content_type", pa.string(), "Content-Type of the webhook."),
        _field("spooled", pa.bool_(), "Forwarded from ingest's spool, so it may be a second copy of the webhook."),
        _field("remote", pa.string(), "Address of the sender of the webhook, where the operator records it."),
        _field("body", pa.binary(), "The exact bytes received, without their Content-Encoding; or what privacy left."),
        _field("kind", pa.string(), "status, incoming or unreadable."),
        _field("reason", pa.string(), "Why the body is unreadable; null otherwise."),
        _field("flaws", _TEXTS, "Fields that could not be read and are null."),
        _field("sms_id", pa.int64(), "The gateway's id of the message."),
        _field("status_id", pa.int32(), "Status reported; null for an incoming message."),
        _field("status_message", pa.string(), "The gateway's text about the status."),
        _field("device_id", pa.int64(), "Phone, by the gateway's id."),
        _field("channel_id", pa.int32(), "SIM card, by the gateway's id."),
        _field("address", pa.string(), "Recipient of a status report, sender of an incoming message."),
        _field("sent_at", _TIME, "`senttime` of a status report, `date_sent` of an incoming message, UTC."),
        _field("phone_received_at", _TIME, "`date` of an incoming message: when the phone received it, UTC."),
        _field("message_type", pa.string(), "text, img, or what a later gateway sends; null for a status report."),
        _field("text", pa.string(), "Text of an incoming message."),
        _field("image_url", pa.string(), "Link to the image of an incoming message."),
        _field("internal_id", pa.int64(), "The phone's own id of an incoming message."),
        _field("device_name", pa.string(), "Name of the phone that received an incoming message."),
    ]
)

_OBSERVATION: Final = pa.struct(
    [
        _field("status_id", pa.int32(), "Status reported."),
        _field("device_id", pa.int64(), "Phone that it names."),
        _field("channel_id", pa.int32(), "SIM card that it names."),
        _field("sent_at", _TIME, "The report's `senttime`, UTC."),
        _field("first_received_at", _TIME, "When the first report like this was received, UTC."),
        _field("last_received_at", _TIME, "When the last report like this was received, UTC."),
    ]
)

MESSAGES_SCHEMA: Final = pa.schema(
    [
        _field("message_key", pa.string(), "`source:sms_id`, the key of the record."),
        _field("source", pa.string(), "Gateway account."),
        _field("sms_id", pa.int64(), "The gateway's id of the message."),
        _field("outcome", pa.string(), "What became of the message as far as this version knows."),
        _field("failure_class", pa.string(), "Why it failed; null unless it failed."),
        _field("last_status_id", pa.int32(), "Status that decides the outcome."),
        _field("is_ended", pa.bool_(), "No further report is expected."),
        _field("device_id", pa.int64(), "Phone, by the gateway's id."),
        _field("channel_id", pa.int32(), "SIM card, by the gateway's id."),
        _field("recipient", pa.string(), "Phone number that the message went to."),
        _field("first_seen_at", _TIME, "When the first report was received, UTC."),
        _field("last_seen_at", _TIME, "When the last report was received, UTC."),
        _field("ended_at", _TIME, "When the deciding end was first reported, UTC."),
        _field("delivered_at", _TIME, "When delivery was first reported, UTC."),
        _field("attempts", pa.int32(), "How often the gateway tried."),
        _field("contradicted", pa.bool_(), "Two ends of different outcome were reported for one attempt."),
        _field("flags", _TEXTS, "What is odd about the reports."),
        _field("queue_s", pa.float64(), "Seconds from pending to taken by the phone, as reports were received."),
        _field("device_s", pa.float64(), "Seconds from taken by the phone to sent, as reports were received."),
        _field("network_s", pa.float64(), "Seconds from sent to delivered, as reports were received."),
        _field("total_s", pa.float64(), "Seconds from the first report to the end, as reports were received."),
        _field("version", pa.int64(), "Number of facts known: the largest of a message is the newest."),
        _field("observations", pa.list_(_OBSERVATION), "The facts themselves."),
        _field("is_forgotten", pa.bool_(), "The stream dropped its state of the message; all else is null."),
        *_POSITION,
    ]
)

BASE_SCHEMA: Final = pa.schema(
    [f for f in MESSAGES_SCHEMA if f.name not in {"is_forgotten", "topic", "partition", "offset", "incarnation"}]
)

DIFFERENCES_SCHEMA: Final = pa.schema(
    [
        _field("message_key", pa.string(), "`source:sms_id`."),
        _field("source", pa.string(), "Gateway account."),
        _field("sms_id", pa.int64(), "The gateway's id of the message."),
        _field("field", pa.string(), "Field that differs; `message` where one of the two has no such message."),
        _field("streamed", pa.string(), "What the stream says."),
        _field("rebuilt", pa.string(), "What follows from the log."),
    ]
)

QUALITY_SCHEMA: Final = pa.schema(
    [
        _field("checked_at", _TIME, "When the data were checked, UTC."),
        _field("expectation", pa.string(), "What was expected, by its stable name."),
        _field("dataset", pa.string(), "What it is about."),
        _field("severity", pa.string(), "critical, warning or info."),
        _field("success", pa.bool_(), "Whether it held."),
        _field("observed", pa.string(), "Offending values by scope, or the range of values if it held."),
        _field("expected", pa.string(), "Values that are right."),
        _field("meaning", pa.string(), "What is the matter if it does not hold."),
        _field("action", pa.string(), "What to do then."),
        _field("rows", _TEXTS, "Some of the rows at fault, where they can be named."),
    ]
)

_HOUR: Final = _field("hour", _TIME, "Hour (UTC) of the first report.")
COUNT_COLUMNS: Final = (
    *("attempted", "ended", "delivered", "undelivered", "not_sent", "not_permitted", "expired"),
    *("generic", "no_service", "null_pdu", "radio_off", "other", "open"),
)
"""What is counted of messages, in delivery_hourly and what sums it up."""

DELIVERY_SCHEMA: Final = pa.schema(
    [
        _field("source", pa.string(), "Gateway account."),
        _field("device_id", pa.int64(), "Phone, by the gateway's id."),
        _field("channel_id", pa.int32(), "SIM card, by the gateway's id."),
        _HOUR,
        *(_field(name, pa.int64(), "Count, as in delivery_hourly.") for name in COUNT_COLUMNS),
        *(
            _field(name, pa.int64(), "Messages that got to this stage or to one behind it.")
            for name in ("queued", "accepted", "sent")
        ),
        _field("last_seen_at", _TIME, "When the last report of one of them was received, UTC."),
        _field("oldest_open_at", _TIME, "First report of the oldest one that is open, UTC."),
    ]
)

FAILURES_SCHEMA: Final = pa.schema(
    [
        _field("source", pa.string(), "Gateway account."),
        _field("device_id", pa.int64(), "Phone, by the gateway's id."),
        _field("failure_class", pa.string(), "Why they failed."),
        _field("last_status_id", pa.int32(), "Status that says so."),
        _field("messages", pa.int64(), "Count of messages."),
    ]
)

NETWORKS_SCHEMA: Final = pa.schema(
    [
        _field("source", pa.string(), "Gateway account."),
        _field("country", pa.string(), "As in delivery_by_prefix."),
        _field("network_prefix", pa.string(), "As in delivery_by_prefix."),
        _field("carrier", pa.string(), "As in delivery_by_prefix."),
        *(_field(n, pa.int64(), "Count, as in delivery_hourly.") for n in ("attempted", "ended", "delivered", "open")),
    ]
)

_LATENCIES: Final = ("queue", "device", "network", "total")
LATENCY_SCHEMA: Final = pa.schema(
    [
        _field("source", pa.string(), "Gateway account."),
        _HOUR,
        _field("messages", pa.int64(), "Count of messages."),
        *(_field(f"{name}_messages", pa.int64(), "Messages that have the latency.") for name in _LATENCIES),
        *(
            _field(f"{name}_{what}", pa.float64(), "As in latency_hourly.")
            for name in _LATENCIES
            for what in (*("p50_s", "p90_s", "p95_s", "p99_s"), *(f"within_{n}_s" for n in (5, 10, 30, 60)))
        ),
    ]
)

WEBHOOKS_SCHEMA: Final = pa.schema(
    [
        _field("source", pa.string(), "Gateway account."),
        _field("day", pa.date32(), "Day (UTC) on which they were received."),
        *(
            _field(name, pa.int64(), "Count, as in webhook_quality.")
            for name in ("webhooks", "status_reports", "incoming", "unreadable", "flawed", "duplicates", "unknown")
        ),
        _field("status_id", pa.int32(), "The undocumented status of all that is counted here; null of all others."),
    ]
)

STATUS_CODES_SCHEMA: Final = pa.schema(
    [
        _field("status_id", pa.int32(), "As the gateway sends it."),
        _field("name", pa.string(), "Short English name; the outcome, where a setting gives the meaning."),
        _field("outcome", pa.string(), "What a message is whose decisive report has this status."),
        _field("failure_class", pa.string(), "Why it failed; null unless it failed."),
        _field("is_documented", pa.bool_(), "The gateway documents it; otherwise a setting gives it a meaning."),
    ]
)

PREFIXES_SCHEMA: Final = pa.schema(
    [
        _field("prefix", pa.string(), "First digits of an international number, without +."),
        _field("country", pa.string(), "ISO region of the calling code; the largest, where several share it."),
        _field("carrier", pa.string(), "Carrier that the prefix was given to; null for a calling code."),
    ]
)

DEADLETTERS_SCHEMA: Final = pa.schema(
    [
        *_POSITION,
        *_RECEIPT,
        _field("reason", pa.string(), "Why the record could not be read: one of a few words, for counting."),
        _field("detail", pa.string(), "Why, for people. Names fields, never their values."),
        _field("origin_topic", pa.string(), "Topic of the record that could not be read."),
        _field("origin_partition", pa.int32(), "Partition of the record that could not be read."),
        _field("origin_offset", pa.int64(), "Offset of the record that could not be read."),
        _field("body", pa.binary(), "The first 4,096 bytes of the record that could not be read; raw has all of them."),
    ]
)

ALERTS_SCHEMA: Final = pa.schema(
    [
        _field("alert_id", pa.string(), "Identity of the alert, the same whenever it comes again."),
        _field("kind", pa.string(), "failure_ratio or another that has a runbook."),
        _field("phase", pa.string(), "learning, pending, firing or resolved."),
        _field("scope", pa.string(), "What it is about: channel, device, source or pipeline."),
        _field("source", pa.string(), "Gateway account; * of all."),
        _field("device_id", pa.int64(), "Phone, by the gateway's id; null where the alert is not about one."),
        _field("channel_id", pa.int32(), "SIM card, by the gateway's id; null where the alert is not about one."),
        _field("changed_at", _TIME, "When the report was received that changed the alert, UTC."),
        _field("since", _TIME, "When it is thought to have begun, UTC."),
        _field("fired_at", _TIME, "When it fired, UTC; null if it has not."),
        _field("resolved_at", _TIME, "When it was resolved, UTC; null if it is not."),
        _field("count", pa.int64(), "Messages that ended since it began."),
        _field("failures", pa.int64(), "Messages that failed since it began."),
        _field("baseline", pa.float64(), "Usual ratio of failures, 0 to 1."),
        _field("known", pa.int64(), "Messages that the baseline was learnt from."),
        _field("bound", pa.float64(), "Highest ratio of failures that the baseline allows, 0 to 1."),
        _field("errors", pa.map_(pa.string(), pa.int64()), "How many messages failed since, by status id."),
        _field("samples", _TEXTS, "Keys of some messages that failed."),
        _field("share", pa.float64(), "Part of the source's messages that are its own, of the last days, 0 to 1."),
        _field("budget_days", pa.float64(), "Days of one false alarm, on average, that it is set to; 0 without."),
        _field("what", pa.string(), "What was found, in words, where it is not the ratio of failures."),
        _field(
            "by_channel",
            pa.list_(
                pa.struct(
                    [
                        ("device_id", pa.int64()),
                        ("channel_id", pa.int32()),
                        ("failures", pa.int64()),
                        ("share", pa.float64()),
                    ]
                )
            ),
            "Latest failures by channel, with its share of the source's messages, of a device's or a source's alert.",
        ),
        _field("resolution", pa.string(), "Why it was resolved: recovered, or new_normal; empty where nothing says."),
        *_POSITION,
    ]
)


def _parse_integer(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() and len(value) <= _MAX_DIGITS else None


def _position_columns(run: PartitionRecords) -> DatasetColumns:
    return {
        "topic": run.topic,
        "partition": run.partition,
        "offset": run.offsets,
        "recorded_at": [None if t < 0 else t for t in run.timestamps],
        "incarnation": run.incarnation or None,
    }


def _collect_headers(run: PartitionRecords) -> dict[str, Sequence[bytes | None]]:
    """Return the values of each header by its name."""
    # Nearly always all have the same in the same order, which is a third of the work.
    first = [name for name, _ in run.headers[0]]
    if len(set(first)) == len(first) and set(map(len, run.headers)) == {len(first)}:
        columns = list(zip(*run.headers, strict=True))
        if all(set(map(_HEADER_NAME, column)) == {name} for name, column in zip(first, columns, strict=True)):
            return {name: list(map(_HEADER_VALUE, column)) for name, column in zip(first, columns, strict=True)}
    found = [dict(headers) for headers in run.headers]
    return {name: [headers.get(name) for headers in found] for name in {name for each in found for name in each}}


def _receipt_columns(headers: dict[str, Sequence[bytes | None]]) -> DatasetColumns:
    return {
        "source": headers.get(rec.HEADER_SOURCE),
        "ingest_id": headers.get(rec.HEADER_INGEST_ID),
        "received_at": [_parse_integer(value) for value in headers.get(rec.HEADER_RECEIVED_AT, ())] or None,
    }


_STATUS_FIELDS: Final = (
    *("sms_id", "status_id", "device_id", "channel_id"),
    *("sent_at", "address", "status_message", "flaws"),
)
"""Columns of a `StatusReport`, in the order of its fields."""
_INCOMING_FIELDS: Final = (
    *("sms_id", "message_type", "device_id", "channel_id", "sent_at", "phone_received_at"),
    *("address", "text", "image_url", "internal_id", "device_name", "flaws"),
)
"""Columns of an `IncomingMessage`, in the order of its fields."""


def _decode_bodies_to_utf8(values: Sequence[bytes | None], content_types: Sequence[bytes | None] | None) -> list[bytes]:
    bodies = [value or b"" for value in values]
    if content_types is None or not any(map(charset_of, set(content_types))):
        return bodies
    return [to_utf8(body, content_type) for body, content_type in zip(bodies, content_types, strict=True)]


def raw_columns(run: PartitionRecords, zone: tzinfo) -> DatasetColumns:
    """Return the columns of `raw`: each webhook as it came, and what can be read of it."""
    rows = len(run.offsets)
    headers = _collect_headers(run)
    read = parse_payloads(_decode_bodies_to_utf8(run.values, headers.get(rec.HEADER_CONTENT_TYPE)), zone)
    columns = _position_columns(run) | _receipt_columns(headers) | dict(zip(_STATUS_FIELDS, read.reports, strict=False))
    spooled = headers.get(rec.HEADER_SPOOLED)
    columns |= {
        "content_type": headers.get(rec.HEADER_CONTENT_TYPE),
        "remote": headers.get(rec.HEADER_REMOTE),
        "spooled": [value is not None for value in spooled] if spooled else False,
        "body": run.values,
        "kind": KIND_STATUS,
        "flaws": [()] * rows,
    }
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


_NOT_FROM_VALUE: Final = {"message_key", "observations", "is_forgotten", *(field.name for field in _POSITION)}
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
        if value is None and key is not None:
            source, _, sms_id = key.rpartition(b":")
            columns["source"][row] = source.removesuffix(b":incoming")
            columns["sms_id"][row] = _parse_integer(sms_id)
    return columns


def deadletter_columns(run: PartitionRecords, zone: tzinfo) -> DatasetColumns:
    """Return the columns of `deadletters`: each record that could not be read, why, and where it was."""
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
    if field.name not in {"alert_id", "errors", *(each.name for each in _POSITION)}
)


def alert_columns(run: PartitionRecords, zone: tzinfo) -> DatasetColumns:
    """Return the columns of `alerts`: each change of each alert."""
    values = [_parse_json_object(value) for value in run.values]
    columns = _position_columns(run) | {name: [v.get(name) for v in values] for name in _ALERT_FIELDS}
    errors = [v.get("errors") for v in values]
    columns["errors"] = [list(each.items()) if type(each) is dict else None for each in errors]
    columns["alert_id"] = [None if key is None else key.decode(errors="replace") for key in run.keys]
    return columns


def _unconverted_columns(run: PartitionRecords) -> DatasetColumns:
    """Return all columns that need no reading of the records, for any dataset: those that it lacks are not used."""
    headers = {name: value for name, value in run.headers[0] if isinstance(value, bytes)}
    return _position_columns(run) | {
        "source": [headers.get(rec.HEADER_SOURCE)],
        "ingest_id": [headers.get(rec.HEADER_INGEST_ID)],
        "received_at": [_parse_integer(headers.get(rec.HEADER_RECEIVED_AT))],
        "body": run.values,
        "kind": KIND_UNREADABLE if run.topic == topics.RAW else None,
        "reason": REASON_FAULT,
        "flaws": [()],
        "message_key": run.keys,
        "alert_id": run.keys,
        "is_forgotten": False,
    }


def _parse_json_object(value: bytes | None) -> dict[str, Any]:
    try:
        found = orjson.loads(value or b"null")
    except Exception:  # a JSONDecodeError, as a rule
        return {}
    return found if type(found) is dict else {}


def _build_column(field: "pa.Field[Any]", values: Any, rows: int) -> "pa.Array[Any]":
    if isinstance(values, list | tuple | range) and len(values) == rows:
        return _build_array(field.name, values, field.type)
    repeated: pa.Array[Any] = pa.repeat(pa.scalar(values, field.type), rows)
    return repeated


def _build_array(name: str, values: Sequence[Any], kind: pa.DataType) -> "pa.Array[Any]":
    """Build one column. A value that its type cannot hold becomes null, with one warning for all of them."""
    if kind.equals(pa.list_(_OBSERVATION)):
        return _build_observations(name, values)
    try:
        if pa.types.is_timestamp(kind):
            return _build_timestamps(values, kind)
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError):
        if pa.types.is_string(kind):
            values = [v.decode("utf-8", "replace") if type(v) is bytes else v for v in values]
        kept = [v if _is_storable(v, kind) else None for v in values]
    lost = sum(k is None and v is not None for k, v in zip(kept, values, strict=True))
    if lost:
        _log.warning("%d values of column %s are not of type %s and were landed as null", lost, name, kind)
    return pa.array(kept, kind)


def _build_timestamps(values: Sequence[Any], kind: pa.DataType) -> "pa.Array[Any]":
    times = pa.array(values, pa.int64())
    found = pc.min_max(times)
    if times.null_count < len(times) and not _MIN_MS <= found["min"].as_py() <= found["max"].as_py() <= _MAX_MS:
        raise OverflowError
    return times.cast(kind)


def _is_storable(value: object, kind: pa.DataType) -> bool:
    try:
        _build_timestamps([value], kind) if pa.types.is_timestamp(kind) else pa.array([value], kind)
    except (pa.ArrowException, OverflowError):
        return False
    return True


def _build_observations(name: str, values: Sequence[Any]) -> "pa.Array[Any]":
    width = _OBSERVATION.num_fields
    offsets: list[int | None] = []
    flat: list[Any] = []
    for value in values:
        offsets.append(len(flat))
        if type(value) is list and all(type(o) is list and len(o) == width for o in value):
            flat += value
        else:
            offsets[-1] = None  # Arrow's way to say that a list is null
    children = zip(*flat, strict=True) if flat else [()] * width
    arrays = [_build_array(f"{name}.{f.name}", list(v), f.type) for f, v in zip(_OBSERVATION, children, strict=True)]
    structs = pa.StructArray.from_arrays(arrays, fields=list(_OBSERVATION))
    return pa.ListArray.from_arrays(pa.array([*offsets, len(flat)], pa.int32()), structs, type=pa.list_(_OBSERVATION))


@dataclass(frozen=True, slots=True)
class TopicDataset:
    """A dataset: one topic, landed in one folder.

    Args:
        name: Of the folder under the data folder.
        topic: Kafka's name of what is landed in it.
        schema: Of every file.
        convert_records: Turns records, and the zone of payload times that name none, into columns.
    """

    name: str
    topic: str
    schema: pa.Schema
    convert_records: Callable[[PartitionRecords, tzinfo], DatasetColumns]

    def build_table(self, run: PartitionRecords, zone: tzinfo = UTC) -> pa.Table:
        """Convert records of the topic, a row each, in their order. Raises nothing, whatever the records are."""
        try:
            return self._assemble_table(self.convert_records(run, zone), len(run.offsets))
        except Exception as error:
            _log.warning(
                "%d records of %s, partition %d, from offset %d on are converted one by one: %s",
                *(len(run.offsets), run.topic, run.partition, run.offsets[0], where_raised(error)),
            )
        return self._build_table_by_row(run, zone)

    def _build_table_by_row(self, run: PartitionRecords, zone: tzinfo) -> pa.Table:
        rows, faults = [], []
        for number in range(len(run.offsets)):
            record = run.select_record(number)
            try:
                rows.append(self._assemble_table(self.convert_records(record, zone), 1))
            except Exception as error:
                faults.append(where_raised(error))
                rows.append(self._assemble_table(_unconverted_columns(record), 1))
        if faults:
            metrics.CONVERSION_FAULTS.labels(self.topic).inc(len(faults))
            _log.error(
                "%d records of %s, partition %d, could not be converted, the last for %s, and are landed as their "
                "bytes. This is a fault of smspulse: report it",
                *(len(faults), run.topic, run.partition, faults[-1]),
            )
        return pa.concat_tables(rows).combine_chunks()

    def _assemble_table(self, columns: DatasetColumns, rows: int) -> pa.Table:
        return pa.table([_build_column(f, columns.get(f.name), rows) for f in self.schema], schema=self.schema)


DATASETS: Final = (
    TopicDataset("raw", topics.RAW, RAW_SCHEMA, raw_columns),
    TopicDataset("messages", topics.MESSAGES, MESSAGES_SCHEMA, message_columns),
    TopicDataset("alerts", topics.ALERTS, ALERTS_SCHEMA, alert_columns),
    TopicDataset("deadletters", topics.DEADLETTERS, DEADLETTERS_SCHEMA, deadletter_columns),
)
DATASETS_BY_TOPIC: Final = {dataset.topic: dataset for dataset in DATASETS}

ROLLUPS: Final = ("delivery", "latency", "failures", "networks")
"""What is counted of the base files of each day, and kept in `base/{name}`."""
SCHEMAS: Final = {dataset.name: dataset.schema for dataset in DATASETS} | {
    "base": BASE_SCHEMA,
    "differences": DIFFERENCES_SCHEMA,
    "base/delivery": DELIVERY_SCHEMA,
    "base/latency": LATENCY_SCHEMA,
    "base/failures": FAILURES_SCHEMA,
    "base/networks": NETWORKS_SCHEMA,
    "webhooks": WEBHOOKS_SCHEMA,
    "quality": QUALITY_SCHEMA,
    "prefixes": PREFIXES_SCHEMA,
    "status_codes": STATUS_CODES_SCHEMA,
}
"""The schema of each dataset, also of those that are not landed: rebuilt from others, or part of the product."""
