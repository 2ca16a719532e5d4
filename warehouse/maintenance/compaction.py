"""Compaction: files of closed hours and days are merged, beside landers and readers.

    {data}/{dataset}/date=YYYY-MM-DD/{topic}+{partition}@{incarnation}+{start}-{mark}.parquet
    {data}/base/date=YYYY-MM-DD/all-{mark}.parquet
    {data}/webhooks/date=YYYY-MM-DD/0-{mark}.parquet            what was counted of a date's webhooks

Once an hour is over, what was landed in it becomes one file a log (a partition in one incarnation of its topic); once a
day is over, all of it does. A merged file is sorted by message, so that a look-up by key reads little of it, and holds
the rows of its parts, no more and no less; its name has the `start` of the last of them, and its `next` is theirs: what
landers take their positions from. It is one range: files between which one is missing are not merged, so that a gap
stays to be seen.
Base files of a day that is closed (`warehouse.rebuild`) become one: a look-up by key opens a file a day.

The webhooks of a day that is over are counted (`warehouse/sql/rollups/webhooks.sql`), and again if their files have
changed.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse import catalog as views
from warehouse.errors import CompactionError
from warehouse.maintenance import atomic_replace as swap
from warehouse.partition_log import PartitionLog
from warehouse.reader import open_warehouse
from warehouse.rebuild import CLOSED, CODEC, ROW_GROUP
from warehouse.schemas import DATASETS, SCHEMAS
from warehouse.sink import parquet_files as landing

_log = logging.getLogger(__name__)

_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
_COUNTED: Final = b"smspulse.counted"
"""Of what was counted of a date: what tells apart how, and of which files."""
_OF_THE_END: Final = (landing.NEXT, landing.LAST)
"""Of a landed file's metadata: what holds for the merged file if it does for the last of its parts."""
_ROW_GROUP: Final = 60_000  # rows; small ones, so that a look-up soon has what it needs


@dataclass(slots=True)
class Compacted:
    """What a run did: days and partitions merged, files before and after, rows in them."""

    merged: int = 0
    before: int = 0
    after: int = 0
    rows: int = 0


def compact(data: Path, now: datetime, memory: str = "2GB") -> Compacted:
    """Merge the files of closed hours and days. Readers and landers go on meanwhile.

    Args:
        data: The data folder.
        now: The time. Files landed since the hour began are left alone.
        memory: What DuckDB may take; beyond it goes to disk.

    Raises:
        CompactionError: A file is damaged, or memory and disk do not suffice. What was merged before stays merged.
        CannotExchangeError: The file system cannot do it.
        OSError: The data folder is not writable.
    """
    data = data.resolve()
    views.publish(data)
    hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    done = Compacted()
    with swap.upkeep(data) as scratch:
        for dataset in DATASETS:
            for folder in sorted((data / dataset.name).glob("date=*")):
                # An hour is left to those who land what was recorded before midnight.
                is_closed = day_of(folder) < (hour - _HOUR).date()
                gone: list[Path] = []
                come: dict[Path, Path] = {}
                for stem, parts in _mergeable(folder, hour, is_closed=is_closed).items():
                    path = folder / f"{stem}-{swap.mark()}.parquet"
                    come[path] = scratch / path.name
                    ending = {name: value for name, value in _metadata(parts[-1]).items() if name in _OF_THE_END}
                    metadata = ending | {landing.START: str(landing.range_start(parts[0])).encode()}
                    done.rows += _merge(folder, parts, come[path], scratch, memory, metadata)
                    gone += parts
                _put(folder, scratch, gone, come, done)
        base = data / "base"
        gone, come = [], {}
        for folder in sorted(base.glob("date=*")):
            parts = sorted(folder.glob("[0-9]*.parquet"))
            if len(parts) > 1 and all(_metadata(path).get(CLOSED) == b"1" for path in parts):
                path = folder / f"all-{swap.mark()}.parquet"
                come[path] = scratch / path.name
                done.rows += _merge(folder, parts, come[path], scratch, memory, {CLOSED: b"1"})
                gone += parts
        if come:
            swap.turn(base)
        _put(base, scratch, gone, come, done)
        _count(data, (hour - _HOUR).date(), scratch, memory)
    return done


def _count(data: Path, before: date, scratch: Path, memory: str) -> None:
    """Count the webhooks of each date that is over, unless that was done for the files that are there."""
    due: dict[Path, tuple[str, bytes]] = {}
    gone: list[Path] = []
    found = views.covered(data)
    # The first day that is whole is the second one behind those that retention has dropped.
    dropped_until = found.floor - 2 * _DAY if found and found.floor > date.min else date.min
    for folder in sorted((data / "raw").glob("date=*")):
        paths = sorted(folder.iterdir())
        # Of a date that retention has dropped, files without rows are left, and what was counted.
        if day_of(folder) >= before or not any(_footer(path).num_rows for path in paths):
            continue
        sql = views.sums_sql("webhooks", f"(FROM raw_webhooks WHERE date = DATE '{day_of(folder)}')")
        counted = hashlib.sha256("\n".join([sql, *(path.name for path in paths)]).encode()).hexdigest().encode()
        old = list((data / "webhooks" / folder.name).glob("[0-9]*.parquet"))
        if old and day_of(folder) <= dropped_until:
            continue  # a restored Kafka has brought a part of the webhooks again
        if not any(_metadata(path).get(_COUNTED) == counted for path in old):
            due[data / "webhooks" / folder.name / f"0-{swap.mark()}.parquet"] = sql, counted
            gone += old
    if not due:
        return
    schema = SCHEMAS["webhooks"]
    with _told(data / "raw"), open_warehouse(data) as connection:
        connection.execute("SET memory_limit = ?", [memory])
        connection.execute("SET temp_directory = ?", [str(scratch / "spill")])
        for place, (sql, counted) in due.items():
            rows = connection.sql(f"SELECT {', '.join(schema.names)} FROM ({sql})").to_arrow_table()  # noqa: S608 - ours
            pq.write_table(rows.cast(schema.with_metadata({_COUNTED: counted})), scratch / place.name)
    swap.swap(data / "webhooks", scratch, gone, {place: scratch / place.name for place in due})
    views.publish(data)


