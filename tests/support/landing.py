"""Landing of records that were made by hand."""

from collections.abc import Sequence
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any

from warehouse.partition_log import UNKNOWN_INCARNATION
from warehouse.sink.parquet_files import land_rows
from warehouse.sink.partition_records import PartitionRecords
from warehouse.sink.record_conversion import build_table


def partition_records(records: Sequence[Any], incarnation: str = UNKNOWN_INCARNATION) -> PartitionRecords:
    """Turn records of one partition, in the order of their offsets, into columns."""
    fields = [(each.offset, each.timestamp, each.key, each.value, each.headers) for each in records]
    return PartitionRecords(records[0].topic, records[0].partition, *zip(*fields, strict=True), incarnation)


def land_records(
    data: Path, start: int, records: Sequence[Any], zone: tzinfo = UTC, incarnation: str = UNKNOWN_INCARNATION
) -> Path:
    """Land records of one partition as one file, as the sink does.

    Args:
        data: The data folder.
        start: Where the range begins, as `read_landed_position` returned it.
        records: Records in the order of their offsets, at least one.
        zone: Time zone of payload times that name none.
        incarnation: Incarnation of their topic.
    """
    return land_rows(data, start, build_table(partition_records(records, incarnation), zone))
