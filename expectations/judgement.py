"""Judgement of the measures by Great Expectations.

Great Expectations' own DuckDB connector is not used: it fails on most expectations (its issue 10738).
"""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import pandas as pd

from expectations.errors import ExpectationFailedToRunError
from expectations.quality_check import MAX_NAMED, CheckResult, QualityCheck

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


def judge_suite(checks: Sequence[QualityCheck], measures: pd.DataFrame) -> list[CheckResult]:
    """Return the results of a suite.

    Args:
        checks: The checks of the suite.
        measures: A row for each scope, a column for each check. A column `{check}_rows` has lists of faulty rows.

    Raises:
        ExpectationFailedToRunError: Great Expectations could not evaluate an expectation.
    """
    from great_expectations import ExpectationSuite  # noqa: PLC0415 - takes seconds

    source = _gx_context().data_sources.add_or_update_pandas("measures")
    # Columns of lists are left out: they name rows and have no expectation.
    frame = measures.filter(regex="(?<!_rows)$")
    definition = source.add_dataframe_asset("measures").add_batch_definition_whole_dataframe("all")
    batch = definition.get_batch({"dataframe": frame})
    failures: dict[str, Any] = {}
    doubtful = checks
    # A detailed result takes twice as long as a yes or no. So details are requested only of expectations that fail.
    for result_format in ("BOOLEAN_ONLY", _DETAILED_RESULT_FORMAT):
        if doubtful:
            suite = ExpectationSuite("measures", expectations=[_build_expectation(check) for check in doubtful])
            results = batch.validate(suite, result_format=result_format).results
            failures = {each.expectation_config.kwargs["column"]: each for each in results if not each.success}
            doubtful = [check for check in doubtful if check.name in failures]
    return [_build_check_result(check, failures.get(check.name), measures) for check in checks]


def _build_expectation(check: QualityCheck) -> dict[str, Any]:
    """Return the expectation of a check. Its column is the check's name."""
    kind = "between"
    valid: dict[str, Any] = {"min_value": check.least, "max_value": check.most}
    if check.allowed:
        kind, valid = "in_set", {"value_set": list(check.allowed)}
    return {"type": f"expect_column_values_to_be_{kind}", "kwargs": {"column": check.name} | valid}


def _build_check_result(check: QualityCheck, failure: Any, measures: pd.DataFrame) -> CheckResult:
    named = measures.get(f"{check.name}_rows")
    rows = tuple([] if named is None else [str(row) for scope in named.dropna() for row in scope][:MAX_NAMED])
    observed = _observed_range(check, measures) if failure is None else _observed_scopes(check, failure)
    return CheckResult(
        check.name, check.suite, check.severity, failure is None, observed, check.expected, check.meaning,
        check.action, rows,
    )  # fmt: skip


def _observed_scopes(check: QualityCheck, failure: Any) -> str:
    """Return the scopes in which a check does not hold, with their values."""
    if "unexpected_count" not in failure.result:
        details = [info.get("exception_message") for info in failure.exception_info.values() if isinstance(info, dict)]
        raise ExpectationFailedToRunError(check.name, str(next(iter(details), failure.exception_info)))
    unexpected = failure.result["unexpected_index_list"]
    shown = [f"{place['scope']}: {check.format_value(place[check.name])}" for place in unexpected[:MAX_NAMED]]
    rest = len(unexpected) - len(shown)
    return "; ".join(shown) + (f"; and {rest} more" if rest else "")


def _observed_range(check: QualityCheck, measures: pd.DataFrame) -> str:
    """Return the range of values of a check that holds."""
    values = measures[check.name].dropna()
    if not len(values):
        return "nothing found"
    if check.allowed:
        return "all known"
    return " to ".join(dict.fromkeys(map(check.format_value, (values.min(), values.max()))))