def _put(folder: Path, scratch: Path, gone: list[Path], come: dict[Path, Path], done: Compacted) -> None:
    if come:
        swap.swap(folder, scratch, gone, come)
        for path in come.values():
            path.unlink()
        done.merged += len(come)
        done.before += len(gone)
        done.after += len(come)


def _metadata(path: Path) -> dict[bytes, bytes]:
    return _footer(path).metadata or {}


def _footer(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except pa.ArrowException as error:
        raise CompactionError(path.parent, f"{path.name}: {error}".partition("\n")[0]) from error


def _mergeable(folder: Path, hour: datetime, *, is_closed: bool) -> dict[str, list[Path]]:
    """Return the files that are to be one, in the order of their ranges, by what to name it after."""
    found: dict[PartitionLog, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        name = landing.LANDED.fullmatch(path.name)
        if name and path.stat().st_mtime < hour.timestamp() and (is_closed or not name["merged"]):
            found.setdefault(landing.log_of(name), []).append(path)
    runs = [run for parts in found.values() if len(parts) > 1 for run in _runs(parts) if len(run) > 1]
    names = ((landing.LANDED.fullmatch(run[-1].name), run) for run in runs)
    return {landing.stem(name): run for name, run in names if name}


def _runs(parts: list[Path]) -> Iterator[list[Path]]:
    """Split the files of a partition where one does not begin at which the one before it ended."""
    run: list[Path] = []
    following = None
    for path in parts:
        if run and landing.range_start(path) != following:
            yield run
            run = []
        run.append(path)
        following = int(_metadata(path).get(landing.NEXT, -1))
    yield run


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Tell what DuckDB and pyarrow say of a folder's files as errors of ours."""
    try:
        yield
    except duckdb.IOException as error:
        raise OSError(" ".join(str(error).split())) from error
    except (duckdb.Error, pa.ArrowException) as error:
        raise CompactionError(folder, f"{type(error).__name__}: {error}".partition("\n")[0]) from error


def _merge(
    folder: Path, parts: list[Path], target: Path, scratch: Path, memory: str, metadata: dict[bytes, bytes]
) -> int:
    """Write the rows of files as one file, and return how many there are."""
    with _told(folder):
        expected = sum(pq.read_metadata(path).num_rows for path in parts)
        schema = SCHEMAS[folder.parent.name]
        with duckdb.connect(config={"memory_limit": memory, "temp_directory": str(scratch / "spill")}) as connection:
            size, codec = layout(folder.parent.name)
            rows = _sorted_rows(connection, folder.parent, schema, parts)
            _write(rows.to_arrow_reader(size), target, schema.with_metadata(metadata), codec)
        # What it holds was landed from then on: incarnations are ordered by when their first files were.
        landed = min(path.stat().st_mtime for path in parts)
        os.utime(target, (landed, landed))
    count: int = pq.read_metadata(target).num_rows
    if count != expected:
        raise CompactionError(folder, f"{count} rows came out of {expected}")
    return count


def _sorted_rows(
    connection: duckdb.DuckDBPyConnection, dataset: Path, schema: pa.Schema, parts: list[Path]
) -> duckdb.DuckDBPyRelation:
    """Return the rows of files with all columns of the dataset, sorted by message and offset."""
    seed = dataset / f"date={landing.SEED_DATE}" / landing.SEED  # has the columns that older files lack
    files = ", ".join(views.literal(str(path)) for path in (seed, *parts))
    connection.execute("SET TimeZone = 'UTC'")
    source = f"read_parquet([{files}], union_by_name = true, hive_partitioning = false)"
    unknown = {row[0] for row in connection.execute(f"DESCRIBE FROM {source}").fetchall()} - set(schema.names)
    if unknown:
        detail = f"there are columns of a newer smspulse: {', '.join(sorted(unknown))}"
        raise CompactionError(parts[0].parent, detail)
    columns = ", ".join(f'"{name}"' for name in schema.names)
    key = [name for name in ("source", "sms_id", "offset") if name in schema.names]
    order = ", ".join(f'"{name}"' for name in key)
    query = f"SELECT {columns} FROM {source} ORDER BY {order}"  # noqa: S608 - names of ours
    return connection.sql(query)


def _write(rows: pa.RecordBatchReader, target: Path, schema: pa.Schema, codec: str) -> None:
    """Write rows as one file of a dataset, a row group at a time."""
    with pq.ParquetWriter(target, schema, compression=codec, **landing.encodings(schema)) as writer:
        for batch in rows:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))


def layout(dataset: str) -> tuple[int, str]:
    """Return the rows of a row group, and the codec, with which files of a dataset are written anew."""
    is_rebuilt = dataset in {"base", "differences"}
    return (ROW_GROUP, CODEC) if is_rebuilt else (_ROW_GROUP, "zstd")


def day_of(folder: Path) -> date:
    """Return the day of a folder `date=…`."""
    return date.fromisoformat(folder.name.removeprefix("date="))
