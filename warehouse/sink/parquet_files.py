"""Files of landed records: one contiguous range of one partition's offsets is one file, and one file is one commit.

    {data}/{dataset}/date=YYYY-MM-DD/{topic}+{partition}@{incarnation}+{start}.parquet

A file belongs to one incarnation of its topic (`warehouse.partition_log`). Offsets, ranges and positions are those of
the partition's log in that incarnation; logs of other incarnations have files of their own next to them.

`start` is where the range begins: the `next` of the file before, and 0 for the first. It is not the offset of the first
record, because offsets of aborted or compacted records and of transaction markers hold nothing. `next`, the offset
after the last record, is in the file's metadata, and so is what identifies that record
(`warehouse.sink.topic_incarnations`). A file is written outside the folders that readers look into, made durable, and
linked into place under a name that must not exist yet: so it is whole as soon as it can be seen, and of rivals that
begin a range at the same place one wins. The date is that of the first record's Kafka timestamp, in UTC: the same for
every rival that sees the same records.

Merged files (`warehouse.maintenance.compaction`) have the last of their ranges' `start` in the name, and a mark behind
it. So the largest name of a log still tells where to go on, and that a range which begins there or before was landed.
"""

import errno
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, tzinfo
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.errors import DamagedFileError, OvertakenError
from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog, parse_cut_count, parse_topic_id
from warehouse.schemas import DATASETS_BY_TOPIC, SCHEMAS, PartitionRecords, SourceRecord

_log = logging.getLogger(__name__)

TEMPORARY_FOLDER: Final = ".tmp"
SEED_DATE: Final = date(1970, 1, 1)
"""Folder of each dataset's seed, and of records without a time that can be meant."""
SEED_FILE: Final = "seed.parquet"
NEXT_OFFSET_KEY: Final = b"smspulse.next"
"""Of a file's metadata: the offset after its last record."""
RANGE_START_KEY: Final = b"smspulse.start"
"""Of a merged file's metadata: where the first of its ranges begins."""
LAST_IDENTITY_KEY: Final = b"smspulse.last"
"""Of a file's metadata: `RecordIdentity` of its last record, as JSON."""
_MIXED_SCHEMAS_KEY: Final = b"smspulse.mixed"
"""Of a seed's metadata: there may be files of another schema."""
LANDED_FILE_NAME: Final = re.compile(
    r"(?P<topic>.+)\+(?P<partition>\d+)(?:@(?P<incarnation>[\w.-]+))?\+(?P<start>\d{20})(?P<merged>-\w+)?\.parquet"
)
"""Names of landed files, merged ones too."""
_COMMON_PREFIX_COLUMNS: Final = {"ingest_id", "message_key"}
"""Texts that nearly begin as the one before."""
_UNIQUE_VALUE_COLUMNS: Final = _COMMON_PREFIX_COLUMNS | {"body", "text"}
_PROBE_BYTES: Final = 1 << 16
# Within lists, by Parquet's names; a schema need not have them.
_OBSERVATION_PATH: Final = "observations.list.element."
_LIST_DICTIONARY_COLUMNS: Final = (
    "flags.list.element",
    *(f"{_OBSERVATION_PATH}{name}" for name in ("status_id", "device_id", "channel_id", "sent_at")),
)
_LIST_DELTA_COLUMNS: Final = (f"{_OBSERVATION_PATH}first_received_at", f"{_OBSERVATION_PATH}last_received_at")


class RecordIdentity(NamedTuple):
    """Tells one record of a log from another that has its offset after the log was cut.

    Args:
        recorded_at_ms: Kafka's timestamp of the record, in milliseconds since 1970 UTC, if it has one.
        id: Its `ingest_id`, `message_key` or `alert_id`, if it has one.
    """

    recorded_at_ms: int | None
    id: str | None


_ID_COLUMNS: Final = ("ingest_id", "message_key", "alert_id")
"""Columns that identify a record; each dataset has one of them. No command changes them in files."""


def parse_partition_log(name: re.Match[str]) -> PartitionLog:
    """Return the log that a file belongs to, by its name as `LANDED_FILE_NAME` read it."""
    return PartitionLog(name["topic"], int(name["partition"]), name["incarnation"] or UNKNOWN_INCARNATION)


