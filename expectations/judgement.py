"""Judgement of the measures by Great Expectations.

Great Expectations' own DuckDB connector is not used: it fails on most expectations (its issue 10738).
"""

import logging
from functools import cache
from typing import Any, Final

from expectations.errors import ExpectationFailedToRunError
from expectations.expectation import QualityCheck, build_suite
from expectations.measurement import SuiteMeasures
from expectations.report import MAX_NAMED, CheckResult

# The result format for an expectation that does not hold: with the scopes.
_DETAILED_RESULT_FORMAT: Final = {"result_format": "COMPLETE", "unexpected_index_column_names": ["scope"]}


@cache
def _gx_context() -> Any:
    import great_expectations as gx  # noqa: PLC0415 - takes seconds
    from great_expectations.data_context.types.base import ProgressBarsConfig  # noqa: PLC0415

    # It logs a folder that it never fills, and its module sets a log level of its own.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def judge_suite(measured: SuiteMeasures) -> list[tuple[QualityCheck, CheckResult]]:
    """Return the results of a suite, with their checks."""
    source = _gx_context().data_sources.add_or_update_pandas(measured.suite)
    # Columns of lists are left out: they name rows and have no expectation.
    batch = source.add_dataframe_asset("measures").add_batch_definition_whole_dataframe("all").get_batch({
        "dataframe": measured.measures.filter(regex="(?<!_rows)$")
    })  # fmt: skip
    failed: dict[str, Any] = {}
    remaining = measured.checks
    # A detailed result takes twice as long as a yes or no. So details are requested only of expectations that fail.
    for result_format in ("BOOLEAN_ONLY", _DETAILED_RESULT_FORMAT):
        if remaining:
            results = batch.validate(build_suite(measured.suite, remaining), result_format=result_format).results
            failed = {each.expectation_config.kwargs["column"]: each for each in results if not each.success}
            remaining = [check for check in remaining if check.name in failed]
    return [(check, _build_check_result(check, failed.get(check.name), measured)) for check in measured.checks]


def _build_check_result(check: QualityCheck, failure: Any, measured: SuiteMeasures) -> CheckResult:
    named = measured.measures.get(f"{check.name}_rows")
    rows = tuple([] if named is None else [str(row) for scope in named.dropna() for row in scope][:MAX_NAMED])
    if failure is None:
        observed = _observed_range(check, measured)
    elif "unexpected_count" not in failure.result:
        details = [info.get("exception_message") for info in failure.exception_info.values() if isinstance(info, dict)]
        raise ExpectationFailedToRunError(check.name, str(next(iter(details), failure.exception_info)))
    else:
        unexpected = failure.result["unexpected_index_list"]
        shown = [f"{place['scope']}: {check.format_value(place[check.name])}" for place in unexpected[:MAX_NAMED]]
        rest = len(unexpected) - len(shown)
        observed = "; ".join(shown) + (f"; and {rest} more" if rest else "")
    return CheckResult(
        check.name, check.suite, check.severity, failure is None, observed, check.expected, check.meaning,
        check.action, rows,
    )  # fmt: skip


def _observed_range(check: QualityCheck, measured: SuiteMeasures) -> str:
    """Return the range of values of a check that holds."""
    values = measured.measures[check.name].dropna()
    if not len(values):
        return "nothing found"
    return (
        "all known"
        if check.allowed
        else " to ".join(dict.fromkeys(map(check.format_value, (values.min(), values.max()))))
    )
