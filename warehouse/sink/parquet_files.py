"""Files of landed records: one contiguous range of one partition's offsets is one file, and one file is one commit.

    {data}/{dataset}/date=YYYY-MM-DD/{topic}+{partition}@{incarnation}+{start}.parquet

A file belongs to one incarnation of its topic (`warehouse.partition_log`). Offsets, ranges and positions are those of
the partition's log in that incarnation. Logs of other incarnations have files of their own next to them.

`start` is where the range begins: the `next` of the file before, and 0 for the first. It is not the offset of the first
record, because offsets of aborted or compacted records and of transaction markers hold nothing. The file's metadata has
`next`, the offset after the last record, and the identity of that record (`warehouse.sink.range_metadata`).

A file is written outside the folders that readers list, made durable, and linked into place under a name that must not
exist yet. So it is complete as soon as it is visible, and one of the concurrent landers that begin a range at the same
place wins. The date is that of the first record's Kafka timestamp, in UTC. It is the same for every lander that reads
the same records.

Merged files (`warehouse.maintenance.compaction`) have the `start` of the last of their ranges in the name, and a mark
after it. So the largest name of a log still shows where to go on, and that earlier ranges were landed.
"""

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Union

import pyarrow as pa
import pyarrow.parquet as pq

from core.atomic_file import (
    create_durable_folder,
    delete_orphaned_files,
    flush_to_disk,
    fsync_folder,
    open_folder_descriptor,
    open_temporary_file,
)
from core.buckets import is_bucket_address
from warehouse import catalog, status_codes
from warehouse.buckets import open_bucket_store
from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.errors import OvertakenError
from warehouse.file_names import SEED_DATE, TEMPORARY_FOLDER, format_file_name
from warehouse.landed_files import find_newest_file, list_incarnations, list_log_files
from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog
from warehouse.sink.range_metadata import LAST_IDENTITY_KEY, NEXT_OFFSET_KEY, extract_identities, read_landed_position

# The extra `s3`.
if TYPE_CHECKING:
    from warehouse.sink.s3_storage import BucketStore

LandingStore = Union["FolderStore", "BucketStore"]
"""Where the sink lands: both have the same methods. Their OSErrors, such as `BucketAwayError`, may pass with time."""

# As many as a small landed file has.
_PROBE_BYTES: Final = 1 << 16
# Texts that share their beginning with the row before.
_COMMON_PREFIX_COLUMNS: Final = {"ingest_id", "message_key"}
# Dictionaries of values that do not repeat would take time and save nothing.
_UNIQUE_VALUE_COLUMNS: Final = _COMMON_PREFIX_COLUMNS | {"body", "text"}

# Columns within lists, by Parquet's names. A schema need not have them.
_OBSERVATION_PATH: Final = "observations.list.element."

_LIST_DICTIONARY_COLUMNS: Final = (
    "flags.list.element",
    *(f"{_OBSERVATION_PATH}{name}" for name in ("status_id", "device_id", "channel_id", "sent_at")),
)
_LIST_DELTA_COLUMNS: Final = (f"{_OBSERVATION_PATH}first_received_at", f"{_OBSERVATION_PATH}last_received_at")


def land_rows(data: Path, start: int, table: pa.Table) -> Path:
    """Land rows of one partition as one file, and return its path. All or nothing, durable on return.

    Args:
        data: The data folder.
        start: Where the range begins, as `read_landed_position` returned it.
        table: A table of `build_table`, with at least one row.

    Raises:
        OvertakenError: The range that begins at `start` has been landed already.
        OSError: The disk is full or not writable. Nothing was landed.
    """
    log, place = resolve_range_path(start, table)
    path, name = data / place, place.name
    folder = create_durable_folder(path.parent)
    with open_temporary_file(data / TEMPORARY_FOLDER, name) as (file, temporary):
        write_range_file(table, file)
        flush_to_disk(file)
        with open_folder_descriptor(folder.parent) as descriptor:
            # No folder is exchanged for a merged one meanwhile.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            # Exclusive creation alone does not exclude concurrent landers: after a merge, their range has no file of
            # its own. After retention, its first record can be of another day.
            last = find_newest_file(folder.parent, log)
            if last is not None and last.name >= name[: -len(".parquet")]:
                raise OvertakenError(last)
            try:
                os.link(temporary, path)
            except FileExistsError as error:
                raise OvertakenError(path) from error
    fsync_folder(folder)
    return path


