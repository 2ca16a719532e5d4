"""A check, its result, and the report of a run.

DuckDB measures all landed data. Great Expectations judges the frame of the measures: a row for each scope (a source, a
partition, an hour, a file), a column for each check. It ignores nulls: a column is null in a scope that it is not
measured on, or without data.
"""

from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Final, Literal, get_args

# From the worst to the mildest.
Severity = Literal["critical", "warning", "info"]
SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)
Unit = Literal["count", "share", "seconds", "times"]

# Maximum of scopes, and of rows, that one result names.
MAX_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class QualityCheck:
    """One expectation, with its texts for people.

    Args:
        name: Stable name for programs; also the column of the measures.
        suite: The dataset that it judges.
        meaning: The problem if it does not hold.
        action: What to do then.
        severity: `critical` means that numbers are wrong or missing, `warning` that a person should investigate.
        unit: Unit of the column.
        least: Smallest valid value; None for any.
        most: Largest valid value. 0 by default: most columns count errors.
        allowed: All valid values; in place of `least` and `most`.
        wrong: SQL condition of the dataset's faulty rows; the column is their count by source. Without it, the
            suite's file of measures has the column.
        rows: SQL query of one text column that names faulty rows.
    """

    name: str
    suite: str
    meaning: str
    action: str
    severity: Severity
    unit: Unit = "count"
    least: float | None = None
    most: float = 0
    allowed: tuple[str, ...] = ()
    wrong: str = ""
    rows: str = ""

    @property
    def expected(self) -> str:
        """The valid values as text."""
        if self.allowed:
            return "one of " + ", ".join(self.allowed)
        if self.least is not None:
            return f"{self.format_value(self.least)} to {self.format_value(self.most)}"
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


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one expectation.

    Args:
        expectation: Stable name of the expectation.
        dataset: The dataset that it judges.
        severity: Severity of the expectation.
        success: Whether it holds.
        observed: The invalid values by scope (source or partition), or the range of values if it holds.
        expected: The valid values.
        meaning: The problem if it does not hold.
        action: What to do then.
        rows: Some of the faulty rows, if they can be named.
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
    """The results of a run of the checks. An empty warehouse has none, and `note` states it."""

    rows: tuple[CheckResult, ...]
    note: str
    checked_at: datetime

    @property
    def failures(self) -> list[CheckResult]:
        """What does not hold, the worst first."""
        failed = [row for row in self.rows if not row.success]
        return sorted(failed, key=lambda row: SEVERITIES.index(row.severity))

    @property
    def rows_by_suite(self) -> dict[str, list[CheckResult]]:
        """The results of each suite, in their order."""
        # A suite is judged as a whole, so its rows follow each other.
        return {suite: list(rows) for suite, rows in groupby(self.rows, lambda row: row.dataset)}

    @property
    def exit_code(self) -> int:
        """0 unless something critical does not hold, then 1."""
        return int(any(row.severity == "critical" for row in self.failures))
