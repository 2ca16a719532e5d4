"""Input records of the stream, and readers of its topics."""

import json
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from core.kafka_settings import KafkaSettings
from core.records import message_key
from core.topics import MESSAGES, OUTCOMES, RAW

PARTITION = 2


@dataclass
class Raw:
    """A record of `sms.raw`, as aiokafka would return it."""

    source: str
    sms_id: int
    status_id: int
    offset: int
    topic: str = RAW
    partition: int = PARTITION
    timestamp: int = 1_760_000_000_000
    value: bytes | None = None
    key: bytes | None = None
    headers: list[tuple[str, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = message_key(self.source, self.sms_id)
        self.value = self.value or json.dumps({"sms_id": self.sms_id, "status_id": self.status_id}).encode()
        received = str(self.timestamp + self.offset * 1000).encode()
        self.headers = [("source", self.source.encode()), ("received_at", received)]


def partitions_of(client: Consumer | Producer, topic: str) -> list[int]:
    """Return the partitions of a topic."""
    return list(client.list_topics(topic, 10).topics[topic].partitions)


def read(kafka: KafkaSettings, topic: str, source: str) -> list[tuple[bytes, Any, dict[str, bytes]]]:
    """Return key, value and headers of the committed records of a source, in the order of each partition."""
    options = {"group.id": "reader", "isolation.level": "read_committed", "enable.partition.eof": True}
    consumer = Consumer(kafka.confluent_options() | options)
    partitions = partitions_of(consumer, topic)
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    found, ended = [], 0
    while ended < len(partitions):
        message = consumer.poll(10)
        assert message is not None
        if message.error():
            assert message.error().code() == KafkaError._PARTITION_EOF
            ended += 1
        elif (message.key() or b"").startswith(f"{source}:".encode()):
            found.append((message.key(), message.value(), dict(message.headers() or [])))
    consumer.close()
    return found


def versions(kafka: KafkaSettings, source: str) -> dict[int, list[dict[str, Any]]]:
    by_id: dict[int, list[dict[str, Any]]] = {}
    for _, value, _ in read(kafka, MESSAGES, source):
        version = json.loads(value)
        by_id.setdefault(version["sms_id"], []).append(version)
    return by_id


def outcomes(kafka: KafkaSettings, source: str) -> list[tuple[str, bool]]:
    outcomes = [json.loads(value) for _, value, _ in read(kafka, OUTCOMES, source)]
    return [(each["outcome"], each["correction"]) for each in outcomes]