@dataclass(frozen=True, slots=True)
class FolderStore:
    """A folder of this machine, or one that it has mounted."""

    data: Path

    def __str__(self) -> str:
        return str(self.data)

    def prepare_store(self) -> int:
        """Publish the views. Return the number of deleted files that killed landers had not finished."""
        deleted = delete_orphaned_files(self.data / TEMPORARY_FOLDER)
        # The lander has the same environment as the stream. If the setting is gone, it removes the meanings.
        status_codes.write_status_codes(self.data, status_codes.parse_configured_statuses())
        catalog.publish_views(self.data)
        return deleted

    def probe_write(self) -> None:
        """Write a probe and delete it, to find out whether the folder takes data.

        Raises:
            OSError: It takes none.
        """
        with open_temporary_file(self.data / TEMPORARY_FOLDER, "probe.parquet") as (file, _):
            file.write(bytes(_PROBE_BYTES))
            flush_to_disk(file)

    def list_incarnations(self, topic: str, partition: int) -> set[str]:
        """As `warehouse.landed_files.list_incarnations`."""
        return list_incarnations(self.data, topic, partition)

    def read_landed_position(self, log: PartitionLog) -> int:
        """As `warehouse.sink.range_metadata.read_landed_position`."""
        return read_landed_position(self.data, *log)

    def list_log_files(self, log: PartitionLog) -> list[Path]:
        """As `warehouse.landed_files.list_log_files`."""
        return list_log_files(self.data, log)

    def open_parquet_source(self, path: Path) -> Path:
        """Return a source that pyarrow can read one of the files from."""
        return path

    def land_rows(self, start: int, table: pa.Table) -> Path:
        """As the function of that name."""
        return land_rows(self.data, start, table)


def open_landing_store(data: Path) -> LandingStore:
    """Return the store of a data folder.

    Raises:
        BucketError: The bucket cannot be used, as in `open_bucket_store`.
    """
    return open_bucket_store(data) if is_bucket_address(data) else FolderStore(data.resolve())


def copy_landing_time(path: Path, successor: Path) -> None:
    """Give a file that replaces a landed one the same time. Incarnations are ordered by it."""
    landed_at = path.stat().st_mtime_ns
    os.utime(successor, ns=(landed_at, landed_at))


def resolve_range_path(start: int, table: pa.Table) -> tuple[PartitionLog, Path]:
    """Return the log of rows, and the path in the data folder of the range that begins at `start`."""
    columns = ("topic", "partition", "incarnation", "recorded_at")
    topic, partition, incarnation, time = (table[name][0].as_py() for name in columns)
    log = PartitionLog(topic, partition, incarnation or UNKNOWN_INCARNATION)
    day = time.date() if time else SEED_DATE
    return log, Path(DATASET_BY_TOPIC[topic], f"date={day}", format_file_name(log, start))


def write_range_file(table: pa.Table, file: BinaryIO) -> None:
    """Write rows of one partition as the file of a range."""
    ((offset, last),) = extract_identities(table.slice(table.num_rows - 1)).items()
    table = table.replace_schema_metadata({NEXT_OFFSET_KEY: str(offset + 1), LAST_IDENTITY_KEY: json.dumps(last)})
    pq.write_table(table, file, compression="zstd", **column_encodings(table.schema))


def column_encodings(schema: pa.Schema) -> dict[str, Any]:
    """Return the encodings of columns: differences for similar numbers, dictionaries for repeated values.

    Compared with pyarrow's default, dictionaries for everything, writing takes three quarters of the time and a quarter
    of the bytes. Dictionaries in lists take 15 % more bytes than none. A look-up by key, which reads many values for
    one, takes 15 % less time with them.
    """
    plain = {f.name for f in schema if not pa.types.is_nested(f.type)}
    steady = {f.name for f in schema if pa.types.is_timestamp(f.type) or pa.types.is_int64(f.type)}
    return {
        "use_dictionary": [*sorted(plain - steady - _UNIQUE_VALUE_COLUMNS), *_LIST_DICTIONARY_COLUMNS],
        "column_encoding": dict.fromkeys((*steady, *_LIST_DELTA_COLUMNS), "DELTA_BINARY_PACKED")
        | dict.fromkeys(plain & _COMMON_PREFIX_COLUMNS, "DELTA_BYTE_ARRAY"),
    }
