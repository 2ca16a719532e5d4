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
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from warehouse import catalog
from warehouse.base_files import CLOSED_DAY_KEY
from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.errors import CompactionError
from warehouse.file_names import is_merged_file, parse_folder_day
from warehouse.landed_files import group_files_by_log
from warehouse.maintenance import atomic_replace
from warehouse.maintenance.file_merge import (
    FileMerger,
    MergedFile,
    read_file_metadata,
    read_parquet_footer,
    split_at_gaps,
    translate_file_errors,
)
from warehouse.reader import open_warehouse
from warehouse.schemas import SCHEMAS
from warehouse.sql_text import load_sql
from warehouse.watermark import read_base_watermark

_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
# Key in the metadata of a date's counts: a hash of the SQL and of the names of the counted files.
_COUNTED_FILES_KEY: Final = b"smspulse.counted"


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
        self._merger = FileMerger(scratch, self._limits)
        # For an hour after midnight, sinks still land records of the day before.
        self._first_open_day = (hour - _HOUR).date()
        self.result = CompactionResult()

    def merge_landed_day(self, folder: Path) -> None:
        """Merge the files of one day of a landed dataset."""
        is_closed = parse_folder_day(folder) < self._first_open_day
        removed: list[Path] = []
        added: list[MergedFile] = []
        for parts in _find_mergeable_files(folder, self._hour, is_closed=is_closed):
            added.append(self._merger.merge_landed_files(parts))
            removed += parts
        # One exchange for all logs of the day, because each exchange lists the whole folder.
        self._replace_merged_files(folder, removed, added)

    def merge_base_days(self) -> None:
        """Merge the base files of each closed day."""
        base = self._data / "base"
        removed: list[Path] = []
        added: list[MergedFile] = []
        for folder in sorted(base.glob("date=*")):
            parts = sorted(folder.glob("[0-9]*.parquet"))
            if len(parts) > 1 and all(read_file_metadata(path).get(CLOSED_DAY_KEY) == b"1" for path in parts):
                target = folder / f"all-{atomic_replace.unique_suffix()}.parquet"
                added.append(self._merger.merge_files(target, parts, {CLOSED_DAY_KEY: b"1"}))
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
            if day >= self._first_open_day or not any(read_parquet_footer(path).num_rows for path in paths):
                continue
            target = self._data / "webhooks" / folder.name / f"0-{atomic_replace.unique_suffix()}.parquet"
            old = list(target.parent.glob("[0-9]*.parquet"))
            # A restored Kafka can bring a part of the webhooks of a dropped date again.
            if old and day <= dropped_until:
                continue
            names = [path.name for path in paths]
            counted = hashlib.sha256("\n".join([load_sql("rollups", "webhooks"), *names]).encode()).hexdigest().encode()
            if not any(read_file_metadata(path).get(_COUNTED_FILES_KEY) == counted for path in old):
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

    def _replace_merged_files(self, folder: Path, removed: list[Path], added: list[MergedFile]) -> None:
        atomic_replace.replace_files(folder, self._scratch, removed, {each.path: each.temporary for each in added})
        self.result.rows += sum(each.rows for each in added)
        self.result.files_before += len(removed)
        self.result.files_after += len(added)


def _find_mergeable_files(folder: Path, hour: datetime, *, is_closed: bool) -> list[list[Path]]:
    """Return lists of files to be merged, each in the order of their ranges."""
    mergeable = [
        [path for path in paths if path.stat().st_mtime < hour.timestamp() and (is_closed or not is_merged_file(path))]
        for paths in group_files_by_log(folder).values()
    ]
    return [run for parts in mergeable if len(parts) > 1 for run in split_at_gaps(parts) if len(run) > 1]
