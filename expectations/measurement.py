"""Measurement of the suites: DuckDB reads all landed data, and returns small frames of measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from expectations.catalogue import RELATION_BY_DATASET
from expectations.expectation import QualityCheck
from expectations.report import MAX_NAMED, CheckResult
from expectations.settings import CheckSettings
from gateway.statuses import StatusCode

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

# Earlier than every record.
_BEGINNING: Final = datetime(1, 1, 1, tzinfo=UTC)

# Until when the stream has processed each partition, by the receipt of its webhooks.
_CREATE_REACHED_SQL: Final = """
    CREATE TEMP TABLE reached AS
    SELECT "partition", max(reached_at) AS until
    FROM (
        SELECT "partition", max(last_seen_at) AS reached_at FROM version_files GROUP BY ALL
        UNION ALL
        SELECT origin_partition, max(received_at) FROM deadletter_files GROUP BY ALL
    )
    WHERE "partition" IS NOT NULL
    GROUP BY "partition"
"""
_LANDED_SQL: Final = """
    WITH landed AS (
        SELECT "partition", count(*) AS webhooks, min(received_at) AS first, max(received_at) AS until
        FROM raw_files
        GROUP BY ALL
    )
    SELECT
        coalesce(sum(webhooks), 0)::BIGINT, (SELECT count(*) FROM version_files), min(landed.first),
        -- Of a partition whose webhooks land later than the stream's versions of them, no more is known.
        coalesce(min(landed.until) FILTER (landed.until < reached.until), max(landed.until))
    FROM landed
    LEFT JOIN reached USING ("partition")
"""
_CREATE_LOG_SQL: Final = """
    CREATE TEMP TABLE log AS
    SELECT
        source, sms_id, status_id, device_id, channel_id, sent_at, address AS recipient,
        coalesce(received_at, recorded_at) AS reported_at,
        coalesce(reported_at < until - getvariable('waiting'), false) AS is_settled
    FROM raw_files
    LEFT JOIN reached USING ("partition")
    WHERE kind = 'status' AND source IS NOT NULL AND reported_at >= getvariable('counted')
        -- DuckDB skips files by this column.
        AND recorded_at >= getvariable('counted') - INTERVAL 1 DAY
        AND ("partition", "offset", coalesce(ingest_id, '')) NOT IN (
            SELECT (origin_partition, origin_offset, coalesce(ingest_id, '')) FROM deadletter_files
            WHERE origin_partition IS NOT NULL AND origin_offset IS NOT NULL
        )
"""
_CREATE_SHOWN_SQL: Final = """
    CREATE TEMP TABLE shown AS
    SELECT source, sms_id, first_seen_at, last_seen_at, outcome, is_ended FROM messages
    WHERE last_seen_at >= getvariable('counted')
"""
_CREATE_RECOMPUTED_SQL: Final = """
    CREATE TEMP TABLE recomputed AS
    SELECT
        source, sms_id, first_seen_at, last_seen_at, winner, furthest, incoming,
        (source, sms_id) IN (SELECT (source, sms_id) FROM log WHERE NOT is_settled) AS is_moving
    FROM reported_state
    ANTI JOIN (FROM shown WHERE first_seen_at < getvariable('counted')) USING (source, sms_id)