def format_file_name(log: PartitionLog, start: int) -> str:
    """Return the name of the file whose range begins at `start`. Names of one log sort as their ranges do."""
    return f"{log.topic}+{log.file_label}+{start:020d}.parquet"


def format_merged_stem(name: re.Match[str]) -> str:
    """Return what a file that takes the place of another one of `LANDED_FILE_NAME` is named after, before its mark."""
    return f"{name['topic']}+{parse_partition_log(name).file_label}+{name['start']}"


def read_landed_position(data: Path, topic: str, partition: int, incarnation: str = UNKNOWN_INCARNATION) -> int:
    """Return the offset from which a log is yet to be landed, by what its files say; 0 without any.

    Raises:
        DamagedFileError: The newest file cannot be read.
        OSError: Nor can the folder.
    """
    while True:
        last = find_newest_file(data / DATASETS_BY_TOPIC[topic].name, PartitionLog(topic, partition, incarnation))
        if last is None:
            return 0
        with suppress(FileNotFoundError):  # merged meanwhile
            return read_next_offset(last, last)


def read_next_offset(source: Path | BinaryIO, path: Path) -> int:
    """Return the offset after the last record of a landed file.

    Raises:
        DamagedFileError: It is none.
    """
    try:
        return int((pq.read_metadata(source).metadata or {})[NEXT_OFFSET_KEY])
    except (pa.ArrowException, KeyError) as error:
        raise DamagedFileError(path, type(error).__name__) from error


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
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except pa.ArrowException as error:
        raise DamagedFileError(path, type(error).__name__) from error
    return int(metadata[RANGE_START_KEY]) if RANGE_START_KEY in metadata else start


def list_incarnations(data: Path, topic: str, partition: int) -> set[str]:
    """Return the incarnations of which a partition has files."""
    head = f"{topic}+{partition}"
    names = (
        LANDED_FILE_NAME.fullmatch(name) for name, _ in _scan_day_folders(data / DATASETS_BY_TOPIC[topic].name, head)
    )
    logs = [parse_partition_log(name) for name in names if name]
    return {log.incarnation for log in logs if log.partition == partition}


def list_incarnations_by_age(data: Path, topic: str, partition: int | None = None) -> list[str]:
    """Return the incarnations of which a topic, or one partition of it, has files; those with the oldest files first.

    An incarnation that follows another one on the same day goes by the time at which its first file was written.
    """
    found = []
    for name, folder in _scan_day_folders(data / DATASETS_BY_TOPIC[topic].name, f"{topic}+"):
        with suppress(FileNotFoundError):  # merged meanwhile
            found.append((Path(folder).name, Path(folder, name).stat().st_mtime, name))
    return sort_incarnations(found, partition)


def sort_incarnations(landed_files: Iterable[tuple[str, float, str]], partition: int | None = None) -> list[str]:
    """Return the incarnations of landed files, all or those of a partition, as `list_incarnations_by_age` does.

    Args:
        landed_files: Of each, its folder's name, when it was written in seconds since 1970, and its own name.
        partition: Kafka's number; None for all.
    """
    first: dict[str, tuple[str, float]] = {}
    for folder, written_at, name in landed_files:
        landed = LANDED_FILE_NAME.fullmatch(name)
        if landed is None or (partition is not None and parse_partition_log(landed).partition != partition):
            continue
        age = (folder, written_at)
        incarnation = parse_partition_log(landed).incarnation
        first[incarnation] = min(age, first.get(incarnation, age))
    return sorted(first, key=lambda incarnation: first[incarnation])


def find_present_incarnation(data: Path, topic: str, partition: int) -> str | None:
    """Return the incarnation whose records were written to Kafka last, of those that a partition has files of.

    That is not always the one that appeared last: Kafka can be followed by the in-memory broker, and come back.
    """
    newest_at: dict[str, tuple[str, int]] = {}
    for incarnation in list_incarnations(data, topic, partition):
        path = find_newest_file(data / DATASETS_BY_TOPIC[topic].name, PartitionLog(topic, partition, incarnation))
        if path is not None:
            last = read_last_identity(path, path)
            newest_at[incarnation] = (path.parent.name, (last and last.recorded_at_ms) or 0)
    return max(newest_at, key=lambda incarnation: newest_at[incarnation], default=None)


