"""Prometheus metrics of ingest. Each label has only a few values, and none comes from a sender.

If several processes share a port, each counts in files of a shared folder, and each of them reports the sums.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from core.metrics import GaugeFamily, GaugeSnapshot

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_REGISTRY: Final = CollectorRegistry()

REQUESTS: Final = Counter(
    "smspulse_ingest_requests_total",
    "Requests answered, by route and HTTP status.",
    ["route", "code"],
    registry=_REGISTRY,
)
SECONDS: Final = Histogram(
    "smspulse_ingest_webhook_seconds",
    "Time from a webhook's headers to its answer.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=_REGISTRY,
)
SPOOLED: Final = Counter("smspulse_ingest_spooled_total", "Webhooks that went to the spool.", registry=_REGISTRY)
FORWARDED: Final = Counter(
    "smspulse_ingest_forwarded_total",
    "Webhooks of the spool that went to Kafka, repetitions included.",
    registry=_REGISTRY,
)
FAULTS: Final = Counter(
    "smspulse_ingest_faults_total",
    "Webhooks whose body could not be processed, stored as unreadable.",
    registry=_REGISTRY,
)

# Gauges are computed at each scrape.
KAFKA_UP: Final = GaugeFamily("smspulse_ingest_kafka_up", "Whether Kafka accepts webhooks: 1 or 0.")
SPOOL_WEBHOOKS: Final = GaugeFamily("smspulse_ingest_spool_webhooks", "Webhooks in the spool.")
SPOOL_BYTES: Final = GaugeFamily("smspulse_ingest_spool_bytes", "Size of the webhooks in the spool.")
SPOOL_LIMIT: Final = GaugeFamily("smspulse_ingest_spool_limit_bytes", "Size from which the spool accepts no more.")
SPOOL_AGE: Final = GaugeFamily("smspulse_ingest_spool_oldest_seconds", "Age of the oldest webhook in the spool.")
SPOOL_FULL: Final = GaugeFamily("smspulse_ingest_spool_full", "Whether the spool is full: 1 or 0.")
SPOOL_OVERDUE: Final = GaugeFamily(
    "smspulse_ingest_spool_overdue",
    "Whether the spool has held a webhook for five minutes, or is over half full: 1 or 0.",
)
IN_FLIGHT: Final = GaugeFamily("smspulse_ingest_webhooks_in_flight", "Webhooks not yet answered by this process.")
GAUGES: Final = GaugeSnapshot(
    _REGISTRY, KAFKA_UP, SPOOL_WEBHOOKS, SPOOL_BYTES, SPOOL_LIMIT, SPOOL_AGE, SPOOL_FULL, SPOOL_OVERDUE, IN_FLIGHT
)


@cache
def _request_counter(route: str, code: int) -> Counter:
    return REQUESTS.labels(route, str(code))


def count_request(route: str, code: int, seconds: float) -> None:
    """Count a request."""
    _request_counter(route, code).inc()
    if route == "webhooks":
        SECONDS.observe(seconds)


def render_exposition(gauges: Mapping[GaugeFamily, float], shared_folder: Path | None) -> bytes:
    """Return all metrics in Prometheus' text format. Those in the shared folder are the sums of all processes."""
    GAUGES.replace_values({family: {(): value} for family, value in gauges.items()})
    if shared_folder is None:
        return generate_latest(_REGISTRY)
    sums = CollectorRegistry()
    MultiProcessCollector(sums, str(shared_folder))
    sums.register(GAUGES)
    return generate_latest(sums)
