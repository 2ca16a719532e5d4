"""The lander as a process: it lands records of Kafka, and merges recent files next to that."""

import gc
import signal
from collections.abc import Callable

from core.buckets import is_bucket_address
from core.kafka_settings import KafkaSettings
from core.memory import return_large_blocks_at_once
from core.stop_request import StopRequest
from warehouse.recent_merger import RecentFileMerger
from warehouse.settings import LanderSettings
from warehouse.sink.consumer import ParquetLander


def run_lander(settings: LanderSettings, kafka: KafkaSettings, ready: Callable[[], None] = lambda: None) -> None:
    """Land until SIGTERM or SIGINT, in the main thread of a process. Raises the errors of `ParquetLander.run`.

    Args:
        settings: The lander's settings.
        kafka: How to reach Kafka.
        ready: Called each time that partitions were assigned and located.
    """
    # Records are many short-lived objects. A search for cycles after each 700 of them, the default, does not pay.
    gc.set_threshold(100_000)
    return_large_blocks_at_once()
    stop = StopRequest()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # In a bucket, no files can be replaced in one step.
    if is_bucket_address(settings.data) or not settings.merge_interval_s:
        ParquetLander(settings, kafka, stop, ready).run()
        return
    with RecentFileMerger(settings.data, settings.merge_interval_s) as merger:
        ParquetLander(settings, kafka, stop, ready, merger.notify_landed).run()
