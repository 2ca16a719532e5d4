"""Measurement of the suites: DuckDB reads all landed data, and returns small frames of measures."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final

import duckdb
import pandas as pd

from expectations.catalogue import RELATION_BY_DATASET, read_resource
from expectations.quality_check import MAX_NAMED, CheckResult, QualityCheck
from expectations.settings import CheckSettings
from gateway.statuses import StatusCode
from warehouse.lifecycle_sql import create_message_summary_table, create_reported_state_view, create_statuses_table
from warehouse.partition_log import PartitionLog
from warehouse.reader import QueryParameters, fetch_rows, retry_after_merge
from warehouse.watermark import read_base_watermark, watermark_offset_sql

# Earlier than every record.
_BEGINNING: Final = datetime(1, 1, 1, tzinfo=UTC)
# The views of landed rows, and their datasets.
_DATASET_BY_VIEW: Final = {"deadletter_files": "deadletters", "version_files": "messages", "raw_files": "raw"}


@dataclass(frozen=True, slots=True)
class MeasurementSession:
    """A connection on which the SQL of the measures can run.

    Measures of landed rows are of one snapshot: the records that had landed when `create_views` looked. A lander may
    write and merge files meanwhile. Messages that it merges into base files are in the views, also if they are newer.

    Args:
        connection: The warehouse.
        data: The data folder.
        settings: The thresholds.
        now: The time before the first read. Ages are measured up to it.
        clock: Returns the present. It is read after the rows, so none of them is ahead of it unless a clock is wrong.
        since: Leave out files of earlier dates, and messages first seen earlier; None: leave out none.
        statuses: Meaning of each status id in the stream.
        checks: The checks of all suites.
    """

    connection: duckdb.DuckDBPyConnection
    data: Path
    settings: CheckSettings
    now: datetime
    clock: Callable[[], datetime]
    since: datetime | None
    statuses: Mapping[int, StatusCode]
    checks: Sequence[QualityCheck]

    def create_views(self) -> tuple[int, int]:
        """Create the views and variables that the SQL reads; return the number of webhooks and of versions."""
        since = self.since or _BEGINNING
        recent = self.now - timedelta(hours=self.settings.recent_h)
        self._set_variables(
            now=self.now,
            since=since,
            since_day=since.date(),
            is_part=self.since is not None,
            recent=recent,
            waiting=timedelta(seconds=self.settings.max_waiting_s),
            ahead=timedelta(seconds=self.settings.max_ahead_s),
            min_expected=self.settings.min_expected,
            statuses=sorted(self.statuses),
        )
        self._create_snapshot()
        self._run(f"CREATE TEMP MACRO landed_ranges(relation) AS TABLE {read_resource('tables', 'landed_ranges.sql')}")
        # The other tables and measures compare the log with the views up to these times.
        self._create_table("reached")
        (landed,) = self._run(read_resource("tables", "landed.sql"))
        # The log and the views can be compared from here on. Whole hours are counted.
        begun = max(landed["first"] or _BEGINNING, since, earliest_complete_time(self.data))
        counted = max(begun, recent + timedelta(hours=1)).replace(minute=0, second=0, microsecond=0)
        self._set_variables(covered=begun, logged=landed["logged"] or _BEGINNING, counted=counted)
        return landed["webhooks"], landed["versions"]

    def _create_snapshot(self) -> None:
        """Limit the views of landed rows, and all published views, to the offsets that have landed by now.

        Offsets of a log land in order. So its rows up to an offset are the same in each later read, whatever lands and
        whichever files are merged meanwhile.
        """
        self._create_table("landed_offsets")
        next_offsets: dict[str, dict[str, int]] = {dataset: {} for dataset in _DATASET_BY_VIEW.values()}
        for row in self._run("FROM landed_offsets"):
            log = PartitionLog(row["dataset"], row["partition"], row["incarnation"])
            next_offsets[row["dataset"]][log.file_label] = row["next"]
        has_landed = {name: f'"offset" < {watermark_offset_sql(offsets)}' for name, offsets in next_offsets.items()}
        for view, dataset in _DATASET_BY_VIEW.items():
            rows = f"dataset_files('{dataset}') WHERE date >= getvariable('since_day') AND {has_landed[dataset]}"
            self._run(f"CREATE TEMP VIEW {view} AS FROM {rows}")
        # The published views read the log of messages through this macro, and find the temporary one first.
        (catalog,) = self._run("SELECT current_database() AS name")
        parameters = 'filename, date, "partition", incarnation, "offset"'
        published = f"{catalog['name']}.is_unmerged({parameters})"
        self._run(f"CREATE TEMP MACRO is_unmerged({parameters}) AS {published} AND {has_landed['messages']}")

    def _run(self, sql: str) -> list[dict[str, Any]]:
        return fetch_rows(self.connection, sql)

    def _set_variables(self, **variables: object) -> None:
        for name, value in variables.items():
            self.connection.execute(f"SET VARIABLE {name} = ?", [value])

    def _create_table(self, name: str, wrong: str = "") -> None:
        """Create a table from its file in `tables/`."""
        sql = read_resource("tables", f"{name}.sql").replace("{wrong}", wrong)
        self._run(f"CREATE TEMP TABLE {name} AS {sql}")

    def create_tables(self, suites: Collection[str]) -> None:
        """Create the tables that the SQL of several suites reads."""
        if "messages" in suites:
            # A column for each check. The view is read once, because that is expensive.
            columns = [f"({check.wrong}) AS {check.name}" for check in self._checks_of_rows("messages")]
            self._create_table("latest", ", ".join(columns))
        if not {"messages", "delivery"}.isdisjoint(suites):
            # `recomputed` are the recent messages, derived from the raw webhooks as `rebuild` does it; `shown` are
            # the same messages from the views.
            create_statuses_table(self.connection, self.statuses)
            self._create_table("log")
            create_message_summary_table(self.connection)
            create_reported_state_view(self.connection)
            self._create_table("shown")
            self._create_table("recomputed")
        # Base files that are published meanwhile have later rows than the snapshot. They are in the tables by now.
        self._set_variables(read_at=self.clock())

    def _checks_of_rows(self, suite: str) -> list[QualityCheck]:
        return [check for check in self.checks if check.suite == suite and check.wrong]

    def measure_suite(self, suite: str) -> pd.DataFrame:
        """Return the measures of a suite.

        They have a row for each scope, a column for each check. A column `{check}_rows` has lists of faulty rows.
        """
        queries = [read_resource("measures", f"{suite}.sql")]
        if suite in RELATION_BY_DATASET:
            queries += [read_resource("measures", "files.sql").replace("{dataset}", suite), self._wrong_sql(suite)]
        sql = "\nUNION ALL BY NAME\n".join(f"FROM ({query})" for query in queries)
        return fetch_frame(self.connection, sql)

    def _wrong_sql(self, suite: str) -> str:
        relation = "latest" if suite == "messages" else RELATION_BY_DATASET[suite][0]
        columns = ", ".join(
            f"count(*) FILTER ({check.name if suite == 'messages' else check.wrong}) AS {check.name}"
            for check in self._checks_of_rows(suite)
        )
        return f"SELECT coalesce(source, '(no source)') AS scope, {columns} FROM {relation} GROUP BY ALL"  # noqa: S608

    def name_faulty_rows(self, row: CheckResult) -> CheckResult:
        """Return a result with the names of some faulty rows."""
        check = next((each for each in self.checks if each.name == row.expectation), None)
        if check is None or row.success or row.rows:
            return row
        sql = check.rows
        if check.wrong:
            relation, name = RELATION_BY_DATASET[check.suite]
            sql = f"SELECT {name} FROM {relation} WHERE {check.wrong}"  # noqa: S608 - conditions of ours
        found = self._run(f"FROM ({sql}) AS faulty(name) LIMIT {MAX_NAMED}") if sql else []
        return replace(row, rows=tuple(str(each["name"]) for each in found))


def earliest_complete_time(data: Path) -> datetime:
    """Return the time since when no raw webhook was dropped for its age."""
    base = read_base_watermark(data)
    return datetime.combine(base.floor, time(), UTC) if base else _BEGINNING


def fetch_frame(connection: duckdb.DuckDBPyConnection, sql: str, params: QueryParameters = None) -> pd.DataFrame:
    """Return the rows of a query. A compaction may remove a file while it is read."""
    return retry_after_merge(lambda: connection.execute(sql, params).df())
