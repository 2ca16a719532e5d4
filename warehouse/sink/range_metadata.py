"""Metadata of landed files: where a range begins and ends, its last record, and which ranges Kafka does not hold."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.errors import DamagedFileError
from warehouse.file_names import LANDED_FILE_NAME
from warehouse.landed_files import find_newest_file, list_incarnations, list_log_files
from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog, parse_cut_count, parse_topic_id

NEXT_OFFSET_KEY: Final = b"smspulse.next"
"""Key in a file's metadata: the offset after its last record."""
RANGE_START_KEY: Final = b"smspulse.start"
"""Key in a merged file's metadata: where the first of its ranges begins."""
LAST_IDENTITY_KEY: Final = b"smspulse.last"
"""Key in a file's metadata: `RecordIdentity` of its last record, as JSON."""
# Columns that identify a record. Each dataset has one of them. No command changes them in files.
_ID_COLUMNS: Final = ("ingest_id", "message_key", "alert_id")


class RecordIdentity(NamedTuple):
    """Identity of a record. It differs from that of another record that has the same offset after the log was cut.

    Args:
        recorded_at_ms: Kafka's timestamp of the record, in milliseconds since 1970 UTC, if it has one.
        id: Its `ingest_id`, `message_key` or `alert_id`, if it has one.
    """

    recorded_at_ms: int | None
    id: str | None


def read_landed_position(data: Path, topic: str, partition: int, incarnation: str = UNKNOWN_INCARNATION) -> int:
    """Return the offset from which on a log is not landed yet, by its files; 0 without any.

    Raises:
        DamagedFileError: The newest file cannot be read.
        OSError: The folder cannot be read.
    """
    while True:
        last = find_newest_file(data / DATASET_BY_TOPIC[topic], PartitionLog(topic, partition, incarnation))
        if last is None:
            return 0
        # Compaction may have merged it meanwhile.
        with suppress(FileNotFoundError):
            return read_next_offset(last, last)


def read_next_offset(source: Path | BinaryIO, path: Path) -> int:
    """Return the offset after the last record of a landed file.

    Raises:
        DamagedFileError: It is no landed file.
    """
    with translate_damage(path):
        return int((pq.read_metadata(source).metadata or {})[NEXT_OFFSET_KEY])


def read_range_start(path: Path) -> int:
    """Return the offset at which the range of a landed or merged file begins.

    Raises:
        DamagedFileError: It is no landed file.
    """
    name = LANDED_FILE_NAME.fullmatch(path.name)
    if name is None:
        raise DamagedFileError(path, "its name is not that of a landed file")
    start = int(name["start"])
    if not name["merged"]:
        return start
    with translate_damage(path):
        return int((pq.read_metadata(path).metadata or {}).get(RANGE_START_KEY, start))


def read_last_identity(source: Path | BinaryIO, path: Path) -> RecordIdentity | None:
    """Return the identity of the last record of a landed file; None if a release up to 0.1 has not kept it.

    Raises:
        DamagedFileError: It is no landed file.
    """
    with translate_damage(path):
        metadata = pq.read_metadata(source).metadata or {}
        if LAST_IDENTITY_KEY in metadata:
            return RecordIdentity(*json.loads(metadata[LAST_IDENTITY_KEY]))
        return read_identities(source, path).get(int(metadata[NEXT_OFFSET_KEY]) - 1)


def read_identities(source: Path | BinaryIO, path: Path) -> dict[int, RecordIdentity]:
    """Return the identity of each record of a landed file by its offset. A file without rows has that of its last one.

    Raises:
        DamagedFileError: It is no landed file.
    """
    with translate_damage(path):
        file = pq.ParquetFile(source)
        metadata = file.schema_arrow.metadata or {}
        names = [name for name in ("offset", "recorded_at", *_ID_COLUMNS) if name in file.schema_arrow.names]
        found = extract_identities(file.read(names))
        # Retention leaves a file without rows where a sink derives its position.
        if not found and LAST_IDENTITY_KEY in metadata:
            found = {int(metadata[NEXT_OFFSET_KEY]) - 1: RecordIdentity(*json.loads(metadata[LAST_IDENTITY_KEY]))}
        return found


def extract_identities(table: pa.Table) -> dict[int, RecordIdentity]:
    """Return the identity of each row of a landed dataset's table by its offset."""
    (column,) = [name for name in _ID_COLUMNS if name in table.column_names]
    times = table["recorded_at"].cast(pa.int64()).to_pylist()
    return dict(zip(table["offset"].to_pylist(), map(RecordIdentity, times, table[column].to_pylist()), strict=True))


def read_end_metadata(path: Path) -> dict[bytes, bytes]:
    """Return the metadata about the end of a landed file, for the file that replaces it."""
    last = read_last_identity(path, path)
    return {NEXT_OFFSET_KEY: str(read_next_offset(path, path)).encode()} | (
        {LAST_IDENTITY_KEY: json.dumps(last).encode()} if last else {}
    )


def find_present_incarnation(data: Path, topic: str, partition: int) -> str | None:
    """Return the landed incarnation of a partition whose records were written to Kafka last.

    It is not always the one that appeared last: the in-memory broker can follow Kafka, and Kafka can come back.
    """
    newest_at: dict[str, tuple[str, int]] = {}
    for incarnation in list_incarnations(data, topic, partition):
        path = find_newest_file(data / DATASET_BY_TOPIC[topic], PartitionLog(topic, partition, incarnation))
        if path is not None:
            last = read_last_identity(path, path)
            newest_at[incarnation] = (path.parent.name, (last and last.recorded_at_ms) or 0)
    return max(newest_at, key=lambda incarnation: newest_at[incarnation], default=None)


def find_first_lost_offsets(data: Path, topic: str, partition: int, topic_id: str) -> dict[str, int | None]:
    """Return, by incarnation of a partition, the offset from which on Kafka does not hold the landed records.

    It is 0 for incarnations of other topics, and None for the newest one of this topic. Of earlier ones, Kafka holds
    the records that were written before the log was cut.

    Args:
        data: The data folder.
        topic: Name of the topic.
        partition: Number of the partition.
        topic_id: Id of the topic that Kafka holds now.
    """
    found: dict[str, int | None] = dict.fromkeys(list_incarnations(data, topic, partition), 0)
    own = sorted((each for each in found if parse_topic_id(each) == topic_id), key=parse_cut_count)
    starts = [read_range_start(list_log_files(data, PartitionLog(topic, partition, each))[0]) for each in own]
    for number, incarnation in enumerate(own):
        found[incarnation] = min(starts[number + 1 :], default=None)
    # Files of a release up to 0.1 belong to the same topic if its first log continues at their end.
    if UNKNOWN_INCARNATION in found and own and starts[0] == read_landed_position(data, topic, partition) > 0:
        found[UNKNOWN_INCARNATION] = found[own[0]]
    return found


@contextmanager
def translate_damage(path: Path) -> Iterator[None]:
    """Raise the errors of reading a file as `DamagedFileError`."""
    try:
        yield
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise DamagedFileError(path, type(error).__name__) from error
