"""Runs the suites: measures the landed data, judges the measures, and returns the report."""

import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import duckdb
import pandas as pd

from expectations import SUITE_NAMES
from expectations.catalogue import build_checks
from expectations.errors import MissingExtraError, UnreadableDataError
from expectations.judgement import judge_suite
from expectations.measurement import MeasurementSession
from expectations.quality_check import CheckReport, CheckResult
from expectations.settings import CheckSettings
from gateway.statuses import STATUSES, StatusCode
from warehouse.reader import open_warehouse

# Suites of landed data. `expectations.reconciliation` measures the other one, which also reads Kafka and receipts.
LANDED_SUITES: Final = SUITE_NAMES[:-1]


def _read_clock() -> datetime:
    return datetime.now(UTC)


def _same_time(time: datetime) -> datetime:
    return time


def run_checks(
    data: Path,
    settings: CheckSettings,
    now: datetime | None = None,
    *,
    clock: Callable[[], datetime] | None = None,
    suites: Collection[str] = LANDED_SUITES,
    since: datetime | None = None,
    statuses: Mapping[int, StatusCode] = STATUSES,
    further: Mapping[str, pd.DataFrame] | None = None,
) -> CheckReport:
    """Check the landed data of a data folder. Only reads; a lander may write meanwhile.

    Args:
        data: The data folder.
        settings: The thresholds.
        now: Reference of freshness, with a time zone; the present by default.
        clock: Returns the present, with a time zone. By default, it stands still at `now` if that is given.
        suites: The suites to run.
        since: Leave out files of earlier dates, and messages first seen earlier.
        statuses: Meaning of each status id in the stream.
        further: Measures of other suites, by suite.

    Raises:
        MissingExtraError: Great Expectations is not installed.
        NoWarehouseError: Nothing was published in the folder.
        UnreadableDataError: A file is damaged, or a view or column is missing.
        ExpectationFailedToRunError: Great Expectations could not evaluate an expectation.
    """
    if find_spec("great_expectations") is None:
        raise MissingExtraError
    if clock is None:
        clock = _read_clock if now is None else partial(_same_time, now)
    now = now or clock()
    # Read on import: a check must not connect to anybody.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    try:
        with (
            ThreadPoolExecutor(1) as importer,
            tempfile.TemporaryDirectory(prefix="smspulse-check.") as scratch,
            open_warehouse(data) as connection,
        ):
            # The import takes seconds, in which DuckDB can measure.
            importer.submit(import_module, "great_expectations")
            # Beyond its memory limit, DuckDB writes to this folder. Nothing of it is left after the run.
            connection.execute("SET temp_directory = ?", [scratch])
            connection.execute("SET memory_limit = ?", [settings.memory])
            checks = build_checks(settings, statuses)
            session = MeasurementSession(connection, data.resolve(), settings, now, clock, since, statuses, checks)
            webhooks, versions = session.create_views()
            if not webhooks and not versions:
                note = f"{data} has nothing since {since.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if since else (
                    f"the warehouse in {data} is empty"
                )  # fmt: skip
                return CheckReport((), f"{note}: there is nothing to check", now)
            session.create_tables(suites)
            measured = {suite: session.measure_suite(suite) for suite in LANDED_SUITES if suite in suites}
            judged: list[CheckResult] = []
            for suite, measures in {**measured, **(further or {})}.items():
                judged += judge_suite([check for check in checks if check.suite == suite], measures)
            rows = tuple(map(session.name_faulty_rows, judged))
    except duckdb.Error as error:
        raise UnreadableDataError(data, str(error).partition("\n")[0]) from error
    note = f"checked {webhooks:,} webhooks and {versions:,} versions of messages in {data}"
    return CheckReport(rows, note, now)
