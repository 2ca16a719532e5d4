"""Recent base files: messages that appeared since the last rebuild, and versions of others, merged every few seconds.

    {data}/base/recent/date=YYYY-MM-DD/{number}-{mark}.parquet      a row a message that no other base file holds
    {data}/base/recent/{rollup}/date=YYYY-MM-DD/0-{mark}.parquet    counts of them, except of latencies, whose
                                                                    percentiles cannot be added
    {data}/base/recent/updates/date=9999-12-31/{number}-{mark}.parquet
                                                                    the newest version of messages that other base files
                                                                    hold in an older one
    {data}/base/recent/covered.json                                 up to which offsets they hold everything

Without them, each query between two rebuilds would read every version that was landed since, and look for the newest
one of each message. With them, it does so for the versions of the last seconds. They follow from the stream's versions
alone. The next rebuild replaces them by base files that follow from the log.

Each run writes the new messages to a new file of each day. It merges it with the earlier files of that day that are
not much larger. So the number of files grows with the logarithm of the messages, and so does the number of times that a
row is written. All changes of a run are visible in one step. Then the views are published with the new watermark. A run
that is interrupted before leaves every number as it was: the views take the larger version of base and stream.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow.parquet as pq

from core.topics import MESSAGES
from warehouse import catalog
from warehouse.base_files import BaseFileWriter, list_rebuilt_files
from warehouse.datasets import DATASET_BY_TOPIC, RECENT_BASE, RECENT_UPDATES, ROLLUPS
from warehouse.errors import CompactionError
from warehouse.file_names import parse_folder_day
from warehouse.landed_files import list_newest_files
from warehouse.maintenance import atomic_replace
from warehouse.maintenance.file_merge import translate_file_errors
from warehouse.reader import LOCAL_FILE_SETTINGS
from warehouse.rollups import rollup_fingerprint
from warehouse.sink.range_metadata import read_next_offset
from warehouse.sql_text import load_sql, quote_sql_text
from warehouse.watermark import (
    UPDATES_DATE,
    WATERMARK_FILE,
    BaseWatermark,
    first_uncovered_day,
    read_base_watermark,
    read_recent_watermark,
)

_COUNTED_ROLLUPS: Final = tuple(name for name in ROLLUPS if name != "latency")
# A file is merged with newer ones that have at least a third of its rows together. A row is then written once for each
# factor of four in the number of messages, and a day has three files for each.
_MERGED_SHARE: Final = 3


@dataclass(slots=True)
class RecentBaseResult:
    """Counts of a run.

    Args:
        versions: Messages with new versions.
        rows: Rows written.
        files: Files of messages after it.
    """

    versions: int = 0
    rows: int = 0
    files: int = 0


def update_recent_base(data: Path, scratch: Path, limits: dict[str, Any]) -> RecentBaseResult:
    """Merge the versions that were landed since the last run into the recent base files. Readers go on meanwhile.

    Args:
        data: The data folder, resolved. The caller holds `lock_maintenance`.
        scratch: The folder for temporary files.
        limits: DuckDB's settings of memory, threads and the folder of what exceeds the memory.

    Raises:
        CompactionError: A file is damaged, or memory and disk do not suffice.
        CannotExchangeError: The file system cannot exchange folders.
        OSError: The data folder is not writable.
    """
    newest = {log.file_label: path for log, path in list_newest_files(data / DATASET_BY_TOPIC[MESSAGES]).items()}
    offsets = {label: read_next_offset(path, path) for label, path in newest.items()}
    recent = read_recent_watermark(data)
    if not offsets or (recent is not None and recent.offsets == offsets):
        return RecentBaseResult()
    earlier = recent or read_base_watermark(data)
    since = first_uncovered_day(parse_folder_day(path.parent) for path in newest.values())
    floor = earlier.floor if earlier else date.min
    watermark = BaseWatermark(since, offsets, floor, rollup_fingerprint())
    catalog.publish_views(data)
    with translate_file_errors(CompactionError, data / RECENT_BASE), _connect_to_views(data, limits) as connection:
        run = _RecentBaseUpdate(data, scratch, connection)
        run.write_files(recount=earlier is None or earlier.sums != rollup_fingerprint())
        run.replace_files(watermark)
    catalog.publish_views(data)
    return run.result


def _connect_to_views(data: Path, limits: dict[str, Any]) -> duckdb.DuckDBPyConnection:
    """Return a connection with a database in memory, which finds the macros and views of the data folder too."""
    connection = duckdb.connect(config=limits)
    connection.execute(LOCAL_FILE_SETTINGS)
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    connection.execute(f"ATTACH {quote_sql_text(str(data / catalog.CATALOG_FILE))} AS smspulse (READ_ONLY)")
    connection.execute("SET search_path = 'memory.main,smspulse.main'")
    return connection


class RecentFileReplacement:
    """Files of the recent base that are removed and added together. The added ones are temporary until then.

    Args:
        data: The data folder.
        scratch: Folder of the temporary files.
        connection: A connection with the macros of the data folder.
    """

    def __init__(self, data: Path, scratch: Path, connection: duckdb.DuckDBPyConnection) -> None:
        self._data, self._connection = data, connection
        self._folder = data / RECENT_BASE
        self._writer = BaseFileWriter(connection, data, scratch, RECENT_BASE)
        self.removed: list[Path] = []
        self.added: dict[Path, Path] = {}

    def list_files(self) -> list[Path]:
        """Return the present files of messages, the newest first."""
        return sorted(list_rebuilt_files(self._folder), key=_parse_run_number, reverse=True)

    def remove_files(self, paths: list[Path]) -> None:
        """Remove files of messages with their counts, which have the same day and number."""
        self.removed += paths
        for path in paths:
            for name in _COUNTED_ROLLUPS:
                self.removed += (self._folder / name / path.parent.name).glob(f"{_parse_run_number(path)}-*.parquet")

    def add_concluded_messages(self, number: int) -> None:
        """Write the rows of the table `concluded` to a file of each day, and count them."""
        days = self._connection.execute("SELECT DISTINCT day FROM concluded").fetchall()
        written = self._writer.write_days(number, {day: False for (day,) in days})
        by_day = [(parse_folder_day(place.parent), path) for place, path in written.items()]
        self.added |= written | self._writer.write_rollups(by_day, _COUNTED_ROLLUPS, number)

    def replace_updates(self, number: int) -> None:
        """Write the rows of the table `updates`. They replace all earlier updates."""
        self.removed += list_rebuilt_files(self._data / RECENT_UPDATES)
        if self._connection.execute("SELECT count(*) FROM updates").fetchall()[0][0]:
            place, path = self._writer.copy_to_parquet("FROM updates", RECENT_UPDATES, number, UPDATES_DATE)
            self.added[place] = path

    def drop_messages_of(self, base: Iterable[Path]) -> None:
        """Replace the files that have messages of new base files by files without these messages."""
        files = [str(path) for path in base]
        for path in self.list_files() if files else ():
            # Of the same name as in a run, for the writer.
            self._connection.execute(
                f"""
                CREATE OR REPLACE TABLE concluded AS
                SELECT *, DATE '{parse_folder_day(path.parent)}' AS day
                FROM read_parquet(?, hive_partitioning = false)
                ANTI JOIN read_parquet(?, hive_partitioning = false) AS base USING (source, sms_id)
                """,  # noqa: S608 - a day of ours
                [str(path), files],
            )
            rows = self._connection.execute("SELECT count(*) FROM concluded").fetchall()[0][0]
            if rows < pq.read_metadata(path).num_rows:
                self.remove_files([path])
                self.add_concluded_messages(_parse_run_number(path))


class _RecentBaseUpdate:
    """One run. Temporary files are in `scratch` until all are written."""

    def __init__(self, data: Path, scratch: Path, connection: duckdb.DuckDBPyConnection) -> None:
        self._scratch, self._connection = scratch, connection
        self._folder = data / RECENT_BASE
        self._files = RecentFileReplacement(data, scratch, connection)
        self.result = RecentBaseResult()

    def write_files(self, *, recount: bool) -> None:
        """Write the files of this run.

        Args:
            recount: Merge all files, since their counts are of another version.
        """
        # The stream writes no others. A base file has a day, and one row for each message.
        self._connection.execute("""
            CREATE TEMP MACRO is_complete(source, sms_id, first_seen_at) AS
            source IS NOT NULL AND sms_id IS NOT NULL AND first_seen_at IS NOT NULL
        """)
        self._create_table("live", "SELECT * FROM live_messages")
        merged = self._select_merged_files(recount=recount)
        self._connection.execute("SET VARIABLE merged_files = ?", [[str(path) for path in merged]])
        self._create_table(
            "merged",
            f"SELECT * EXCLUDE (filename, date), date AS day FROM dataset_files('{RECENT_BASE}') "  # noqa: S608 - ours
            "WHERE list_contains(getvariable('merged_files'), filename)",
        )
        for name in ("outdated", "concluded", "updates"):
            self._create_table(name, load_sql("recent", name))
        number = 1 + max(map(_parse_run_number, self._files.list_files()), default=0)
        self._files.remove_files(merged)
        self._files.add_concluded_messages(number)
        self._files.replace_updates(number)
        self.result.versions = self._fetch_rows("SELECT count(*) FROM live")[0][0]
        self.result.rows = self._fetch_rows("SELECT count(*) FROM concluded")[0][0]

    def replace_files(self, watermark: BaseWatermark) -> None:
        """Replace the earlier files by those of this run, in one step."""
        temporary = self._scratch / f"recent-{WATERMARK_FILE}"
        temporary.write_text(watermark.to_json())
        added = dict(self._files.added)
        for folder in {place.parent for place in self._files.added}:
            atomic_replace.add_rotating_seed(folder.parent)
            added |= atomic_replace.prepare_rotating_seed(folder.parent, parse_folder_day(folder))
        added[self._folder / WATERMARK_FILE] = temporary
        atomic_replace.replace_files(self._folder, self._scratch, self._files.removed, added)
        self.result.files = len(self._files.list_files())

    def _create_table(self, name: str, sql: str) -> None:
        self._connection.execute(f"CREATE TABLE {name} AS {sql}")

    def _fetch_rows(self, sql: str) -> list[Any]:
        return self._connection.execute(sql).fetchall()

    def _select_merged_files(self, *, recount: bool) -> list[Path]:
        """Return the files that are merged with the new rows: the newest ones of each day, up to one much larger."""
        new_rows = self._fetch_rows("SELECT (first_seen_at AT TIME ZONE 'UTC')::DATE, count(*) FROM live GROUP BY 1")
        totals = dict(new_rows)
        selected: list[Path] = []
        finished: set[date] = set()
        for path in self._files.list_files():
            day, rows = parse_folder_day(path.parent), pq.read_metadata(path).num_rows
            if rows > _MERGED_SHARE * totals.get(day, 0) and not recount:
                finished.add(day)
            if day not in finished:
                selected.append(path)
                totals[day] = totals.get(day, 0) + rows
        return selected


def _parse_run_number(path: Path) -> int:
    """Return the number of the run that has written a file."""
    return int(path.name.partition("-")[0])
