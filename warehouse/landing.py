"""Files of landed records: one contiguous range of one partition's offsets is one file, and one file is one commit.

    {data}/{dataset}/date=YYYY-MM-DD/{topic}+{partition}+{start}.parquet

`start` is where the range begins: the `next` of the file before, and 0 for the first. It is not the offset of the first
record, because offsets of aborted or compacted records and of transaction markers hold nothing. `next`, the offset
after the last record, is in the file's metadata. A file is written outside the folders that readers look into, made
durable, and linked into place under a name that must not exist yet: so it is whole as soon as it can be seen, and of
rivals that begin a range at the same place one wins. The date is that of the first record's Kafka timestamp, in UTC:
the same for every rival that sees the same records.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, tzinfo
from pathlib import Path
from typing import BinaryIO, Final
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.errors import DamagedFileError, OvertakenError
from warehouse.schemas import BY_TOPIC, SCHEMAS, Record, Run

_log = logging.getLogger(__name__)

TEMPORARY: Final = ".tmp"
SEED_DATE: Final = date(1970, 1, 1)
"""Folder of each dataset's seed, and of records without a time that can be meant."""
_SEED: Final = "seed.parquet"
_NEXT: Final = b"smspulse.next"


def file_name(topic: str, partition: int, start: int) -> str:
    """Return the name of the file whose range begins at `start`. Names of one partition sort as their ranges do."""
    return f"{topic}+{partition}+{start:020d}.parquet"


def landed_position(data: Path, topic: str, partition: int) -> int:
    """Return the offset from which the partition is yet to be landed, by what its files say; 0 without any.

    Raises:
        DamagedFileError: The newest file cannot be read.
        OSError: Nor can the folder.
    """
    folder = data / BY_TOPIC[topic].name
    newest = max(folder.glob(f"date=*/{topic}+{partition}+*.parquet"), key=lambda path: path.name, default=None)
    if newest is None:
        return 0
    try:
        return int((pq.read_metadata(newest).metadata or {})[_NEXT])
    except (pa.ArrowException, KeyError) as error:
        raise DamagedFileError(newest, type(error).__name__) from error


def land(data: Path, start: int, records: Sequence[Record], zone: tzinfo = UTC) -> Path:
    """Land records of one partition as one file, as `land_rows` does.

    Args:
        data: The data folder.
        start: Where the range begins: what `landed_position` said.
        records: In the order of their offsets, at least one.
        zone: Of payload times that name none.
    """
    return land_rows(data, start, BY_TOPIC[records[0].topic].table(Run.of(records), zone))


def land_rows(data: Path, start: int, table: pa.Table) -> Path:
    """Land rows of one partition as one file, and return its path. All or nothing, durable on return.

    Args:
        data: The data folder.
        start: Where the range begins: what `landed_position` said.
        table: As `Dataset.table` makes it, with at least one row.

    Raises:
        OvertakenError: The range that begins at `start` has been landed already.
        OSError: The disk is full or not writable. Nothing was landed.
    """
    topic, partition = table["topic"][0].as_py(), table["partition"][0].as_py()
    table = table.replace_schema_metadata({_NEXT: str(table["offset"][-1].as_py() + 1)})
    name = file_name(topic, partition, start)
    time = table["recorded_at"][0].as_py()
    folder = _make_folder(data / BY_TOPIC[topic].name, time.date() if time else SEED_DATE)
    # Compaction and retention can give a rival another first record, on another day, where creation excludes nobody.
    for landed in folder.parent.glob(f"date=*/{name}"):
        raise OvertakenError(landed)
    path = folder / name
    with _temporary(data, name) as (file, temporary):
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError as error:
            raise OvertakenError(path) from error
    _fsync_folder(folder)
    return path


def prepare(data: Path) -> None:
    """Make each dataset's folder with a seed: a file without rows, so that a view of it stands before any landing.

    Raises:
        OSError: The data folder is not writable.
    """
    for name, schema in SCHEMAS.items():
        seed = _make_folder(data / name, SEED_DATE) / _SEED
        with suppress(OSError, pa.ArrowException):
            if pq.read_schema(seed).equals(schema, check_metadata=True):
                continue
        with _temporary(data, _SEED) as (file, temporary):
            pq.write_table(schema.empty_table(), file)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(seed)


def replace(data: Path, temporary: Path, path: Path) -> None:
    """Put a file that was written elsewhere in the place of another, in one step, durable on return.

    Raises:
        OSError: The folder is not writable.
    """
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        _fsync_folder(path.parent.parent)
        _fsync_folder(data)
    temporary.replace(path)
    _fsync_folder(path.parent)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside this for the same folder. A process that dies is outside."""
    with _opened(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def sweep(data: Path) -> int:
    """Delete the temporary files of writers that are dead, and return how many there were.

    Raises:
        OSError: A file cannot be deleted.
    """
    swept = 0
    for path in (data / TEMPORARY).glob("*.parquet.*"):
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            swept += 1
    return swept


@contextmanager
def _temporary(data: Path, name: str) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a file outside the folders that readers look into; it is gone afterwards, unless it was moved."""
    folder = data / TEMPORARY
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{uuid4().hex}"
    try:
        with path.open("xb") as file:
            # The lock dies with the process, which tells `sweep` that nobody will finish the file.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file, path
    finally:
        path.unlink(missing_ok=True)


def _make_folder(dataset: Path, day: date) -> Path:
    folder = dataset / f"date={day.isoformat()}"
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _fsync_folder(dataset)
        _fsync_folder(dataset.parent)
    return folder


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _fsync_folder(folder: Path) -> None:
    with _opened(folder) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems keep folders durable by themselves
                raise
