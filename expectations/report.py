"""The report of a run of the checks."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from expectations.expectation import Severity

# Maximum of scopes, and of rows, that one result names.
MAX_NAMED: Final = 5


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
    def exit_code(self) -> int:
        """0 unless something critical does not hold, then 1."""
        return int(any(not row.success and row.severity == "critical" for row in self.rows))
