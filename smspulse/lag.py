"""How far stream and lander are behind what Kafka holds."""

import logging
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from gateway.kafka import KafkaSettings

_log = logging.getLogger(__name__)

BROKER_PATIENCE_S: Final = 30.0
"""Time for each answer of a broker that listens: on a busy machine one takes seconds."""
_CONNECT_S: Final = 5.0
_SILENCE_S: Final = 3.0


def lag(
    kafka: KafkaSettings, groups: Mapping[str, Sequence[str]], timeout_s: float = BROKER_PATIENCE_S
) -> dict[str, int] | None:
    """Return how many records of its topics each group has before it; None if Kafka does not answer.

    Markers of transactions count as records: of topics that are written in transactions, some are always left.

    Args:
        kafka: Which cluster.
        groups: Consumer groups and the topics that each reads.
        timeout_s: Time for each answer. A broker at whose address nobody listens is known to be away at once.
    """
    if not is_reachable(kafka):
        return None
    with log_if_slow(f"waiting for Kafka at {kafka.bootstrap}, up to {timeout_s:g} s"):
        return _lag(kafka, groups, timeout_s)


def _lag(kafka: KafkaSettings, groups: Mapping[str, Sequence[str]], timeout_s: float) -> dict[str, int] | None:
    behind: dict[str, int] = {}
    try:
        for group, topics in groups.items():
            options = kafka.confluent() | {"group.id": group, "enable.auto.commit": False, "log_level": 0}
            with closing(Consumer(options)) as reader:
                there = reader.list_topics(timeout=timeout_s).topics
                asked = [
                    TopicPartition(name, part) for name in topics if name in there for part in there[name].partitions
                ]
                behind[group] = 0
                for place in reader.committed(asked, timeout_s):
                    low, end = reader.get_watermark_offsets(place, timeout_s)
                    behind[group] += max(end - max(place.offset, low), 0)
    except KafkaException:
        return None
    return behind


def is_reachable(kafka: KafkaSettings) -> bool:
    """Return whether anybody accepts connections where Kafka should be; also if that cannot be known in a moment."""
    # With TLS, the broker would log a connection that brings no handshake.
    return kafka.security_protocol != "PLAINTEXT" or any(map(_is_listening, kafka.servers))


def _is_listening(server: str) -> bool:
    """Return whether anybody accepts connections at `HOST:PORT`; also if that cannot be known in a moment."""
    host, _, port = server.rpartition(":")
    if not port.isdecimal():
        return True  # the client says what is wrong with it
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
            return True
    except (TimeoutError, OverflowError):
        return True
    except OSError:
        return False


@contextmanager
def log_if_slow(what: str) -> Iterator[None]:
    """Log what is waited for, once, if a context takes longer than a person takes for granted."""
    timer = threading.Timer(_SILENCE_S, _log.info, [what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
