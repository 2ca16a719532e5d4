"""`sms.alerts`, as those read it who tell alerts, and as those write it who find some outside of the stream."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from core.alerts import Alert, decode_alert, encode_alert
from core.errors import where_raised
from core.kafka_retry import retry_kafka_call
from core.kafka_settings import KafkaSettings
from core.topics import ALERTS
from smspulse.alerting.alert_state import require_showable

_log = logging.getLogger(__name__)

_POLL_S: Final = 0.5  # how long the end of a process waits for a reader
_BATCH: Final = 500
_BROKER_TIMEOUT_S: Final = 10.0
_DELIVERY_TIMEOUT_MS: Final = 8_000  # before `flush` does, so each record has an end then
# The client says so, and goes on by itself when Kafka is back.
_TRANSIENT_ERRORS: Final = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
}


class AlertTopicReader:
    """`sms.alerts`, read from its beginning by one reader.

    Args:
        kafka: How to reach Kafka.
        group: The consumer group that offsets are committed for.

    Raises:
        KafkaException: Kafka does not answer.
    """

    def __init__(self, kafka: KafkaSettings, group: str) -> None:
        options = {"group.id": group, "enable.auto.commit": False, "isolation.level": "read_committed"}
        self._consumer = Consumer(kafka.confluent_options() | options | {"enable.partition.eof": True, "log_level": 2})
        numbers = self._consumer.list_topics(ALERTS, _BROKER_TIMEOUT_S).topics[ALERTS].partitions
        found = retry_kafka_call(
            self._consumer.committed, [TopicPartition(ALERTS, number) for number in numbers], _BROKER_TIMEOUT_S
        )
        self._committed_offsets = {each.partition: max(each.offset, 0) for each in found}
        self._next_offsets = dict(self._committed_offsets)
        self._unfinished_partitions = set(numbers)
        self._read_ahead: list[Alert] = []
        self._lock = threading.Lock()
        self.has_committed_offsets = any(each.offset >= 0 for each in found)
        self._consumer.assign([TopicPartition(ALERTS, number, OFFSET_BEGINNING) for number in numbers])

    async def read_existing_alerts(self, *, whole: bool) -> list[Alert]:
        """Return what is there already: what was committed, or the whole of it."""
        found: list[Alert] = []
        while self._unfinished_partitions:
            for partition, offset, alert in await asyncio.to_thread(self._poll_alerts, _POLL_S):
                if whole or offset < self._committed_offsets[partition]:
                    found.append(alert)
                else:
                    self._read_ahead.append(alert)
        return found

    async def read_new_alerts(self, seconds: float) -> list[Alert]:
        """Return what comes next; nothing if nothing comes for so long."""
        held, self._read_ahead = self._read_ahead, []
        return held or [alert for _, _, alert in await asyncio.to_thread(self._poll_alerts, min(seconds, _POLL_S))]

    async def commit(self) -> None:
        """Commit all that was returned."""
        offsets = [TopicPartition(ALERTS, number, offset) for number, offset in self._next_offsets.items()]
        await asyncio.to_thread(retry_kafka_call, self._consumer.commit, offsets=offsets, asynchronous=False)

    def close(self) -> None:
        """Leave Kafka."""
        with self._lock:
            self._consumer.close()

    def _poll_alerts(self, seconds: float) -> list[tuple[int, int, Alert]]:
        with self._lock:  # a reader that is cancelled leaves its thread here
            first = self._consumer.poll(seconds)
            messages = [] if first is None else [first, *self._consumer.consume(_BATCH, 0)]
        found = []
        for message in messages:
            partition, error = message.partition(), message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    self._unfinished_partitions.discard(partition)
                elif error.code() not in _TRANSIENT_ERRORS:
                    raise KafkaException(error)
                continue
            self._next_offsets[partition] = message.offset() + 1
            if not (value := message.value()):
                continue  # of a transaction that was aborted, which the in-memory broker shows
            try:
                alert = decode_alert(value)
                require_showable(alert)
            except Exception as fault:  # a DecodeError, as a rule; whatever it is, it costs this alert and no other
                _log.error(
                    "%s, partition %d, offset %d is no alert (%s), and is passed over",
                    *(ALERTS, partition, message.offset(), where_raised(fault)),
                )
                continue
            found.append((partition, message.offset(), alert))
        return found


class AlertTopicWriter:
    """Writes to `sms.alerts`, idempotently.

    Args:
        kafka: How to reach Kafka.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        options = {"enable.idempotence": True, "message.timeout.ms": _DELIVERY_TIMEOUT_MS, "log_level": 2}
        self._producer = Producer(kafka.confluent_options() | options)

    def __call__(self, alerts: Sequence[Alert]) -> list[Alert]:
        """Write changes of alerts, and return those that are on all in-sync replicas."""
        written: list[Alert] = []

        def record_delivery(alert: Alert, error: KafkaError | None) -> None:
            if error is None:
                written.append(alert)
            else:
                _log.warning("alert %s could not be written, and is again: %s", alert.id, error.str())

        for alert in alerts:

            def on_delivery(error: KafkaError | None, _: Message, alert: Alert = alert) -> None:
                record_delivery(alert, error)

            self._producer.produce(ALERTS, encode_alert(alert), alert.id.encode(), on_delivery=on_delivery)
        self._producer.flush(_BROKER_TIMEOUT_S)
        return written
