"""The two stages of the stream: `sms.raw` becomes messages, and their outcomes become states of devices."""

from collections.abc import Callable
from dataclasses import dataclass

from core.topics import ALERTS, DEVICES, MESSAGES, OUTCOMES, RAW
from gateway.payload_times import parse_zone
from gateway.statuses import build_status_table, parse_status_meanings
from streams.device_processor import DeviceProcessor
from streams.lifecycle import LifecycleRules
from streams.message_processor import MessageProcessor
from streams.processor import StateLoader, StreamProcessor
from streams.settings import StreamSettings


@dataclass(frozen=True, slots=True)
class ProcessingStage:
    """A step of the stream.

    Args:
        name: Part of transactional ids and folders.
        source: The topic that it reads.
        changelog: The compacted topic that it writes, in the partition of the same number.
        has_gaps: Whether offsets of the source can be missing: topics that are written in transactions have gaps.
        output_topic: Topic that it writes to in any partition, next to the changelog.
        min_commit_interval_s: Smallest number of seconds from a commit to the next run.
        make_processor: Makes the processor of a partition.
    """

    name: str
    source: str
    changelog: str
    has_gaps: bool
    output_topic: str
    min_commit_interval_s: float
    make_processor: Callable[[StateLoader, StreamSettings], StreamProcessor]


def _make_message_processor(load: StateLoader, settings: StreamSettings) -> StreamProcessor:
    expire_ms, forget_ms = int(settings.expire_after_h * 3_600_000), int(settings.forget_after_h * 3_600_000)
    lifecycle = LifecycleRules(build_status_table(parse_status_meanings(settings.status_meanings)), expire_ms)
    return MessageProcessor(lifecycle, load, parse_zone(settings.zone), settings.cache_messages, forget_ms)


# Kafka answers a commit before it has completed it. Until then the partition's next transaction has to wait, and it
# retries after 20 ms. A pause before its beginning costs less, and leaves Kafka to the other partitions.
MESSAGE_STAGE = ProcessingStage(
    "messages",
    RAW,
    MESSAGES,
    has_gaps=False,
    output_topic=OUTCOMES,
    min_commit_interval_s=0.04,
    make_processor=_make_message_processor,
)
DEVICE_STAGE = ProcessingStage(
    "devices",
    OUTCOMES,
    DEVICES,
    has_gaps=True,
    output_topic=ALERTS,
    min_commit_interval_s=1,
    make_processor=lambda load, settings: DeviceProcessor(load, settings.detector_policy),
)
STAGES = {stage.source: stage for stage in (MESSAGE_STAGE, DEVICE_STAGE)}
"""Every stage by the topic that it reads."""
