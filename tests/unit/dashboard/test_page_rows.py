"""One row that cannot be shown costs itself, and not the page."""

from datetime import UTC, datetime
from typing import Any

import duckdb
import pytest

from smspulse.dashboard.queries import PageFilter, Row
from smspulse.dashboard.rendering import render_content

FIRING: Row = {
    "kind": "failure_ratio", "source": "acme", "device_id": 1, "channel_id": 2, "what": "", "failures": 6, "count": 8,
    "baseline": 0.03, "since": datetime(2026, 11, 24, 12, tzinfo=UTC),
}  # fmt: skip


class Given:
    """Numbers with one alert that is whole, and others that are not."""

    def __init__(self, *alerts: Row) -> None:
        self.statuses: dict[int, Any] = {}
        self.current_values: dict[str, Any] = {"alerts": alerts, "learning": [], "as_of": "12:00:00"}
        self.current_values["freshness"] = [
            {"dataset": "raw", "seconds_since": 3.0, "rows": 7},
            {"dataset": "alerts", "seconds_since": None, "rows": 7},
        ]

    def query_view(self, view: str, choice: PageFilter, sql: str = "") -> list[Row]:
        minute = datetime.now(UTC)
        if view == "outcomes_by_minute":
            return [{"minute": minute, "outcome": outcome, "messages": 5} for outcome in ("delivered", "surprise")]
        return []


@pytest.mark.parametrize("odd", [{"kind": None}, {"count": "x"}, {"baseline": "x"}, {"since": None}])
def test_a_row_that_cannot_be_shown_costs_itself_and_not_the_page(odd: Row, caplog: pytest.LogCaptureFixture) -> None:
    numbers: Any = Given(FIRING | {"source": "odd"} | odd, FIRING)
    shown = render_content(numbers, PageFilter())
    assert "6 of 8" in shown
    assert '<td data-name="source">odd</td>' not in shown
    assert "newest 3.0 s old, 7 rows" in shown
    assert "delivered 5" in shown
    assert len(caplog.text) < 1_000


def test_a_day_that_exceeds_the_memory_is_said_with_the_setting() -> None:
    numbers: Any = Given(FIRING)

    def run_out_of_memory(*_: Any) -> list[Row]:
        msg = "failed to allocate data of size 16.0 MiB"
        raise duckdb.OutOfMemoryException(msg)

    numbers.query_view = run_out_of_memory
    shown = render_content(numbers, PageFilter())
    assert "raise SMSPULSE_PAGE_MEMORY" in shown
    assert '<td data-name="what">raw</td>' in shown
