"""Rebuild: recomputes lifecycles from the raw webhooks, and compares them with the stream's.

    {data}/base/date=YYYY-MM-DD/{partition}-{mark}.parquet      a row a message first seen on that day, sorted by key
                                                                (all-{mark}, once compaction has merged a closed day)
    {data}/base/{rollup}/date=YYYY-MM-DD/0-{mark}.parquet       counts of them, by warehouse/sql/rollups/*.sql
    {data}/differences/date=YYYY-MM-DD/{partition}-{mark}.parquet
                                                                where stream and log differ, a row a message and field
    {data}/base/covered.json                      up to which offsets of sms.messages the base holds everything

A day is closed once none of its messages is open and all were compared. Closed days are left alone until a new report
of one of their messages is received. Days that are not closed yet have base files too. So readers only have to sort out
what came since the last run. The order is: all of `base` in one step, `differences`, then the views. The views take the
larger version of base and stream, so a run that is interrupted anywhere leaves every number as it was. That holds after
a first complete run: the files of a single day do not outweigh the versions that the stream has written of it.

The columns that the stream read from a body were landed with it (`gateway.payloads.parse_payload`). So bodies are not
parsed a second time: lifecycles are computed a second time. A report can be in the log twice, as when Kafka wrote it
and did not acknowledge it. Both copies have the same time of receipt and are one fact. The clock is the newest record:
time passes up to the end of the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from core.records import MAX_OBSERVATIONS
from gateway.statuses import StatusCode
from warehouse import catalog
from warehouse.base_files import CLOSED_DAY_KEY, BaseFileWriter, list_rebuilt_files
from warehouse.datasets import RECENT_BASE, RECENT_UPDATES, ROLLUPS
from warehouse.errors import RebuildError
from warehouse.file_names import parse_folder_day
from warehouse.lifecycle_comparison import LifecycleComparison
from warehouse.maintenance import atomic_replace
from warehouse.maintenance.file_merge import translate_file_errors
from warehouse.maintenance.recent_base import RecentFileReplacement
from warehouse.rollups import has_current_rollups, rollup_fingerprint
from warehouse.watermark import (
    WATERMARK_FILE,
    BaseWatermark,
    first_uncovered_day,
    newer_versions_condition,
    read_base_watermark,
)


@dataclass(slots=True)
class RebuildResult:
    """Counts of a run.

    Args:
        days: Days whose base files were written.
        open_days: Those of them that are not closed yet.
        messages: Messages in these files.
        reports: Reports read from the log.
        differing: Messages on which stream and log differ.
        repaired: Messages that the stream had forgotten before their last report, complete again.
        unsettled: Messages that stream or sink had not reached yet. The next run compares them.
    """

    days: set[date]
    open_days: set[date]
    messages: int = 0
    reports: int = 0
    differing: int = 0
    repaired: int = 0
    unsettled: int = 0


def rebuild_base(
    data: Path,
    statuses: Mapping[int, StatusCode],
    expire_after: timedelta,
    *,
    day: date | None = None,
    everything: bool = False,
    memory: str = "3.8GB",
    max_observations: int = MAX_OBSERVATIONS,
) -> RebuildResult:
    """Recompute lifecycles from the log, compare them with the stream's, and write base files. Readers go on meanwhile.

    Args:
        data: The data folder.
        statuses: Meaning of each status id, as the stream has it.
        expire_after: Time without a report after which an open message expires, as the stream has it.
        day: Rebuild only the messages first seen on this day (UTC).
        everything: Rebuild all days, not only those that are not closed or have news.
        memory: Limit of DuckDB's memory. Beyond it, DuckDB writes to disk.
        max_observations: How many different reports a message holds, as the stream has it.

    Raises:
        RebuildError: The log of the day is missing, a file is damaged, or memory and disk do not suffice.
        OSError: The data folder is not writable.
    """
    data = data.resolve()
    catalog.publish_views(data)
    with atomic_replace.lock_maintenance(data) as scratch:
        # The views list these folders more than once, or together.
        rollups = [f"{base}/{name}" for base in ("base", RECENT_BASE) for name in ROLLUPS]
        for name in ("base", RECENT_BASE, RECENT_UPDATES, *rollups):
            atomic_replace.add_rotating_seed(data / name)
        with translate_file_errors(RebuildError, data), _connect(scratch, memory) as connection:
            run = _BaseRebuild(data, scratch, connection)
            run.comparison.create_input_views(statuses, expire_after, max_observations)
            return run.rebuild_days(day, everything=everything)


def _connect(scratch: Path, memory: str) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(
        config={
            "memory_limit": memory,
            # Memory is kept from table to table: to request it again takes a twentieth of the time.
            "block_allocator_memory": memory,
            "temp_directory": str(scratch / "spill"),
            # Every file is written with an order of its own.
            "preserve_insertion_order": False,
        }
    )


class _BaseRebuild:
    """One run. Temporary files are in `scratch` until all are written."""

    def __init__(self, data: Path, scratch: Path, connection: duckdb.DuckDBPyConnection) -> None:
        self._data, self._scratch, self._connection = data, scratch, connection
        self._watermark = read_base_watermark(data)
        self._earliest_complete_day = self._watermark.floor if self._watermark else date.min
        self._writer = BaseFileWriter(connection, data, scratch)
        self.comparison = LifecycleComparison(connection, data)
        self._result = RebuildResult(set(), set())

    def rebuild_days(self, only_day: date | None, *, everything: bool) -> RebuildResult:
        """Rebuild one day, all days, or those that are not closed or have news."""
        if only_day:
            self._check_log_has(only_day)
        start = None if everything else only_day or self._find_first_open_day()
        if self._earliest_complete_day > date.min:
            start = max(start or date.min, self._earliest_complete_day)
        self.comparison.begin_at(start)
        base: dict[Path, Path] = {}
        differences: dict[Path, Path] = {}
        for partition in self.comparison.list_partitions():
            self.comparison.compare_partition(partition)
            self._count_comparison()
            days = self._count_days(start, only_day)
            base |= self._writer.write_days(partition, days)
            differences |= self._writer.write_differences(partition, days)
            self.comparison.fetch_rows("DROP TABLE result")

        def is_old(path: Path) -> bool:
            # All partitions of a day are written together, so all its files are replaced, merged files too.
            day = parse_folder_day(path.parent)
            return day == only_day if only_day else day >= (start or date.min)

        old = [path for path in list_rebuilt_files(self._data / "base") if is_old(path)]
        rollup_files = self._write_rollups(base, old, recount=only_day is None)
        rewritten_folders = {place.parent for place in rollup_files}
        old_rollups = [path for name in ROLLUPS for path in list_rebuilt_files(self._data / "base" / name)]
        old += [path for path in old_rollups if is_old(path) or path.parent in rewritten_folders]
        self.comparison.fetch_rows("DROP VIEW IF EXISTS concluded")
        recent = RecentFileReplacement(self._data, self._scratch, self._connection)
        recent.drop_messages_of(base.values())
        old += recent.removed
        if only_day is None:
            base |= self._write_watermark()
            # The base holds these versions now.
            old += [self._data / RECENT_BASE / WATERMARK_FILE, *list_rebuilt_files(self._data / RECENT_UPDATES)]
        atomic_replace.replace_files(self._data / "base", self._scratch, old, base | rollup_files | recent.added)
        old = [path for path in list_rebuilt_files(self._data / "differences") if is_old(path)]
        atomic_replace.replace_files(self._data / "differences", self._scratch, old, differences)
        if only_day is None:
            catalog.publish_views(self._data)
        return self._result

    def _check_log_has(self, day: date) -> None:
        found = self.comparison.fetch_value("SELECT min(coalesce(received_at, recorded_at))::DATE FROM raw_files")
        if found is None or day < max(found, self._earliest_complete_day):
            begin = max(found, self._earliest_complete_day) if found else "no day"
            raise RebuildError(self._data, f"raw webhooks begin on {begin}, {day} cannot be rebuilt")

    def _find_first_open_day(self) -> date | None:
        """Return the first day that is not closed or has news; None without any closed day."""
        by_day: dict[date, list[bool]] = {}
        for path in list_rebuilt_files(self._data / "base"):
            is_closed = (pq.read_metadata(path).metadata or {}).get(CLOSED_DAY_KEY) == b"1"
            by_day.setdefault(parse_folder_day(path.parent), []).append(is_closed)
        if not by_day:
            return None
        open_days = [day for day, closed in by_day.items() if not all(closed)]
        first = min(open_days, default=max(by_day) + timedelta(days=1))
        # Without regard to days: a Kafka that was away for long may bring versions of long ago.
        offsets = self._watermark.offsets if self._watermark else {}
        unmerged = newer_versions_condition(offsets) if offsets else "true"
        first_news = self.comparison.fetch_value(f"""
            SELECT min(least(base.date, live.first_seen_at::DATE))
            FROM (FROM messages_files WHERE version IS NOT NULL AND {unmerged}) AS live
            LEFT JOIN base_files AS base USING (source, sms_id)
            WHERE base.version IS NULL OR live.version >= base.version OR live.last_seen_at > base.last_seen_at
        """)  # noqa: S608 - a condition of ours
        return min(first, first_news or first)

    def _count_comparison(self) -> None:
        counts = dict(self.comparison.fetch_rows("SELECT what, count(*) FROM differing GROUP BY what"))
        self._result.differing += counts.get("different", 0)
        self._result.repaired += counts.get("repaired", 0)
        self._result.unsettled += counts.get("unsettled", 0)
        self._result.reports += self.comparison.fetch_value("SELECT getvariable('logged').reports")

    def _count_days(self, start: date | None, only_day: date | None) -> dict[date, bool]:
        """Return the days of a partition to be written, each with whether it is closed."""
        rows = self.comparison.fetch_rows("""
            SELECT
                day, count(*),
                bool_and(is_ended OR outcome = 'incoming') AND day < getvariable('horizon')::DATE
                AND day NOT IN (SELECT day FROM differing WHERE what = 'unsettled')
            FROM concluded GROUP BY day
        """)
        days: dict[date, bool] = {}
        for day, messages, is_closed in rows:
            if only_day in {None, day} and (start is None or day >= start):
                days[day] = is_closed
                self._result.messages += messages
                self._result.days.add(day)
                if not is_closed:
                    self._result.open_days.add(day)
        return days

    def _write_rollups(self, base: dict[Path, Path], old: list[Path], *, recount: bool) -> dict[Path, Path]:
        """Count the messages of the new base files, and of all kept ones if this version counts in another way."""
        counted = {place: (parse_folder_day(place.parent), path) for place, path in base.items()}
        if recount and not has_current_rollups(self._data):
            kept = set(list_rebuilt_files(self._data / "base")) - set(old)
            counted |= {path: (parse_folder_day(path.parent), path) for path in kept}
        return self._writer.write_rollups(counted.values())

    def _write_watermark(self) -> dict[Path, Path]:
        since = first_uncovered_day(self.comparison.newest_days)
        watermark = BaseWatermark(since, self.comparison.end_offsets, self._earliest_complete_day, rollup_fingerprint())
        temporary = self._scratch / WATERMARK_FILE
        temporary.write_text(watermark.to_json())
        return {self._data / "base" / WATERMARK_FILE: temporary}
