"""Prometheus metrics of the lander, at its `/metrics`."""

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from core.metrics import GaugeFamily, GaugeSnapshot

REGISTRY: Final = CollectorRegistry()

LANDED_RECORDS: Final = Counter("smspulse_lander_rows_total", "Records landed.", ["topic"], registry=REGISTRY)
LANDED_FILES: Final = Counter("smspulse_lander_files_total", "Files landed.", ["topic"], registry=REGISTRY)
NEWEST_RECORD_TIME: Final = Gauge(
    "smspulse_lander_newest_record_timestamp_seconds",
    "Kafka's time of the newest record landed, in seconds since 1970.",
    ["topic"],
    registry=REGISTRY,
)
LOST_RECORDS: Final = Counter(
    "smspulse_lander_lost_records_total", "Records that Kafka deleted before they were landed.", registry=REGISTRY
)
MERGED_ROWS: Final = Counter(
    "smspulse_lander_merged_rows_total",
    "Rows written by merges of recent files: landed ones, and base files.",
    ["kind"],
    registry=REGISTRY,
)
MERGE_SECONDS: Final = Counter(
    "smspulse_lander_merge_seconds_total", "Seconds spent on merges of recent files.", registry=REGISTRY
)
FAILED_MERGES: Final = Counter(
    "smspulse_lander_failed_merges_total", "Merges of recent files that failed, and are repeated.", registry=REGISTRY
)
CONVERSION_FAULTS: Final = Counter(
    "smspulse_lander_faults_total",
    "Records that could not be converted, and were landed as their position and bytes.",
    ["topic"],
    registry=REGISTRY,
)
BLOCKED_METRIC: Final = "smspulse_lander_blocked"
BLOCKED: Final = Gauge(BLOCKED_METRIC, "1 while the data folder or bucket takes no data, else 0.", registry=REGISTRY)
LAG: Final = GaugeFamily("smspulse_lander_lag_records", "Records not yet landed, by partition.", ("topic", "partition"))
LAG_SNAPSHOT: Final = GaugeSnapshot(REGISTRY, LAG)


def count_landed_file(topic: str, rows: int, newest_at: int) -> None:
    """Count a landed file.

    Args:
        topic: Name of the topic.
        rows: Number of records in the file.
        newest_at: Kafka's timestamp of the newest record, in milliseconds since 1970.
    """
    LANDED_RECORDS.labels(topic).inc(rows)
    LANDED_FILES.labels(topic).inc()
    NEWEST_RECORD_TIME.labels(topic).set(newest_at / 1000)


def set_lander_lag(records: Mapping[tuple[str, int], int]) -> None:
    """Replace the lag of all partitions that this lander owns.

    Args:
        records: Number of records not yet landed, by topic and partition.
    """
    LAG_SNAPSHOT.replace_values(
        {LAG: {(topic, str(partition)): count for (topic, partition), count in records.items()}}
    )
