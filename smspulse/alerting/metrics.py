"""Metrics of the alert process: the alerts that fire, and who notifies of them."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry

from core.alerts import PIPELINE, QUALITY_CHECK, Alert
from core.metrics import GaugeFamily, GaugeSnapshot
from smspulse.alerting.alert_state import alert_severity

REGISTRY: Final = CollectorRegistry()

FIRING: Final = GaugeFamily(
    "smspulse_alerts_firing",
    "Alerts that fire, by kind, part of the pipeline or expectation, and who notifies: `smspulse`, or `prometheus` if "
    "no receiver is set.",
    ("kind", "severity", "part", "notified_by"),
)
SNAPSHOT: Final = GaugeSnapshot(REGISTRY, FIRING)


def set_alert_metrics(firing: Iterable[Alert], *, has_receivers: bool) -> None:
    """Set the metrics to the alerts that fire now."""
    # Alertmanager may get alerts from Prometheus and from smspulse. Only one of them may notify of an alert.
    notified_by = "smspulse" if has_receivers else "prometheus"
    counts: Counter[tuple[str, ...]] = Counter(
        (each.kind, alert_severity(each), _part_of(each), notified_by) for each in firing
    )
    SNAPSHOT.replace_values({FIRING: counts})


def _part_of(alert: Alert) -> str:
    """Return the part of the pipeline, or the expectation, that an alert is about. The other kinds have none."""
    return alert.id.rpartition(":")[2] if alert.kind in {PIPELINE, QUALITY_CHECK} else ""
