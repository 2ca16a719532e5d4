"""Prometheus metrics of ingest. Each label has only a few values, and none comes from a sender.

If several processes share a port, each counts in files of a shared folder, and each of them reports the sums.
"""

import os
from collections.abc import Iterator
from functools import cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

REQUESTS: Final = Counter(
    "smspulse_ingest_requests_total", "Requests answered, by route and HTTP status.", ["route", "code"], registry=None
)
SECONDS: Final = Histogram(
    "smspulse_ingest_webhook_seconds",
    "Time from a webhook's headers to its answer.",
    buckets=_BUCKETS_S,
    registry=None,
)
SPOOLED: Final = Counter("smspulse_ingest_spooled_total", "Webhooks that went to the spool.", registry=None)
FORWARDED: Final = Counter(
    "smspulse_ingest_forwarded_total", "Webhooks of the spool that went to Kafka, repetitions included.", registry=None
)
FAULTS: Final = Counter(
    "smspulse_ingest_faults_total",
    "Webhooks whose body could not be processed, stored as unreadable.",
    registry=None,
)


Gauges = dict[str, tuple[str, float]]
"""Gauges that are computed at each scrape: description and value by the name after `smspulse_ingest_`."""


class _GaugeCollector(Collector):
    def __init__(self, values: Gauges) -> None:
        self._values = values

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, (description, value) in self._values.items():
            yield GaugeMetricFamily(f"smspulse_ingest_{name}", description, value)


@cache
def _request_counter(route: str, code: int) -> Counter:
    return REQUESTS.labels(route, str(code))


def count_request(route: str, code: int, seconds: float) -> None:
    """Count a request."""
    _request_counter(route, code).inc()
    if route == "webhooks":
        SECONDS.observe(seconds)


def render_exposition(gauges: Gauges) -> bytes:
    """Return all metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    if FOLDER_VARIABLE in os.environ:
        MultiProcessCollector(registry)
    else:
        for metric in (REQUESTS, SECONDS, SPOOLED, FORWARDED, FAULTS):
            registry.register(metric)
    registry.register(_GaugeCollector(gauges))
    return generate_latest(registry)
