"""Runs the suite: DuckDB measures everything that was landed, Great Expectations judges the small frame of measures.

Great Expectations' own DuckDB connector is not used: it fails on most expectations (its issue 10738).
"""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from expectations.errors import ExpectationFailedToRunError, MissingExtraError, UnreadableDataError
from expectations.settings import CheckSettings
from expectations.suites import Check, Severity, build_suite, checks
from gateway.statuses import ENDS

if TYPE_CHECKING:
    import pandas as pd

_SHOWN: Final = 5
"""Scopes named in one row of a report."""


@dataclass(frozen=True, slots=True)
class Row:
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
    """

    expectation: str
    dataset: str
    severity: Severity
    success: bool
    observed: str
    expected: str
    meaning: str
    action: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a run of the checks found. An empty warehouse has no rows, and `note` says so."""

    rows: tuple[Row, ...]
    note: str

    @property
    def exit_code(self) -> int:
        """0 unless something critical does not hold, then 1."""
        return int(any(not row.success and row.severity == "critical" for row in self.rows))


def run_checks(data: Path, settings: CheckSettings, now: datetime | None = None) -> Report:
    """Check everything that was landed in a data folder. Reads only; a lander may go on meanwhile.

    Args:
        data: The data folder.
        settings: The thresholds.
        now: What freshness is measured against, with a time zone; the present by default.

    Raises:
        MissingExtraError: Great Expectations is not installed.
        NoWarehouseError: Nothing was published in the folder.
        UnreadableDataError: A file is damaged, or a view or column is missing.
        ExpectationFailedToRunError: Great Expectations gave up on an expectation.
    """
    if find_spec("great_expectations") is None:
        raise MissingExtraError
    rows, metrics = _measure(data, settings, now or datetime.now(UTC))
    if not any(rows.values()):
        return Report((), f"the warehouse in {data} is empty: there is nothing to check yet")
    note = f"checked {rows['raw']:,} webhooks and {rows['messages']:,} versions of messages in {data}"
    return Report(_judge(checks(settings), metrics), note)


def _measure(data: Path, settings: CheckSettings, now: datetime) -> tuple[dict[str, int], "pd.DataFrame"]:
    """Return the number of rows of each dataset, and the frame that `metrics.sql` describes."""
    import duckdb  # noqa: PLC0415 - late, for a quick start of the command line

    from warehouse.read import open_warehouse, retried  # noqa: PLC0415

    parameters = {
        "now": now,
        "recent": timedelta(hours=settings.recent_h),
        "raw": f"{glob.escape(str(data.resolve() / 'raw'))}/date=*/*.parquet",
        "versions": f"{glob.escape(str(data.resolve() / 'messages'))}/date=*/*.parquet",
        "ends": sorted(outcome.value for outcome in ENDS),
    }
    sql = files("expectations").joinpath("metrics.sql").read_text("utf-8")
    try:
        with open_warehouse(data) as connection:
            counted = retried(lambda: connection.execute("SELECT dataset, rows FROM freshness").fetchall())
            return dict(counted), retried(lambda: connection.execute(sql, parameters).df())
    except duckdb.Error as error:
        raise UnreadableDataError(data, str(error).partition("\n")[0]) from error


def _judge(of: Sequence[Check], metrics: "pd.DataFrame") -> tuple[Row, ...]:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read on import: a check must not call home
    import great_expectations as gx  # noqa: PLC0415 - takes seconds
    from great_expectations.data_context.types.base import ProgressBarsConfig  # noqa: PLC0415

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("duckdb")
    batch = source.add_dataframe_asset("metrics").add_batch_definition_whole_dataframe("all")
    # COMPLETE with the scopes of what is unexpected: dear on large frames, nothing on this one.
    found = batch.get_batch({"dataframe": metrics}).validate(
        build_suite(of),
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["scope"]},
    )
    results = {result.expectation_config.meta["name"]: result for result in found.results if result.expectation_config}
    return tuple(_row(check, results[check.name], metrics) for check in of)


def _row(check: Check, result: Any, metrics: "pd.DataFrame") -> Row:
    if "unexpected_count" not in result.result:
        details = [info.get("exception_message") for info in result.exception_info.values() if isinstance(info, dict)]
        raise ExpectationFailedToRunError(check.name, str(next(iter(details), result.exception_info)))
    if result.success:
        values = metrics[check.column].dropna()
        bounds = dict.fromkeys(check.show(value) for value in (values.min(), values.max())) if len(values) else {}
        observed = ("all known" if check.allowed else " to ".join(bounds)) if bounds else "nothing to check"
    else:
        unexpected = result.result["unexpected_index_list"]
        shown = [f"{place['scope']}: {check.show(place[check.column])}" for place in unexpected[:_SHOWN]]
        rest = len(unexpected) - len(shown)
        observed = "; ".join(shown) + (f"; and {rest} more" if rest else "")
    return Row(
        check.name, check.dataset, check.severity, bool(result.success), observed, check.expected, check.meaning,
        check.action,
    )  # fmt: skip
