"""The model of an expectation, and the suite of Great Expectations for several.

DuckDB measures all landed data. A suite judges the frame of its measures: a row for each scope (a source, a partition,
an hour, a file), a column for each check. Great Expectations ignores nulls: a column is null in a scope that it is not
measured on, or without data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite

Severity = Literal["critical", "warning", "info"]
Unit = Literal["count", "share", "seconds", "times", "text"]


@dataclass(frozen=True, slots=True)
class QualityCheck:
    """One expectation, with its texts for people.

    Args:
        name: Stable name for programs; also the column of the measures.
        suite: The dataset that it judges.
        severity: `critical` means that numbers are wrong or missing, `warning` that a person should investigate.
        meaning: The problem if it does not hold.
        action: What to do then.
        unit: Unit of the column.
        least: Smallest valid value; None for any.
        most: Largest valid value; None for any. 0 by default: most columns count errors.
        allowed: All valid values; in place of `least` and `most`.
        wrong: SQL condition of the dataset's faulty rows; the column is their count by source. Without it, the
            suite's file of measures has the column.
        rows: SQL query of one text column that names faulty rows.
    """

    name: str
    suite: str
    severity: Severity
    meaning: str
    action: str
    unit: Unit = "count"
    least: float | None = None
    most: float | None = 0
    allowed: tuple[str, ...] = ()
    wrong: str = ""
    rows: str = ""

    @property
    def expected(self) -> str:
        """The valid values as text."""
        if self.allowed:
            return "one of " + ", ".join(self.allowed)
        if self.least is not None and self.most is not None:
            return f"{self.format_value(self.least)} to {self.format_value(self.most)}"
        if self.least is not None:
            return f"at least {self.format_value(self.least)}"
        return "0" if not self.most else f"at most {self.format_value(self.most)}"

    def format_value(self, value: object) -> str:
        """Return a value of the column as text for people."""
        if not isinstance(value, int | float):
            return str(value)
        plain = f"{value:,.3f}".rstrip("0").rstrip(".")
        texts = {
            "count": f"{value:,.0f}",
            "share": f"{value:.1%}",
            "seconds": f"{value / 3600:,.1f} h" if value >= 3600 else f"{plain} s",  # noqa: PLR2004 - of an hour
            "times": f"{value:,.1f} times",
        }
        return texts.get(self.unit, str(value))


def build_suite(name: str, checks: Sequence[QualityCheck]) -> "ExpectationSuite":
    """Return checks as a suite of Great Expectations; an expectation's column is its check's name."""
    from great_expectations import ExpectationSuite  # noqa: PLC0415 - takes seconds
    from great_expectations.expectations.core.expect_column_values_to_be_between import (  # noqa: PLC0415
        ExpectColumnValuesToBeBetween,
    )
    from great_expectations.expectations.core.expect_column_values_to_be_in_set import (  # noqa: PLC0415
        ExpectColumnValuesToBeInSet,
    )

    suite = ExpectationSuite(name=name)
    for check in checks:
        options: dict[str, Any] = {
            "column": check.name,
            "severity": check.severity,
            "notes": f"{check.meaning} {check.action}",
        }
        suite.add_expectation(
            ExpectColumnValuesToBeInSet(value_set=list(check.allowed), **options)
            if check.allowed
            else ExpectColumnValuesToBeBetween(min_value=check.least, max_value=check.most, **options)
        )
    return suite
