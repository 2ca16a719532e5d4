"""The sink's Kafka client: its options, and whether Kafka answers."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException

from core.kafka_settings import KafkaSettings
from core.topics import RAW
from warehouse.errors import KafkaRefusedError
from warehouse.settings import LanderSettings

_log = logging.getLogger(__name__)

ANSWER_S: Final = 3.0
"""Seconds to wait for the answer to one request."""
_CLIENT: Final = {
    "client.id": "smspulse-lander",
    # Landers share the partitions of all topics evenly.
    "partition.assignment.strategy": "roundrobin",
    # How long a new topic can stay unnoticed.
    "topic.metadata.refresh.interval.ms": 10_000,
    # A broker that is back is reached within a second.
    "reconnect.backoff.max.ms": 1_000,
    # Limit of what is read ahead, in KiB of records.
    "queued.max.messages.kbytes": 16_384,
}
# Errors that do not pass with time.
_FATAL_ERROR_CODES: Final = {
    KafkaError._FATAL,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.INCONSISTENT_GROUP_PROTOCOL,
    # Records that arrive damaged would be skipped.
    KafkaError._BAD_MSG,
    KafkaError._BAD_COMPRESSION,
    KafkaError._NOT_IMPLEMENTED,
    KafkaError.INVALID_MSG,
}


class KafkaStatus:
    """Whether Kafka answers, by the client's errors. Logs when it goes away and when it is back.

    Args:
        bootstrap: Kafka's addresses, for messages.
    """

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._unavailable_since: float | None = None
        self._last_error = ""
        self.all_brokers_down = False
        """All connections were lost since this was last reset. Kafka may come back as an older copy of itself."""
        self._refusal: KafkaRefusedError | None = None

    def on_error(self, error: KafkaError) -> None:
        """Record an error of the client, which handles most errors itself."""
        self._last_error = error.str()
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.all_brokers_down = True
        if error.fatal() or error.code() in _FATAL_ERROR_CODES:
            msg = f"Kafka at {self._bootstrap} refuses to serve the lander: {self._last_error}"
            self._refusal = KafkaRefusedError(msg)

    def raise_refusal(self) -> None:
        """Raise the error that does not pass with time, if there was one.

        The client reports errors from its own calls, in which nothing can be raised.

        Raises:
            KafkaRefusedError: Kafka refuses to serve the client.
        """
        if self._refusal is not None:
            raise self._refusal

    @contextmanager
    def watch_request(self) -> Iterator[None]:
        """Record if a request fails, and go on behind it: it is repeated later."""
        try:
            yield
        except KafkaException as error:
            self._mark_unavailable(error.args[0])

    def _mark_unavailable(self, error: KafkaError) -> None:
        if error.fatal() or error.code() in _FATAL_ERROR_CODES:
            self.on_error(error)
        elif self._unavailable_since is None:
            self._unavailable_since = time.monotonic()
            _log.warning(
                "Kafka at %s is away (%s); landing goes on when it is back",
                *(self._bootstrap, self._last_error or error.str()),
            )

    def mark_available(self) -> None:
        """Record that a request was answered."""
        if self._unavailable_since is not None:
            _log.warning("Kafka is back after %.0f s", time.monotonic() - self._unavailable_since)
            self._unavailable_since = None
        self._last_error = ""

    def probe(self, consumer: Any) -> None:
        """Find out whether Kafka is away or has no new records. No poll shows the difference."""
        with self.watch_request():
            consumer.list_topics(RAW, timeout=ANSWER_S)
            self.mark_available()


def reader_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Return the options of every client that reads landed topics."""
    return kafka.confluent_options() | {
        "isolation.level": "read_committed",
        # The files have the positions. The sink commits offsets only after landing.
        "enable.auto.commit": False,
        # An end of partition also shows how far transaction markers are read, which are no records.
        "enable.partition.eof": True,
        # The sink decides on positions outside Kafka's range. A reset would guess them.
        "auto.offset.reset": "error",
        # The client's default pause between two fetches would halve the throughput.
        "fetch.queue.backoff.ms": 5,
        # The sink itself logs what matters.
        "log_level": 2,
        # The in-memory broker changes transactional batches and keeps their checksum.
        "check.crcs": not kafka.in_memory,
    }


def create_consumer(settings: LanderSettings, kafka: KafkaSettings, status: KafkaStatus) -> Any:
    """Return a consumer in the group of the settings.

    Raises:
        KafkaRefusedError: The settings for Kafka cannot be used.
    """
    session_ms = int(settings.session_timeout_s * 1000)
    options = reader_options(kafka) | _CLIENT
    options |= {
        "group.id": settings.group,
        "session.timeout.ms": session_ms,
        # Three heartbeats can be lost before the session ends.
        "heartbeat.interval.ms": session_ms // 4,
        "error_cb": status.on_error,
        # The in-memory broker creates topics on first use. On a real one they are created explicitly.
        "allow.auto.create.topics": kafka.in_memory,
    }
    # The in-memory broker has no static members.
    if settings.instance and not kafka.in_memory:
        options["group.instance.id"] = settings.instance
    try:
        return Consumer(options)
    except KafkaException as error:
        msg = f"the settings for Kafka, or its certificates, cannot be used: {error.args[0].str()}"
        raise KafkaRefusedError(msg) from error
