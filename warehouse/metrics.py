"""What the lander's `/metrics` tells Prometheus."""

from collections.abc import Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

REGISTRY: Final = CollectorRegistry()

ROWS: Final = Counter("smspulse_lander_rows_total", "Records landed.", ["topic"], registry=REGISTRY)
FILES: Final = Counter("smspulse_lander_files_total", "Files landed.", ["topic"], registry=REGISTRY)
NEWEST: Final = Gauge(
    "smspulse_lander_newest_record_timestamp_seconds",
    "Kafka's time of the newest record landed, in seconds since 1970.",
    ["topic"],
    registry=REGISTRY,
)
LOST: Final = Counter(
    "smspulse_lander_lost_records_total", "Records that Kafka deleted before they were landed.", registry=REGISTRY
)
LAG: Final = Gauge(
    "smspulse_lander_lag_records", "Records not yet landed, by partition.", ["topic", "partition"], registry=REGISTRY
)


def landed(topic: str, records: Sequence[Any]) -> None:
    """Count a file of records."""
    ROWS.labels(topic).inc(len(records))
    FILES.labels(topic).inc()
    NEWEST.labels(topic).set(max(record.timestamp for record in records) / 1000)
