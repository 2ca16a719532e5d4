"""Metrics of the page: the results of the checks, and the age of the page's data."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry

from core.metrics import GaugeFamily, GaugeSnapshot

REGISTRY: Final = CollectorRegistry()

HOLDS: Final = GaugeFamily(
    "smspulse_check_holds", "Whether an expectation held when it was checked last: 1 or 0.", ("expectation", "severity")
)
CHECKED: Final = GaugeFamily(
    "smspulse_check_newest_timestamp_seconds", "When the data was checked last, in seconds since 1970; 0: never."
)
READ: Final = GaugeFamily(
    "smspulse_page_read_timestamp_seconds", "When the page read the warehouse last, in seconds since 1970; 0: never."
)
READ_S: Final = GaugeFamily("smspulse_page_read_seconds", "How long that took.")
SNAPSHOT: Final = GaugeSnapshot(REGISTRY, HOLDS, CHECKED, READ, READ_S)


def set_page_metrics(checks: Collection[Mapping[str, Any]], at: float, took: float) -> None:
    """Set the metrics after a refresh of the page.

    Args:
        checks: Rows of the query of that name in `smspulse.dashboard.queries`.
        at: Time of the refresh, in seconds since 1970.
        took: Duration of the refresh, in seconds.
    """
    checked_at = max((row["checked_at"].timestamp() for row in checks), default=0)
    SNAPSHOT.replace_values(
        {
            HOLDS: {(row["expectation"], row["severity"]): row["success"] for row in checks},
            CHECKED: {(): checked_at},
            READ: {(): at},
            READ_S: {(): took},
        }
    )
