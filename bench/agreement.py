"""Compares the results of the contestants: the last versions of a sample of messages, field by field."""

from collections.abc import Collection
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from records import PARTITIONS

from core.kafka_settings import KafkaSettings

Versions = dict[bytes, dict[str, Any]]


def last_versions(kafka: KafkaSettings, topic: str, keys: Collection[bytes]) -> tuple[Versions, int]:
    """Read a whole topic; return the last version of each of the keys, and the number of records."""
    options = {"group.id": "bench-agreement", "enable.partition.eof": True, "fetch.wait.max.ms": 10}
    reader = Consumer(
        kafka.confluent_options() | options | {"isolation.level": "read_committed", "auto.offset.reset": "error"}
    )
    reader.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    wanted, values, records, ended = set(keys), dict[bytes, bytes](), 0, 0
    while ended < PARTITIONS:
        for message in reader.consume(10_000, 0.2):
            error = message.error()
            if error is None:
                records += 1
                if message.key() in wanted:
                    values[message.key()] = message.value()
            elif error.code() == KafkaError._PARTITION_EOF:
                ended += 1
            else:
                raise KafkaException(error)
    reader.close()
    return {key: orjson.loads(value) for key, value in values.items()}, records


def differences(ours: Versions, theirs: Versions, keys: Collection[bytes]) -> list[str]:
    """Return one line for each message whose last versions differ, with the differing fields."""
    found = []
    for key in keys:
        a, b = ours.get(key, {}), theirs.get(key, {})
        fields = sorted({name for name, _ in _items(a) ^ _items(b)})
        if fields or not a:
            details = ", ".join(f"{name}: ours {a.get(name)!r}, theirs {b.get(name)!r}" for name in fields[:3])
            found.append(f"{key.decode()}: {details or 'neither has it'}")
    return found


def _items(version: dict[str, Any]) -> set[tuple[str, bytes]]:
    return {(name, orjson.dumps(value)) for name, value in version.items()}
