"""Metrics of the stream worker. They count after the commit, so repetitions count once."""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from core.metrics import GaugeFamily, GaugeSnapshot
from core.topics import DEADLETTERS, OUTCOMES, RAW
from gateway.statuses import ENDS
from streams.processor import ProcessorOutput

REGISTRY: Final = CollectorRegistry()
_BUCKETS_S: Final = (1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 43_200)

RECORDS: Final = Counter("smspulse_stream_records_total", "Records read and committed.", ["topic"], registry=REGISTRY)
ENDED: Final = Counter(
    "smspulse_stream_messages_ended_total",
    "Messages at their first end, by outcome; corrections are not counted.",
    ["outcome"],
    registry=REGISTRY,
)


class _LatencyHistogram(Histogram):
    def observe_all(self, seconds: Iterable[float | None]) -> None:
        """Observe the known values. Locks twice per bucket: twice per value took a twentieth of all time."""
        known = [each for each in seconds if each is not None]
        for bucket, values in Counts(bisect_left(self._upper_bounds, each) for each in known).items():
            self._buckets[bucket].inc(values)
        self._sum.inc(sum(known))


LATENCY: Final = _LatencyHistogram(
    "smspulse_stream_latency_seconds",
    "Latency of messages at their first end: network is sent to delivered, total is first report to end.",
    ["step"],
    buckets=_BUCKETS_S,
    registry=REGISTRY,
)
DEAD: Final = Counter(
    "smspulse_stream_deadletters_total", "Records that could not be read or processed: dead letters.", registry=REGISTRY
)
FAULTS: Final = Counter(
    "smspulse_stream_faults_total",
    "Records and timers that failed in the worker: a dead letter, or a timer that is put off.",
    ["topic"],
    registry=REGISTRY,
)
LAG: Final = GaugeFamily("smspulse_stream_lag_records", "Records not yet read, by partition.", ("topic", "partition"))
LAG_SNAPSHOT: Final = GaugeSnapshot(REGISTRY, LAG)

# Created at the start, so that a rate includes the first increment.
for _outcome in ENDS:
    ENDED.labels(_outcome.value)
for _topic in (RAW, OUTCOMES):
    FAULTS.labels(_topic)
_NETWORK: Final = LATENCY.labels("network")
_TOTAL: Final = LATENCY.labels("total")


def count_commit(topic: str, records: int, outputs: ProcessorOutput) -> None:
    """Count a committed run: the number of records of a topic, and their outputs."""
    RECORDS.labels(topic).inc(records)
    for outcome, messages in Counts(end.outcome for end in outputs.ends).items():
        ENDED.labels(outcome).inc(messages)
    _NETWORK.observe_all(end.network_s for end in outputs.ends)
    _TOTAL.observe_all(end.total_s for end in outputs.ends)
    FAULTS.labels(topic).inc(outputs.faults)
    DEAD.inc(sum(output.topic == DEADLETTERS for output in outputs.records))


def set_stream_lag(records: Mapping[tuple[str, int], int]) -> None:
    """Replace the lag of all partitions of this worker.

    Args:
        records: The lag in records by topic and partition.
    """
    LAG_SNAPSHOT.replace_values(
        {LAG: {(topic, str(partition)): count for (topic, partition), count in records.items()}}
    )