def find_first_lost_offsets(data: Path, topic: str, partition: int, topic_id: str) -> dict[str, int | None]:
    """Return from which offset on Kafka does not hold the landed records of each incarnation of a partition.

    That is 0 for other topics, and None for the newest incarnation of this one. Of the ones before, Kafka holds what
    was written before the log was cut.

    Args:
        data: The data folder.
        topic: Kafka's name of it.
        partition: Kafka's number of it.
        topic_id: Of the topic that Kafka holds now.
    """
    found: dict[str, int | None] = dict.fromkeys(list_incarnations(data, topic, partition), 0)
    own = sorted((each for each in found if parse_topic_id(each) == topic_id), key=parse_cut_count)
    starts = [read_range_start(list_log_files(data, PartitionLog(topic, partition, each))[0]) for each in own]
    for number, incarnation in enumerate(own):
        found[incarnation] = min(starts[number + 1 :], default=None)
    # Files of a release up to 0.1 are of the same topic if its first log goes on at their end.
    if UNKNOWN_INCARNATION in found and own and starts[0] == read_landed_position(data, topic, partition) > 0:
        found[UNKNOWN_INCARNATION] = found[own[0]]
    return found


def list_log_files(data: Path, log: PartitionLog) -> list[Path]:
    """Return the files of a log, in the order of their ranges."""
    entries = sorted(_scan_day_folders(data / DATASETS_BY_TOPIC[log.topic].name, f"{log.topic}+{log.file_label}+"))
    return [Path(folder, name) for name, folder in entries]


def find_newest_file(dataset: Path, log: PartitionLog) -> Path | None:
    """Return the file of a log that holds its newest range."""
    name, folder = max(_scan_day_folders(dataset, f"{log.topic}+{log.file_label}+"), default=("", ""))
    return Path(folder, name) if name else None


def _scan_day_folders(dataset: Path, head: str) -> Iterator[tuple[str, str]]:
    """Yield the files of a dataset whose names begin with `head`: name and folder."""
    try:
        days = [day.path for day in os.scandir(dataset) if day.name.startswith("date=")]
    except FileNotFoundError:
        return
    for day in days:
        with suppress(FileNotFoundError):  # too old to be kept, and gone meanwhile
            for entry in os.scandir(day):
                if entry.name.startswith(head):
                    yield entry.name, day


def read_last_identity(source: Path | BinaryIO, path: Path) -> RecordIdentity | None:
    """Return the identity of the last record of a landed file; None if only a release up to 0.1 knew it.

    Raises:
        DamagedFileError: It is no landed file.
    """
    try:
        metadata = pq.read_metadata(source).metadata or {}
        if LAST_IDENTITY_KEY in metadata:
            return RecordIdentity(*json.loads(metadata[LAST_IDENTITY_KEY]))
        return read_identities(source, path).get(int(metadata[NEXT_OFFSET_KEY]) - 1)
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise DamagedFileError(path, type(error).__name__) from error


def read_identities(source: Path | BinaryIO, path: Path) -> dict[int, RecordIdentity]:
    """Return the identity of each record of a landed file by its offset; of a file without rows, that of its last one.

    Raises:
        DamagedFileError: It is no landed file.
    """
    try:
        file = pq.ParquetFile(source)
        metadata = file.schema_arrow.metadata or {}
        names = [name for name in ("offset", "recorded_at", *_ID_COLUMNS) if name in file.schema_arrow.names]
        found = extract_identities(file.read(names))
        if not found and LAST_IDENTITY_KEY in metadata:
            found = {int(metadata[NEXT_OFFSET_KEY]) - 1: RecordIdentity(*json.loads(metadata[LAST_IDENTITY_KEY]))}
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise DamagedFileError(path, type(error).__name__) from error
    return found


