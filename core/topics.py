"""The Kafka topics and their configuration. `smspulse broker` and each command that needs them creates them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

RAW: Final = "sms.raw"
MESSAGES: Final = "sms.messages"
OUTCOMES: Final = "sms.outcomes"
DEVICES: Final = "sms.devices"
ALERTS: Final = "sms.alerts"
DEADLETTERS: Final = "sms.deadletters"

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic.

    Args:
        name: Name in Kafka.
        cleanup: `delete` by age, or `compact` to the newest record of each key.
        retention_days: Days for which records are kept; in compacted topics, for which tombstones are visible.
        partitioned_by: The unit of partitioning. A transaction of messages writes to all partitions of devices, and
            each of them costs the broker one marker. Therefore topics by device have fewer partitions.
    """

    name: str
    cleanup: Literal["delete", "compact"]
    retention_days: float
    partitioned_by: Literal["message", "device"]

    def partition_count(self, by_message: int) -> int:
        """Return the number of partitions to create, given that of a topic by message."""
        return by_message if self.partitioned_by == "message" else max(1, by_message // 4)

    def kafka_config(self) -> dict[str, str]:
        """Return Kafka's topic configuration."""
        age = str(int(self.retention_days * _DAY_MS))
        common = {"cleanup.policy": self.cleanup, "message.timestamp.type": "CreateTime"}
        if self.cleanup == "compact":
            # A worker that was away for up to this age still sees the tombstones when it reads the topic.
            return common | {"delete.retention.ms": age, "max.compaction.lag.ms": age, "segment.bytes": str(256 << 20)}
        return common | {"retention.ms": age}


TOPICS: Final = (
    TopicSpec(RAW, "delete", 7, "message"),
    TopicSpec(MESSAGES, "compact", 7, "message"),
    TopicSpec(OUTCOMES, "delete", 30, "device"),
    TopicSpec(DEVICES, "compact", 7, "device"),
    TopicSpec(ALERTS, "compact", 7, "device"),
    TopicSpec(DEADLETTERS, "delete", 30, "message"),
)
"""Every topic. A message is in the partition of the same number in each topic by message. A device is in the partition
that Kafka's own partitioner gives its key, the same in `sms.outcomes` and `sms.devices`."""


def find_partition_mismatch(counts: Mapping[str, int], by_message: int) -> tuple[str, str] | None:
    """Return the error in the topics' numbers of partitions, and its remedy; None without an error.

    Args:
        counts: The number of partitions of each topic.
        by_message: The configured number of partitions of a topic by message.
    """
    for topic in TOPICS:
        if topic.partitioned_by == "message" and (count := counts[topic.name]) != by_message:
            what = f"topic {topic.name} has {count} partitions and SMSPULSE_KAFKA_PARTITIONS is {by_message}"
            return what, f"set it to {count}, or, if no data must be kept, delete the topic"
    if counts[OUTCOMES] != counts[DEVICES]:
        what = f"topic {OUTCOMES} has {counts[OUTCOMES]} partitions and {DEVICES} has {counts[DEVICES]}"
        return what, "they must have the same number: give the smaller one more"
    return None
