"""How far stream and lander are behind what Kafka holds."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from gateway.kafka import KafkaSettings

_TIMEOUT_S: Final = 3.0


def lag(kafka: KafkaSettings, groups: Mapping[str, Sequence[str]]) -> dict[str, int] | None:
    """Return how many records of its topics each group has before it; None if Kafka does not answer.

    Markers of transactions count as records: of topics that are written in transactions, some are always left.

    Args:
        kafka: Which cluster.
        groups: Consumer groups and the topics that each reads.
    """
    behind: dict[str, int] = {}
    try:
        for group, topics in groups.items():
            options = kafka.confluent() | {"group.id": group, "enable.auto.commit": False, "log_level": 0}
            with closing(Consumer(options)) as reader:
                there = reader.list_topics(timeout=_TIMEOUT_S).topics
                asked = [
                    TopicPartition(name, part) for name in topics if name in there for part in there[name].partitions
                ]
                behind[group] = 0
                for place in reader.committed(asked, _TIMEOUT_S):
                    low, end = reader.get_watermark_offsets(place, _TIMEOUT_S)
                    behind[group] += max(end - max(place.offset, low), 0)
    except KafkaException:
        return None
    return behind