def extract_identities(table: pa.Table) -> dict[int, RecordIdentity]:
    """Return the identity of each row of a landed dataset's table by its offset."""
    (column,) = [name for name in _ID_COLUMNS if name in table.column_names]
    times = table["recorded_at"].cast(pa.int64()).to_pylist()
    return dict(zip(table["offset"].to_pylist(), map(RecordIdentity, times, table[column].to_pylist()), strict=True))


def land_records(
    data: Path, start: int, records: Sequence[SourceRecord], zone: tzinfo = UTC, incarnation: str = UNKNOWN_INCARNATION
) -> Path:
    """Land records of one partition as one file, as `land_rows` does.

    Args:
        data: The data folder.
        start: Where the range begins: what `read_landed_position` said.
        records: In the order of their offsets, at least one.
        zone: Of payload times that name none.
        incarnation: Of the topic that they are from.
    """
    run = PartitionRecords.from_records(records)._replace(incarnation=incarnation)
    return land_rows(data, start, DATASETS_BY_TOPIC[run.topic].build_table(run, zone))


def land_rows(data: Path, start: int, table: pa.Table) -> Path:
    """Land rows of one partition as one file, and return its path. All or nothing, durable on return.

    Args:
        data: The data folder.
        start: Where the range begins: what `read_landed_position` said.
        table: As `Dataset.build_table` makes it, with at least one row.

    Raises:
        OvertakenError: The range that begins at `start` has been landed already.
        OSError: The disk is full or not writable. Nothing was landed.
    """
    log, place = resolve_range_path(start, table)
    path, name = data / place, place.name
    folder = _create_durable_folder(path.parent)
    with _open_temporary_file(data, name) as (file, temporary):
        write_range_file(table, file)
        file.flush()
        os.fsync(file.fileno())
        with _open_folder_descriptor(folder.parent) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # no folder is exchanged for a merged one meanwhile
            # After a merge a rival's range has no file of its own, and after retention its first record can be of
            # another day: creation alone would not exclude it.
            last = find_newest_file(folder.parent, log)
            if last is not None and last.name >= name[: -len(".parquet")]:
                raise OvertakenError(last)
            try:
                os.link(temporary, path)
            except FileExistsError as error:
                raise OvertakenError(path) from error
    fsync_folder(folder)
    return path


def read_end_metadata(path: Path) -> dict[bytes, bytes]:
    """Return the metadata that tells where a landed file ends, for a file without rows in its place."""
    last = read_last_identity(path, path)
    return {NEXT_OFFSET_KEY: str(read_next_offset(path, path)).encode()} | (
        {LAST_IDENTITY_KEY: json.dumps(last).encode()} if last else {}
    )


def copy_landing_time(path: Path, successor: Path) -> None:
    """Give a file that takes the place of a landed one its time: incarnations are ordered by it."""
    landed_at = path.stat().st_mtime_ns
    os.utime(successor, ns=(landed_at, landed_at))


def resolve_range_path(start: int, table: pa.Table) -> tuple[PartitionLog, Path]:
    """Return the log of rows, and where in the data folder the range that begins at `start` is landed."""
    columns = ("topic", "partition", "incarnation", "recorded_at")
    topic, partition, incarnation, time = (table[name][0].as_py() for name in columns)
    log = PartitionLog(topic, partition, incarnation or UNKNOWN_INCARNATION)
    day = time.date() if time else SEED_DATE
    return log, Path(DATASETS_BY_TOPIC[topic].name, f"date={day}", format_file_name(log, start))


def write_range_file(table: pa.Table, file: BinaryIO) -> None:
    """Write rows of one partition as the file of a range."""
    ((offset, last),) = extract_identities(table.slice(table.num_rows - 1)).items()
    table = table.replace_schema_metadata({NEXT_OFFSET_KEY: str(offset + 1), LAST_IDENTITY_KEY: json.dumps(last)})
    pq.write_table(table, file, compression="zstd", **column_encodings(table.schema))


