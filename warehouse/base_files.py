"""Base files, a row a message, by the day of its first report; and the rollups and differences of a day."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from typing import Final

import duckdb

from warehouse.datasets import ROLLUPS
from warehouse.maintenance import atomic_replace
from warehouse.sql_text import quote_sql_text

BASE_ROW_GROUP_ROWS: Final = 40_960
"""Rows. A look-up by key reads the columns of one group, lists too, and checks every other group, which takes as long.
"""
BASE_CODEC: Final = "lz4"
"""Compression of base files: a tenth larger than with zstd, and a look-up takes a fifth less time."""
CLOSED_DAY_KEY: Final = b"smspulse.closed"
"""Key in a base file's metadata. Its value is `1` once the day is closed."""
# Bytes of base files, about six million messages.
_ROLLUP_BATCH_BYTES: Final = 1 << 29


def list_rebuilt_files(dataset: Path) -> list[Path]:
    """Return the files of base, differences or a rollup that have rows: those of partitions, and merged ones."""
    return [*dataset.glob("date=*/[0-9]*.parquet"), *dataset.glob("date=*/all-*.parquet")]


class BaseFileWriter:
    """Writes files from the tables of a rebuild, as temporary files: they are moved into place later.

    Args:
        connection: A connection with the macros of the data folder.
        data: The data folder.
        scratch: Folder of the temporary files.
        dataset: The dataset of the base files. Their rollups are in datasets below it.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, data: Path, scratch: Path, dataset: str = "base") -> None:
        self._connection, self._data, self._scratch, self._dataset = connection, data, scratch, dataset

    def write_days(self, partition: int, is_closed: dict[date, bool]) -> dict[Path, Path]:
        """Write the base files of a partition; return the temporary files by their paths in the data folder.

        Args:
            partition: The partition that is in `concluded`.
            is_closed: By day, whether it is closed.
        """
        query = "SELECT * EXCLUDE (day) FROM concluded WHERE day = DATE '{}'"
        return _copy_in_parallel(
            partial(self.copy_to_parquet, query.format(day), self._dataset, partition, day, closed=closed)
            for day, closed in is_closed.items()
        )

    def write_differences(self, partition: int, days: Iterable[date]) -> dict[Path, Path]:
        """Write a row a field on which stream and log differ, for those of the days that have any."""
        rows = self._connection.execute("SELECT DISTINCT day FROM differing WHERE what = 'different'").fetchall()
        different = {day for (day,) in rows}
        return dict(
            self.copy_to_parquet(
                f"""
                    SELECT source || ':' || sms_id AS message_key, source, sms_id, unnest(list_filter(
                        facts, lambda fact: fact.streamed IS DISTINCT FROM fact.rebuilt
                    ), recursive := true)
                    FROM differing WHERE what = 'different' AND day = DATE '{day}'
                """,  # noqa: S608 - a day of ours
                "differences",
                partition,
                day,
            )
            for day in days
            if day in different
        )

    def write_rollups(
        self, base: Iterable[tuple[date, Path]], names: Sequence[str] = ROLLUPS, number: int = 0
    ) -> dict[Path, Path]:
        """Count the messages of base files; return the temporary files by their paths in the data folder.

        Args:
            base: Base files, each with its day.
            names: Names of the rollups.
            number: Number in the names of the files.
        """
        by_day: dict[date, list[Path]] = {}
        for day, path in base:
            by_day.setdefault(day, []).append(path)
        # Before counting, so that `replace_files` seldom has to wait for them.
        atomic_replace.create_parent_folders(
            self._data / self._dataset / name / f"date={day}" / "files" for name in names for day in by_day
        )
        written: dict[Path, Path] = {}
        for days in _batch_days(by_day):
            files = ", ".join(quote_sql_text(str(path)) for day in days for path in by_day[day])
            self._connection.execute(f"""
                CREATE OR REPLACE TEMP VIEW counted_messages AS
                SELECT *, 1 AS sign, first_seen_at::DATE AS day
                FROM read_parquet([{files}], hive_partitioning = false)
            """)  # noqa: S608 - names of ours
            for name in names:
                self._connection.execute(f"CREATE OR REPLACE TABLE summed AS FROM count_{name}('counted_messages')")
                query, dataset = "SELECT * EXCLUDE (day) FROM summed WHERE day = DATE '{}'", f"{self._dataset}/{name}"
                written |= _copy_in_parallel(
                    partial(self.copy_to_parquet, query.format(day), dataset, number, day, "ALL") for day in days
                )
        return written

    def copy_to_parquet(
        self, query: str, dataset: str, number: int, day: date, order: str = "source, sms_id", *, closed: bool = True
    ) -> tuple[Path, Path]:
        """Write the rows of a query; return the path in the data folder, and the temporary file.

        Args:
            query: The query.
            dataset: Name of the dataset.
            number: Number at the beginning of the file's name.
            day: The day of its folder.
            order: SQL expressions by which the rows are sorted.
            closed: Whether the day is closed.
        """
        target_path = self._data / dataset / f"date={day}" / f"{number}-{atomic_replace.unique_suffix()}.parquet"
        atomic_replace.create_parent_folders([target_path])
        temporary = self._scratch / target_path.name
        # Sorted, so that a look-up by key reads one row group of a file. V2 stores numbers as differences. The codec
        # `lz4_raw` is what pyarrow calls lz4.
        self._connection.cursor().execute(
            f"COPY ({query} ORDER BY {order}) TO {quote_sql_text(str(temporary))} "
            f"(FORMAT parquet, PARQUET_VERSION V2, COMPRESSION {BASE_CODEC}_raw, ROW_GROUP_SIZE {BASE_ROW_GROUP_ROWS}, "
            f"KV_METADATA {{'{CLOSED_DAY_KEY.decode()}': '{int(closed)}'}})"
        )
        return target_path, temporary


def _batch_days(by_day: dict[date, list[Path]]) -> Iterable[list[date]]:
    """Group days to be counted together, by the size of their files.

    Many days at once, for their networks are mostly the same. Not all, for quantiles keep their values in memory.
    """
    batches: dict[int, list[date]] = {}
    size = 0
    for day, paths in by_day.items():
        size += sum(path.stat().st_size for path in paths)
        batches.setdefault(size // _ROLLUP_BATCH_BYTES, []).append(day)
    return batches.values()


def _copy_in_parallel(copies: Iterable[Callable[[], tuple[Path, Path]]]) -> dict[Path, Path]:
    # DuckDB begins and ends a file on one core. Two files at a time keep two cores busy.
    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(lambda copy: copy(), copies))
