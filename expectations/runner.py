"""Runs the suites: DuckDB measures everything that was landed, Great Expectations judges the small frames of measures.

Great Expectations' own DuckDB connector is not used: it fails on most expectations (its issue 10738).
"""

import logging
import os
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from functools import cache
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from expectations.catalogue import RELATION_BY_DATASET, SUITE_NAMES, build_checks
from expectations.errors import ExpectationFailedToRunError, MissingExtraError, UnreadableDataError
from expectations.expectation import QualityCheck, Severity, build_suite
from expectations.settings import CheckSettings
from gateway.statuses import STATUSES, StatusCode

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

LANDED_SUITES: Final = SUITE_NAMES[:-1]
"""Suites of what was landed; `reconciliation` is measured elsewhere, since it looks at more."""

_MAX_NAMED: Final = 5
"""Scopes, and rows, named in one row of a report."""
_DETAILED_RESULT_FORMAT: Final = {"result_format": "COMPLETE", "unexpected_index_column_names": ["scope"]}
"""What Great Expectations is asked of an expectation that does not hold: which scopes."""
_BEGINNING: Final = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What became of one expectation.

    Args:
        expectation: Its stable name.
        dataset: What it is about.
        severity: How much it matters.
        success: Whether it holds.
        observed: The offending values by scope (source or partition), or the range of values if it holds.
        expected: The values that are right.
        meaning: What is the matter if it does not hold.
        action: What to do then.
        rows: Some of the rows at fault, where they can be named.
    """

    expectation: str
    dataset: str
    severity: Severity
    success: bool
    observed: str
    expected: str
    meaning: str
    action: str
    rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a run of the checks found. An empty warehouse has no rows, and `note` says so."""

    rows: tuple[CheckResult, ...]
    note: str
    checked_at: datetime

    @property
    def exit_code(self) -> int:
        """0 unless something critical does not hold, then 1."""
        return int(any(not row.success and row.severity == "critical" for row in self.rows))


@dataclass(frozen=True, slots=True)
class SuiteMeasures:
    """The measures of a suite.

    Args:
        suite: Its name.
        checks: What must hold of them.
        measures: A row a scope, a column a check; a column `{check}_rows` has lists of rows at fault.
    """

    suite: str
    checks: Sequence[QualityCheck]
    measures: "pd.DataFrame"


def run_checks(
    data: Path,
    settings: CheckSettings,
    now: datetime | None = None,
    *,
    suites: Collection[str] = LANDED_SUITES,
    since: datetime | None = None,
    statuses: Mapping[int, StatusCode] = STATUSES,
    further: Sequence[SuiteMeasures] = (),
) -> CheckReport:
    """Check what was landed in a data folder. Reads only; a lander may go on meanwhile.

    Args:
        data: The data folder.
        settings: The thresholds.
        now: What freshness is measured against, with a time zone; the present by default.
        suites: Which to run.
        since: Leave out files of earlier dates, and messages first seen earlier.
        statuses: What each status id means, as the stream has it.
        further: Suites that were measured elsewhere.

    Raises:
        MissingExtraError: Great Expectations is not installed.
        NoWarehouseError: Nothing was published in the folder.
        UnreadableDataError: A file is damaged, or a view or column is missing.
        ExpectationFailedToRunError: Great Expectations gave up on an expectation.
    """
    import duckdb  # noqa: PLC0415 - late, for a quick start of the command line

    from warehouse.reader import open_warehouse  # noqa: PLC0415

    if find_spec("great_expectations") is None:
        raise MissingExtraError
    now = now or datetime.now(UTC)
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read on import: a check must not call home
    importing = threading.Thread(target=import_module, args=("great_expectations",))
    importing.start()  # it takes seconds, in which DuckDB can measure
    try:
        with open_warehouse(data) as connection, tempfile.TemporaryDirectory(prefix="smspulse-check.") as scratch:
            connection.execute("SET temp_directory = ?", [scratch])
            connection.execute("SET memory_limit = ?", [settings.memory])
            run = _CheckRun(connection, data.resolve(), settings, now, since, statuses)
            webhooks, versions = run.create_views()
            if not webhooks and not versions:
                note = f"the warehouse in {data} is empty"
                if since:
                    note = f"{data} has nothing since {since.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
                return CheckReport((), f"{note}: there is nothing to check", now)
            checks = build_checks(settings, statuses)
            measured = [
                run.measure_suite(suite, [c for c in checks if c.suite == suite])
                for suite in LANDED_SUITES
                if suite in suites
            ]
            rows = tuple(
                run.name_faulty_rows(*judged) for each in (*measured, *further) for judged in _judge_suite(each)
            )
    except duckdb.Error as error:
        raise UnreadableDataError(data, str(error).partition("\n")[0]) from error
    finally:
        importing.join()
    note = f"checked {webhooks:,} webhooks and {versions:,} versions of messages in {data}"
    return CheckReport(rows, note, now)