def column_encodings(schema: pa.Schema) -> dict[str, Any]:
    """Return how columns are written: numbers that differ little as differences, what repeats by a dictionary.

    Beside pyarrow's default, a dictionary for everything, it took three quarters of the time, a quarter of the bytes.
    In lists it takes 15 % more of them than none, and a look-up by key, which reads many for one, 15 % less time.
    """
    plain = {f.name for f in schema if not pa.types.is_nested(f.type)}
    steady = {f.name for f in schema if pa.types.is_timestamp(f.type) or pa.types.is_int64(f.type)}
    return {
        "use_dictionary": [*sorted(plain - steady - _UNIQUE_VALUE_COLUMNS), *_LIST_DICTIONARY_COLUMNS],
        "column_encoding": dict.fromkeys((*steady, *_LIST_DELTA_COLUMNS), "DELTA_BINARY_PACKED")
        | dict.fromkeys(plain & _COMMON_PREFIX_COLUMNS, "DELTA_BYTE_ARRAY"),
    }


def create_seed_files(data: Path) -> None:
    """Make each dataset's folder with a seed: a file without rows, so that a view of it stands before any landing.

    Raises:
        OSError: The data folder is not writable.
    """
    for name, schema in SCHEMAS.items():
        seed = _create_durable_folder(data / name / f"date={SEED_DATE}") / SEED_FILE
        try:
            found = pq.read_schema(seed)
        except (OSError, pa.ArrowException):
            mixed = any((data / name).glob("date=*/*.parquet"))
        else:
            if found.remove_metadata().equals(schema, check_metadata=True):
                continue
            mixed = _MIXED_SCHEMAS_KEY in (found.metadata or {}) or not found.equals(schema)
        with _open_temporary_file(data, SEED_FILE) as (file, temporary):
            pq.write_table(schema.with_metadata({_MIXED_SCHEMAS_KEY: b""} if mixed else None).empty_table(), file)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(seed)


def probe_folder(data: Path) -> None:
    """Write a file as large as a small landed one, durably, and delete it.

    Raises:
        OSError: The disk is full or not writable.
    """
    with _open_temporary_file(data, "probe.parquet") as (file, _):
        file.write(bytes(_PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def has_mixed_schemas(dataset: Path) -> bool:
    """Tell whether a dataset's folder may have files of another schema than its seed's."""
    try:
        return _MIXED_SCHEMAS_KEY in (pq.read_metadata(dataset / f"date={SEED_DATE}" / SEED_FILE).metadata or {})
    except (OSError, pa.ArrowException):
        return True


def replace_durably(data: Path, temporary: Path, path: Path) -> None:
    """Put a file that was written elsewhere in the place of another, in one step, durable on return.

    Raises:
        OSError: The folder is not writable.
    """
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        fsync_folder(path.parent.parent)
        fsync_folder(data)
    temporary.replace(path)
    fsync_folder(path.parent)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside this for the same folder. A process that dies is outside."""
    with _open_folder_descriptor(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def delete_orphaned_files(data: Path) -> int:
    """Delete the temporary files of writers that are dead, and return how many there were.

    Raises:
        OSError: A file cannot be deleted.
    """
    deleted = 0
    for path in (data / TEMPORARY_FOLDER).glob("*.parquet.*"):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            deleted += 1
    return deleted


@contextmanager
def _open_temporary_file(data: Path, name: str) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a file outside the folders that readers look into; it is gone afterwards, unless it was moved."""
    folder = data / TEMPORARY_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file, path = _create_locked_file(folder, name)
    try:
        with file:
            yield file, path
    finally:
        path.unlink(missing_ok=True)


def _create_locked_file(folder: Path, name: str) -> tuple[BinaryIO, Path]:
    """Create a file and lock it. The lock ends with the process: then `delete_orphaned_files` may delete the file.

    A sweep that meets a file between its creation and its lock takes it for such a one. Then there is another.
    """
    while True:
        path = folder / f"{name}.{uuid4().hex}"
        file = path.open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:
                return file, path
        except BlockingIOError:
            pass
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        file.close()


def _create_durable_folder(folder: Path) -> Path:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        fsync_folder(folder.parent)
        fsync_folder(folder.parent.parent)
    return folder


@contextmanager
def _open_folder_descriptor(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Make what was created, renamed or deleted in a folder durable."""
    with _open_folder_descriptor(folder) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems keep folders durable by themselves
                raise
