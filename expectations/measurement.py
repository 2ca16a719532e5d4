"""Measurement of the suites: DuckDB reads all landed data, and returns small frames of measures."""

from collections.abc import Collection, Mapping, Sequence
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
from warehouse.reader import QueryParameters, fetch_rows, retry_after_merge
from warehouse.watermark import read_base_watermark

# Earlier than every record.
_BEGINNING: Final = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class MeasurementSession:
    """A connection on which the SQL of the measures can run.

    Args:
        connection: The warehouse.
        data: The data folder.
        settings: The thresholds.
        now: Reference of freshness.
        since: Leave out files of earlier dates, and messages first seen earlier; None: leave out none.
        statuses: Meaning of each status id in the stream.
        checks: The checks of all suites.
    """

    connection: duckdb.DuckDBPyConnection
    data: Path
    settings: CheckSettings
    now: datetime
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
            min_expected=self.settings.min_expected,
            statuses=sorted(self.statuses),
        )
        for name, dataset in (("raw", "raw"), ("version", "messages"), ("deadletter", "deadletters")):
            rows = f"dataset_files('{dataset}') WHERE date >= getvariable('since_day')"
            self._run(f"CREATE TEMP VIEW {name}_files AS FROM {rows}")
        self._run(f"CREATE TEMP MACRO landed_ranges(relation) AS TABLE {read_resource('tables', 'landed_ranges.sql')}")
        # The other tables and measures compare the log with the views up to these times.
        self._create_table("reached")
        (landed,) = self._run(read_resource("tables", "landed.sql"))
        # The log and the views can be compared from here on. Whole hours are counted.
        begun = max(landed["first"] or _BEGINNING, since, earliest_complete_time(self.data))
        counted = max(begun, recent + timedelta(hours=1)).replace(minute=0, second=0, microsecond=0)
        self._set_variables(covered=begun, logged=landed["logged"] or _BEGINNING, counted=counted)
        return landed["webhooks"], landed["versions"]

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
        measures = fetch_frame(self.connection, sql)
        if suite == "delivery" and measures[["delivery_adds_up", "delivery_from_raw"]].any(axis=None):
            # Data that landed between the reads of two views looks like a difference. A second read does not have it.
            measures = fetch_frame(self.connection, sql)
        return measures

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
