"""Conversion of Kafka's records to Arrow tables of their dataset.

It never fails. A value that its column cannot hold is null. A record whose conversion raises an unforeseen error is a
row of its position and its bytes, and the rows of the others are the same as without it.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, tzinfo
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from core.errors import where_raised
from warehouse import metrics
from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.schemas import OBSERVATION_TYPE, SCHEMAS
from warehouse.sink.record_conversion import CONVERTERS, DatasetColumns, PartitionRecords, unconverted_columns

_log = logging.getLogger(__name__)

_OBSERVATIONS: Final = pa.list_(OBSERVATION_TYPE)
# Years 1 to 9999, the range of Python and pandas. A single time beyond it would fail every query that reads it.
_MIN_MS: Final = -62_135_596_800_000
_MAX_MS: Final = 253_402_300_799_999


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
    if kind.equals(_OBSERVATIONS):
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
    width = OBSERVATION_TYPE.num_fields
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
    arrays = [
        _build_array(f"{name}.{f.name}", list(v), f.type) for f, v in zip(OBSERVATION_TYPE, children, strict=True)
    ]
    structs = pa.StructArray.from_arrays(arrays, fields=list(OBSERVATION_TYPE))
    return pa.ListArray.from_arrays(
        pa.array([*offsets, len(flat)], pa.int32()), structs, type=pa.list_(OBSERVATION_TYPE)
    )