class _CheckRun:
    """A connection on which the measures' SQL can run."""

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
        """Make what the SQL reads; return the number of webhooks and of versions of messages."""
        from warehouse.sql_text import dataset_scan_sql  # noqa: PLC0415
        from warehouse.watermark import read_base_watermark  # noqa: PLC0415

        settings, since = self._settings, self._since or _BEGINNING
        self._set_variables(
            now=self._now,
            since=since,
            since_day=since.date(),
            is_part=self._since is not None,
            recent=self._now - timedelta(hours=settings.recent_h),
            waiting=timedelta(seconds=settings.max_waiting_s),
            quiet=settings.max_quiet_s,
            min_expected=settings.min_expected,
            statuses=sorted(self._statuses),
            outcomes=[{"id": s.id, "of": s.outcome.value, "is_end": s.is_end} for s in self._statuses.values()],
        )
        for name, dataset in (("raw", "raw"), ("version", "messages"), ("deadletter", "deadletters")):
            self._fetch_rows(
                f"CREATE TEMP VIEW {name}_files AS FROM {dataset_scan_sql(self._data / dataset, filename=True)} "
                "WHERE date >= getvariable('since_day')"
            )
        delivery, details = (dataset_scan_sql(self._data / name) for name in ("base/delivery", "base"))
        self._fetch_rows(f"CREATE TEMP VIEW kept AS FROM {delivery} WHERE date NOT IN (SELECT date FROM {details})")  # noqa: S608
        self._fetch_rows("""
            CREATE TEMP TABLE reached AS
            SELECT "partition", max(reached_at) AS until
            FROM (
                SELECT "partition", max(last_seen_at) AS reached_at FROM version_files GROUP BY ALL
                UNION ALL
                SELECT origin_partition, max(received_at) FROM deadletter_files GROUP BY ALL
            )
            WHERE "partition" IS NOT NULL
            GROUP BY "partition"
        """)
        rows = self._fetch_rows("""
            WITH landed AS (
                SELECT "partition", count(*) AS webhooks, min(received_at) AS first, max(received_at) AS until
                FROM raw_files
                GROUP BY ALL
            )
            SELECT
                coalesce(sum(webhooks), 0)::BIGINT, (SELECT count(*) FROM version_files), min(landed.first),
                -- Of a partition whose webhooks are landed later than what the stream tells of it, no more is known.
                coalesce(min(landed.until) FILTER (landed.until < reached.until), max(landed.until))
            FROM landed
            LEFT JOIN reached USING ("partition")
        """)
        webhooks, versions, first, logged = rows[0]
        base = read_base_watermark(self._data)
        whole = datetime.combine(base.floor, time(), UTC) if base else _BEGINNING  # before it, raw was dropped
        begun = max(first or _BEGINNING, since, whole)
        recent = max(self._now - timedelta(hours=settings.recent_h), since) + timedelta(hours=1)
        counted = max(recent, begun).replace(minute=0, second=0, microsecond=0)  # whole hours
        self._set_variables(covered=begun, logged=logged or _BEGINNING, counted=counted)
        return webhooks, versions

    def _fetch_rows(self, sql: str) -> list[Any]:
        from warehouse.reader import retry_after_merge  # noqa: PLC0415

        return retry_after_merge(lambda: self._connection.execute(sql).fetchall())

    def _set_variables(self, **variables: object) -> None:
        for name, value in variables.items():
            self._connection.execute(f"SET VARIABLE {name} = ?", [value])

    def measure_suite(self, suite: str, checks: Sequence[QualityCheck]) -> SuiteMeasures:
        """Measure what the checks of a suite look at."""
        from warehouse.reader import retry_after_merge  # noqa: PLC0415

        wrong = [check for check in checks if check.wrong]
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
            # What is landed between the readings of two views is no difference, and gone when they are read again.
            measures = retry_after_merge(lambda: self._connection.execute(sql).df())
        return SuiteMeasures(suite, checks, measures)

    _has_latest = False

    def _create_latest(self, wrong: Sequence[QualityCheck]) -> None:
        """Make `latest`, the messages with no more of each than is needed: what is wrong with one is a bit each."""
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
        """Make `recomputed`, what the log says of the messages that began in the recent hours, as `rebuild` does it.

        And `shown`, what the views say of them. `is_moving` are those that the stream may not have got to yet.
        """
        from warehouse.lifecycle_sql import create_digest_table, create_statuses_table, create_told_view  # noqa: PLC0415

        self._has_recomputed = True
        create_statuses_table(self._connection, self._statuses)
        self._fetch_rows("""
            CREATE TEMP TABLE log AS
            SELECT
                source, sms_id, status_id, device_id, channel_id, sent_at, address AS recipient,
                coalesce(received_at, recorded_at) AS told_at,
                coalesce(told_at < until - getvariable('waiting'), false) AS is_settled
            FROM raw_files
            LEFT JOIN reached USING ("partition")
            WHERE kind = 'status' AND source IS NOT NULL AND told_at >= getvariable('counted')
                AND recorded_at >= getvariable('counted') - INTERVAL 1 DAY  -- by which files are left out
                AND ("partition", "offset", coalesce(ingest_id, '')) NOT IN (
                    SELECT (origin_partition, origin_offset, coalesce(ingest_id, '')) FROM deadletter_files
                    WHERE origin_partition IS NOT NULL AND origin_offset IS NOT NULL
                )
        """)
        create_digest_table(self._connection)
        create_told_view(self._connection)
        self._fetch_rows("""
            CREATE TEMP TABLE shown AS
            SELECT source, sms_id, first_seen_at, last_seen_at, outcome, is_ended FROM messages
            WHERE last_seen_at >= getvariable('counted')
        """)
        self._fetch_rows("""
            CREATE TEMP TABLE recomputed AS
            SELECT
                source, sms_id, first_seen_at, last_seen_at, winner, furthest, incoming,
                (source, sms_id) IN (SELECT (source, sms_id) FROM log WHERE NOT is_settled) AS is_moving
            FROM told
            ANTI JOIN (FROM shown WHERE first_seen_at < getvariable('counted')) USING (source, sms_id)
        """)

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
        """Add names of rows at fault to a row of the report."""
        if row.success or row.rows:
            return row
        sql = check.rows
        if check.wrong:
            relation, name = RELATION_BY_DATASET[check.suite]
            sql = f"SELECT {name} FROM {relation} WHERE {check.wrong}"  # noqa: S608 - conditions of ours
        if not sql:
            return row
        found = self._fetch_rows(f"FROM ({sql}) LIMIT {_MAX_NAMED}")
        return replace(row, rows=tuple(str(name) for (name,) in found))


