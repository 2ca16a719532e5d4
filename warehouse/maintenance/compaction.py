"""Compaction: merges the files of closed hours and days, next to running sinks and readers.

    {data}/{dataset}/date=YYYY-MM-DD/{topic}+{partition}@{incarnation}+{start}-{mark}.parquet
    {data}/base/date=YYYY-MM-DD/all-{mark}.parquet
    {data}/webhooks/date=YYYY-MM-DD/0-{mark}.parquet            counts of a date's webhooks

Once an hour is over, the files landed in it become one file a log (a partition in one incarnation of its topic). Once a
day is over, all its files do. A merged file is sorted by message, so that a look-up by key reads little of it. It holds
exactly the rows of its parts. Its name has the `start` of the last of them, and its `next` is theirs: sinks take their
positions from these. It is one range. Files between which one is missing are not merged, so that the gap stays visible.
Base files of a closed day (`warehouse.rebuild`) become one, so that a look-up by key opens one file a day.

The webhooks of a day that is over are counted (`warehouse/sql/rollups/webhooks.sql`), and again if their files have
changed.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse import catalog
from warehouse.base_files import BASE_CODEC, BASE_ROW_GROUP_ROWS, CLOSED_DAY_KEY
from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.errors import CompactionError, WarehouseError
from warehouse.file_names import (
    LANDED_FILE_NAME,
    SEED_DATE,
    SEED_FILE,
    parse_folder_day,
    parse_partition_log,
)
from warehouse.maintenance import atomic_replace
from warehouse.partition_log import PartitionLog
from warehouse.reader import open_warehouse
from warehouse.schemas import SCHEMAS
from warehouse.sink import parquet_files
from warehouse.sink.range_metadata import NEXT_OFFSET_KEY, RANGE_START_KEY, read_end_metadata, read_range_start
from warehouse.sql_text import load_sql, quote_sql_text
from warehouse.watermark import read_base_watermark

_log = logging.getLogger(__name__)

_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
# Key in the metadata of a date's counts: a hash of the SQL and of the names of the counted files.
_COUNTED_FILES_KEY: Final = b"smspulse.counted"
# Small row groups, so that a look-up reads little.
_LANDED_ROW_GROUP_ROWS: Final = 60_000


@dataclass(slots=True)
class CompactionResult:
    """Counts of a run: the files that were merged, the files that they became, and their rows."""

    files_before: int = 0
    files_after: int = 0
    rows: int = 0


def compact_files(data: Path, now: datetime, memory: str = "2GB") -> CompactionResult:
    """Merge the files of closed hours and days. Readers and landers go on meanwhile.

    Args:
        data: The data folder.
        now: The time. Files landed since the hour began are left alone.
        memory: Limit of DuckDB's memory. Beyond it, DuckDB writes to disk.

    Raises:
        CompactionError: A file is damaged, or memory and disk do not suffice. Earlier merges of the run stay.
        CannotExchangeError: The file system cannot exchange folders.
        OSError: The data folder is not writable.
    """
    data = data.resolve()
    catalog.publish_views(data)
    with atomic_replace.lock_maintenance(data) as scratch:
        run = _Compaction(data, now.astimezone(UTC).replace(minute=0, second=0, microsecond=0), scratch, memory)
        for dataset in DATASET_BY_TOPIC.values():
            for folder in sorted((data / dataset).glob("date=*")):
                run.merge_landed_day(folder)
        run.merge_base_days()
        run.count_webhooks()
    return run.result


class _Compaction:
    """One run. Files landed since `hour` are left alone. Temporary files are in `scratch`."""

    def __init__(self, data: Path, hour: datetime, scratch: Path, memory: str) -> None:
        self._data, self._hour, self._scratch = data, hour, scratch
        # What exceeds the memory is sorted on disk.
        self._limits: dict[str, Any] = {"memory_limit": memory, "temp_directory": str(scratch / "spill")}
        # For an hour after midnight, sinks still land records of the day before.
        self._first_open_day = (hour - _HOUR).date()
        self.result = CompactionResult()

    def merge_landed_day(self, folder: Path) -> None:
        """Merge the files of one day of a landed dataset."""
        is_closed = parse_folder_day(folder) < self._first_open_day
        removed: list[Path] = []
        added: dict[Path, Path] = {}
        for parts in _find_mergeable_files(folder, self._hour, is_closed=is_closed):
            metadata = {RANGE_START_KEY: str(read_range_start(parts[0])).encode()}
            target = atomic_replace.name_successor(parts[-1])
            added |= self._merge_files(target, parts, metadata | read_end_metadata(parts[-1]))
            removed += parts
        # One exchange for all logs of the day, because each exchange lists the whole folder.
        self._replace_merged_files(folder, removed, added)

    def merge_base_days(self) -> None:
        """Merge the base files of each closed day."""
        base = self._data / "base"
        removed: list[Path] = []
        added: dict[Path, Path] = {}
        for folder in sorted(base.glob("date=*")):
            parts = sorted(folder.glob("[0-9]*.parquet"))
            if len(parts) > 1 and all(_read_file_metadata(path).get(CLOSED_DAY_KEY) == b"1" for path in parts):
                target = folder / f"all-{atomic_replace.unique_suffix()}.parquet"
                added |= self._merge_files(target, parts, {CLOSED_DAY_KEY: b"1"})
                removed += parts
        if added:
            atomic_replace.add_rotating_seed(base)
        self._replace_merged_files(base, removed, added)

    def count_webhooks(self) -> None:
        """Count the webhooks of each date that is over, unless its present files are counted already."""
        counts_due: dict[Path, tuple[date, bytes]] = {}
        removed: list[Path] = []
        watermark = read_base_watermark(self._data)
        # The first complete day is the second one after those that retention has dropped.
        dropped_until = watermark.floor - 2 * _DAY if watermark and watermark.floor > date.min else date.min
        for folder in sorted((self._data / "raw").glob("date=*")):
            day, paths = parse_folder_day(folder), sorted(folder.iterdir())
            # A date that retention has dropped keeps files without rows, and its counts.
            if day >= self._first_open_day or not any(_read_parquet_footer(path).num_rows for path in paths):
                continue
            target = self._data / "webhooks" / folder.name / f"0-{atomic_replace.unique_suffix()}.parquet"
            old = list(target.parent.glob("[0-9]*.parquet"))
            # A restored Kafka can bring a part of the webhooks of a dropped date again.
            if old and day <= dropped_until:
                continue
            names = [path.name for path in paths]
            counted = hashlib.sha256("\n".join([load_sql("rollups", "webhooks"), *names]).encode()).hexdigest().encode()
            if not any(_read_file_metadata(path).get(_COUNTED_FILES_KEY) == counted for path in old):
                counts_due[target] = day, counted
                removed += old
        if not counts_due:
            return
        schema = SCHEMAS["webhooks"]
        with translate_file_errors(CompactionError, self._data / "raw"), open_warehouse(self._data) as connection:
            for name, limit in self._limits.items():
                connection.execute(f"SET {name} = ?", [limit])
            for target, (day, counted) in counts_due.items():
                connection.execute(
                    f"CREATE OR REPLACE TEMP VIEW received AS FROM raw_webhooks WHERE date = DATE '{day}'"
                )
                columns = ", ".join(schema.names)
                rows = connection.sql(f"SELECT {columns} FROM count_webhooks('received')").to_arrow_table()  # noqa: S608 - ours
                metadata = {_COUNTED_FILES_KEY: counted}
                pq.write_table(rows.cast(schema.with_metadata(metadata)), self._scratch / target.name)
        added = {target: self._scratch / target.name for target in counts_due}
        atomic_replace.replace_files(self._data / "webhooks", self._scratch, removed, added)
        catalog.publish_views(self._data)

    def _replace_merged_files(self, folder: Path, removed: list[Path], added: dict[Path, Path]) -> None:
        atomic_replace.replace_files(folder, self._scratch, removed, added)
        self.result.files_before += len(removed)
        self.result.files_after += len(added)

    def _merge_files(self, target: Path, parts: list[Path], metadata: dict[bytes, bytes]) -> dict[Path, Path]:
        """Write the rows of a folder's files as one temporary file; return it by the path that it is for."""
        folder = target.parent
        temporary = self._scratch / target.name
        schema = SCHEMAS[folder.parent.name]
        size, codec = choose_file_layout(folder.parent.name)
        layout = {"compression": codec, **parquet_files.column_encodings(schema)}
        with translate_file_errors(CompactionError, folder):
            expected = sum(pq.read_metadata(path).num_rows for path in parts)
            with (
                duckdb.connect(config=self._limits) as connection,
                pq.ParquetWriter(temporary, schema.with_metadata(metadata), **layout) as writer,
            ):
                # A row group at a time.
                for batch in _query_sorted_rows(connection, folder.parent, schema, parts).to_arrow_reader(size):
                    writer.write_table(pa.Table.from_batches([batch]).cast(schema))
            # Incarnations are ordered by the time of their first files.
            landed = min(path.stat().st_mtime for path in parts)
            os.utime(temporary, (landed, landed))
        count: int = pq.read_metadata(temporary).num_rows
        if count != expected:
            raise CompactionError(folder, f"{count} of {expected} rows were written")
        self.result.rows += count
        return {target: temporary}


