"""Metrics of the page: the results of the checks, the alerts that fire, and the age of the page's data."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry

from core.alerts import KINDS
from core.metrics import GaugeFamily, GaugeSnapshot

REGISTRY: Final = CollectorRegistry()

HOLDS: Final = GaugeFamily(
    "smspulse_check_holds",
    "Whether an expectation held when it was checked last: 1 or 0.",
    ("expectation", "severity"),
)
CHECKED: Final = GaugeFamily(
    "smspulse_check_newest_timestamp_seconds", "When the data was checked last, in seconds since 1970; 0: never."
)
FIRING: Final = GaugeFamily("smspulse_alerts_firing", "Alerts that fire, by kind.", ("kind",))
READ: Final = GaugeFamily(
    "smspulse_page_read_timestamp_seconds",
    "When the page read the warehouse last, in seconds since 1970; 0: never.",
)
READ_S: Final = GaugeFamily("smspulse_page_read_seconds", "How long that took.")
SNAPSHOT: Final = GaugeSnapshot(REGISTRY, HOLDS, CHECKED, FIRING, READ, READ_S)


def set_page_metrics(values: Mapping[str, Any], at: float, took: float) -> None:
    """Set the metrics after a refresh of the page.

    Args:
        values: `checks` and `alerts`, rows of `smspulse.dashboard.queries`.
        at: Time of the refresh, in seconds since 1970.
        took: Duration of the refresh, in seconds.
    """
    checked_at = max((row["checked_at"].timestamp() for row in values["checks"]), default=0)
    firing = Counter(alert["kind"] for alert in values["alerts"])
    SNAPSHOT.replace_values(
        {
            HOLDS: {(row["expectation"], row["severity"]): row["success"] for row in values["checks"]},
            CHECKED: {(): checked_at},
            FIRING: {(kind,): firing[kind] for kind in KINDS},
            READ: {(): at},
            READ_S: {(): took},
        }
    )