@cache
def _gx_context() -> Any:
    import great_expectations as gx  # noqa: PLC0415 - takes seconds
    from great_expectations.data_context.types.base import ProgressBarsConfig  # noqa: PLC0415

    # It tells of a folder that it never fills, and its module has a level of its own.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def _judge_suite(measured: SuiteMeasures) -> list[tuple[QualityCheck, CheckResult]]:
    """Return the rows of a suite, with their checks."""
    source = _gx_context().data_sources.add_or_update_pandas(measured.suite)
    batch = source.add_dataframe_asset("measures").add_batch_definition_whole_dataframe("all").get_batch({
        "dataframe": measured.measures.filter(regex="(?<!_rows)$")
    })  # fmt: skip
    failed: dict[str, Any] = {}
    remaining = measured.checks
    # All that it can tell of an expectation takes twice as long as whether it holds: it is asked of few.
    for result_format in ("BOOLEAN_ONLY", _DETAILED_RESULT_FORMAT):
        if remaining:
            results = batch.validate(build_suite(measured.suite, remaining), result_format=result_format).results
            failed = {each.expectation_config.kwargs["column"]: each for each in results if not each.success}
            remaining = [check for check in remaining if check.name in failed]
    return [(check, _build_check_result(check, failed.get(check.name), measured)) for check in measured.checks]


def _build_check_result(check: QualityCheck, failure: Any, measured: SuiteMeasures) -> CheckResult:
    named = measured.measures.get(f"{check.name}_rows")
    rows = tuple([] if named is None else [str(row) for scope in named.dropna() for row in scope][:_MAX_NAMED])
    if failure is None:
        observed = _observed_range(check, measured)
    elif "unexpected_count" not in failure.result:
        details = [info.get("exception_message") for info in failure.exception_info.values() if isinstance(info, dict)]
        raise ExpectationFailedToRunError(check.name, str(next(iter(details), failure.exception_info)))
    else:
        unexpected = failure.result["unexpected_index_list"]
        shown = [f"{place['scope']}: {check.format_value(place[check.name])}" for place in unexpected[:_MAX_NAMED]]
        rest = len(unexpected) - len(shown)
        observed = "; ".join(shown) + (f"; and {rest} more" if rest else "")
    return CheckResult(
        check.name, check.suite, check.severity, failure is None, observed, check.expected, check.meaning,
        check.action, rows,
    )  # fmt: skip


def _observed_range(check: QualityCheck, measured: SuiteMeasures) -> str:
    """Return what was found of a check that holds."""
    values = measured.measures[check.name].dropna()
    if not len(values):
        return "nothing found"
    return (
        "all known"
        if check.allowed
        else " to ".join(dict.fromkeys(map(check.format_value, (values.min(), values.max()))))
    )
