"""Lag of readers in records: of one partition, and of the consumer groups of stream and lander."""

import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from core.kafka_settings import KafkaSettings

_log = logging.getLogger(__name__)

BROKER_PATIENCE_S: Final = 30.0
"""Time-out of each request to a broker that listens. On a busy machine, an answer takes seconds."""
_CONNECT_S: Final = 5.0
# Seconds after which a wait is logged, so that a person sees that the command has not stopped.
_SILENCE_S: Final = 3.0
_POLL_S: Final = 0.1
_OPTIONS: Final = {
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    # One record of a partition is enough to see whether there is any.
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,
    "fetch.message.max.bytes": 4096,
    "queued.min.messages": 1,
    "log_level": 0,
}


def records_behind(end: int, *positions: int) -> int:
    """Return the number of records left to read, 0 if all are read.

    It counts offsets. In a topic that is written in transactions, markers and aborted records have offsets too. So the
    result may be too large while records are left.

    Args:
        end: The offset behind the last record of the partition.
        positions: Offsets that the reader has reached: behind the last record, and behind the transaction markers that
            follow it. A reader that counts records alone never passes the markers, so never reaches the end.
    """
    return max(end - max(positions), 0)


def read_group_lag(kafka: KafkaSettings, groups: Mapping[str, Sequence[str]]) -> dict[str, int] | None:
    """Return the lag of each group in its topics, in records; None if Kafka does not answer.

    The lag is 0 if all committed records were read, also in topics that are written in transactions. A broker at whose
    address nothing listens counts as away at once.

    Args:
        kafka: Settings of the cluster.
        groups: Consumer groups and the topics that each reads.
    """
    if not is_reachable(kafka):
        return None
    behind: dict[str, int] = {}
    with log_if_slow(f"waiting for Kafka at {kafka.bootstrap}, up to {BROKER_PATIENCE_S:g} s"):
        try:
            for group, topics in groups.items():
                with closing(Consumer(kafka.confluent_options() | _OPTIONS | {"group.id": group})) as reader:
                    behind[group] = _query_lag(reader, topics)
        except KafkaException:
            return None
    return behind


def _query_lag(reader: Consumer, topics: Sequence[str]) -> int:
    """Return the number of records left in the topics."""
    there = reader.list_topics(timeout=BROKER_PATIENCE_S).topics
    asked = [TopicPartition(name, part) for name in topics if name in there for part in there[name].partitions]
    behind: dict[tuple[str, int], int] = {}
    starts: list[TopicPartition] = []
    for place in reader.committed(asked, BROKER_PATIENCE_S) if asked else []:
        low, end = reader.get_watermark_offsets(place, BROKER_PATIENCE_S)
        position = max(place.offset, low)
        if records_behind(end, position):
            behind[place.topic, place.partition] = records_behind(end, position)
            starts.append(TopicPartition(place.topic, place.partition, position))
    # A group commits the offset behind its last record. Behind that there may be only transaction markers.
    ended = _find_exhausted_partitions(reader, starts)
    return sum(records for key, records in behind.items() if key not in ended)


def _find_exhausted_partitions(reader: Consumer, starts: list[TopicPartition]) -> set[tuple[str, int]]:
    """Return the partitions without a committed record from their offset on.

    A partition that does not answer in time counts as one that has records.

    Raises:
        KafkaException: Kafka refuses to be read.
    """
    # Whether the first answer about a partition is that its end is reached.
    begins_at_end: dict[tuple[str, int], bool] = {}
    reader.assign(starts)
    deadline = time.monotonic() + BROKER_PATIENCE_S
    while len(begins_at_end) < len(starts) and time.monotonic() < deadline:
        for message in reader.consume(100, _POLL_S):
            key, error = (message.topic(), message.partition()), message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            begins_at_end.setdefault(key, error is not None)
            reader.pause([TopicPartition(*key)])
    return {key for key, is_at_end in begins_at_end.items() if is_at_end}


def is_reachable(kafka: KafkaSettings) -> bool:
    """Return whether a bootstrap server accepts connections; True also if that takes too long to find out."""
    # With TLS, the broker would log a connection without a handshake.
    return kafka.security_protocol.endswith("SSL") or any(map(is_listening, kafka.bootstrap_servers))


def is_listening(server: str) -> bool:
    """Return whether a process accepts connections at `HOST:PORT`; True also if that takes too long to find out."""
    host, _, port = server.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
            return True
    # The Kafka client reports an error in the address.
    except (TimeoutError, OverflowError, ValueError):
        return True
    except OSError:
        return False


@contextmanager
def log_if_slow(what: str, patience_s: float = _SILENCE_S) -> Iterator[None]:
    """Log the given line once if the context takes longer than a person expects."""
    timer = threading.Timer(patience_s, _log.info, [what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