def _read_file_metadata(path: Path) -> dict[bytes, bytes]:
    return _read_parquet_footer(path).metadata or {}


def _read_parquet_footer(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except pa.ArrowException as error:
        raise CompactionError(path.parent, f"{path.name}: {error}".partition("\n")[0]) from error


def _find_mergeable_files(folder: Path, hour: datetime, *, is_closed: bool) -> list[list[Path]]:
    """Return lists of files to be merged, each in the order of their ranges."""
    found: dict[PartitionLog, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        name = LANDED_FILE_NAME.fullmatch(path.name)
        if name and path.stat().st_mtime < hour.timestamp() and (is_closed or not name["merged"]):
            found.setdefault(parse_partition_log(name), []).append(path)
    return [run for parts in found.values() if len(parts) > 1 for run in _split_at_gaps(parts) if len(run) > 1]


def _split_at_gaps(parts: list[Path]) -> Iterator[list[Path]]:
    """Split the files of a partition where one does not begin at the end of the file before."""
    run: list[Path] = []
    following = None
    for path in parts:
        if run and read_range_start(path) != following:
            yield run
            run = []
        run.append(path)
        following = int(_read_file_metadata(path).get(NEXT_OFFSET_KEY, -1))
    yield run


@contextmanager
def translate_file_errors(kind: Callable[[Path, str], WarehouseError], folder: Path) -> Iterator[None]:
    """Raise DuckDB's and pyarrow's errors about a folder's files as an error of this project, or as an OSError."""
    try:
        yield
    except duckdb.IOException as error:
        raise OSError(" ".join(str(error).split())) from error
    except (duckdb.Error, pa.ArrowException) as error:
        raise kind(folder, f"{type(error).__name__}: {error}".partition("\n")[0]) from error


def _query_sorted_rows(
    connection: duckdb.DuckDBPyConnection, dataset: Path, schema: pa.Schema, parts: list[Path]
) -> duckdb.DuckDBPyRelation:
    """Return the rows of files with all columns of the dataset, sorted by message and offset."""
    # The seed has the columns that older files lack.
    seed = dataset / f"date={SEED_DATE}" / SEED_FILE
    files = ", ".join(quote_sql_text(str(path)) for path in (seed, *parts))
    connection.execute("SET TimeZone = 'UTC'")
    source = f"read_parquet([{files}], union_by_name = true, hive_partitioning = false)"
    unknown = {row[0] for row in connection.execute(f"DESCRIBE FROM {source}").fetchall()} - set(schema.names)
    if unknown:
        detail = f"there are columns of a newer smspulse: {', '.join(sorted(unknown))}"
        raise CompactionError(parts[0].parent, detail)
    columns = ", ".join(f'"{name}"' for name in schema.names)
    order = ", ".join(f'"{name}"' for name in ("source", "sms_id", "offset") if name in schema.names)
    return connection.sql(f"SELECT {columns} FROM {source} ORDER BY {order}")  # noqa: S608 - names of ours


def choose_file_layout(dataset: str) -> tuple[int, str]:
    """Return the rows of a row group and the codec of rewritten files of a dataset."""
    is_rebuilt = dataset in {"base", "differences"}
    return (BASE_ROW_GROUP_ROWS, BASE_CODEC) if is_rebuilt else (_LANDED_ROW_GROUP_ROWS, "zstd")
