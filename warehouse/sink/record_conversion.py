"""Conversion of Kafka's records to Arrow tables of their dataset.

It never fails, whoever wrote a record and whatever is in it. A value that cannot be read, or that its column cannot
hold, is null. A record whose conversion raises an unforeseen error is a row of its position and its bytes, and the rows
of the others are the same as without it.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, tzinfo
from operator import itemgetter
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from core import records as rec
from core import topics
from core.errors import where_raised
from gateway.errors import Reason
from gateway.events import IncomingMessage, StatusReport
from gateway.json_body import charset_of
from gateway.payloads import parse_payloads
from warehouse import metrics
from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.schemas import ARRAY_TYPES, POSITION_COLUMNS, SCHEMAS
from warehouse.sink.partition_records import PartitionRecords

_log = logging.getLogger(__name__)

KIND_STATUS: Final = "status"
KIND_INCOMING: Final = "incoming"
KIND_UNREADABLE: Final = "unreadable"
# More digits do not fit into a 64-bit integer.
_MAX_DIGITS: Final = 19
# Lists of structs whose fields a record has as an array.
_ARRAY_LISTS: Final = {pa.list_(each) for each in ARRAY_TYPES}
# Years 1 to 9999, the range of Python and pandas. A single time beyond it would fail every query that reads it.
_MIN_MS: Final = -62_135_596_800_000
_MAX_MS: Final = 253_402_300_799_999
# In C, because they are called for each header of each record.
_HEADER_NAME: Final[Callable[[tuple[str, bytes | None]], str]] = itemgetter(0)
_HEADER_VALUE: Final[Callable[[tuple[str, bytes | None]], bytes | None]] = itemgetter(1)


DatasetColumns = dict[str, Any]
"""By field: a sequence of Python's values, or one value for all rows. Bytes can stand for text.

A missing field is null in each row.
"""
# Columns of those fields of events that have another name.
_COLUMN_BY_FIELD: Final = {"recipient": "address", "sender": "address", "content_type": "message_type"}
_STATUS_NAMES: Final = tuple(_COLUMN_BY_FIELD.get(field, field) for field in StatusReport._fields)


def raw_columns(run: PartitionRecords, zone: tzinfo) -> DatasetColumns:
    """Return the columns of `raw`: each webhook as received, and the fields that can be read of it."""
    rows = len(run.offsets)
    headers = _collect_headers(run)
    content_types = headers.get(rec.HEADER_CONTENT_TYPE)
    declares_charset = any(map(charset_of, set(content_types or ())))
    read = parse_payloads([value or b"" for value in run.values], zone, content_types if declares_charset else None)
    columns = _position_columns(run) | _receipt_columns(headers) | dict(zip(_STATUS_NAMES, read.reports, strict=False))
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
        if type(event) is IncomingMessage:
            columns["kind"][row] = KIND_INCOMING
        for field, value in event._asdict().items():
            columns.setdefault(_COLUMN_BY_FIELD.get(field, field), [None] * rows)[row] = value
    for row, (reason, unread_field) in read.unreadable.items():
        columns["kind"][row] = KIND_UNREADABLE
        columns["reason"][row] = reason
        columns["flaws"][row] = [unread_field] if unread_field else []
    return columns


def message_columns(run: PartitionRecords, zone: tzinfo) -> DatasetColumns:
    """Return the columns of `messages`: each version of each lifecycle, and each tombstone."""
    columns = _value_columns(run)
    columns["message_key"] = run.keys
    columns["is_forgotten"] = [value is None for value in run.values]
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


def alert_columns(run: PartitionRecords, zone: tzinfo) -> DatasetColumns:
    """Return the columns of `alerts`: each change of each alert."""
    columns = _value_columns(run)
    columns["errors"] = [list(each.items()) if type(each) is dict else None for each in columns["errors"]]
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


def _value_columns(run: PartitionRecords) -> DatasetColumns:
    """Return the columns of the record's place, and those of all fields of the JSON object that is its value."""
    values = [_parse_json_object(value) for value in run.values]
    names = [name for name in SCHEMAS[DATASET_BY_TOPIC[run.topic]].names if name not in POSITION_COLUMNS]
    return _position_columns(run) | {name: [v.get(name) for v in values] for name in names}


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


def build_table(run: PartitionRecords, zone: tzinfo = UTC) -> pa.Table:
    """Convert records, a row each, in their order. Raises nothing, whatever the records are.

    Args:
        run: Records of one partition, at least one.
        zone: Time zone of payload times that name none.
    """
    try:
        return _convert_records(run, zone)
    except Exception as error:
        _log.warning(
            "%d records of %s, partition %d, from offset %d on are converted one by one: %s",
            *(len(run.offsets), run.topic, run.partition, run.offsets[0], where_raised(error)),
        )
    return _build_table_by_row(run, zone)


def _build_table_by_row(run: PartitionRecords, zone: tzinfo) -> pa.Table:
    rows, faults = [], []
    for number in range(len(run.offsets)):
        record = run.select_record(number)
        try:
            rows.append(_convert_records(record, zone))
        except Exception as error:
            faults.append(where_raised(error))
            rows.append(_assemble_table(record, unconverted_columns(record)))
    if faults:
        metrics.CONVERSION_FAULTS.labels(run.topic).inc(len(faults))
        _log.error(
            "%d records of %s, partition %d, could not be converted, the last for %s, and are landed as their "
            "bytes. This is a fault of smspulse: report it",
            *(len(faults), run.topic, run.partition, faults[-1]),
        )
    return pa.concat_tables(rows).combine_chunks()


def _convert_records(run: PartitionRecords, zone: tzinfo) -> pa.Table:
    return _assemble_table(run, CONVERTERS[run.topic](run, zone))


def _assemble_table(run: PartitionRecords, columns: DatasetColumns) -> pa.Table:
    schema = SCHEMAS[DATASET_BY_TOPIC[run.topic]]
    return pa.table([_build_column(f, columns.get(f.name), len(run.offsets)) for f in schema], schema=schema)


def _build_column(field: "pa.Field[Any]", values: Any, rows: int) -> "pa.Array[Any]":
    if isinstance(values, list | tuple | range) and len(values) == rows:
        return _build_array(field.name, values, field.type)
    repeated: pa.Array[Any] = pa.repeat(pa.scalar(values, field.type), rows)
    return repeated


def _build_array(name: str, values: Sequence[Any], kind: pa.DataType) -> "pa.Array[Any]":
    """Build one column. A value that its type cannot hold becomes null, with one warning for all of them."""
    if kind in _ARRAY_LISTS:
        return _build_struct_lists(name, values, kind.value_type)
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


def _build_struct_lists(name: str, values: Sequence[Any], struct: pa.StructType) -> "pa.Array[Any]":
    """Build a column of lists of structs, from lists of arrays of their fields. What is no such list becomes null."""
    width = struct.num_fields
    offsets: list[int | None] = []
    flat: list[Any] = []
    for value in values:
        offsets.append(len(flat))
        if type(value) is list and all(type(o) is list and len(o) == width for o in value):
            flat += value
        else:
            # Arrow marks a null list by a null offset.
            offsets[-1] = None
    children = zip(*flat, strict=True) if flat else [()] * width
    arrays = [_build_array(f"{name}.{f.name}", list(v), f.type) for f, v in zip(struct, children, strict=True)]
    structs = pa.StructArray.from_arrays(arrays, fields=list(struct))
    return pa.ListArray.from_arrays(pa.array([*offsets, len(flat)], pa.int32()), structs, type=pa.list_(struct))
