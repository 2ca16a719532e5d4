"""What the page's `/metrics` tells Prometheus: the checks, the alerts that fire, and whether the page is current."""

from collections.abc import Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge

from gateway.alerts import KINDS

REGISTRY: Final = CollectorRegistry()

HOLDS: Final = Gauge(
    "smspulse_check_holds",
    "Whether an expectation held when it was checked last: 1 or 0.",
    ["expectation", "severity"],
    registry=REGISTRY,
)
CHECKED: Final = Gauge(
    "smspulse_check_newest_timestamp_seconds",
    "When the data was checked last, in seconds since 1970; 0: never.",
    registry=REGISTRY,
)
FIRING: Final = Gauge("smspulse_alerts_firing", "Alerts that fire, by kind.", ["kind"], registry=REGISTRY)
READ: Final = Gauge(
    "smspulse_page_read_timestamp_seconds",
    "When the page read the warehouse last, in seconds since 1970; 0: never.",
    registry=REGISTRY,
)
READ_S: Final = Gauge("smspulse_page_read_seconds", "How long that took.", registry=REGISTRY)


def read(kept: Mapping[str, Any], at: float, took: float) -> None:
    """Tell what was read.

    Args:
        kept: `checks` and `alerts`, rows of `smspulse.page.numbers`.
        at: When, in seconds since 1970.
        took: In seconds.
    """
    HOLDS.clear()  # of expectations that are no more, too
    for row in kept["checks"]:
        HOLDS.labels(row["expectation"], row["severity"]).set(row["success"])
    CHECKED.set(max((row["checked_at"].timestamp() for row in kept["checks"]), default=0))
    for kind in KINDS:
        FIRING.labels(kind).set(sum(alert["kind"] == kind for alert in kept["alerts"]))
    READ.set(at)
    READ_S.set(took)
