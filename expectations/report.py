"""The report of a run of the checks."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from expectations.expectation import Severity

MAX_NAMED: Final = 5
"""Scopes, and rows, named in one row of a report."""


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