"""


@dataclass(frozen=True, slots=True)
class SuiteMeasures:
    """The measures of a suite.

    Args:
        suite: Name of the suite.
        checks: The checks of the measures.
        measures: A row for each scope, a column for each check. A column `{check}_rows` has lists of faulty rows.
    """

    suite: str
    checks: Sequence[QualityCheck]
    measures: "pd.DataFrame"


class MeasurementSession:
    """A connection on which the SQL of the measures can run."""

    def __init__(
        self,
        connection: "duckdb.DuckDBPyConnection",
        data: Path,
        settings: CheckSettings,
        now: datetime,
        since: datetime | None,
        statuses: Mapping[int, StatusCode],
    ) -> None:
        self._connection, self._data, self._settings = connection, data, settings
        self._now, self._since, self._statuses = now, since, statuses
        self._wrong: list[QualityCheck] = []

    def create_views(self) -> tuple[int, int]:
        """Create the views and variables that the SQL reads; return the number of webhooks and of versions."""
        from warehouse.sql_text import dataset_scan_sql  # noqa: PLC0415

        self._set_thresholds()
        for name, dataset in (("raw", "raw"), ("version", "messages"), ("deadletter", "deadletters")):
            self._fetch_rows(
                f"CREATE TEMP VIEW {name}_files AS FROM {dataset_scan_sql(self._data / dataset, filename=True)} "
                "WHERE date >= getvariable('since_day')"
            )
        delivery, details = (dataset_scan_sql(self._data / name) for name in ("base/delivery", "base"))
        self._fetch_rows(f"CREATE TEMP VIEW kept AS FROM {delivery} WHERE date NOT IN (SELECT date FROM {details})")  # noqa: S608
        self._fetch_rows(_CREATE_REACHED_SQL)
        ((webhooks, versions, first, logged),) = self._fetch_rows(_LANDED_SQL)
        self._set_period(first, logged)
        return webhooks, versions

    def _set_thresholds(self) -> None:
        settings, since = self._settings, self._since or _BEGINNING
        self._set_variables(
            now=self._now,
            since=since,
            since_day=since.date(),
            is_part=self._since is not None,
            recent=self._now - timedelta(hours=settings.recent_h),
            waiting=timedelta(seconds=settings.max_waiting_s),
            min_expected=settings.min_expected,
            statuses=sorted(self._statuses),
            outcomes=[{"id": s.id, "of": s.outcome.value, "is_end": s.is_end} for s in self._statuses.values()],
        )

    def _set_period(self, first: datetime | None, logged: datetime | None) -> None:
        """Set the times between which the log and the views can be compared.

        Args:
            first: Receipt of the first webhook.
            logged: Receipt of the last webhook that the stream has reached.
        """
        from warehouse.watermark import read_base_watermark  # noqa: PLC0415

        since = self._since or _BEGINNING
        # Raw webhooks of before the earliest complete day were dropped for their age.
        base = read_base_watermark(self._data)
        complete = datetime.combine(base.floor, time(), UTC) if base else _BEGINNING
        begun = max(first or _BEGINNING, since, complete)
        recent = max(self._now - timedelta(hours=self._settings.recent_h), since) + timedelta(hours=1)
        # Whole hours are counted.
        counted = max(recent, begun).replace(minute=0, second=0, microsecond=0)
        self._set_variables(covered=begun, logged=logged or _BEGINNING, counted=counted)

    def _fetch_rows(self, sql: str) -> list[Any]:
        from warehouse.reader import retry_after_merge  # noqa: PLC0415

        # A compaction may remove a file while it is read.
        return retry_after_merge(lambda: self._connection.execute(sql).fetchall())

    def _set_variables(self, **variables: object) -> None:
        for name, value in variables.items():
            self._connection.execute(f"SET VARIABLE {name} = ?", [value])

    def measure_suite(self, suite: str, checks: Sequence[QualityCheck]) -> SuiteMeasures:
        """Return the measures of a suite."""
        from warehouse.reader import retry_after_merge  # noqa: PLC0415

        wrong = [check for check in checks if check.wrong]
        # The suites devices and delivery read tables of the suite messages, which may not run.
        if suite == "messages" or (suite == "devices" and not self._has_latest):
            self._create_latest(wrong)
        if suite == "messages" or (suite == "delivery" and not self._has_recomputed):
            self._create_recomputed()
        queries = [files("expectations").joinpath("measures", f"{suite}.sql").read_text("utf-8")]
        if suite in RELATION_BY_DATASET:
            queries += [self._files_sql(suite), self._wrong_sql(suite, wrong)]
        sql = "\nUNION ALL BY NAME\n".join(f"FROM ({query})" for query in queries)
        measures = retry_after_merge(lambda: self._connection.execute(sql).df())
        if suite == "delivery" and measures[["delivery_adds_up", "delivery_from_raw"]].any(axis=None):
            # Data that landed between the reads of two views looks like a difference. A second read does not have it.
            measures = retry_after_merge(lambda: self._connection.execute(sql).df())
        return SuiteMeasures(suite, checks, measures)

    _has_latest = False

    def _create_latest(self, wrong: Sequence[QualityCheck]) -> None:
        """Create `latest`: the messages with few columns. `faults` has one bit for each check."""
        self._has_latest = True
        faults = " | ".join(f"(coalesce({c.wrong}, false)::BIGINT << {bit})" for bit, c in enumerate(wrong)) or "0"
        self._fetch_rows(f"""
            CREATE TEMP TABLE latest AS
            SELECT
                coalesce(source, '(no source)') AS source, sms_id,
                message_key IS DISTINCT FROM source || ':' || sms_id AS is_misnamed, outcome, is_ended, device_id,
                first_seen_at, last_seen_at, contradicted, {faults} AS faults
            FROM messages
            WHERE first_seen_at >= getvariable('since') OR first_seen_at IS NULL
        """)  # noqa: S608 - conditions of ours

    _has_recomputed = False

    def _create_recomputed(self) -> None:
        """Create `recomputed`: the recent messages, derived from the raw webhooks as `rebuild` does.

        Also creates `shown`: the same messages from the views. `is_moving` marks messages that the stream may not have
        processed yet.
        """
        from warehouse.lifecycle_sql import (  # noqa: PLC0415
            create_message_summary_table,
            create_reported_state_view,
            create_statuses_table,
        )

        self._has_recomputed = True
        create_statuses_table(self._connection, self._statuses)
        self._fetch_rows(_CREATE_LOG_SQL)
        create_message_summary_table(self._connection)
        create_reported_state_view(self._connection)
        self._fetch_rows(_CREATE_SHOWN_SQL)
        self._fetch_rows(_CREATE_RECOMPUTED_SQL)

    def _files_sql(self, suite: str) -> str:
        from warehouse.sql_text import dataset_glob_sql  # noqa: PLC0415

        sql = files("expectations").joinpath("measures", "files.sql").read_text("utf-8")
        return sql.replace("{dataset}", suite).replace("{glob}", dataset_glob_sql(self._data / suite))

    @staticmethod
    def _wrong_sql(suite: str, wrong: Sequence[QualityCheck]) -> str:
        is_wrong = [f"faults & {1 << bit} > 0" for bit in range(len(wrong))] if suite == "messages" else [
            check.wrong for check in wrong
        ]  # fmt: skip
        columns = ", ".join(
            f"count(*) FILTER ({condition}) AS {check.name}" for condition, check in zip(is_wrong, wrong, strict=True)
        )
        relation = "latest" if suite == "messages" else RELATION_BY_DATASET[suite][0]
        return f"SELECT coalesce(source, '(no source)') AS scope, {columns} FROM {relation} GROUP BY ALL"  # noqa: S608

    def name_faulty_rows(self, check: QualityCheck, row: CheckResult) -> CheckResult:
        """Return a result with the names of some faulty rows."""
        if row.success or row.rows:
            return row
        sql = check.rows
        if check.wrong:
            relation, name = RELATION_BY_DATASET[check.suite]
            sql = f"SELECT {name} FROM {relation} WHERE {check.wrong}"  # noqa: S608 - conditions of ours
        if not sql:
            return row
        found = self._fetch_rows(f"FROM ({sql}) LIMIT {MAX_NAMED}")
        return replace(row, rows=tuple(str(name) for (name,) in found))
