"""The Kafka topics and their configuration. `smspulse broker` and every command that needs them creates them."""

from dataclasses import dataclass
from typing import Final, Literal

RAW: Final = "sms.raw"
MESSAGES: Final = "sms.messages"
OUTCOMES: Final = "sms.outcomes"
ACTIVITY: Final = "sms.activity"
DEVICES: Final = "sms.devices"
DEADLETTERS: Final = "sms.deadletters"

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic.

    Args:
        name: As Kafka knows it.
        cleanup: `delete` by age, or `compact` to the newest record of each key.
        retention_days: How long records are kept; for compacted topics, how long a tombstone can be seen.
    """

    name: str
    cleanup: Literal["delete", "compact"]
    retention_days: float

    def config(self) -> dict[str, str]:
        """Return Kafka's topic configuration."""
        age = str(int(self.retention_days * _DAY_MS))
        common = {"cleanup.policy": self.cleanup, "message.timestamp.type": "CreateTime"}
        if self.cleanup == "compact":
            # Readers that rebuild state see a tombstone as long as a worker may be away.
            return common | {"delete.retention.ms": age, "max.compaction.lag.ms": age, "segment.bytes": str(256 << 20)}
        return common | {"retention.ms": age}


TOPICS: Final = (
    Topic(RAW, "delete", 7),
    Topic(MESSAGES, "compact", 7),
    Topic(OUTCOMES, "delete", 30),
    Topic(ACTIVITY, "delete", 7),
    Topic(DEVICES, "compact", 7),
    Topic(DEADLETTERS, "delete", 30),
)
"""Every topic. All have the same number of partitions: a message is in the partition of the same number in each, a
device in the partition that Kafka's own partitioner gives its key."""
