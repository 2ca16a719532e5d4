"""Merges files of one folder into one. The merged file has exactly the rows of its parts, sorted by message.

A merged landed file has the `start` of the last of its parts in its name, and their `next` in its metadata: sinks take
their positions from these. It is one range. Files between which one is missing are not merged, so that the gap stays
visible.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.base_files import BASE_CODEC, BASE_ROW_GROUP_ROWS
from warehouse.datasets import RECENT_BASE
from warehouse.errors import CompactionError, WarehouseError
from warehouse.file_names import SEED_DATE, SEED_FILE
from warehouse.maintenance import atomic_replace
from warehouse.schemas import SCHEMAS
from warehouse.sink import parquet_files
from warehouse.sink.range_metadata import NEXT_OFFSET_KEY, RANGE_START_KEY, read_end_metadata, read_range_start
from warehouse.sql_text import quote_sql_text

# Small row groups, so that a look-up reads little.
_LANDED_ROW_GROUP_ROWS: Final = 60_000
_REBUILT_DATASETS: Final = {"base", "differences", RECENT_BASE}


class MergedFile(NamedTuple):
    """A merged file that is not in place yet.

    Args:
        path: The path that it is for.
        temporary: Where it is now.
        rows: Number of its rows.
    """

    path: Path
    temporary: Path
    rows: int


class FileMerger:
    """Merges files of a data folder.

    Args:
        scratch: A folder for temporary files, on the same file system.
        limits: DuckDB's settings of memory, threads and the folder of what exceeds the memory.
    """

    def __init__(self, scratch: Path, limits: dict[str, Any]) -> None:
        self._scratch, self._limits = scratch, limits

    def merge_landed_files(self, parts: list[Path]) -> MergedFile:
        """Merge landed files of one log and day, in the order of their ranges, without a gap between them.

        Raises:
            CompactionError: A file is damaged, or memory and disk do not suffice.
            OSError: The folder is not writable.
        """
        start = {RANGE_START_KEY: str(read_range_start(parts[0])).encode()}
        return self.merge_files(atomic_replace.name_successor(parts[-1]), parts, start | read_end_metadata(parts[-1]))

    def merge_files(self, target: Path, parts: list[Path], metadata: dict[bytes, bytes]) -> MergedFile:
        """Write the rows of files of one folder as one temporary file.

        Args:
            target: The path that the file is for, in the same folder.
            parts: The files.
            metadata: Metadata of the file.

        Raises:
            CompactionError: A file is damaged, or memory and disk do not suffice.
            OSError: The folder is not writable.
        """
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
        return MergedFile(target, temporary, count)


def read_file_metadata(path: Path) -> dict[bytes, bytes]:
    """Return the metadata of a file.

    Raises:
        CompactionError: It is damaged.
    """
    return read_parquet_footer(path).metadata or {}


def read_parquet_footer(path: Path) -> pq.FileMetaData:
    """Return the footer of a file.

    Raises:
        CompactionError: It is damaged.
    """
    try:
        return pq.read_metadata(path)
    except pa.ArrowException as error:
        raise CompactionError(path.parent, f"{path.name}: {error}".partition("\n")[0]) from error


def split_at_gaps(parts: list[Path]) -> Iterator[list[Path]]:
    """Split the files of a partition where one does not begin at the end of the file before."""
    run: list[Path] = []
    following = None
    for path in parts:
        if run and read_range_start(path) != following:
            yield run
            run = []
        run.append(path)
        following = int(read_file_metadata(path).get(NEXT_OFFSET_KEY, -1))
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
    is_rebuilt = dataset in _REBUILT_DATASETS
    return (BASE_ROW_GROUP_ROWS, BASE_CODEC) if is_rebuilt else (_LANDED_ROW_GROUP_ROWS, "zstd")
